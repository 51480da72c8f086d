"""Reads JSON from user files within limits, and reports what is wrong.

Python's own parser raises RecursionError at 1,000 nested lists, accepts NaN and 1e999 (infinity), and uses 20
bytes of memory per byte of text.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from core.record.problems import HALF_PAIR, ProblemsError
from core.record.regular import read_regular

MAX_BYTES = 32_000_000
MAX_VALUES = 1_000_000  # CLIP's tokenizer.json has 200,000
MAX_DEPTH = 100
MAX_DIGITS = 40  # 2 ** 64 has 20
# A string, even an unclosed one, so that no position is visited twice
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NO_BRACKETS, _AS_LISTS = re.compile(r"[^\[\]{}]+"), str.maketrans("{}", "[]")
_NOT_ZERO = re.compile(r"[-+]?[0.]*[1-9]")  # begins a number that is not 0
AGAIN = "download or copy it again"


def read_json(
    path: Path | str, fix: str = AGAIN, *, max_bytes: int = MAX_BYTES, max_values: int = MAX_VALUES, finite: bool = True
) -> Any:
    """Parse a JSON file. Raises ProblemsError for invalid or too large content, MissingFile if there is no file.

    fix         advice to the user in the problem
    max_bytes   limit on the size of the file
    max_values  limit on the number of values in the file
    finite      whether NaN and infinity are refused
    """
    return parse_json(read_regular(path, max_bytes), str(path), fix, max_values=max_values, finite=finite)


def read_json_object(
    path: Path | str, fix: str = AGAIN, *, max_bytes: int = MAX_BYTES, max_values: int = MAX_VALUES, finite: bool = True
) -> dict[str, Any]:
    """`read_json` that raises ProblemsError also if the top-level value is not an object."""
    value = read_json(path, fix, max_bytes=max_bytes, max_values=max_values, finite=finite)
    if not isinstance(value, dict):
        raise ProblemsError.one(
            "The file must contain a JSON object: { ... }", str(path), fix, code="file.not-json-object"
        )
    return value


def parse_json(
    text: str | bytes,
    where: str,
    fix: str = AGAIN,
    *,
    max_values: int = MAX_VALUES,
    finite: bool = True,
    subject: str = "This",
    **hooks: Any,
) -> Any:
    """Parse JSON text; bytes are UTF-8, 16 or 32. Raises ProblemsError for invalid or too large content.

    where, fix   location and advice of the problem
    max_values   limit on the number of values
    finite       whether NaN and infinity are refused
    subject      begins the problem's sentence: "{subject} is not valid JSON"
    hooks        arguments of `json.loads`, such as object_pairs_hook (may raise ValueError)
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        text = text.removeprefix("\ufeff")
        _check_structure(text, max_values)
        numbers: dict[str, Any] = {"parse_int": _bounded_int}
        if finite:
            numbers |= {"parse_float": _finite_float, "parse_constant": _finite_float}
        value = json.loads(text, **numbers, **hooks)
        if "\\u" in text or HALF_PAIR.search(text):
            _check_strings(value)
        return value
    except (ValueError, RecursionError) as error:
        raise ProblemsError.one(
            f"{subject} is not valid JSON: {reason_of(error)}", where, fix, code="file.not-json"
        ) from error


def json_or_none(text: str | bytes) -> Any:
    """Parse JSON text; None if it is invalid or exceeds the default limits."""
    try:
        return parse_json(text, "")
    except ProblemsError:
        return None


def reason_of(error: Exception) -> str:
    """Return why a text (JSON, TOML, YAML) could not be parsed, as a clause."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _check_structure(text: str, max_values: int) -> None:
    """Raise ValueError if JSON text is nested deeper than MAX_DEPTH or has more than `max_values` values, before it is parsed."""
    opened = text.count("[") + text.count("{")  # an upper limit: it counts those in strings too
    if opened <= MAX_DEPTH and opened + text.count(",") <= max_values:
        return
    bare = _STRING.sub("", text)
    if bare.count("[") + bare.count("{") + bare.count(",") > max_values:
        raise ValueError(f"it contains more than {max_values:,} values")
    brackets = _NO_BRACKETS.sub("", bare).translate(_AS_LISTS)
    for _ in range(MAX_DEPTH):  # removes the innermost level each time; unmatched brackets stay
        if "[]" not in brackets:
            break
        brackets = brackets.replace("[]", "")
    if "[]" in brackets or brackets.count("[") > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _bounded_int(digits: str) -> int:
    """Parse an integer. Raises ValueError for more than MAX_DIGITS digits."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def became_zero(number: float, text: str) -> bool:
    """Whether `text`, parsed as `number`, is not 0 but too small for a float, such as 1e-400."""
    return number == 0 and _NOT_ZERO.match(text) is not None


def nonzero_float(text: str) -> float:
    """Parse a number. Raises ValueError for one that would become 0."""
    value = float(text)
    if became_zero(value, text):
        raise ValueError(f"{text[:MAX_DIGITS]} is too small a number")
    return value


def _finite_float(text: str) -> float:
    """Parse a number. Raises ValueError for NaN, infinity and one that would become 0."""
    value = nonzero_float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:MAX_DIGITS]} is not a finite number")
    return value


def _check_strings(value: Any) -> None:
    """Raise ValueError if a string anywhere in `value` has half a surrogate pair, which cannot be written to a file or page."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if HALF_PAIR.search(value):
                raise ValueError("a string contains half of a surrogate pair")
        elif isinstance(value, dict):
            pending += value
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value
