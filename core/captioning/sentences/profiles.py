"""Which models each captioner takes, by the model_type of their config, and the files that they need."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """A captioner: its task, what it is called, and the model types it takes (all of them native in transformers).

    chat  its prompts go through the chat template of the model
    """

    task: str
    title: str
    types: tuple[str, ...]
    chat: bool = False


# Without those whose processors need packages that are not here: gemma3n and gemma4 (timm, audio), mistral3 (torchvision).
CHAT = (
    "aya_vision cohere2_vision gemma3 glm4v glm4v_moe granite4_vision idefics2 idefics3 internvl lfm2_vl llava llava_next"
    " llava_onevision mllama ovis2 qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_vl qwen3_vl_moe smolvlm vipllava"
)
PROFILES = {
    profile.task: profile
    for profile in (
        Profile("blip", "BLIP", ("blip", "blip-2")),
        Profile("git_caption", "GIT", ("git",)),
        Profile("florence", "Florence-2", ("florence2",)),
        Profile("vlm", "Vision-language model", tuple(CHAT.split()), chat=True),
    )
}
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What a model needs besides config and weights -> the files it can be in, one of each set complete.
NEEDS = {
    "the image processor": (("preprocessor_config.json",), ("processor_config.json",)),
    "the tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",)),
}
TEMPLATES = ("chat_template.jinja", "chat_template.json")
SMALL = re.compile(r"[\w.-]+\.(json|txt|jinja)")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_OTHER_INDEX = re.compile(r".*\.(bin|msgpack|h5)\.index\.json")
PICKLED = re.compile(r".*\.(bin|pt|pth|pkl|ckpt)")


def profile_of(model_type: str) -> Profile | None:
    """The captioner that takes a model type."""
    return next((profile for profile in PROFILES.values() if model_type in profile.types), None)


def wanted(names: Iterable[str]) -> list[str]:
    """Of a repository's files those to download. config.json comes last: without it a folder is not complete."""
    small = [name for name in names if SMALL.fullmatch(name) and not _OTHER_INDEX.fullmatch(name)]
    chosen = dict.fromkeys([*small, *(name for name in names if _WEIGHTS.fullmatch(name))])
    return [*(name for name in chosen if name != CONFIG), *(name for name in chosen if name == CONFIG)]
