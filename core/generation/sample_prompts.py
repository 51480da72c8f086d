"""Prompts for samples: lines with options, and the .txt, .toml and .json files of sd-scripts (reference: section 7.4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families.word_weights import FIX, wrong_weight
from core.generation.prompt_tags import FIX as TAG_FIX
from core.generation.prompt_tags import without_tags
from core.record.bounded_json import read_json
from core.record.bounded_toml import read_toml
from core.record.problems import Problem, ProblemsError, limited, raise_if_errors
from core.record.regular import read_regular
from core.record.units import count
from core.record.workspace import resolve_path
from core.settings.samples import SAMPLER_LABELS, SampleSettings, sampler_name

if TYPE_CHECKING:
    import numpy as np

WHERE = "samples.sample_prompts_file"
SWITCH = re.compile(r"(n|w|h|d|s|l|ss|cn|g|ctr|rcfg|fs)\s+(.+)", re.IGNORECASE | re.DOTALL)
# key in .toml and .json -> option
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
    "g": "it is for other model families",
    "ctr": "it is for other model families",
    "rcfg": "it is for other model families",
    "fs": "it is for other model families",
}
SIDES, STEPS, SEEDS = (64, 4096), (1, 1000), 2**32
MAX_GUIDANCE = 1000
MAX_BYTES, MAX_PROMPTS = 4_000_000, 10_000


@dataclass(frozen=True)
class SamplePrompt:
    """One image to generate. None uses the sample settings."""

    prompt: str
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    control: str | None = None


def read_prompts(settings: SampleSettings, control: bool = False) -> tuple[list[SamplePrompt], list[Problem]]:
    """All prompts of a training, and advice about what is ignored. Raises ProblemsError for what cannot be read.

    control  each needs a control image (`MethodTraits.control_images`)
    """
    notes: list[Problem] = []
    typed = [parse_line(line, notes, "samples.sample_prompts") for line in settings.sample_prompts]
    file = resolve_path(settings.sample_prompts_file) if settings.sample_prompts_file else None
    read = read_file(file, notes) if file else []
    if settings.prompt_weights:
        notes += _wrong_weights(typed, "samples.sample_prompts")
        notes += _wrong_weights(read, f"{WHERE}, {file.name if file else ''}")
        wrong = wrong_weight(settings.negative_prompt)
        if wrong:
            notes.append(_wrong(f"In the negative prompt, {wrong}", "samples.negative_prompt", FIX, "bad-weight"))
    found = [each for each in [*typed, *read] if each is not None]
    if not control:
        found = [_without_control(each, notes) for each in found]
    elif missing := [each.prompt for each in found if each.control is None]:
        what = f"{len(missing)} of {count(len(found), 'sample prompt')} without a control image: '{missing[0][:40]}'"
        notes.append(_wrong(what, "samples.sample_prompts", "add --cn and an image file to each", "no-control-image"))
    if settings.compatibility == "none":
        found = [_without_loras(each, notes) for each in found]
    raise_if_errors(notes)
    return found, limited(notes)


def _without_control(prompt: SamplePrompt, notes: list[Problem]) -> SamplePrompt:
    if prompt.control is not None:
        what = f"'--cn' of the prompt '{prompt.prompt[:40]}' is ignored: this training has no ControlNet"
        notes.append(_note(what, "samples.sample_prompts", "unsupported-option"))
    return replace(prompt, control=None)


def control_image(prompt: SamplePrompt) -> np.ndarray | None:
    """Its control image at the size of the sample, float32 [3, H, W] in 0..1. Raises ProblemsError where it cannot be read."""
    from core.dataset.images.masks import control_for
    from core.dataset.images.opening import BrokenImage

    if prompt.control is None:
        return None
    path = resolve_path(prompt.control)
    try:
        return control_for(path, (prompt.width or 0, prompt.height or 0))
    except BrokenImage as error:
        what, fix = f"The control image {path.name} {error}", "choose another image file"
        raise ProblemsError.one(what, "samples.sample_prompts", fix, "prompts.bad-control-image") from error


def _without_loras(prompt: SamplePrompt, notes: list[Problem]) -> SamplePrompt:
    """Samples show what trains, without other LoRAs; sd-scripts reads their names as words."""
    try:
        text, tags = without_tags(prompt.prompt)
    except ValueError as error:
        notes.append(
            _wrong(f"In the prompt '{prompt.prompt[:40]}', {error}", "samples.sample_prompts", TAG_FIX, "bad-lora")
        )
        return prompt
    for tag in tags:
        notes.append(
            _note(f"{tag} is ignored: samples use only the LoRA being trained", "samples.sample_prompts", "lora")
        )
    return replace(prompt, prompt=text)


def _wrong_weights(prompts: Iterable[SamplePrompt | None], where: str) -> Iterator[Problem]:
    for each in prompts:
        for text in (each.prompt, each.negative or "") if each is not None else ():
            wrong = wrong_weight(text)
            if wrong:
                yield _wrong(f"In the prompt '{text[:40]}', {wrong}", where, FIX, "bad-weight")


def filled(
    prompts: Iterable[SamplePrompt],
    settings: SampleSettings,
    size: tuple[int, int],
    guidance: float = 7.5,
    step: int = 8,
) -> list[SamplePrompt]:
    """Each prompt with all values set. size: (width, height), and guidance, if neither prompt nor settings set one; seeds
    count up from the settings' seed, so that a prompt always keeps its own. Sides are rounded down to multiples of `step`."""
    guidance = guidance if settings.guidance_scale is None else settings.guidance_scale
    width, height = settings.width or size[0], settings.height or size[1]
    return [
        replace(
            each,
            negative=settings.negative_prompt if each.negative is None else each.negative,
            width=(each.width or width) // step * step,
            height=(each.height or height) // step * step,
            seed=(settings.seed + index) % SEEDS if each.seed is None else each.seed,
            steps=each.steps or settings.sample_steps,
            guidance=guidance if each.guidance is None else each.guidance,
            sampler=each.sampler or settings.sample_sampler,
        )
        for index, each in enumerate(prompts)
    ]


