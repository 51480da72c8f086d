"""The profiles of the captioners that write sentences, and their prompts. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.captioning.combining import pattern_problems, without_matches
from core.record.problems import Problem
from core.settings.base import Settings
from core.settings.captioning.prompts import CAPTION_TYPES, LENGTHS, PERSON, PLACEHOLDERS, TOGGLES
from core.settings.captioning.sentences import BlipSettings, FlorenceSettings, GitSettings, VlmSettings

if TYPE_CHECKING:
    from core.captioning.report import Row

Texts = dict[str, str]


@dataclass(frozen=True)
class Profile:
    """A captioner that writes sentences.

    task     name of the task, and of its group of settings
    about    description of the command
    types    supported values of the config's model_type, all native in transformers
    chat     whether prompts go through the model's chat template
    texts    (settings, result of `facts_of`) -> `prompt`, `system` and `start` of a query (generating.py)
    finish   (caption, settings) -> caption to write
    check    (settings) -> problems
    """

    task: str
    title: str
    about: str
    settings: type[Settings]
    types: tuple[str, ...]
    chat: bool = False
    texts: Callable[[Any, Texts], Texts] = lambda settings, facts: {}
    finish: Callable[[str, Any], str] = lambda caption, settings: caption
    check: Callable[[Any], list[Problem]] = lambda settings: []


# ---- the prompt of vision-language models

_NAME = re.compile(r"\{([A-Za-z_]+)\}")
_WITH_NAMES = ("prompt", "caption_start", "person_name")  # settings in which names stand in braces


def facts_of(row: Row) -> Texts:
    """Return the values of the names in braces in an image's prompt: "tags" (its caption), "name", "folder", "trigger"; "" if unknown."""
    return {
        "tags": " ".join(row.caption.text.split()) if row.caption.source in ("file", "metadata") else "",
        "name": row.image.path.stem,
        "folder": row.image.class_tokens or row.image.path.parent.name,
        "trigger": row.settings.trigger_word or "",
    }


def filled(text: str, facts: Mapping[str, str]) -> str:
    """Return the text with known {names} replaced by their values. Braces in the values stay."""
    return _NAME.sub(lambda match: facts.get(match[1], match[0]), text)


def prompt_of(settings: VlmSettings, facts: Mapping[str, str]) -> str:
    """Return the prompt for one image: the setting, else one built from caption type, length and options."""
    if settings.prompt.strip():
        return filled(settings.prompt, facts)
    length = "" if settings.caption_length == "any" else f"{LENGTHS[settings.caption_length]} "
    words = "" if settings.caption_words is None else f" in {settings.caption_words} words or less"
    sentences = [CAPTION_TYPES[settings.caption_type][1].format(length=length, words=words)]
    person = filled(settings.person_name, facts).strip()
    sentences += [PERSON.format(person=person)] if person else []
    sentences += [sentence for name, (_, sentence) in TOGGLES.items() if getattr(settings, name)]
    return " ".join(sentences)


def prompt_problems(settings: VlmSettings) -> list[Problem]:
    """Return a problem for each unknown name in braces."""
    fix = f"use {', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}"
    return [
        Problem(f"{{{name}}} is not a known name", f"vlm.{setting}", fix, code="captioner.unknown-name")
        for setting in _WITH_NAMES
        for name in sorted(set(_NAME.findall(getattr(settings, setting))) - set(PLACEHOLDERS))
    ]


def _chat_texts(settings: VlmSettings, facts: Texts) -> Texts:
    """Return the prompt, system prompt and start of a vision-language model's query."""
    start = filled(settings.caption_start, facts)
    return {"prompt": prompt_of(settings, facts), "system": settings.system_prompt, "start": start}


# ---- the table


def _without_invented_writing(caption: str, settings: GitSettings) -> str:
    """Return the caption without the matches of `remove_words`: GIT invents writing on images."""
    for pattern in settings.remove_words:
        caption = without_matches(pattern, caption)
    return " ".join(caption.split())


# The whole prompt: Florence-2 takes nothing else.
FLORENCE_TASKS = {"brief": "<CAPTION>", "detailed": "<DETAILED_CAPTION>", "more-detailed": "<MORE_DETAILED_CAPTION>"}
# Without those whose processors need packages that are not here: gemma3n and gemma4 (timm, audio), mistral3 (torchvision).
CHAT = (
    "aya_vision cohere2_vision gemma3 glm4v glm4v_moe granite4_vision idefics2 idefics3 internvl lfm2_vl llava llava_next"
    " llava_onevision mllama ovis2 qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_vl qwen3_vl_moe smolvlm vipllava"
)
PROFILES = {
    profile.task: profile
    for profile in (
        Profile(
            "blip",
            "BLIP captions",
            "describe images with BLIP or BLIP-2",
            BlipSettings,
            ("blip", "blip-2"),
            texts=lambda settings, facts: {"prompt": settings.prompt.strip()},
        ),
        Profile(
            "git_caption",
            "GIT captions",
            "describe images with GIT",
            GitSettings,
            ("git",),
            finish=_without_invented_writing,
            check=lambda settings: pattern_problems(settings.remove_words, "git_caption.remove_words"),
        ),
        Profile(
            "florence",
            "Florence-2 captions",
            "describe images with Florence-2",
            FlorenceSettings,
            ("florence2",),
            texts=lambda settings, facts: {"prompt": FLORENCE_TASKS[settings.detail]},
        ),
        Profile(
            "vlm",
            "Vision-language captions",
            "describe images with a vision-language model",
            VlmSettings,
            tuple(CHAT.split()),
            chat=True,
            texts=_chat_texts,
            check=prompt_problems,
        ),
    )
}


def profile_of(model_type: str) -> Profile | None:
    """Return the profile that supports a model_type; None for an unsupported one."""
    return next((profile for profile in PROFILES.values() if model_type in profile.types), None)
