"""Prompts for samples: lines with switches, and the .txt, .toml and .json files of sd-scripts (reference: section 7.4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families.word_weights import FIX, wrong_weight
from core.record.bounded_json import read_json
from core.record.bounded_toml import read_toml
from core.record.problems import Problem, ProblemsError, limited, raise_if_errors
from core.record.regular import read_regular
from core.record.workspace import resolve_path
from core.settings.samples import SAMPLER_LABELS, sampler_name

if TYPE_CHECKING:
    from core.settings.samples import SampleSettings

WHERE = "samples.sample_prompts_file"
SWITCH = re.compile(r"(n|w|h|d|s|l|ss|cn|g|ctr|rcfg|fs)\s+(.+)", re.IGNORECASE | re.DOTALL)
# key in .toml and .json -> switch
KEYS = {
    "prompt": "",
    "negative_prompt": "n",
    "width": "w",
    "height": "h",
    "seed": "d",
    "sample_steps": "s",
    "scale": "l",
    "sample_sampler": "ss",
    "controlnet_image": "cn",
}
OTHERS = {
    "cn": "there is no ControlNet in this training",
    "g": "it is for other kinds of models",
    "ctr": "it is for other kinds of models",
    "rcfg": "it is for other kinds of models",
    "fs": "it is for other kinds of models",
}
SIDES, STEPS, SEEDS = (64, 4096), (1, 1000), 2**32
MAX_GUIDANCE = 1000
MAX_BYTES, MAX_PROMPTS = 4_000_000, 10_000


@dataclass(frozen=True)
class SamplePrompt:
    """One image to draw. What is None takes the samples' settings."""

    prompt: str
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None


def read_prompts(settings: SampleSettings) -> tuple[list[SamplePrompt], list[Problem]]:
    """All prompts of a training, and advice about what is not followed. Raises ProblemsError for what cannot be read."""
    notes: list[Problem] = []
    typed = [parse_line(line, notes, "samples.sample_prompts") for line in settings.sample_prompts]
    file = resolve_path(settings.sample_prompts_file) if settings.sample_prompts_file else None
    read = read_file(file, notes) if file else []
    if settings.prompt_weights:
        notes += _wrong_weights(typed, "samples.sample_prompts")
        notes += _wrong_weights(read, f"{WHERE}, {file.name if file else ''}")
        wrong = wrong_weight(settings.negative_prompt)
        if wrong:
            notes.append(_wrong(f"In what samples should not show, {wrong}", "samples.negative_prompt", FIX))
    raise_if_errors(notes)
    return [each for each in [*typed, *read] if each is not None], limited(notes)


def _wrong_weights(prompts: Iterable[SamplePrompt | None], where: str) -> Iterator[Problem]:
    for each in prompts:
        for text in (each.prompt, each.negative or "") if each is not None else ():
            wrong = wrong_weight(text)
            if wrong:
                yield _wrong(f"In the prompt '{text[:40]}', {wrong}", where, FIX)


def filled(
    prompts: Iterable[SamplePrompt], settings: SampleSettings, size: tuple[int, int], guidance: float = 7.5
) -> list[SamplePrompt]:
    """Each with everything decided. size: (width, height), and guidance, where neither prompt nor settings say one; seeds
    count up from the settings' seed, so that a prompt keeps its own however often it is drawn."""
    guidance = guidance if settings.guidance_scale is None else settings.guidance_scale
    width, height = settings.width or size[0], settings.height or size[1]
    return [
        replace(
            each,
            negative=settings.negative_prompt if each.negative is None else each.negative,
            width=(each.width or width) // 8 * 8,
            height=(each.height or height) // 8 * 8,
            seed=(settings.seed + index) % SEEDS if each.seed is None else each.seed,
            steps=each.steps or settings.sample_steps,
            guidance=guidance if each.guidance is None else each.guidance,
            sampler=each.sampler or settings.sample_sampler,
        )
        for index, each in enumerate(prompts)
    ]


# ---- lines


def parse_line(line: str, notes: list[Problem], where: str) -> SamplePrompt | None:
    """A prompt with switches: "a fox --n blurry --w 768 --d 1". None for a comment and an empty line."""
    if not line.strip() or line.startswith("#"):
        return None
    text, *parts = re.split(r"\s--|^--", line.rstrip("\r\n"))  # sd-scripts splits at " --"
    values: dict[str, Any] = {}
    for part in parts:
        match = SWITCH.fullmatch(part.strip())
        if match is None:
            notes.append(_note(f"'--{part.strip()[:40]}' is no switch of sample prompts", where))
        else:
            values[match[1].lower()] = match[2].strip()
    return _prompt(text.strip(), values, notes, where)


def _prompt(text: str, values: Mapping[str, Any], notes: list[Problem], where: str) -> SamplePrompt:
    """values: by switch; texts from a line, numbers from a file."""
    for name, reason in OTHERS.items():
        if name in values:
            notes.append(_note(f"'--{name}' of the prompt '{text[:40]}' is not followed: {reason}", where))
    return SamplePrompt(
        text,
        None if values.get("n") is None else str(values["n"]),
        _number(values, "w", SIDES, notes, where),
        _number(values, "h", SIDES, notes, where),
        _number(values, "d", (0, SEEDS - 1), notes, where),
        _number(values, "s", STEPS, notes, where),
        _guidance(values, notes, where),
        _sampler(values, notes, where),
    )


