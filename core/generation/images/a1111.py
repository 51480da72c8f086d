"""A1111's `parameters` text: writes the settings of an image for Forge, image sites and other programs, and reads theirs."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isnan
from typing import Any

from core.generation.images.a1111_rows import ROWS
from core.generation.images.a1111_topics import SettingsReader, read_hashes, read_pairs, written_pairs
from core.generation.images.record import ForeignSettings, ImageRecord
from core.generation.model.sources import Hashes
from core.generation.prompt.loras import LARGEST, LoraTag, split_tags, tag_of, use_of
from core.record.bounded_json import json_or_none
from core.settings.generation.generate import GenerateSettings
from core.settings.job import GenerateJob

LONGEST_TEXT = 200_000  # characters of A1111's text

# One `Name: value` of A1111's settings; values with commas or colons are quoted and escaped as in JSON, or are JSON.
NAME = re.compile(r"(\w[\w \-/().+&']{0,80}+):[ \t]*")
VALUE = re.compile(r'"(?:\\[\s\S]|[^\\"])*+"(?=[ \t]*(?:,|\n|\Z))|[^,\n]*')
AFTER = re.compile(r"[ \t]*(?:,|\n|\Z)")
KNOWN = frozenset({*(row.key for row in ROWS), "Size", "Sampler", "Schedule type", "Model", "Model hash", "Version"})
WEIGHTED = re.compile(r"\s*([^:,]{1,200}+):\s*(-?\d{1,3}(?:\.\d{1,6})?)(?=,|$)")  # of Fooocus: "ink: 0.5"
NEGATIVE = re.compile(r"\s?(Negative prompt:)", re.IGNORECASE)
FLAT = re.compile(r"\bSteps: \d{1,4}, (?=\w[\w ]{0,30}: )")
OF_EXTRAS = "Postprocess "  # prefixes of names of A1111's Extras tab
JSON = re.compile(r'\s*(\[\s*)?\{\s*"')  # of unknown programs; no prompt starts with these


# -- writing


def a1111_text(job: GenerateJob, hashes: Hashes) -> str:
    """Return A1111's `parameters` text: prompt with LoRA tags, negative prompt, and a line of `Name: value` pairs.

    Settings that A1111 does not have are written under Atelier's names.
    """
    settings = job.generate
    tags = "".join(f" {tag_of(use, settings.steps)}" for use in settings.loras)
    lines = [settings.prompt + tags]
    if settings.negative_prompt:
        lines.append(f"Negative prompt: {settings.negative_prompt}")
    pairs = written_pairs(job, hashes)
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in pairs.items() if value not in (None, "")))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    """Return a value as text, quoted as JSON if it contains a comma, colon, quote or line break."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',\n:"') else text


# -- reading


def a1111_parts(text: str) -> tuple[str, str, dict[str, str]]:
    """Split A1111's text into (prompt, negative prompt, {A1111's name: value}); {} if it has no line of settings."""
    lines = text.strip().replace("\r\n", "\n").split("\n")
    settings_start = _settings_line(lines)
    if settings_start == len(lines) and (flat := FLAT.search(text)):  # websites join all lines
        lines = [*NEGATIVE.sub(r"\n\1", text[: flat.start()], 1).strip().split("\n"), text[flat.start() :].strip()]
        settings_start = len(lines) - 1
    start = next((number for number, line in enumerate(lines[:settings_start]) if NEGATIVE.match(line)), settings_start)
    prompt = "\n".join(lines[:start]).strip()
    negative = NEGATIVE.sub("", "\n".join(lines[start:settings_start]), 1).strip()
    return prompt, negative, _pairs("\n".join(lines[settings_start:]))


def _settings_line(lines: Sequence[str]) -> int:
    """Return the index of the line where the settings begin; len(lines) if there are none.

    A value with line breaks may continue on the lines after it.
    """
    end, last = len(lines), len(lines) - 1
    pairs_in = {number: _pairs(line) for number, line in enumerate(lines) if NAME.match(line.lstrip())}
    numbered = (number for number in reversed(pairs_in) if len(pairs_in[number]) >= 3 and _has_steps(pairs_in[number]))
    if (first := next(numbered, None)) is not None:
        return first
    pairs = pairs_in.get(last, {})
    known_names = pairs.keys() & KNOWN
    is_settings = (
        _has_steps(pairs) or (len(pairs) == 2 == len(known_names)) or (len(pairs) > 2 and known_names - {"Steps"})
    )
    return last if is_settings or (pairs and all(name.startswith(OF_EXTRAS) for name in pairs)) else end


def _has_steps(pairs: Mapping[str, str]) -> bool:
    """Return whether the settings have a number of steps."""
    return pairs.get("Steps", "")[:1].isdigit()


