"""Reads TOML from user files within limits (as bounded_json.py does for JSON)."""

import re
import tomllib
from pathlib import Path
from typing import Any

from core.record.bounded_json import MAX_DEPTH, reason_of
from core.record.problems import ProblemsError
from core.record.regular import read_regular

MAX_BYTES = 4_000_000
MOST_PARTS = 20  # of a dotted key: tomllib takes memory and time of the square of them, 9 GB for 100 kB
_KEY = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
LONG_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*+{_KEY}(?:[ \t]*+\.[ \t]*+{_KEY}){{{MOST_PARTS}}}", re.MULTILINE)


def read_toml(path: Path | str, where: str, fix: str) -> dict[str, Any]:
    """Parse a TOML file. Raises ProblemsError for invalid or too large content, MissingFile if there is no file.
    where, fix: location and advice of the problem, if the content is invalid"""
    data = read_regular(path, MAX_BYTES)
    try:
        return parse_toml(data.decode("utf-8-sig"), where, fix)
    except UnicodeDecodeError:
        raise ProblemsError.one(
            "The file is not UTF-8 text", where, "save it as UTF-8 in your editor", code="file.not-utf8"
        ) from None


def parse_toml(text: str, where: str, fix: str) -> dict[str, Any]:
    """Parse TOML text. Raises ProblemsError with this `where` and `fix` for invalid or too large content."""
    try:
        return bounded_loads(text)
    except (ValueError, RecursionError) as error:
        what = f"This is not valid TOML: {reason_of(error)}"
        raise ProblemsError.one(what, where, fix, code="file.not-toml") from None


def bounded_loads(text: str) -> dict[str, Any]:
    """Parse TOML text. Raises ValueError or RecursionError for invalid or too large content."""
    if LONG_KEY.search(text):
        raise ValueError(f"a key has more than {MOST_PARTS} parts")
    content = tomllib.loads(text)
    _check_depth(content)
    return content


def _check_depth(value: Any) -> None:
    """Raise ValueError for tables and lists nested deeper than MAX_DEPTH."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        inside = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))]
        level = [each for part in inside for each in part]
