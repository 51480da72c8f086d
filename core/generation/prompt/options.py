"""Inline options in prompts: "a fox --n blurry --w 768 --d 1,2" (reference: generation, section 3). Parsing only."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from core.record.problems import Problem
from core.settings.base import Declared, about_of, declared, fields_of
from core.settings.generation.generate import GenerateSettings, LoraUse
from core.settings.job import GenerateJob
from core.settings.samples import SAMPLER_LABELS, sampler_name

PROMPT = "prompt"  # `LinePart.of` for text of the prompt
_INTEGER = re.compile(r"[+-]?\d{1,40}")
_NUMBER = re.compile(r"[+-]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})")
_SWITCH = re.compile(r"(\w+)(?:\s+(.*))?", re.DOTALL)
_CUT = re.compile(r"\s--|^--")
_NO_TEXT = re.compile(r"\w+(\s+[\d.,:+-]+)?")  # an unknown switch with a number or nothing after it
# "-w 512" and, where an editor replaced two hyphens, "—w 512": meant as an option, read as text
_ONE_DASH = re.compile(r"(?:^|\s)([-\u2013\u2014][whdsl]\s+-?\d[\d.]*)(?=\s|$)", re.IGNORECASE)
_SEEDS = re.compile(r"(?:^|\s)--d\s+(-1|\d{1,40}(?:\s*,\s*\d{1,40})*)\s*(?=\s--|$)", re.IGNORECASE)


class NoValue(ValueError):
    """An invalid value of an inline option. Its message names what to write, such as "a whole number"."""


@dataclass(frozen=True)
class Option:
    """An inline option.

    sets   the setting ("generate.width"), or "seeds", "strengths" (of the LoRAs in order), "control", "clip_prompt", "file_name"
    read   parses its text into a value; raises NoValue
    """

    sets: str
    read: Callable[[str], Any]


def _integer(text: str) -> int:
    """Parse a whole number. Raises NoValue."""
    if not _INTEGER.fullmatch(text):
        raise NoValue("a whole number")
    return int(text)


def _number(text: str) -> float:
    """Parse a number such as 7.5. Raises NoValue."""
    if not _NUMBER.fullmatch(text):
        raise NoValue("a number such as 7.5")
    return float(text)


def _number_or_none(text: str) -> float | None:
    """Parse a number, or "none" as None. Raises NoValue."""
    return None if text.lower() == "none" else _number(text)


def _seeds(text: str) -> tuple[int, ...]:
    """Parse seeds such as "1,2"; () for -1 (random)."""
    return () if text == "-1" else tuple(_integer(part.strip()) for part in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas. Raises NoValue."""
    return tuple(_number(part.strip()) for part in text.split(","))


def _sampler(text: str) -> tuple[str, str]:
    """Return (sampler, schedule type, "" if the name ends with none) of a sampler's name or label, also sd-scripts' and
    A1111's. Raises NoValue."""
    label, schedule = split_schedule(text)
    labels = {label.lower(): name for name, label in SAMPLER_LABELS.items()}
    name = labels.get(label.lower()) or sampler_name(label.lower())
    if name not in SAMPLER_LABELS:
        raise NoValue(f"one of {', '.join(SAMPLER_LABELS)}")
    return str(name), _schedule_types().get(schedule.lower(), "")


def split_schedule(sampler: str) -> tuple[str, str]:
    """Split A1111's older names of samplers: "DPM++ 2M Karras" -> ("DPM++ 2M", "Karras"); ("Euler a", "") without a schedule type."""
    match = re.fullmatch(rf"(.+?)\s+({'|'.join(map(re.escape, _schedule_types()))})", sampler, re.IGNORECASE)
    return (match[1], match[2]) if match else (sampler, "")


@cache
def _schedule_types() -> dict[str, str]:
    """Return {label of a schedule type in lower case, also A1111's: its name}."""
    labels: dict[str, str] = about_of(GenerateSettings.model_fields["schedule_type"])["labels"]
    return {label.lower(): name for name, label in labels.items()} | {"polyexponential": "exponential"}