def _pairs(line: str) -> dict[str, str]:
    """Parse the `Name: value` pairs of A1111's settings. Of equal names the first is used: a later one may be part of a value."""
    pairs: dict[str, str] = {}
    decoder, position, complete = json.JSONDecoder(), 0, True
    while name := NAME.search(line, position):
        value = VALUE.match(line, name.end())
        text, position = (_unquoted(value[0]), value.end()) if value else ("", name.end())
        if complete and line[name.end() : name.end() + 1] in ("{", "["):
            try:
                end = decoder.raw_decode(line, name.end())[1]
                text, position = (line[name.end() : end], end) if AFTER.match(line, end) else (text, position)
            except (ValueError, RecursionError):
                complete = False  # each attempt may read to the end
        pairs.setdefault(name[1].strip(), text)
    return pairs


def _resources(pairs: Mapping[str, str]) -> list[str]:
    """Return descriptions of the files besides the model in Civitai's metadata: ["Civitai resources (lora Ink 0.8)"]."""
    listed = json_or_none(pairs.get("Civitai resources", ""))
    rows = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    others = [each for each in rows if each.get("type") != "checkpoint"]
    descriptions = (" ".join(str(each.get(key, ""))[:40] for key in ("type", "modelName", "weight")) for each in others)
    return [f"Civitai resources ({' '.join(each.split())})" for each in descriptions]


def _unquoted(value: str) -> str:
    """Return a value without its JSON quotes, or without blanks around it."""
    if len(value) >= 2 and value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value, strict=False))
        except ValueError:
            return value[1:-1]
    return value.strip()


def from_a1111_text(text: str, processed: str = "") -> ImageRecord:
    """Convert A1111's text into settings, with notes on those that could not be read; without settings the record has a reason.
    processed: A1111's text about changes to the finished image (Extras tab)"""
    if len(text) > LONGEST_TEXT:
        return ImageRecord(reason=f"This image contains a text of {len(text):,} characters, too long for settings.")
    prompt, negative, pairs = a1111_parts(text.removeprefix("\ufeff"))
    if not pairs and (not re.search(r"\w", prompt + negative) or JSON.match(prompt)):
        return ImageRecord(reason="This image contains a text, but no generation settings that are known here.")
    tags: list[LoraTag] = []
    reader = SettingsReader(pairs, "a1111", [*_resources(pairs), *_pairs(processed)])
    try:
        prompt, tags = split_tags(prompt)
        tags += [
            LoraTag(name, float(weight), float(weight))
            for name, weight in WEIGHTED.findall(pairs.get("Lora weights", ""))
        ]
    except ValueError as error:
        reader.note(f"The prompt was not changed: {error}", "bad-lora")
    return _record(reader, prompt, negative, tags)


def _with_valid_strengths(reader: SettingsReader, tag: LoraTag) -> LoraTag | None:
    """Return the LoRA with strengths within the limits of a job, with a note if they change; None if a strength is NaN."""
    if isnan(tag.unet) or isnan(tag.text_encoder):
        reader.note(f"The strength of the LoRA {tag.name} is not a number; it is left out", "lora-strength")
        return None
    unet, text_encoder = (min(max(each, -LARGEST), LARGEST) for each in (tag.unet, tag.text_encoder))
    if (unet, text_encoder) != (tag.unet, tag.text_encoder):
        reader.note(
            f"The strength {tag.unet:g} of the LoRA {tag.name} became {unet:g}, the limit here", "lora-strength"
        )
    return replace(tag, unet=unet, text_encoder=text_encoder)


def from_foreign(settings: ForeignSettings) -> ImageRecord:
    """Convert the settings of another program into a job, with notes on differences; no job for a text that is too long."""
    if len(settings.prompt) + len(settings.negative) > LONGEST_TEXT:
        return ImageRecord(reason="This image contains a text that is too long for settings.")
    reader = SettingsReader(settings.pairs, settings.source.lower(), settings.unread)
    what = f"{settings.source} weights prompts and samples differently, so the image will differ"
    reader.note(what, "other-program")
    if not settings.prompt:
        reader.note("No prompt was found in it", "no-prompt", "write it")
    tags = [LoraTag(name, unet, text) for name, unet, text in settings.loras]
    return _record(reader, settings.prompt, settings.negative, tags)


def _record(reader: SettingsReader, prompt: str, negative: str, tags: Sequence[LoraTag]) -> ImageRecord:
    """Return the record of the settings in `reader`, with notes on those that could not be read.

    prompt, negative   without LoRA tags
    tags               LoRAs to add
    """
    if not reader.pairs:
        reader.note("It contains a prompt alone; all other settings are the defaults", "prompt-alone")
    reader.groups["prompts"]["dynamic_prompts"] = False
    reader.groups["generate"] |= {"prompt": prompt, "negative_prompt": negative}
    groups = read_pairs(reader)
    steps = GenerateSettings.model_validate(groups["generate"]).steps
    groups["generate"]["loras"] = [
        use_of(tag, steps) for tag in map(partial(_with_valid_strengths, reader), tags) if tag
    ]
    job = GenerateJob.model_validate(groups)
    hashes, model = read_hashes(reader.pairs), reader.pairs.get("Model", "")
    return ImageRecord(job=job, source=reader.source, notes=reader.notes, hashes=hashes, model=model)