# ---- lines


def parse_line(line: str, notes: list[Problem], where: str) -> SamplePrompt | None:
    """A prompt with options: "a fox --n blurry --w 768 --d 1". None for a comment or an empty line."""
    if not line.strip() or line.startswith("#"):
        return None
    text, *parts = re.split(r"\s--|^--", line.rstrip("\r\n"))  # sd-scripts splits at " --"
    values: dict[str, Any] = {}
    for part in parts:
        match = SWITCH.fullmatch(part.strip())
        if match is None:
            notes.append(_note(f"'--{part.strip()[:40]}' is not an option of sample prompts", where, "unknown-option"))
        else:
            values[match[1].lower()] = match[2].strip()
    return _prompt(text.strip(), values, notes, where)


def _prompt(text: str, values: Mapping[str, Any], notes: list[Problem], where: str) -> SamplePrompt:
    """values: by option; texts from a line, numbers from a file."""
    for name, reason in OTHERS.items():
        if name in values:
            notes.append(
                _note(f"'--{name}' of the prompt '{text[:40]}' is ignored: {reason}", where, "unsupported-option")
            )
    return SamplePrompt(
        text,
        None if values.get("n") is None else str(values["n"]),
        _number(values, "w", SIDES, notes, where),
        _number(values, "h", SIDES, notes, where),
        None if str(values.get("d")).strip() == "-1" else _number(values, "d", (0, SEEDS - 1), notes, where),
        _number(values, "s", STEPS, notes, where),
        _guidance(values, notes, where),
        _sampler(values, notes, where),
        None if values.get("cn") is None else str(values["cn"]),
    )


