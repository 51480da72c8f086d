"""Convert values of settings to text and back: for form fields, command-line arguments and messages."""

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.record.bounded_json import became_zero, json_or_none, nonzero_float, parse_json
from core.record.problems import ProblemsError
from core.record.units import count, first_of, number_text, period_text
from core.record.workspace import INVISIBLE
from core.settings.base import Declared, Settings, every
from core.settings.check import allowed
from core.settings.dataset.dataset import Source
from core.settings.job import TrainJob
from core.settings.optimization.optimizers import literal
from core.settings.presets.files import to_values

ONE_COMMA = r"[-+]?\d*,\d+(\s*%|e[-+]?\d+|\s*[kmgt]i?b?)?"
THOUSANDS = r"[-+]?[1-9]\d{0,2},\d{3}(?!\d)"
POINT_OF_THOUSANDS = (
    r"[-+]?[1-9]\d{0,2}\.\d{3}"  # in German, Spanish ...: nobody writes a whole number with three decimals
)
PASTED = str.maketrans("\u2212\u2013", "--", INVISIBLE)  # the minus sign and the en dash of texts
SIZE_SIGNS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
MAX_VALUES = 10_000  # in one word of the command line


@dataclass(frozen=True)
class Codec:
    """Conversions of one kind of setting. `read` and `argument` raise ProblemsError for unreadable text.

    write     (setting, value) -> content of its form field: text, or the value itself for check boxes and choices
    read      (setting, content of its form field) -> value
    argument  (setting, argument of the command line) -> value; None: `read` is used
    """

    write: Callable[[Declared, Any], Any]
    read: Callable[[Declared, Any], Any]
    argument: Callable[[Declared, str], Any] | None = None


def text_of(entry: Declared, value: Any) -> Any:
    """Return the content of a setting's form field for `value`: text, or the value itself for check boxes and choices; "" for None."""
    return "" if value is None and entry.kind != "bool" else _codec(entry).write(entry, value)


def value_from(entry: Declared, raw: Any) -> Any:
    """Parse the content `raw` of a setting's form field. Raises ProblemsError for unreadable text; limits are checked later."""
    bare = entry.kind in ("bool", "choice")
    return _codec(entry).read(entry, raw if bare else "" if raw is None else str(raw))


def value_typed(entry: Declared, text: str) -> Any:
    """Parse a command-line argument; `null` is None. Unreadable text is returned unchanged, for the later check to refuse."""
    if text == "null" or (text == "" and entry.optional):
        return None
    if entry.kind != "text" and text.count(",") > MAX_VALUES:
        return text
    try:
        codec = _codec(entry)
        return (codec.argument or codec.read)(entry, text)
    except ProblemsError:
        return _json_or_text(entry, text)


def _json_else(read: Callable[[str], Any], text: str) -> Any:
    """Parse JSON of at most MAX_VALUES values; for other text return `read(text)`."""
    try:
        return parse_json(text, "command line", max_values=MAX_VALUES, finite=False, parse_float=nonzero_float)
    except ProblemsError:
        return read(text)


def _json_or_text(entry: Declared, text: str) -> Any:
    """Parse JSON, or true and false in any case; other text is returned unchanged."""
    return _json_else(lambda text: {"true": True, "false": False}.get(text.lower(), text), text)


# ---- numbers


def _unless_empty(read: Callable[[Declared, str], Any]) -> Callable[[Declared, str], Any]:
    """Return `read` extended to clean a pasted text and replace a decimal comma first; empty text is None, or an error if required."""

    def filled(entry: Declared, text: str) -> Any:
        """Read the text; None if it is empty and the setting optional, ProblemsError if required."""
        text = with_point(entry, text.translate(PASTED).strip())
        if text:
            return read(entry, text)
        if entry.optional:
            return None
        raise _bad_value(entry, "empty")

    return filled


