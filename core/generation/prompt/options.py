"""Options within a line of prompts: "a fox --n blurry --w 768 --d 1,2" (reference: generation, section 3). Pure."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from core.record.problems import Problem
from core.settings.base import Declared, declared, fields_of
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob
from core.settings.samples import SAMPLER_LABELS, sampler_name

PROMPT = "prompt"  # `LinePart.of` for text of the prompt
_INTEGER = re.compile(r"[+-]?\d{1,40}")
_NUMBER = re.compile(r"[+-]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})")
_SWITCH = re.compile(r"(\w+)(?:\s+(.*))?", re.DOTALL)
_CUT = re.compile(r"\s--|^--")
_NO_TEXT = re.compile(r"\w+(\s+[\d.,:+-]+)?")  # an unknown switch with a number or nothing after it
_SEEDS = re.compile(r"(?:^|\s)--d\s+(-1|\d{1,40}(?:\s*,\s*\d{1,40})*)\s*(?=\s--|$)", re.IGNORECASE)


class NoValue(ValueError):
    """An invalid value of an option. Its text is what to write instead."""


@dataclass(frozen=True)
class Option:
    """One option.

    sets   a setting of a generation, or "seeds", "strengths" of the LoRAs in order, "file_name" ...
    read   (text) -> value; raises NoValue
    """

    sets: str
    read: Callable[[str], Any]


def _text(text: str) -> str:
    return text


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise NoValue("a whole number")
    return int(text)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise NoValue("a number such as 7.5")
    return float(text)


def _number_or_none(text: str) -> float | None:
    return None if text.lower() == "none" else _number(text)


def _seeds(text: str) -> tuple[int, ...]:
    """The seeds; none for -1."""
    return () if text == "-1" else tuple(_integer(part.strip()) for part in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part.strip()) for part in text.split(","))


def _sampler(text: str) -> str:
    name = sampler_name(text.lower())
    if name not in SAMPLER_LABELS:
        raise NoValue(f"one of {', '.join(SAMPLER_LABELS)}")
    return str(name)


OPTIONS = {
    "n": Option("generate.negative_prompt", _text),
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
    "cn": Option("control", _text),
    "c": Option("clip_prompt", _text),
    "f": Option("file_name", _text),
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
    "glus": Option("gradual_latent.gradual_latent_unsharp_params", _text),
}
TEXTS = ("n", "c")  # options with texts
FOR_OTHER_FAMILIES = ("g", "ctr", "rcfg", "fs")
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


@dataclass(frozen=True)
class PromptLine:
    """A parsed line. values: {`Option.sets`: value} of its options"""

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


def take_seeds(line: str) -> tuple[str, tuple[int, ...]]:
    """(the line without "--d", its seeds). Parsed first, since seeds choose variants; empty for -1."""
    match = _SEEDS.search(line)
    if match is None:
        return line, ()
    return line[: match.start()] + line[match.end() :], _within(_seeds(match[1]), _bounds()["seeds"])


def read_line(line: str, notes: list[Problem], where: str) -> PromptLine:
    """Parse a prompt with options. Unknown options remain in its text, unless only a number or nothing follows ("--zz
    3").

    notes   gets errors for invalid values, and advice
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
        notes.append(_note(what, where, "unknown-option"))
        if part.of == PROMPT:
            text += f" --{part.text}"
        elif part.of:
            values[part.of] += f" --{part.text}"
    return line_of(text.strip(), values, notes, where)


@dataclass(frozen=True)
class LinePart:
    """The text between two " --" of a line, at [start, end).

    of       the option whose value it belongs to, PROMPT for text of the prompt, "" if it is dropped
    switch   the option that it names, "" for none      text   without the switch
    """

    start: int
    end: int
    text: str
    of: str
    switch: str = ""


def parts_of_line(line: str) -> list[LinePart]:
    """The prompt and then its options in order, split at " --" as in sd-scripts."""
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
    """The parsed line for a prompt and {switch: text in a line or value in a file}. notes: see `read_line`"""
    values: dict[str, Any] = {}
    for switch, value in texts.items():
        if switch in FOR_OTHER_FAMILIES:
            what = f"'--{switch}' of the prompt '{text[:40]}' is ignored: it is for other model families"
            notes.append(_note(what, where, "unsupported-option"))
        elif value is not None:
            _store(values, switch, value, notes, where)
    return PromptLine(text, values)


def _store(values: dict[str, Any], switch: str, value: Any, notes: list[Problem], where: str) -> None:
    """Put an option's value into `values`, clamped to its bounds; `notes` gets a problem for an invalid or clamped one."""
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
    limited = _within(parsed, _bounds().get(option.sets, {}))
    if limited != parsed:
        notes.append(_note(f"'--{switch} {value_text[:40]}' is out of range; using {limited}", where, "out-of-range"))
    if limited != ():
        values[option.sets] = limited


@cache
def _bounds() -> dict[str, dict[str, Any]]:
    """{`Option.sets`: bounds of its numbers, {} for other values}"""
    bounds = {entry.path: entry.bounds for entry in declared(GenerateJob)}
    strength = Declared("", "", "strength", fields_of(LoraUse)["strength"])
    return bounds | {"seeds": bounds["generate.seed"], "strengths": strength.bounds}


def _within(value: Any, bounds: Mapping[str, Any]) -> Any:
    """The number, or each of several, clamped to the bounds of its setting."""
    if isinstance(value, tuple):
        return tuple(_within(each, bounds) for each in value)
    if "ge" not in bounds or value is None:
        return value
    step = bounds.get("multiple_of", 0)
    return type(value)(min(max(value // step * step if step else value, bounds["ge"]), bounds["le"]))


def _note(what: str, where: str, slug: str, fix: str = "remove it") -> Problem:
    return Problem(what, where, fix, "advice", code=f"prompts.{slug}")
