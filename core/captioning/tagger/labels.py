"""Reads the label tables of taggers within limits: tag and category of each output."""

import ast
import csv
import io
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from core.captioning.tagger.tags import Label
from core.record.bounded_json import parse_json, read_json_object
from core.record.problems import ProblemsError
from core.record.regular import read_regular

MAX_BYTES = 32_000_000
MAX_LABELS = 300_000  # Camie has 70,500
MAX_NAME = 300
MAX_LITERAL = 600_000  # characters of a list, each up to 200 bytes while Python reads it; DeepDanbooru's has 200,000
AGAIN = "download the file again"
# Danbooru's codes, and those of WD (9) and Camie (10).
CODES = {
    "0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta", "9": "rating", "10": "year",
}  # fmt: skip
CONTROL = re.compile(r"[\0-\x1f\x7f\ud800-\udfff]+")


def read_csv(path: Path) -> list[Label]:
    """Read selected_tags.csv of WD, PixAI and others. Raises ProblemsError.

    Columns `name` and `category`; optionally `ips`, a JSON list of the series of a character.
    """
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [name.strip().lower() for name in next(rows, [])]
        columns: dict[str, int] = {name: header.index(name) for name in ("name", "category", "ips") if name in header}
        if not {"name", "category"} <= columns.keys():
            raise _label_error(path, "has no columns name and category")
        labels = [_row(row, columns, rows.line_num, path) for row in islice(rows, MAX_LABELS + 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _label_error(path, f"cannot be read as CSV in UTF-8 ({str(error)[:100]})") from error
    return _checked_count(labels, path)


def _row(row: Sequence[str], columns: dict[str, int], line: int, path: Path) -> Label:
    """Return the label in a row. Raises ProblemsError.

    columns   {"name", "category" and perhaps "ips": index}
    line      line number, for messages
    """
    if len(row) <= max(columns.values()):
        raise _label_error(path, f"has too few columns in line {line}")
    code = row[columns["category"]].strip().lower()
    if not code:
        raise _label_error(path, f"has no category in line {line}")
    ips = row[columns["ips"]].strip() if "ips" in columns else ""
    series = _series(ips, path, line) if ips else ()
    return Label(_name(row[columns["name"]], f"line {line}", path), CODES.get(code, code), series)


def _series(text: str, path: Path, line: int) -> tuple[str, ...]:
    """Parse a JSON list of series names. Raises ProblemsError."""
    names = parse_json(text, f"{path}, line {line}", AGAIN, max_values=100)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _label_error(path, f"has an ips that is not a list of names in line {line}")
    return tuple(_name(name, f"line {line}", path) for name in names)


def read_mapping(path: Path) -> list[Label]:
    """Read tag_mapping.json of cl_tagger ({"0": {"tag", "category"}}), or metadata with idx_to_tag and tag_to_category (Camie).

    An output that the file does not list gets NO_LABEL. Raises ProblemsError.
    """
    values = read_json_object(path, AGAIN)
    inner = values.get("dataset_info", values)
    inner = inner.get("tag_mapping", inner) if isinstance(inner, dict) else values
    if isinstance(inner, dict) and isinstance(inner.get("idx_to_tag"), dict):
        kinds = inner.get("tag_to_category")
        if not isinstance(kinds, dict):
            raise _label_error(path, "has no tag_to_category")
        tags = inner["idx_to_tag"].items()
        pairs = {number: (tag, kinds.get(tag, "general") if isinstance(tag, str) else None) for number, tag in tags}
    else:
        objects = {number: each if isinstance(each, dict) else {} for number, each in values.items()}
        pairs = {number: (each.get("tag"), each.get("category")) for number, each in objects.items()}
    labels: dict[int, Label] = {}
    for number, (tag, kind) in pairs.items():
        if not re.fullmatch(r"[0-9]{1,6}", number) or not isinstance(tag, str) or not isinstance(kind, str):
            raise _label_error(path, f"has an entry '{number[:40]}' that is not a number with a tag and a category")
        labels[int(number)] = Label(_name(tag, f"entry {number}", path), kind.strip().lower())
    ordered = [labels.get(number, NO_LABEL) for number in range(max(labels, default=-1) + 1)]
    return _checked_count(ordered, path)


NO_LABEL = Label("", "")  # an output without a tag


def read_metadata(text: str, path: Path) -> list[Label]:
    """Parse DeepDanbooru's list of tags, a Python literal in the model's metadata. Raises ProblemsError. `path`: of the model."""
    try:
        if len(text) > MAX_LITERAL:
            raise ValueError("too long")
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise _label_error(path, "has no readable list of tags in its metadata") from error
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise _label_error(path, "has no list of tags in its metadata")
    kinds = ("rating" if name.startswith("rating:") else "general" for name in names)
    labels = [Label(_name(name, "the list", path), kind) for name, kind in zip(names, kinds, strict=True)]
    return _checked_count(labels, path)


def _name(text: str, where: str, path: Path) -> str:
    """Return the tag without control characters. Raises ProblemsError if it is empty or too long."""
    name = CONTROL.sub(" ", text).strip()
    if not name or len(name) > MAX_NAME:
        raise _label_error(
            path, f"has an empty tag in {where}" if not name else f"has a tag above {MAX_NAME} letters in {where}"
        )
    return name


def _checked_count(labels: list[Label], path: Path) -> list[Label]:
    """Return the labels. Raises ProblemsError if there are none or more than MAX_LABELS."""
    if not labels or len(labels) > MAX_LABELS:
        raise _label_error(path, "has no tags" if not labels else f"has more than {MAX_LABELS:,} tags")
    return labels


def _label_error(path: Path, why: str) -> ProblemsError:
    """Return the error that the label file is damaged. `why`: a verb phrase."""
    return ProblemsError.one(f"The label file {path.name} {why}", str(path), AGAIN, "tagger.bad-labels")
