"""Prompt files: .txt with one prompt per line, and the .toml and .json of sd-scripts (reference: training, section 7.4)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.generation.prompt.options import KEYS, PromptLine, line_of, read_line
from core.record.bounded_json import read_json
from core.record.bounded_toml import read_toml
from core.record.problems import Problem, ProblemsError
from core.record.regular import read_regular

MAX_BYTES, MAX_PROMPTS = 4_000_000, 10_000
Entry = str | dict[str, Any]  # a line, or a table


def read_entries(path: Path, where: str) -> list[Entry]:
    """The prompts of a file, not yet parsed. where: the setting that names it. Raises ProblemsError."""
    kind = path.suffix.lower()
    read = {".toml": _toml_entries, ".json": _json_entries, ".txt": _lines}.get(kind)
    if read is None:
        what = f"'{path.name}' is not a prompt file"
        raise ProblemsError.one(what, where, "choose a .txt, .toml or .json file", "prompts.unknown-format")
    found = read(path, f"{where}, {path.name}")
    if len(found) > MAX_PROMPTS:
        what, fix = f"There are {len(found):,} prompts", f"use at most {MAX_PROMPTS:,}"
        raise ProblemsError.one(what, f"{where}, {path.name}", fix, "prompts.too-many")
    return found


def understand(entry: Entry, notes: list[Problem], where: str) -> PromptLine | None:
    """The parsed prompt; None for an empty line or a comment. notes: see `read_line`. Raises ProblemsError."""
    if isinstance(entry, dict):
        return _of_table(entry, notes, where)
    return read_line(entry, notes, where) if is_prompt(entry) else None


def is_prompt(line: str) -> bool:
    """Whether it is neither empty nor a comment."""
    return bool(line.strip()) and not line.startswith("#")


def line_of_table(table: dict[str, Any], notes: list[Problem], where: str) -> tuple[PromptLine, tuple[int, ...]]:
    """(the prompt of a table, its seeds)"""
    line = _of_table(table, notes, where)
    return line, line.values.get("seeds", ())


def _lines(path: Path, where: str) -> list[Entry]:
    try:
        return list(read_regular(path, MAX_BYTES).decode("utf-8-sig").splitlines())
    except UnicodeDecodeError:
        what = "The prompts cannot be read: the file is not UTF-8 text"
        raise ProblemsError.one(what, where, "save it as UTF-8 in your editor", code="file.not-utf8") from None


def _toml_entries(path: Path, where: str) -> list[Entry]:
    """Each [[prompt.subset]] with the defaults in [prompt]."""
    table = read_toml(path, where, "correct it").get("prompt")
    subsets = table.get("subset") if isinstance(table, dict) else None
    sound = isinstance(subsets, list) and all(isinstance(each, dict) for each in subsets)
    if not isinstance(table, dict) or not isinstance(subsets, list) or not sound:
        what, fix = "The file contains no prompts", "write [prompt] and a [[prompt.subset]] for each"
        raise ProblemsError.one(what, where, fix, code="prompts.none")
    common = {key: value for key, value in table.items() if key != "subset"}
    return [common | subset for subset in subsets]


def _json_entries(path: Path, where: str) -> list[Entry]:
    found = read_json(path, "correct it", max_bytes=MAX_BYTES)
    if not isinstance(found, list):
        what = "The file contains no list of prompts"
        raise ProblemsError.one(what, str(path), "write a list of texts or of tables", "prompts.none")
    for entry in found:
        if not isinstance(entry, (str, dict)):
            what = f"'{str(entry)[:40]}' is not a prompt"
            raise ProblemsError.one(what, where, "write a text or a table", code="prompts.not-a-prompt")
    return found


def _of_table(entry: Mapping[str, Any], notes: list[Problem], where: str) -> PromptLine:
    unknown = sorted(set(entry) - {"prompt", *KEYS})
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        what = f"'{', '.join(unknown[:5])}'{more} is not an option of prompts"
        notes.append(Problem(what, where, "remove it", "advice", code="prompts.unknown-option"))
    text = entry.get("prompt")
    if not isinstance(text, str):
        raise ProblemsError.one("A prompt has no text", where, "write prompt = '...' in each", code="prompts.no-text")
    return line_of(text, {switch: entry[key] for key, switch in KEYS.items() if key in entry}, notes, where)
