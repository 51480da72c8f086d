"""Settings of the captioners that write sentences: BLIP, GIT, Florence-2 and vision-language models."""

from typing import Any, Literal

from pydantic import create_model

from core.record.workspace import last_part
from core.settings.base import Settings, kohya_setting, setting
from core.settings.captioning.prompts import CAPTION_TYPES, LENGTHS, TOGGLES
from core.settings.captioning.tagger import DecodeThreads

# What GIT's TextCaps models invent about writing: sd-scripts 0.9.0, make_captions_by_git.py, --remove_words.
_END = r"(?:\s+(?:is\s+)?(?:on|in)\s+(?:(?:the|her|his|its|their|him)\s+)?\w+)?"
INVENTED_WRITING = [
    rf"""\b(?:has|with|and)\s+the\s+(?:words?|letters?|name)\s+(?:"[^"]*"|'[^']*'|\w+){_END}""",
    r"""(?:\bwith\s+a\s+sign\s+)?\bthat\s+says\s+(?:"[^"]*"|\w+)(?:\s+on\s+it)?""",
    r"""(?:\bwith\s+a\s+sign\s+)?\bthat\s+says\s*'(?:[^']|(?<=\w)'(?=\w))*'(?:\s+on\s+it)?""",
    r"\bwith\s+the\s+number\s+\d+\s+on\s+(?:it|\w+\s+\w+)",
    r"""\bwith\s+the\s+words?\s+["']""",
    r"\bword\s+\w+\s+on\s+it",
    r"\bthat\s+says\s+the\s+word\s+\w+\s+on\s+it",
    r"""\bthat\s+says\s*'\s*the\s+word\s+["'](?:\s+on\s+it)?""",
]
_KIND = r"(?:image|photo|photograph|picture|illustration|artwork|drawing|painting|scene|screenshot)"
OPENERS = [
    r"(?:sure|certainly|of course)\b[^.:!\n]{0,80}[.:!]",
    r"here(?:'s| is) (?:a|an|the|your) [^.:!\n]{0,80}:",
    r"(?:caption|description|prompt|answer)\s*:",
    rf"in (?:this|the) {_KIND},? (?:we (?:can )?see|there (?:is|are))",
    rf"(?:this|the) (?:\w+ ){{0,2}}{_KIND} (?:shows|depicts|features|displays|presents|captures|portrays|showcases|is of|is)",
]


def _model(default: str, help: str, kohya: str = "") -> Any:
    """Declare the setting for the captioning model; `help` follows the sentence on folders and Hub names.
    kohya: name in sd-scripts, "" for none"""
    about = "A folder below models/captioners, any other folder, or owner/name of the Hugging Face Hub. "
    return setting(
        default,
        title="Model",
        level="shown",
        names="path or name",
        widget="folder",
        kohya=kohya,
        help=about + help,
        max_length=500,
    )


def _decoding(default: str, help: str = "", kohya: str = "") -> Any:
    """Declare the choice of greedy decoding, beam search or sampling; `help` follows the explanation of the three.

    default   "greedy", "beams" or "sample"
    kohya     name in sd-scripts, "" for none
    """
    what = "Greedy takes the most likely word each time, beam search compares several sentences, sampling picks at random. "
    labels = {"greedy": "greedy", "beams": "beam search", "sample": "sampling"}
    return setting(
        default,
        title="Decoding",
        level="shown",
        section="Generation",
        labels=labels,
        kohya=kohya,
        help=(what + help).strip(),
    )


def _new_tokens(default: int, kohya: str = "") -> Any:
    """Declare the maximum number of generated tokens. kohya: name in sd-scripts, "" for none"""
    help = "Maximum length of the answer, without the prompt; a word is about 1.3 tokens. Longer answers are cut off, even mid-sentence."
    return setting(
        default, within=(1, 4096), title="Max new tokens", level="shown", unit="tokens", kohya=kohya, help=help
    )


class CaptionModelSettings(Settings):
    """The captioning model, its device, precision and batch size."""

    model: str = _model("", "")
    download: bool = setting(
        False,
        title="Download if missing",
        level="shown",
        help="Downloads the model to models/captioners if it is missing or incomplete.",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32", "8bit", "4bit"] = setting(
        "auto",
        labels={"auto": "automatic", "8bit": "8-bit", "4bit": "4-bit"},
        costs="memory",
        help="Dtype of the weights. 8-bit and 4-bit (NF4) take half or a quarter of the memory of bf16, with slightly worse captions; they need bitsandbytes.",
    )
    device: Literal["auto", "cpu"] = setting(
        "auto",
        labels={"auto": "automatic", "cpu": "CPU"},
        help="Automatic uses the GPU if there is one. CPU is slow, but runs models that do not fit into VRAM.",
    )
    batch_size: int = kohya_setting(
        1,
        within=(1, 256),
        unit="images",
        costs="memory",
        help="Images per batch. Halved automatically when memory runs out.",
    )
    decode_threads: DecodeThreads = 4
    max_image_side: int | None = setting(
        1024,
        within=(32, 8192),
        unit="pixels",
        hint="original size",
        costs="memory, speed",
        help="Larger images are downscaled first. Matters for models such as Qwen-VL, which use more tokens for larger images; 512 to 1024 is usual.",
    )

    def summary(self) -> str:
        """Return the model's name without its folder or owner."""
        return last_part(self.model)