OPTIONS = {
    "n": Option("generate.negative_prompt", str),
    "w": Option("generate.width", _integer),
    "h": Option("generate.height", _integer),
    "d": Option("seeds", _seeds),
    "vs": Option("generate.variation_seed", _integer),
    "vst": Option("generate.variation_strength", _number),
    "s": Option("generate.steps", _integer),
    "l": Option("generate.guidance_scale", _number),
    "nl": Option("generate.negative_scale", _number_or_none),
    "t": Option("image_to_image.strength", _number),
    "am": Option("strengths", _numbers),
    "ss": Option("generate.sampler", _sampler),
    "ow": Option("sizes.original_width", _integer),
    "oh": Option("sizes.original_height", _integer),
    "nw": Option("sizes.original_width_negative", _integer),
    "nh": Option("sizes.original_height_negative", _integer),
    "ct": Option("sizes.crop_top", _integer),
    "cl": Option("sizes.crop_left", _integer),
    "cn": Option("control", str),
    "c": Option("clip_prompt", str),
    "f": Option("file_name", str),
    "dsd1": Option("deep_shrink.ds_depth_1", _integer),
    "dst1": Option("deep_shrink.ds_timesteps_1", _integer),
    "dsd2": Option("deep_shrink.ds_depth_2", _integer),
    "dst2": Option("deep_shrink.ds_timesteps_2", _integer),
    "dsr": Option("deep_shrink.ds_ratio", _number),
    "glt": Option("gradual_latent.gradual_latent_timesteps", _integer),
    "glr": Option("gradual_latent.gradual_latent_ratio", _number),
    "gle": Option("gradual_latent.gradual_latent_every_n_steps", _integer),
    "gls": Option("gradual_latent.gradual_latent_ratio_step", _number),
    "glsn": Option("gradual_latent.gradual_latent_s_noise", _number),
    "glus": Option("gradual_latent.gradual_latent_unsharp_params", str),
}
TEXTS = ("n", "c")  # options with texts
FOR_OTHER_FAMILIES = ("g", "ctr", "rcfg", "fs", "i")  # i: the image of an inpainting model's sample
# key in .toml and .json -> option
KEYS = {
    "negative_prompt": "n",
    "width": "w",
    "height": "h",
    "seed": "d",
    "sample_steps": "s",
    "scale": "l",
    "sample_sampler": "ss",
    "controlnet_image": "cn",
}
# name in a .toml or .json file, and in other programs -> option
OTHER_NAMES = KEYS | {
    "negative": "n",
    "steps": "s",
    "cfg": "l",
    "cfg_scale": "l",
    "guidance_scale": "l",
    "sampler": "ss",
    "sampler_name": "ss",
}


@dataclass(frozen=True)
class PromptLine:
    """A prompt without its inline options. values: {`Option.sets`: parsed value}"""

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


def take_seeds(line: str) -> tuple[str, tuple[int, ...]]:
    """Return (the line without "--d", its seeds; () for -1 or none). Parsed before other options, because seeds choose variants."""
    match = _SEEDS.search(line)
    if match is None:
        return line, ()
    return line[: match.start()] + line[match.end() :], _clamped(_seeds(match[1]), _bounds()["seeds"])


def read_line(line: str, notes: list[Problem], where: str) -> PromptLine:
    """Parse a prompt with inline options.

    An unknown option stays in the text, unless nothing or only a number follows it ("--zz 3").

    notes   receives errors of invalid values, and advice
    where   `Problem.where` of those problems
    """
    first, *parts = parts_of_line(line)
    text = first.text
    values: dict[str, Any] = {}
    for part in parts:
        if part.switch and part.of == part.switch:
            values[part.switch] = part.text
            continue
        what = f"'--{part.text.strip()[:40]}' is not an option of prompts"
        what = f"'--{part.switch}' has no value" if part.switch else what
        name, value = [*re.split(r"[\s=]+", part.text.strip(), maxsplit=1), ""][:2]
        name = OTHER_NAMES.get(name, name)
        fix = f"write --{name} {value}".strip()[:60] if name in OPTIONS and name != part.switch else "remove it"
        notes.append(_note(what, where, "unknown-option", fix))
        if part.of == PROMPT:
            text += f" --{part.text}"
        elif part.of:
            values[part.of] += f" --{part.text}"
    for words in dict.fromkeys(_ONE_DASH.findall(line)):
        fix = f"begin options with two hyphens: --{words[1:]}"
        notes.append(_note(f"'{words}' is text of the prompt, not an option", where, "one-dash", fix))
    return line_of(text.strip(), values, notes, where)


