"""The line of each key of a TOML or JSON text, by its table path: "datasets[0].subsets[2].image_dir"."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable

_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(rf"\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|\'[^\']*\'')
_COLON = re.compile(r"\s*:")
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def nearest_line(lines: dict[str, int], path: str) -> int | None:
    """The line of a path, or of its table."""
    while path:
        if path in lines:
            return lines[path]
        path = path[: path.rindex("[")] if path.endswith("]") else path.rpartition(".")[0]
    return None


def toml_lines(text: str) -> dict[str, int]:
    """Tables and keys of a TOML text. Keys inside inline tables are not listed: the table's line is used for them."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    table, depth, quote = "", 0, ""
    for number, line in enumerate(text.split("\n"), 1):
        if not quote and depth == 0:
            header = _HEADER.match(line)
            key = _KEY.match(line)
            if header:
                table = _table(_parts(header[2]), header[1] == "[[", counts)
                lines.setdefault(table, number)
                continue
            if key:
                lines.setdefault(".".join(filter(None, [table, *_parts(key[1])])), number)
        quote, depth = _open_after(line, quote, depth)
    return lines


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in re.findall(_NAME, dotted)]


def _table(parts: list[str], new: bool, counts: dict[str, int]) -> str:
    """The path of a header, with the number of the latest element of each array of tables in it."""
    path = ""
    for position, part in enumerate(parts):
        path = f"{path}.{part}" if path else part
        if new and position == len(parts) - 1:
            counts[path] = counts.get(path, 0) + 1
        if path in counts:
            path = f"{path}[{counts[path] - 1}]"
    return path


def _open_after(line: str, quote: str, depth: int) -> tuple[str, int]:
    """The quote of a multi-line string still open after this line, and the number of open brackets."""
    while True:
        if quote:
            _, found, line = line.partition(quote)
            if not found:
                return quote, depth
            quote = ""
        starts = [(line.index(mark), mark) for mark in ('"""', "'''") if mark in line]
        before, quote = (line[: min(starts)[0]], min(starts)[1]) if starts else (line, "")
        bare = _QUOTED.sub("", before)
        if "#" in bare:
            bare, quote = bare.partition("#")[0], ""
        depth = max(0, depth + sum(bare.count(mark) for mark in "[{") - sum(bare.count(mark) for mark in "]}"))
        if not quote:
            return "", depth
        line = line[min(starts)[0] + 3 :]


def json_lines(text: str) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """Objects and keys of a valid JSON text, and the keys that appear twice in one object: (lines, [(path, line)])."""
    lines: dict[str, int] = {}
    twice: list[tuple[str, int]] = []
    line_at = _line_counter(text)
    stack: list[list] = []  # [path, "[" or "{", index, key]
    for match in _TOKEN.finditer(text):
        token, line = match[0], line_at(match.start())
        if token in "{[":
            place = _place(stack)
            lines.setdefault(place, line)
            stack.append([place, token, 0, ""])
        elif token in "}]":
            stack.pop()
        elif token == ",":
            stack[-1][2] += 1
        elif token[0] == '"' and stack and stack[-1][1] == "{" and _COLON.match(text, match.end()):
            stack[-1][3] = json.loads(token)
            place = _place(stack)
            if place in lines:
                twice.append((place, line))
            lines[place] = line
    lines.pop("", None)
    return lines, twice


def _place(stack: list[list]) -> str:
    if not stack:
        return ""
    path, kind, index, key = stack[-1]
    return f"{path}[{index}]" if kind == "[" else ".".join(filter(None, [path, key]))


def _line_counter(text: str) -> Callable[[int], int]:
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    return lambda position: bisect_right(starts, position)