class CaptionGenerationSettings(Settings):
    """How the captioning model generates text: decoding, sampling parameters, lengths, and words to avoid or require."""

    decoding: Literal["greedy", "beams", "sample"] = _decoding("greedy")
    num_beams: int = kohya_setting(
        3, within=(1, 32), title="Beams", costs="memory, speed", help="Number of beams in beam search. 3 is usual."
    )
    temperature: float = setting(
        0.6, gt=0, le=5, help="For sampling: lower is more certain, higher more varied. 0.6 is usual."
    )
    top_p: float | None = kohya_setting(
        0.9,
        gt=0,
        le=1,
        title="Top-p",
        hint="off",
        help="For sampling: picks only among the most likely tokens whose probabilities add up to this. 0.9 is usual.",
    )
    top_k: int | None = setting(
        None,
        within=(1, 1000),
        title="Top-k",
        hint="off",
        help="For sampling: picks only among this many of the most likely tokens. 50 is usual.",
    )
    seed: int = kohya_setting(
        42,
        within=(0, 2**63 - 1),
        help="For sampling: the same seed gives an image of the same name the same caption, regardless of order and batch size.",
    )
    max_new_tokens: int = _new_tokens(75)
    min_new_tokens: int = setting(
        0,
        within=(0, 4096),
        unit="tokens",
        kohya="min_length",
        help="Minimum length of the answer. More than the model would write by itself leads to repetition.",
    )
    repetition_penalty: float | None = setting(
        None,
        within=(0.1, 10),
        hint="the model's own",
        help="Lowers the probability of words already used: 1 is off, 1.1 to 1.5 is usual.",
    )
    length_penalty: float = setting(
        1.0, within=(-10, 10), help="For beam search: above 1 prefers longer captions, below 1 shorter ones."
    )
    no_repeat_ngram_size: int | None = setting(
        None,
        within=(1, 100),
        title="No-repeat n-gram size",
        unit="tokens",
        hint="off",
        help="No sequence of this many tokens occurs twice in a caption (no_repeat_ngram_size). 3 is usual if a model repeats itself.",
    )
    words_to_avoid: list[str] = setting(
        default_factory=list, widget="lines", help="Words or phrases that the model must not generate, one per line."
    )
    required_words: list[str] = setting(
        default_factory=list,
        widget="lines",
        help="Words or phrases that every caption must contain, one per line. If one is missing, sampling tries once more; words still missing are appended.",
    )
    retry_repetition: bool = setting(
        True,
        title="Retry repetitive captions",
        help="Generates a caption again if it repeats a phrase over and over, and cuts any remaining repetition.",
    )


class CaptionCleaningSettings(Settings):
    """What is removed from the generated text: openers, Markdown, incomplete sentences."""

    openers: list[str] = setting(
        default_factory=lambda: list(OPENERS),
        title="Openers to remove",
        section="Cleaning",
        widget="lines",
        help="Regular expressions, one per line, removed from the start of a caption; case is ignored. Empty keeps openers such as The image shows.",
    )
    plain_text: bool = setting(True, help="Removes Markdown and quotes around the whole caption.")
    whole_sentences: bool = setting(True, help="Removes the last sentence if it was cut off.")
    max_caption_tokens: int | None = setting(
        None,
        within=(1, 4096),
        unit="tokens",
        hint="no limit",
        help="Cuts captions at the end of a sentence to at most this many CLIP tokens. 75 is one chunk in Stable Diffusion.",
    )


class BlipSettings(CaptionCleaningSettings, CaptionGenerationSettings, CaptionModelSettings):
    """Describes images with BLIP or BLIP-2."""

    model: str = _model(
        "Salesforce/blip-image-captioning-large", "BLIP large is fast and writes one short sentence.", "caption_weights"
    )
    prompt: str = setting(
        "a picture of",
        level="shown",
        max_length=2000,
        help="Start of a sentence that the model continues; not part of the caption. For BLIP-2, Question: what is shown? Answer: also works.",
    )
    decoding: Literal["greedy", "beams", "sample"] = _decoding("beams", "sd-scripts samples by default.", "beam_search")
    temperature: float = setting(
        1.0, gt=0, le=5, help="For sampling: lower is more certain, higher more varied. 1 is BLIP's default."
    )
    max_new_tokens: int = _new_tokens(75, "max_length")
    min_new_tokens: int = setting(
        5, within=(0, 4096), unit="tokens", kohya="min_length", help="Minimum length of the answer; 5 is usual."
    )
    repetition_penalty: float | None = setting(
        None,
        within=(0.1, 10),
        hint="1.1 when sampling",
        help="Lowers the probability of words already used: 1 is off; 1.5 is usual for BLIP-2. Empty is 1.1 for sampling and the model's own otherwise.",
    )