@dataclass(frozen=True)
class LinePart:
    """The text between two " --" of a prompt line, at characters [start, end).

    text     the part without its switch
    of       the option whose value it belongs to, PROMPT for the prompt, "" if it is dropped
    switch   the option that begins the part, "" for none
    """

    start: int
    end: int
    text: str
    of: str
    switch: str = ""


def parts_of_line(line: str) -> list[LinePart]:
    """Split a prompt line at each " --" as in sd-scripts: the prompt first, then its options in order."""
    line = line.rstrip("\r\n")
    cuts = [(match.start(), match.end()) for match in _CUT.finditer(line)]
    ends = [*(start for start, _ in cuts), len(line)]
    parts = [LinePart(0, ends[0], line[: ends[0]], PROMPT)]
    last_switch = ""
    for (start, begin), end in zip(cuts, ends[1:], strict=True):
        part = line[begin:end]
        match = _SWITCH.fullmatch(part.rstrip())
        switch = match[1].lower() if match else ""
        if switch not in OPTIONS and switch not in FOR_OTHER_FAMILIES:
            dropped = _NO_TEXT.fullmatch(part.rstrip())
            parts.append(LinePart(start, end, part, "" if dropped else last_switch if last_switch in TEXTS else PROMPT))
        elif match and match[2]:
            last_switch = switch
            parts.append(LinePart(start, end, match[2].strip(), switch, switch))
        else:
            parts.append(LinePart(start, end, "", "", switch))
    return parts


def line_of(text: str, texts: Mapping[str, Any], notes: list[Problem], where: str) -> PromptLine:
    """Return a prompt with its options parsed.

    texts   {switch such as "w": text in a line, or value in a file}
    notes   receives errors of invalid values, and advice
    """
    values: dict[str, Any] = {}
    for switch, value in texts.items():
        if switch in FOR_OTHER_FAMILIES:
            notes.append(_note(f"'--{switch}' is ignored: it is for other models", where, "unsupported-option"))
        elif value is not None:
            _store(values, switch, value, notes, where)
    return PromptLine(text, values)


def _store(values: dict[str, Any], switch: str, value: Any, notes: list[Problem], where: str) -> None:
    """Parse the option `switch` and put it into `values`, {`Option.sets`: value}, clamped to its bounds; leave an invalid one out.

    value   text in a line, or value in a file
    notes   receives a problem if it is invalid or out of range
    """
    option, value_text = OPTIONS[switch], str(value).strip()
    try:
        parsed = option.read(value_text)
    except NoValue as error:
        what = f"'--{switch} {value_text[:40]}' is not valid"
        if option.read is _sampler:  # only advice: the settings' sampler is used
            notes.append(_note(f"The sampler '{value_text[:40]}' does not exist", where, "no-sampler", f"use {error}"))
        else:
            notes.append(Problem(what, where, f"write {error}", code="prompts.bad-number"))
        return
    if option.read is _sampler:
        parsed, schedule = parsed
        values |= {"generate.schedule_type": schedule} if schedule else {}
    limited = _clamped(parsed, _bounds().get(option.sets, {}))
    if limited != parsed:
        notes.append(_note(f"'--{switch} {value_text[:40]}' is out of range; using {limited}", where, "out-of-range"))
    if limited != ():
        values[option.sets] = limited


@cache
def _bounds() -> dict[str, dict[str, Any]]:
    """Return {`Option.sets`: {"ge", "le", "multiple_of": number}}; {} for values that are not numbers."""
    bounds = {entry.path: entry.bounds for entry in declared(GenerateJob)}
    strength = Declared("", "", "strength", fields_of(LoraUse)["strength"])
    return bounds | {"seeds": bounds["generate.seed"], "strengths": strength.bounds}


def _clamped(value: Any, bounds: Mapping[str, Any]) -> Any:
    """Clamp a number, or each of a tuple, to its setting's bounds ("ge", "le") and round it down to "multiple_of". Keep other values."""
    if isinstance(value, tuple):
        return tuple(_clamped(each, bounds) for each in value)
    if "ge" not in bounds or value is None:
        return value
    step = bounds.get("multiple_of", 0)
    return type(value)(min(max(value // step * step if step else value, bounds["ge"]), bounds["le"]))


def _note(what: str, where: str, slug: str, fix: str = "remove it") -> Problem:
    """Return advice `what` with the code "prompts.<slug>". where: the setting with the prompt"""
    return Problem(what, where, fix, "advice", code=f"prompts.{slug}")
