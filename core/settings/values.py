"""Between a setting's value and what its widget shows: texts as people write them, checked on the way in."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from core.record.problems import Problem
from core.record.units import count, number_text, period_words
from core.settings.base import Declared, Settings, every
from core.settings.check import allowed
from core.settings.dataset.dataset import Source
from core.settings.job import TrainJob
from core.settings.optimization.optimizers import literal
from core.settings.presets.files import to_values

ONE_COMMA = r"[-+]?\d*,\d+(\s*%|e[-+]?\d+|\s*[kmgt]i?b?)?"
THOUSANDS = r"[-+]?[1-9]\d{0,2},\d{3}(?!\d)"
SIZE_SIGNS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class BadText(Exception):
    """A text that cannot be the value of its field."""

    def __init__(self, problem: Problem):
        self.problem = problem
        super().__init__(problem.what)


def text_of(entry: Declared, value: Any) -> Any:
    """What the widget shows for a value: the text, or the bare value for check boxes and choices."""
    if entry.kind == "bool" or (entry.kind == "choice" and value is not None):
        return value
    if value is None:
        return ""
    if entry.widget == "sources":
        return "\n".join(source_text(source) for source in value)
    if entry.widget == "sizes":
        return "\n".join(_joined(entry, item) if isinstance(item, (list, tuple)) else str(item) for item in value)
    if entry.kind == "list":
        return "\n".join(str(item) for item in value)
    if entry.kind == "arguments":
        return arguments_text(value)
    if isinstance(value, (list, tuple)):
        return _joined(entry, value)
    if entry.unit == "bytes":
        return bytes_text(int(value))
    return number_text(value) if isinstance(value, (int, float)) else str(value)


def shown_value(entry: Declared, value: Any) -> str:
    """A value as text, for notes: "empty", "on", "cosine", "1e-4"."""
    if entry.kind == "bool":
        return "on" if value else "off"
    if entry.kind == "choice":
        return entry.label(value) if value else entry.labels.get("", "off")
    text = str(text_of(entry, value))
    return text.replace("\n", "; ") if text else "empty"


def summary(job: Settings, group: str) -> str:
    """A group in one line, as a closed group shows it: "LoRA rank 16, alpha 16". The group's own words, else which of its
    settings are not at their default."""
    settings = getattr(job, group)
    if isinstance(job, TrainJob) and group == "validation":
        return _validation(job)
    return settings.summary() or _what_differs(settings, group)


def _validation(job: TrainJob) -> str:
    own, sources = job.validation, [source for source in job.dataset.sources if source.enabled]
    share, held = (
        own.validation_split,
        sum(bool(each.validation_images) + (each.role == "validation") for each in sources),
    )
    ways = {True: "best checkpoint by validation images", False: "checkpoints measured on training images"}
    way = "no validation split" if own.best_checkpoint == "off" else ways[own.automatic]
    parts = [f"{share:.0%} of the images" if share else way]
    parts += [f"validation images in {count(held, 'folder')}"] if held else []
    if share or held:
        periods = ((own.validate_every_n_epochs, "epoch"), (own.validate_every_n_steps, "step"))
        moments = [period_words(period, unit) for period, unit in periods if period and every(period)]
        parts += [f"measured {' and '.join(moments)}" if moments else "never measured"]
    return ", ".join(parts)


def _what_differs(settings: Settings, group: str) -> str:
    entries = [Declared(f"{group}.{name}", group, name, info) for name, info in type(settings).model_fields.items()]
    changed = [
        f"{entry.title} {shown_value(entry, value)[:30]}"
        for entry in entries
        if (value := getattr(settings, entry.name)) != entry.default
    ]
    more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
    return ", ".join(changed[:2]) + more if changed else "defaults"


def value_from(entry: Declared, raw: Any) -> Any:
    """The JSON value that a widget's content stands for. Raises BadText; the declaration's own checks come after."""
    if entry.kind == "bool":
        return bool(raw)
    if entry.kind == "choice":
        return None if raw == "" and entry.optional else raw
    text = "" if raw is None else str(raw)
    if entry.widget == "sizes":
        return [_numbers(entry, line) for line in text.splitlines() if line.strip()]
    if entry.blocks_of and entry.kind == "list":  # the first line is the first file's
        return [line.strip() for line in text.rstrip().splitlines()]
    if entry.kind in ("list", "arguments"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    if entry.kind == "text":
        return _words(entry, text)
    text = with_point(entry, text.strip())
    if entry.kind == "span" and text:
        return text
    if not text:
        if entry.optional:
            return None
        what = f"{entry.title} is empty"
        raise BadText(Problem(what, entry.path, f"use {allowed(entry)}", code="settings.bad-value"))
    if entry.kind == "pair":
        return _numbers(entry, text)
    return _number(entry, text, text)


def with_point(entry: Declared, raw: Any) -> Any:
    """A decimal comma as a point, in a field that takes one number. Raises BadText where it may separate thousands: 1,000."""
    text = raw.strip() if isinstance(raw, str) else ""
    if entry.kind not in ("int", "float", "span") or not re.fullmatch(ONE_COMMA, text, re.IGNORECASE):
        return raw
    point, whole = text.replace(",", "."), text.replace(",", "")
    if re.match(THOUSANDS, text):
        what = f"{entry.title} is '{text}', which may mean {whole} or {point}"
        fix = f"write {whole}" if entry.kind == "int" else f"write {whole} or {point}"
        raise BadText(Problem(what, entry.path, fix, code="settings.bad-value"))
    return point


def arguments_text(arguments: Mapping[str, Any]) -> str:
    """One name=value a line, as sd-scripts writes them: betas=0.9,0.99, decouple=true, text as it is."""
    lines = []
    for name, value in arguments.items():
        if isinstance(value, str):
            words = value if literal(value) == value else repr(value)
        elif isinstance(value, (list, tuple)) and value and all(not isinstance(item, (list, dict)) for item in value):
            words = ",".join(json.dumps(item) for item in value) + ("," if len(value) == 1 else "")
        else:
            words = json.dumps(value)
        lines.append(f"{name}={words}")
    return "\n".join(lines)


def _joined(entry: Declared, value: Sequence[Any]) -> str:
    """512 x 768 for pixels; 0.9, 0.999 for a pair that is not a size."""
    return (" x " if _is_size(entry) else ", ").join(number_text(item) for item in value)


def _numbers(entry: Declared, text: str) -> Any:
    """One number, or several with x, a comma or blanks between them."""
    parts = [part for part in re.split(r"[x×,;\s]+", text.strip().strip("()[]")) if part]
    if any(re.match(r"[-+]?0\d", part) for part in parts):  # 0,0001 would be the two numbers 0 and 1
        what = f"{entry.title} is '{text.strip()[:40]}', where a comma separates numbers"
        fix = "write decimals with a point, such as 0.0001"
        raise BadText(Problem(what, entry.path, fix, code="settings.bad-value"))
    numbers = [_number(entry, part, text.strip()) for part in parts]
    return numbers[0] if len(numbers) == 1 else numbers


def _words(entry: Declared, text: str) -> str | None:
    """Spaces at the ends of names and paths are slips; a prefix or separator may want its own."""
    if entry.optional and not text.strip():
        return None
    return text.strip() if entry.widget or entry.name == "output_name" else text


def _number(entry: Declared, part: str, whole: str) -> int | float:
    wanted = f"use {allowed(entry)}"
    what = f"{entry.title} is '{whole[:40]}', which is not a number"
    bad = BadText(Problem(what, entry.path, wanted, code="settings.bad-value"))
    if entry.unit == "bytes" and (size := re.fullmatch(r"([\d.]+)\s*([kmgt])i?b?", part.lower())):
        return int(float(size[1]) * SIZE_SIGNS[size[2]])
    try:
        number = float(part)
    except ValueError:
        raise bad from None
    if not math.isfinite(number):
        raise bad
    if entry.kind == "float":
        return number
    if number != int(number):
        # Not the plain bad text: 2.5 is a number, only not one that this setting takes.
        if entry.kind == "int" or _is_size(entry):
            what = f"{entry.title} is {part}, which is not a whole number"
            raise BadText(Problem(what, entry.path, wanted, code="settings.bad-value"))
        return number
    return number if entry.kind == "pair" and not _is_size(entry) else int(number)


def _is_size(entry: Declared) -> bool:
    """A pair of whole numbers (width and height), not of rates."""
    return entry.unit == "pixels"


def bytes_text(count: int) -> str:
    """1 GB, 512 MB (powers of 1024); the bare number where it is not whole."""
    for sign in ("t", "g", "m"):
        if count >= SIZE_SIGNS[sign] and count % SIZE_SIGNS[sign] == 0:
            return f"{count // SIZE_SIGNS[sign]} {sign.upper()}B"
    return str(count)


def source_text(source: Source | dict) -> str:
    """A folder in one line, to be read: its name, and how many settings it has of its own. Cards edit it."""
    item = to_values(source) if isinstance(source, Source) else source
    own = [name for name, value in item.items() if name not in ("folder", "enabled") and value is not None]
    parts = [str(item["folder"])] + ([] if item.get("enabled", True) else ["left out"])
    if own:
        parts.append(f"{len(own)} {'setting' if len(own) == 1 else 'settings'} of its own")
    return ", ".join(parts)
