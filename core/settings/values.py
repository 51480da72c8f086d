"""The one codec of settings and text: how a value is written, and read from a field of a form or from a word of the command
line; and values in words, for notes and summaries."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.record.bounded_json import json_or_none, parse_json
from core.record.problems import ProblemsError
from core.record.units import count, first_of, number_text, period_words
from core.settings.base import Declared, Settings, every
from core.settings.check import allowed
from core.settings.dataset.dataset import Source
from core.settings.job import TrainJob
from core.settings.optimization.optimizers import literal
from core.settings.presets.files import to_values

ONE_COMMA = r"[-+]?\d*,\d+(\s*%|e[-+]?\d+|\s*[kmgt]i?b?)?"
THOUSANDS = r"[-+]?[1-9]\d{0,2},\d{3}(?!\d)"
SIZE_SIGNS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
MAX_VALUES = 10_000  # in one word of the command line


@dataclass(frozen=True)
class Codec:
    """How the values of one kind of setting are written and read. Those that read raise ProblemsError.

    write  (setting, value) -> what its field in a form shows: the text, or the bare value for check boxes and choices
    read   (setting, content of the field) -> value
    word   (setting, word of the command line) -> value, where that is not read as a field
    """

    write: Callable[[Declared, Any], Any]
    read: Callable[[Declared, Any], Any]
    word: Callable[[Declared, str], Any] | None = None


def text_of(entry: Declared, value: Any) -> Any:
    """What the field of a setting shows for a value."""
    return "" if value is None and entry.kind != "bool" else _codec(entry).write(entry, value)


def value_from(entry: Declared, raw: Any) -> Any:
    """The JSON value that a field's content stands for. Raises ProblemsError; the declaration's own checks come after."""
    bare = entry.kind in ("bool", "choice")
    return _codec(entry).read(entry, raw if bare else "" if raw is None else str(raw))


def value_typed(entry: Declared, text: str) -> Any:
    """The JSON value that a word of the command line stands for, where `null` is none; what fits nothing stays as it is, and
    the check refuses it."""
    if text == "null" or (text == "" and entry.optional):
        return None
    if entry.kind != "text" and text.count(",") > MAX_VALUES:
        return text
    try:
        codec = _codec(entry)
        return (codec.word or codec.read)(entry, text)
    except ProblemsError:
        return _plain(entry, text)


def _json_or(read: Callable[[str], Any], text: str) -> Any:
    """JSON, at most as much of it as a setting takes; else what `read` makes of the text."""
    try:
        return parse_json(text, "command line", max_values=MAX_VALUES, finite=False)
    except ProblemsError:
        return read(text)


def _plain(entry: Declared, text: str) -> Any:
    """JSON, true and false in any case, else the text itself."""
    return _json_or(lambda text: {"true": True, "false": False}.get(text.lower(), text), text)


# ---- numbers


def _filled(read: Callable[[Declared, str], Any]) -> Callable[[Declared, str], Any]:
    """Reads one line, which may be empty only where the setting may have no value."""

    def filled(entry: Declared, text: str) -> Any:
        text = with_point(entry, text.strip())
        if text:
            return read(entry, text)
        if entry.optional:
            return None
        raise _bad(entry, "empty")

    return filled


def with_point(entry: Declared, text: str) -> str:
    """A decimal comma as a point, in a field that takes one number. Raises ProblemsError where it may separate thousands: 1,000."""
    if entry.kind not in ("int", "float", "span") or not re.fullmatch(ONE_COMMA, text, re.IGNORECASE):
        return text
    point, whole = text.replace(",", "."), text.replace(",", "")
    if re.match(THOUSANDS, text):
        fix = f"write {whole}" if entry.kind == "int" else f"write {whole} or {point}"
        raise _bad(entry, f"'{text}', which may mean {whole} or {point}", fix)
    return point


def _number_text(entry: Declared, value: Any) -> str:
    return bytes_text(value) if entry.unit == "bytes" and isinstance(value, int) else number_text(value)


def bytes_text(count: int) -> str:
    """1 GB, 512 MB (powers of 1024); the bare number where it is not whole."""
    for sign in ("t", "g", "m"):
        if count >= SIZE_SIGNS[sign] and count % SIZE_SIGNS[sign] == 0:
            return f"{count // SIZE_SIGNS[sign]} {sign.upper()}B"
    return str(count)


def _number(entry: Declared, text: str, whole: str = "") -> int | float:
    """whole: the text that the number is a part of."""
    size = re.fullmatch(r"([\d.]+)\s*([kmgt])i?b?", text.lower()) if entry.unit == "bytes" else None
    try:
        number = float(size[1] if size else text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _bad(entry, f"'{(whole or text)[:40]}', which is not a number")
    if size:
        return int(number * SIZE_SIGNS[size[2]])
    if entry.kind == "float" or (entry.kind == "pair" and not _is_size(entry)):
        return number
    if number == int(number):
        return int(text) if text.lstrip("+-").isdecimal() else int(number)  # a float holds 16 digits, a seed 20
    if entry.kind == "int" or _is_size(entry):  # 2.5 is a number, only not one that this setting takes
        raise _bad(entry, f"{text}, which is not a whole number")
    return number


def _bad(entry: Declared, what: str, fix: str = "") -> ProblemsError:
    fix = fix or f"use {allowed(entry)}"
    return ProblemsError.one(f"{entry.title} is {what}", entry.path, fix, "settings.bad-value")


def _is_size(entry: Declared) -> bool:
    """Whether its numbers are whole (width and height), not rates."""
    return entry.unit == "pixels"


def _joined(entry: Declared, value: Any) -> str:
    """512 x 768 for pixels; 0.9, 0.999 for a pair that is not a size."""
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return (" x " if _is_size(entry) else ", ").join(number_text(number) for number in numbers)


def _numbers(entry: Declared, text: str) -> Any:
    """One number, or several with x, a comma or blanks between them."""
    parts = [part for part in re.split(r"[x×,;\s]+", text.strip().strip("()[]")) if part]
    if any(re.match(r"[-+]?0\d", part) for part in parts):  # 0,0001 would be the two numbers 0 and 1
        what = f"'{text.strip()[:40]}', where a comma separates numbers"
        raise _bad(entry, what, "write decimals with a point, such as 0.0001")
    numbers = [_number(entry, part, text.strip()) for part in parts]
    return numbers[0] if len(numbers) == 1 else numbers


# ---- texts and lists


def _text(entry: Declared, text: str) -> str | None:
    """Spaces at the ends of names and paths are slips; a prefix or separator may want its own."""
    if entry.optional and not text.strip():
        return None
    return text.strip() if entry.widget or entry.name == "output_name" else text


def _lines(entry: Declared, text: str) -> list[str]:
    if entry.blocks_of:  # the first line is the first file's
        return [line.strip() for line in text.rstrip().splitlines()]
    return [line.strip() for line in text.splitlines() if line.strip()]


def _listed(entry: Declared, text: str) -> list[Any]:
    """JSON, or items with commas between them."""
    value = _json_or(lambda text: [part.strip() for part in text.split(",")] if "," in text else text, text)
    return value if isinstance(value, list) else [text]


def _sizes(entry: Declared, text: str) -> Any:
    """JSON, or 768,512x768 with a comma between sizes and x between width and height."""
    value = _json_or(lambda text: [_numbers(entry, part) for part in text.lower().split(",")], text)
    return value if isinstance(value, list) else [value]


def _object(entry: Declared, text: str) -> dict[str, Any]:
    value = json_or_none(text.strip() or "{}")
    if isinstance(value, dict):
        return value
    what, fix = f"{entry.title} is not a JSON object", 'write {"name": value}, or leave it empty'
    raise ProblemsError.one(what, entry.path, fix, "settings.bad-json")


def _arguments(text: str) -> Any:
    """sd-scripts' name=value words with blanks between them: "weight_decay=0.1 betas=0.9,0.99"."""
    try:
        return shlex.split(text)
    except ValueError:  # a quotation mark that is not closed
        return text


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


