"""Small random models of the real classes, saved as folders with their processors, as a hub has them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = "a an the of on in with and picture fox cat dog tree snow red blue old small sits runs looks under over".split()
MARKS = [".", ",", "<", ">", "?", "!", "'", '"', "/", ":", "-"]
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SIZE = 32


def tokenizer(
    *special: str, bos: str | None = "[BOS]", ends: bool = False, **more: object
) -> hf.PreTrainedTokenizerFast:
    """A word-level tokenizer. ends: sentences stand between the first and the last token, as BERT's do."""
    names = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *special]
    vocab = {word: number for number, word in enumerate([*names, *WORDS, *MARKS])}
    made = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    if ends:
        made.post_processor = TemplateProcessing("[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)])
    given = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]", "bos_token": bos} | more
    found = hf.PreTrainedTokenizerFast(tokenizer_object=made, **{key: value for key, value in given.items() if value})
    found.add_special_tokens({"additional_special_tokens": list(special)}, replace_extra_special_tokens=False)
    return found


def _text(words: hf.PreTrainedTokenizerFast, **more: object) -> dict:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 512}
    return {"vocab_size": len(words), **sizes, **tokens, **more}


VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": SIZE, "patch_size": 16}
SQUARE = {"height": SIZE, "width": SIZE}


def _blip(folder: Path) -> None:
    words = tokenizer(ends=True)
    text = _text(words, encoder_hidden_size=16, sep_token_id=3)
    config = hf.BlipConfig(text_config=text, vision_config=VISION, projection_dim=16, image_text_hidden_size=16)
    _save(folder, hf.BlipForConditionalGeneration(config), words, hf.BlipImageProcessor(size=SQUARE), "BlipProcessor")


def _blip2(folder: Path) -> None:
    words = tokenizer("<image>")
    former = {
        key: value for key, value in VISION.items() if "size" not in key or key in ("hidden_size", "intermediate_size")
    }
    text = hf.OPTConfig(**_text(words), ffn_dim=32, word_embed_proj_dim=16)
    config = hf.Blip2Config(
        vision_config=VISION,
        qformer_config=former | {"encoder_hidden_size": 16, "vocab_size": len(words)},
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=4,
    )
    model = hf.Blip2ForConditionalGeneration(config)
    _save(folder, model, words, hf.BlipImageProcessor(size=SQUARE), "Blip2Processor", num_query_tokens=4)


def _git(folder: Path) -> None:
    words = tokenizer(ends=True)
    images = hf.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE)
    _save(folder, hf.GitForCausalLM(hf.GitConfig(vision_config=VISION, **_text(words))), words, images, "GitProcessor")


def _florence(folder: Path) -> None:
    words = tokenizer("<image>", image_token="<image>")
    text = {"model_type": "bart", "vocab_size": len(words), "d_model": 16, "max_position_embeddings": 256}
    for side in ("encoder", "decoder"):
        text |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 32}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    vision = {"embed_dim": [8, 16], "depths": [1, 1], "num_heads": [2, 2], "num_groups": [2, 2], "patch_size": [7, 3]}
    vision |= {"patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True], "window_size": 4}
    vision |= {"projection_dim": 16, "max_position_embeddings": 50}
    config = hf.Florence2Config(text_config=text, vision_config=vision, image_token_id=4)
    images = hf.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False, image_seq_length=65)
    images.image_seq_length = 65
    _save(folder, hf.Florence2ForConditionalGeneration(config), words, images, "Florence2Processor")


def _llava(folder: Path, width: int = 16) -> None:
    words = tokenizer("<image>", image_token="<image>")
    text = hf.LlamaConfig(
        **_text(words) | {"hidden_size": width, "intermediate_size": 2 * width}, num_key_value_heads=2
    )
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION), text_config=text, image_token_index=4, vision_feature_layer=-1
    )
    given = {"patch_size": 16, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    images = hf.CLIPImageProcessor(size=SQUARE, do_center_crop=False)
    _save(folder, hf.LlavaForConditionalGeneration(config), words, images, "LlavaProcessor", CHAT, **given)


def _qwen(folder: Path) -> None:
    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    words = tokenizer(*names, bos=None)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    tokens = zip(("image", "video", "vision_start", "vision_end"), words.convert_tokens_to_ids(names), strict=True)
    config = hf.Qwen2VLConfig(
        text_config=_text(words, num_key_value_heads=2, rope_parameters=rope),
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2},
        **{f"{name}_token_id": number for name, number in tokens},
    )
    images = hf.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=4 * 28 * 28)
    chat = CHAT.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    _save(folder, hf.Qwen2VLForConditionalGeneration(config), words, images, "", chat)


def _smol(folder: Path) -> None:
    words = tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    text = {"model_type": "llama", "num_key_value_heads": 2} | _text(words)
    config = hf.SmolVLMConfig(text_config=text, vision_config=VISION, image_token_id=4, scale_factor=1)
    side = {"longest_edge": SIZE}
    images = hf.SmolVLMImageProcessor(size=side, max_image_size=side, do_image_splitting=False)
    _save(folder, hf.SmolVLMForConditionalGeneration(config), words, images, "SmolVLMProcessor", CHAT, image_seq_len=4)


def _save(folder: Path, model, words, images, kind: str, chat: str = "", **given: object) -> None:
    """As on the hub: what the processor is made of lies in files of its own."""
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    images.save_pretrained(folder)
    if kind:
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": kind, **given}))
    if chat:
        (folder / "chat_template.jinja").write_text(chat)


MAKERS = {"blip": _blip, "blip2": _blip2, "git": _git, "florence": _florence, "llava": _llava, "qwen": _qwen}
MAKERS |= {"smol": _smol, "wide": lambda folder: _llava(folder, 64)}  # 4-bit on a CPU needs multiples of 32


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    """A model of this kind in a folder that is not there yet. Its weights are large enough that its words differ by image."""
    torch.manual_seed(seed)
    MAKERS[kind](folder)
    return folder
