"""The text that a vision-language model is asked, from the settings and what is known of an image. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from core.captioning.report import Row
from core.record.problems import Problem
from core.settings.captioning.prompts import CAPTION_TYPES, LENGTHS, PERSON, PLACEHOLDERS, TOGGLES
from core.settings.captioning.sentences import VlmSettings

_NAME = re.compile(r"\{([A-Za-z_]+)\}")
_IN_BRACES = ("prompt", "caption_start", "person_name")  # settings in which names stand in braces


def facts_of(row: Row) -> dict[str, str]:
    """What the names in braces stand for."""
    own = " ".join(row.caption.text.split()) if row.caption.source in ("file", "metadata") else ""
    folder = row.image.words or row.image.path.parent.name
    return {
        "tags": own,
        "name": row.image.path.stem,
        "folder": folder,
        "trigger": row.settings.trigger_word or "",
    }


def filled(text: str, facts: Mapping[str, str]) -> str:
    """With the names in braces replaced, once: what replaces them is not looked at again."""
    return _NAME.sub(lambda found: facts.get(found[1], found[0]), text)


def prompt_of(settings: VlmSettings, facts: Mapping[str, str]) -> str:
    """The prompt for one image."""
    if settings.prompt.strip():
        return filled(settings.prompt, facts)
    length = "" if settings.caption_length == "any" else f"{LENGTHS[settings.caption_length]} "
    words = "" if settings.caption_words is None else f" in {settings.caption_words} words or less"
    asked = [CAPTION_TYPES[settings.caption_type][1].format(length=length, words=words)]
    person = filled(settings.person_name, facts).strip()
    asked += [PERSON.format(person=person)] if person else []
    asked += [sentence for name, (_, sentence) in TOGGLES.items() if getattr(settings, name)]
    return " ".join(asked)


def prompt_problems(settings: VlmSettings) -> list[Problem]:
    """Names in braces that stand for nothing."""
    found = []
    for setting in _IN_BRACES:
        unknown = set(_NAME.findall(getattr(settings, setting))) - set(PLACEHOLDERS)
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        found += [
            Problem(f"{{{name}}} is not a known name", f"vlm.{setting}", f"use {known}", code="captioner.unknown-name")
            for name in sorted(unknown)
        ]
    return found