def source_text(source: Source | dict) -> str:
    """A folder in one line, to be read: its name, and how many settings it has of its own. Cards edit it."""
    item = to_values(source) if isinstance(source, Source) else source
    own = [name for name, value in item.items() if name not in ("folder", "enabled") and value is not None]
    parts = [str(item["folder"])] + ([] if item.get("enabled", True) else ["left out"])
    if own:
        parts.append(f"{len(own)} {'setting' if len(own) == 1 else 'settings'} of its own")
    return ", ".join(parts)


# ---- the table


def _same(entry: Declared, value: Any) -> Any:
    return value


def _one_of(entry: Declared, text: str) -> Any:
    return text if all(isinstance(choice, str) for choice in entry.choices) else _plain(entry, text)


CODECS = {
    "bool": Codec(_same, lambda entry, raw: bool(raw), _plain),
    "choice": Codec(_same, lambda entry, raw: None if raw == "" and entry.optional else raw, _one_of),
    "int": Codec(_number_text, _filled(_number)),
    "float": Codec(_number_text, _filled(_number)),
    "span": Codec(
        _number_text, _filled(_same), _filled(_plain)
    ),  # the declaration tells steps, parts and percentages apart
    "pair": Codec(_joined, _filled(_numbers)),
    "text": Codec(lambda entry, value: str(value), _text, _same),
    "list": Codec(lambda entry, value: "\n".join(map(str, value)), _lines, _listed),
    "sources": Codec(lambda entry, value: "\n".join(map(source_text, value)), _lines, _listed),
    "sizes": Codec(
        lambda entry, value: "\n".join(_joined(entry, size) for size in value),
        lambda entry, text: [_numbers(entry, line) for line in text.splitlines() if line.strip()],
        _sizes,
    ),
    "object": Codec(lambda entry, value: json.dumps(value, ensure_ascii=False) if value else "", _object),
    "arguments": Codec(
        lambda entry, value: arguments_text(value), _lines, lambda entry, text: _json_or(_arguments, text)
    ),
}


def _codec(entry: Declared) -> Codec:
    return CODECS[entry.widget if entry.widget in ("sizes", "sources") else entry.kind]


# ---- values in words


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
    return first_of(changed, 2) or "defaults"