class GitSettings(CaptionCleaningSettings, CaptionGenerationSettings, CaptionModelSettings):
    """Describes images with GIT."""

    model: str = _model(
        "microsoft/git-large-textcaps", "GIT is fast; its TextCaps models also read text in images.", "model_id"
    )
    max_new_tokens: int = _new_tokens(50, "max_length")
    remove_words: list[str] = kohya_setting(
        default_factory=lambda: list(INVENTED_WRITING),
        title="Hallucinated text",
        section="Cleaning",
        widget="lines",
        source="sd-scripts 0.9.0, make_captions_by_git.py",
        help="Regular expressions, one per line; every match is removed. The default removes phrases such as with the words on it, which TextCaps models hallucinate.",
    )


class FlorenceSettings(CaptionCleaningSettings, CaptionGenerationSettings, CaptionModelSettings):
    """Describes images with Florence-2."""

    model: str = _model(
        "florence-community/Florence-2-large",
        "Use florence-community's conversions; Microsoft's originals need remote code.",
    )
    detail: Literal["brief", "detailed", "more-detailed"] = setting(
        "more-detailed",
        level="shown",
        labels={"brief": "one sentence", "detailed": "detailed", "more-detailed": "more detailed"},
        help="Length of the caption: one sentence, a few, or a paragraph.",
    )
    decoding: Literal["greedy", "beams", "sample"] = _decoding("beams")
    max_new_tokens: int = _new_tokens(1024)


class _PromptSettings(Settings):
    """The prompt of a vision-language model."""

    caption_type: Literal[tuple(CAPTION_TYPES)] = setting(  # type: ignore[valid-type]
        "training",
        level="shown",
        section="Prompt",
        labels={name: label for name, (label, _) in CAPTION_TYPES.items()},
        source="JoyCaption Beta One",
        help="The kind of caption to ask for. 'For training' suits every model; JoyCaption was trained with the others.",
    )
    caption_length: Literal[tuple(LENGTHS)] = setting(  # type: ignore[valid-type]
        "any", level="shown", labels=LENGTHS, help="The length to ask for; models follow it roughly."
    )
    caption_words: int | None = setting(
        None,
        within=(1, 1000),
        title="Max words",
        unit="words",
        hint="no limit",
        help="Asks for captions of at most this many words; 20 to 260 is usual.",
    )
    prompt: str = setting(
        "",
        title="Custom prompt",
        level="shown",
        widget="text",
        max_length=20_000,
        help="Replaces caption type, length and the options below. {tags} is the image's current caption, {name} its file name, {folder} its folder's class tokens or name, {trigger} the trigger word.",
    )
    system_prompt: str = setting(
        "You are a helpful image captioner.",
        max_length=20_000,
        hint="none",
        help="Instructions that the model gets before the prompt. The default is what JoyCaption was trained with; empty sends none.",
    )
    caption_start: str = setting(
        "",
        title="Start of caption",
        widget="text",
        max_length=2000,
        help="Every caption begins with this text, and the model continues it. Accepts the same {...} names as the prompt.",
    )
    person_name: str = setting(
        "",
        title="Person's name",
        max_length=500,
        hint="none",
        help="Asks the model to call the person or character by this name; {trigger} is the trigger word.",
    )
    thinking_tokens: int | None = setting(
        None,
        within=(1, 16_384),
        unit="tokens",
        hint="off",
        costs="speed",
        help="For reasoning models: maximum tokens of thinking, in addition to the answer. The thinking is never written.",
    )


_added: Any = {
    name: (bool, setting(False, title=title, help=f"Adds to the prompt: {sentence}"))
    for name, (title, sentence) in TOGGLES.items()
}
VlmPromptSettings: Any = create_model("VlmPromptSettings", __base__=_PromptSettings, **_added)


class VlmSettings(CaptionCleaningSettings, CaptionGenerationSettings, VlmPromptSettings, CaptionModelSettings):
    """Describes images with a vision-language model."""

    model: str = _model(
        "fancyfeast/llama-joycaption-beta-one-hf-llava",
        "JoyCaption writes the best training captions (17 GB); Qwen/Qwen3-VL-4B-Instruct and HuggingFaceTB/SmolVLM-Instruct are smaller.",
    )
    decoding: Literal["greedy", "beams", "sample"] = _decoding("sample")
    max_new_tokens: int = _new_tokens(512)
