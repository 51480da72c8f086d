"""What the toy DiT computes, as StableDiffusion3Pipeline does (Esser et al. 2024, arXiv:2403.03206)."""

import shutil
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import pad

from core.diffusion.objective import Objective
from core.diffusion.text_states import TextStates
from core.families.base import Family
from core.families.layout import Layout
from core.families.targets import Target, text_targets
from core.families.token_count import VOCABULARY
from core.families.tokenizer import load_tokenizer
from core.record.draws import normal

CONFIGS = Path(__file__).parent / "dit_configs"
CLIP_TOKENS, T5_TOKENS = 77, 16
TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class Flow(Objective):
    """sigma = t / 1000, a fraction; logit-normal, shifted by 3."""

    prediction, fractions = "flow", True

    def draw(self, settings, address, size):
        seed, *rest = address
        at = float(torch.sigmoid(normal((1,), seed, "flow", *rest)))
        return 1000 * 3 * at / (1 + 2 * at)

    def noised(self, x0, noise, timesteps):
        s = (timesteps / 1000).view(-1, 1, 1, 1)
        return (1 - s) * x0 + s * noise

    def target(self, x0, noise, timesteps):
        return noise - x0


def _t5_tokenizer(model):
    from tokenizers import Tokenizer

    own = Path(model or CONFIGS) / "tokenizer_3" / "tokenizer.json"
    return Tokenizer.from_file(str(own if own.is_file() else CONFIGS / "tokenizer_3" / "tokenizer.json"))


def _tokenize(components, captions, max_token_length=75):
    """Ids of CLIP's two tokenizers, [B, 77], and T5's, [B, 16], with their masks."""
    first, second, third = components.tokenizers
    how = {"padding": "max_length", "truncation": True, "max_length": CLIP_TOKENS}
    ids = [torch.tensor(each(list(captions), **how)["input_ids"]) for each in (first, second)]
    words = [third.encode(caption).ids[:T5_TOKENS] for caption in captions]
    t5 = torch.tensor([[*one, *[0] * (T5_TOKENS - len(one))] for one in words])
    mask = torch.tensor([[True] * len(one) + [False] * (T5_TOKENS - len(one)) for one in words])
    return [*ids, t5, mask]


def _encode_ids(components, ids, **how):
    first, second, third = components.text_encoders
    clips = [
        encoder(own.to(encoder.device), output_hidden_states=True)
        for encoder, own in zip((first, second), ids, strict=False)
    ]
    mask = ids[3].to(third.device)
    t5 = third(ids[2].to(third.device), attention_mask=mask.long()).last_hidden_state * mask[..., None]
    longest = int(mask.sum(1).max())  # texts of different lengths meet in a batch
    return TextStates(
        torch.cat([clip.hidden_states[-2] for clip in clips], dim=-1),
        torch.cat([clip.text_embeds for clip in clips], dim=-1),
        {"t5": t5[:, :longest], "t5_mask": mask[:, :longest]},
    )


def _encode_captions(components, captions, **how):
    return _encode_ids(components, _tokenize(components, captions))


def _predict(components, noisy, timesteps, given):
    transformer, texts = components.denoiser, given.texts
    dtype = transformer.proj_out.weight.dtype
    t5 = texts.more["t5"] * texts.more["t5_mask"][..., None]
    t5 = pad(t5, (0, 0, 0, T5_TOKENS - t5.shape[1]))
    context = torch.cat([pad(texts.context, (0, t5.shape[-1] - texts.context.shape[-1])), t5], dim=1)
    return transformer(
        noisy.to(dtype),
        encoder_hidden_states=context.to(dtype),
        pooled_projections=texts.pooled.to(dtype),
        timestep=timesteps.expand(len(noisy)),
        return_dict=False,
    )[0]


def _lora_targets(part, *, conv=False):
    name = type(part).__name__
    if name == "SD3Transformer2DModel":
        for path, module in part.named_modules():
            if path.startswith("transformer_blocks.") and isinstance(module, nn.Linear):
                parent, _, attribute = path.rpartition(".")
                yield Target(f"lora_unet_{path}".replace(".", "_"), path, part.get_submodule(parent), attribute, module)
    elif name.startswith("CLIP"):
        yield from text_targets(part, "lora_te1" if part.config.hidden_size == 8 else "lora_te2")


def _misfits(configs, path):
    widths = sum(configs[name]["projection_dim"] for name in TEXTS[:2])
    wanted = configs["transformer"]["pooled_projection_dim"]
    return [] if widths == wanted else [f"its transformer takes pooled texts of width {wanted}, it gets {widths}"]


class DiTFamily(Family):
    def activation_bytes(self, pixels, batch):
        return pixels // 256 * batch * 16 * 64 * 4


FAMILY = DiTFamily(
    Layout(
        family="dit",
        configs=CONFIGS,
        denoiser="transformer",
        text_encoders=TEXTS,
        tokenizers=(load_tokenizer, partial(load_tokenizer, pad="!", pad_is_mark=False), _t5_tokenizer),
        blocks=("JointTransformerBlock",),
        misfits=_misfits,
        resolution=64,
    ),
    encode_captions=_encode_captions,
    encode_ids=_encode_ids,
    predict=_predict,
    lora_targets=_lora_targets,
    tokenize=_tokenize,
    latent_channels=16,
)


def write_model(folder, seed=1):
    """A model with random weights, as diffusers writes it."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    torch.manual_seed(seed)
    for name, made in {"transformer": SD3Transformer2DModel, "vae": AutoencoderKL}.items():
        made.from_config(made.load_config(CONFIGS / name)).save_pretrained(folder / name)
    for name in TEXTS[:2]:
        config = CLIPTextConfig.from_pretrained(CONFIGS / name)
        CLIPTextModelWithProjection(config).save_pretrained(folder / name)
    T5EncoderModel(T5Config.from_pretrained(CONFIGS / TEXTS[2])).save_pretrained(folder / TEXTS[2])
    for part in ("tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"):
        shutil.copytree(CONFIGS / part, folder / part)
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copy(VOCABULARY, folder / part)
    shutil.copy(CONFIGS / "model_index.json", folder)
    return folder