def _number(
    values: Mapping[str, Any], name: str, bounds: tuple[int, int], notes: list[Problem], where: str
) -> int | None:
    """A whole number, brought within its bounds, which is said."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d{1,40}", str(value).strip()):
        notes.append(
            _wrong(
                f"'--{name} {str(value)[:40]}' is no whole number that can be used",
                where,
                f"write {bounds[0]} to {bounds[1]}",
            )
        )
        return None
    number = min(max(int(value), bounds[0]), bounds[1])
    if number != int(value):
        notes.append(_note(f"'--{name} {value}' is out of bounds; {number} is taken", where))
    return number


def _guidance(values: Mapping[str, Any], notes: list[Problem], where: str) -> float | None:
    """Any sign: at 1 and below guidance is off."""
    value = values.get("l")
    if value is None:
        return None
    text = str(value).strip()
    number = re.fullmatch(r"[+-]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})", text) and float(text)
    if isinstance(value, bool) or number is None or abs(number) > MAX_GUIDANCE:
        notes.append(_wrong(f"'--l {text[:40]}' is no number that can be used", where, "write one, such as 7.5"))
        return None
    return number


def _sampler(values: Mapping[str, Any], notes: list[Problem], where: str) -> str | None:
    if values.get("ss") is None:
        return None
    name = sampler_name(str(values["ss"]).lower())
    if name in SAMPLER_LABELS:
        return str(name)
    notes.append(_note(f"There is no sampler '{str(values['ss'])[:40]}'; that of the settings draws instead", where))
    return None


# ---- files


def read_file(path: Path, notes: list[Problem]) -> list[SamplePrompt | None]:
    where = f"{WHERE}, {path.name}"
    kind = path.suffix.lower()
    if kind == ".toml":
        return [_from_table(entry, notes, where) for entry in _toml_entries(path, where)]
    if kind == ".json":
        return [_from_json(entry, notes, where) for entry in _json_entries(path)]
    if kind != ".txt":
        raise ProblemsError.one(f"'{path.name}' is no file of prompts", WHERE, "choose a .txt, .toml or .json")
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        what = "The sample prompts cannot be read: the file is not UTF-8 text"
        raise ProblemsError.one(what, where, "save it as UTF-8 in your editor") from None
    lines = text.splitlines()
    if len(lines) > MAX_PROMPTS:
        raise _too_many(len(lines), where)
    return [parse_line(line, notes, where) for line in lines]


def _too_many(number: int, where: str) -> ProblemsError:
    return ProblemsError.one(f"There are {number:,} sample prompts", where, f"use {MAX_PROMPTS:,} at most")


def _toml_entries(path: Path, where: str) -> list[dict[str, Any]]:
    """[[prompt.subset]] over the defaults in [prompt]."""
    table = read_toml(path, where, "correct it").get("prompt")
    subsets = table.get("subset") if isinstance(table, dict) else None
    if (
        not isinstance(table, dict)
        or not isinstance(subsets, list)
        or not all(isinstance(each, dict) for each in subsets)
    ):
        raise ProblemsError.one("There are no prompts in it", where, "write [prompt] and a [[prompt.subset]] for each")
    if len(subsets) > MAX_PROMPTS:
        raise _too_many(len(subsets), where)
    common = {key: value for key, value in table.items() if key != "subset"}
    return [common | subset for subset in subsets]


def _json_entries(path: Path) -> list[Any]:
    found = read_json(path, "correct it", max_bytes=MAX_BYTES)
    if not isinstance(found, list):
        raise ProblemsError.one("There is no list of prompts in it", str(path), "write a list of texts or of tables")
    if len(found) > MAX_PROMPTS:
        raise _too_many(len(found), str(path))
    return found


def _from_json(entry: Any, notes: list[Problem], where: str) -> SamplePrompt | None:
    if isinstance(entry, str):
        return parse_line(entry, notes, where)
    if isinstance(entry, dict):
        return _from_table(entry, notes, where)
    raise ProblemsError.one(f"'{str(entry)[:40]}' is no prompt", where, "write a text or a table")


def _from_table(entry: Mapping[str, Any], notes: list[Problem], where: str) -> SamplePrompt:
    unknown = sorted(set(entry) - set(KEYS))
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        notes.append(_note(f"'{', '.join(unknown[:5])}'{more} says nothing about a prompt", where))
    text = entry.get("prompt")
    if not isinstance(text, str):
        raise ProblemsError.one("A prompt has no text", where, "write prompt = '...' in each")
    return _prompt(text, {switch: entry[key] for key, switch in KEYS.items() if switch and key in entry}, notes, where)


def _note(what: str, where: str) -> Problem:
    return Problem(what, where, "take it out", "advice")


def _wrong(what: str, where: str, fix: str) -> Problem:
    return Problem(what, where, fix)