def with_point(entry: Declared, text: str) -> str:
    """Replace the decimal comma of a single number by a point. Raises ProblemsError for an ambiguous comma, as in 1,000, or point of a
    whole number, as in 1.000."""
    if entry.kind == "int" and re.fullmatch(POINT_OF_THOUSANDS, text):
        number = text.replace(".", "")
        raise _bad_value(entry, f"'{text}', which may mean {number} or {number_text(float(text))}", f"write {number}")
    if entry.kind not in ("int", "float", "span") or not re.fullmatch(ONE_COMMA, text, re.IGNORECASE):
        return text
    decimal, without_comma = text.replace(",", "."), text.replace(",", "")
    if re.match(THOUSANDS, text):
        fix = f"write {without_comma}" if entry.kind == "int" else f"write {without_comma} or {decimal}"
        raise _bad_value(entry, f"'{text}', which may mean {without_comma} or {decimal}", fix)
    return decimal


def _number_text(entry: Declared, value: Any) -> str:
    """Return a number as text; a number of bytes with its unit."""
    return bytes_text(value) if entry.unit == "bytes" and isinstance(value, int) else number_text(value)


def bytes_text(count: int) -> str:
    """Return a number of bytes as "1 GB" or "512 MB" (powers of 1024) if that is exact, else in plain digits."""
    for sign in ("t", "g", "m"):
        if count >= SIZE_SIGNS[sign] and count % SIZE_SIGNS[sign] == 0:
            return f"{count // SIZE_SIGNS[sign]} {sign.upper()}B"
    return str(count)


def _number(entry: Declared, text: str, full_text: str = "") -> int | float:
    """Parse a finite number; in bytes also with a unit ("512 MB"). Raises ProblemsError, which quotes `full_text` (default: `text`).

    Returns a float for "float" settings and pairs of rates; for others a whole number becomes an int.
    """
    size = re.fullmatch(r"([\d.]+)\s*([kmgt])i?b?", text.lower()) if entry.unit == "bytes" else None
    try:
        number = float(size[1] if size else text)
    except ValueError:
        number = math.nan
    if became_zero(number, text) or not math.isfinite(number):
        reason = "is not a number" if math.isnan(number) else "is beyond the range of numbers"
        raise _bad_value(entry, f"'{(full_text or text)[:40]}', which {reason}")
    if size:
        return int(number * SIZE_SIGNS[size[2]])
    if entry.kind == "float" or (entry.kind == "pair" and not _is_size(entry)):
        return number
    if number == int(number):
        return int(text) if text.lstrip("+-").isdecimal() else int(number)  # a float holds 16 digits, a seed 20
    if entry.kind == "int" or _is_size(entry):  # 2.5 is a number, only not one that this setting takes
        raise _bad_value(entry, f"{text}, which is not a whole number")
    return number


def _bad_value(entry: Declared, what: str, fix: str = "") -> ProblemsError:
    """Return the error that the setting is `what`; `fix` defaults to the allowed values."""
    fix = fix or f"use {allowed(entry)}"
    return ProblemsError.one(f"{entry.title} is {what}", entry.path, fix, "settings.bad-value")


def _is_size(entry: Declared) -> bool:
    """Return whether a pair is a size (width, height) in pixels, rather than two rates."""
    return entry.unit == "pixels"


def _pair_text(entry: Declared, value: Any) -> str:
    """Return a pair as text: "512 x 768" for a size, else "0.9, 0.999". A single number stands alone."""
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return (" x " if _is_size(entry) else ", ").join(number_text(number) for number in numbers)


def _numbers(entry: Declared, text: str) -> Any:
    """Parse one number, or a list of numbers separated by x, commas, semicolons or spaces. Raises ProblemsError."""
    if re.search(r"^\s*[x×]|[x×]\s*$", text):
        raise _bad_value(entry, f"'{text.strip()[:40]}', where a number is missing")
    parts = [part for part in re.split(r"[x×,;\s]+", text.strip().strip("()[]")) if part]
    if any(re.match(r"[-+]?0\d", part) for part in parts):  # 0,0001 would be the two numbers 0 and 1
        what = f"'{text.strip()[:40]}', where a comma separates numbers"
        raise _bad_value(entry, what, "write decimals with a point, such as 0.0001")
    numbers = [_number(entry, part, text.strip()) for part in parts]
    return numbers[0] if len(numbers) == 1 else numbers