def _number(
    values: Mapping[str, Any], name: str, bounds: tuple[int, int], notes: list[Problem], where: str
) -> int | None:
    """A whole number, clamped to its bounds with a note."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d{1,40}", str(value).strip()):
        notes.append(
            _wrong(
                f"'--{name} {str(value)[:40]}' is not a valid whole number",
                where,
                f"write {bounds[0]} to {bounds[1]}",
                "bad-number",
            )
        )
        return None
    number = min(max(int(value), bounds[0]), bounds[1])
    if number != int(value):
        notes.append(_note(f"'--{name} {value}' is out of range; using {number}", where, "out-of-range"))
    return number


def _guidance(values: Mapping[str, Any], notes: list[Problem], where: str) -> float | None:
    """Any value: at 1 and below guidance is off."""
    value = values.get("l")
    if value is None:
        return None
    text = str(value).strip()
    number = re.fullmatch(r"[+-]?(\d{1,20}\.?\d{0,20}|\.\d{1,20})", text) and float(text)
    if isinstance(value, bool) or number is None or abs(number) > MAX_GUIDANCE:
        notes.append(
            _wrong(f"'--l {text[:40]}' is not a valid number", where, "write a number such as 7.5", "bad-number")
        )
        return None
    return number


def _sampler(values: Mapping[str, Any], notes: list[Problem], where: str) -> str | None:
    if values.get("ss") is None:
        return None
    name = sampler_name(str(values["ss"]).lower())
    if name in SAMPLER_LABELS:
        return str(name)
    notes.append(
        _note(
            f"The sampler '{str(values['ss'])[:40]}' does not exist; using the one in the settings", where, "no-sampler"
        )
    )
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
        what = f"'{path.name}' is not a prompt file"
        raise ProblemsError.one(what, WHERE, "choose a .txt, .toml or .json file", "prompts.unknown-format")
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        what = "The sample prompts cannot be read: the file is not UTF-8 text"
        raise ProblemsError.one(what, where, "save it as UTF-8 in your editor", code="file.not-utf8") from None
    lines = text.splitlines()
    if len(lines) > MAX_PROMPTS:
        raise _too_many(len(lines), where)
    return [parse_line(line, notes, where) for line in lines]


def _too_many(number: int, where: str) -> ProblemsError:
    return ProblemsError.one(
        f"There are {number:,} sample prompts", where, f"use at most {MAX_PROMPTS:,}", code="prompts.too-many"
    )


def _toml_entries(path: Path, where: str) -> list[dict[str, Any]]:
    """[[prompt.subset]] over the defaults in [prompt]."""
    table = read_toml(path, where, "correct it").get("prompt")
    subsets = table.get("subset") if isinstance(table, dict) else None
    if (
        not isinstance(table, dict)
        or not isinstance(subsets, list)
        or not all(isinstance(each, dict) for each in subsets)
    ):
        raise ProblemsError.one(
            "The file contains no prompts",
            where,
            "write [prompt] and a [[prompt.subset]] for each",
            code="prompts.none",
        )
    if len(subsets) > MAX_PROMPTS:
        raise _too_many(len(subsets), where)
    common = {key: value for key, value in table.items() if key != "subset"}
    return [common | subset for subset in subsets]


def _json_entries(path: Path) -> list[Any]:
    found = read_json(path, "correct it", max_bytes=MAX_BYTES)
    if not isinstance(found, list):
        what = "The file contains no list of prompts"
        raise ProblemsError.one(what, str(path), "write a list of texts or of tables", "prompts.none")
    if len(found) > MAX_PROMPTS:
        raise _too_many(len(found), str(path))
    return found


def _from_json(entry: Any, notes: list[Problem], where: str) -> SamplePrompt | None:
    if isinstance(entry, str):
        return parse_line(entry, notes, where)
    if isinstance(entry, dict):
        return _from_table(entry, notes, where)
    raise ProblemsError.one(
        f"'{str(entry)[:40]}' is not a prompt", where, "write a text or a table", code="prompts.not-a-prompt"
    )


def _from_table(entry: Mapping[str, Any], notes: list[Problem], where: str) -> SamplePrompt:
    unknown = sorted(set(entry) - set(KEYS))
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        notes.append(
            _note(f"'{', '.join(unknown[:5])}'{more} is not an option of sample prompts", where, "unknown-option")
        )
    text = entry.get("prompt")
    if not isinstance(text, str):
        raise ProblemsError.one("A prompt has no text", where, "write prompt = '...' in each", code="prompts.no-text")
    return _prompt(text, {switch: entry[key] for key, switch in KEYS.items() if switch and key in entry}, notes, where)


def _note(what: str, where: str, slug: str) -> Problem:
    return Problem(what, where, "remove it", "advice", code=f"prompts.{slug}")


def _wrong(what: str, where: str, fix: str, slug: str) -> Problem:
    return Problem(what, where, fix, code=f"prompts.{slug}")