# ---- texts and lists


def _text(entry: Declared, text: str) -> str | None:
    """Return the text, stripped for paths and `output_name`; prefixes and separators keep their spaces. Empty optional text is None."""
    if entry.optional and not text.strip():
        return None
    return text.strip() if entry.widget or entry.name == "output_name" else text


def _lines(entry: Declared, text: str) -> list[str]:
    """Split text into stripped lines without empty ones, which only settings with a line per file (`blocks_of`) keep."""
    if entry.blocks_of:  # the first line is the first file's
        return [line.strip() for line in text.rstrip().splitlines()]
    return [line.strip() for line in text.splitlines() if line.strip()]


def _parse_list(entry: Declared, text: str) -> list[Any]:
    """Parse a JSON list or comma-separated items; any other text becomes a single item."""
    value = _json_else(lambda text: [part.strip() for part in text.split(",")] if "," in text else text, text)
    return value if isinstance(value, list) else [text]


def _sizes(entry: Declared, text: str) -> Any:
    """Parse a list of sizes: JSON, or "768, 512x768" -> [768, [512, 768]], divided by commas, semicolons or spaces."""
    value = _json_else(lambda text: re.findall(r"[^,;\s]+", re.sub(r"\s*[x×]\s*", "x", text.lower())), text)
    items = value if isinstance(value, list) else [value]
    return [_numbers(entry, each) if isinstance(each, str) else each for each in items]


def _object(entry: Declared, text: str) -> dict[str, Any]:
    """Parse a JSON object; empty text is {}. Raises ProblemsError for anything else."""
    value = json_or_none(text.strip() or "{}")
    if isinstance(value, dict):
        return value
    what, fix = f"{entry.title} is not a JSON object", 'write {"name": value}, or leave it empty'
    raise ProblemsError.one(what, entry.path, fix, "settings.bad-json")


def _arguments(text: str) -> Any:
    """Split sd-scripts' arguments at spaces outside quotes: "a=1 b=2" -> ["a=1", "b=2"]. An unclosed quote leaves the text unsplit."""
    try:
        return shlex.split(text)
    except ValueError:  # a quotation mark that is not closed
        return text


def arguments_text(arguments: Mapping[str, Any]) -> str:
    """Return arguments as sd-scripts' name=value, one per line: betas=0.9,0.99, decouple=true, text without quotes where unambiguous."""
    lines = []
    for name, value in arguments.items():
        if isinstance(value, str):
            text = value if literal(value) == value else repr(value)
        elif isinstance(value, (list, tuple)) and value and all(not isinstance(item, (list, dict)) for item in value):
            text = ",".join(json.dumps(item) for item in value) + ("," if len(value) == 1 else "")
        else:
            text = json.dumps(value)
        lines.append(f"{name}={text}")
    return "\n".join(lines)


def source_text(source: Source | dict) -> str:
    """Describe a dataset folder in one line: name, "left out" if disabled, and how many settings differ from the dataset's."""
    item = to_values(source) if isinstance(source, Source) else source
    overrides = [name for name, value in item.items() if name not in ("folder", "enabled") and value is not None]
    parts = [str(item["folder"])] + ([] if item.get("enabled", True) else ["left out"])
    if overrides:
        parts.append(f"{len(overrides)} {'setting' if len(overrides) == 1 else 'settings'} of its own")
    return ", ".join(parts)


# ---- the table


def _unchanged(entry: Declared, value: Any) -> Any:
    """Return the value unchanged."""
    return value


def _choice(entry: Declared, text: str) -> Any:
    """Parse a command-line argument of a choice: as text if all choices are texts, else as JSON."""
    return text if all(isinstance(choice, str) for choice in entry.choices) else _json_or_text(entry, text)


CODECS = {
    "bool": Codec(_unchanged, lambda entry, raw: bool(raw), _json_or_text),
    "choice": Codec(_unchanged, lambda entry, raw: None if raw == "" and entry.optional else raw, _choice),
    "int": Codec(_number_text, _unless_empty(_number)),
    "float": Codec(_number_text, _unless_empty(_number)),
    # the declaration tells steps, parts and percentages apart
    "span": Codec(_number_text, _unless_empty(_unchanged), _unless_empty(_json_or_text)),
    "pair": Codec(_pair_text, _unless_empty(_numbers)),
    "text": Codec(lambda entry, value: str(value), _text, _unchanged),
    "list": Codec(lambda entry, value: "\n".join(map(str, value)), _lines, _parse_list),
    "sources": Codec(lambda entry, value: "\n".join(map(source_text, value)), _lines, _parse_list),
    "sizes": Codec(
        lambda entry, value: "\n".join(_pair_text(entry, size) for size in value),
        lambda entry, text: [_numbers(entry, line) for line in text.splitlines() if line.strip()],
        _sizes,
    ),
    "object": Codec(lambda entry, value: json.dumps(value, ensure_ascii=False) if value else "", _object),
    "arguments": Codec(
        lambda entry, value: arguments_text(value), _lines, lambda entry, text: _json_else(_arguments, text)
    ),
}


def _codec(entry: Declared) -> Codec:
    """Return the codec for a setting's widget ("sizes", "sources") or kind."""
    return CODECS[entry.widget if entry.widget in ("sizes", "sources") else entry.kind]


# ---- values in words


def shown_value(entry: Declared, value: Any) -> str:
    """Return a value as text for messages: "empty", "on", "cosine", "1e-4"."""
    if entry.kind == "bool":
        return "on" if value else "off"
    if entry.kind == "choice":
        return entry.label(value) if value else entry.labels.get("", "off")
    text = str(text_of(entry, value))
    return text.replace("\n", "; ") if text else "empty"


def summary(job: Settings, group: str) -> str:
    """Summarize a group in one line for the collapsed form: "LoRA rank 16, alpha 16". By default, lists settings that were changed."""
    settings = getattr(job, group)
    if isinstance(job, TrainJob) and group == "validation":
        return _validation(job)
    if isinstance(job, TrainJob) and group == "captions" and not job.method.traits.new_words:
        settings = settings.model_copy(update={"caption_template": "none"})
    return settings.summary() or _changed_settings(settings, group)


def _validation(job: TrainJob) -> str:
    """Summarize the validation group: held-out images and how often validation loss is measured."""
    validation, sources = job.validation, [source for source in job.dataset.sources if source.enabled]
    share = validation.validation_split
    folders = sum(bool(each.validation_images) + (each.role == "validation") for each in sources)
    ways = {True: "best checkpoint by validation images", False: "checkpoints measured on training images"}
    usage = "no validation split" if validation.best_checkpoint == "off" else ways[validation.automatic]
    parts = [f"{share:.0%} of the images" if share else usage]
    parts += [f"validation images in {count(folders, 'folder')}"] if folders else []
    if share or folders:
        periods = ((validation.validate_every_n_epochs, "epoch"), (validation.validate_every_n_steps, "step"))
        moments = [period_text(period, unit) for period, unit in periods if period and every(period)]
        parts += [f"measured {' and '.join(moments)}" if moments else "never measured"]
    return ", ".join(parts)


def _changed_settings(settings: Settings, group: str) -> str:
    """Return the first two settings of a group that differ from their defaults, and the number of others; "defaults" if none differs."""
    entries = [Declared(f"{group}.{name}", group, name, info) for name, info in type(settings).model_fields.items()]
    changed = [
        f"{entry.title} {shown_value(entry, value)[:30]}"
        for entry in entries
        if (value := getattr(settings, entry.name)) != entry.default
    ]
    return first_of(changed, 2) or "defaults"
