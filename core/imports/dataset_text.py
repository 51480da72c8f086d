"""A dataset config file -> its raw tables, with the line of every key; what cannot be read is said with line and fix.

sd-scripts reads TOML by the `toml` package, whose reading of "C:\\new\\train" holds a line break and a tab. Paths
written so are found in the text, before any parser sees it.
"""

from __future__ import annotations

import codecs
import json
import locale
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import toml

from core.imports.dataset_lines import json_lines, nearest_line, toml_lines
from core.imports.dataset_options import PATHS
from core.record.bounded_json import parse_json
from core.record.bounded_toml import check_depth
from core.record.problems import Problem, ProblemsError
from core.record.regular import MissingFile, read_regular
from core.record.workspace import open_home, resolve_path

MAX_BYTES, MAX_VALUES = 4_000_000, 200_000
_FOR_TOML = (200_000, 5_000)  # letters of a text, and of a line in it
_KEYS = "|".join(PATHS)
# key = "value" and "key": "value"; second: a text whose last backslash swallows the closing quotation mark
_PATH_VALUES = {
    ".toml": (
        re.compile(rf'\b({_KEYS})(\s*=\s*)"(?!"")((?:[^"\\\n]|\\.)*)"'),
        re.compile(rf'\b({_KEYS})(\s*=\s*)"([^"\n]*[^"\\\n]\\)"[ \t]*(?:#[^\n]*)?$', re.MULTILINE),
    ),
    ".json": (
        re.compile(rf'(?<=")({_KEYS})("\s*:\s*)"((?:[^"\\\n]|\\.)*)"'),
        re.compile(rf'(?<=")({_KEYS})("\s*:\s*)"([^"\n]*[^"\\\n]\\)"[ \t]*[,}}]?[ \t]*$', re.MULTILINE),
    ),
}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")


@dataclass
class Document:
    """A file's content. raw: its tables, None where it could not be read. lines: table path -> line, from 1."""

    path: Path
    raw: dict[str, Any] | None = None
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def where(self, table_path: str = "") -> str:
        """ "dataset.toml, line 14, datasets[0].subsets[2].image_dir"."""
        line = nearest_line(self.lines, table_path)
        return ", ".join([str(self.path), *([f"line {line}"] if line else []), *([table_path] if table_path else [])])

    def error(self, what: str, table_path: str, fix: str) -> None:
        self.problems.append(Problem(what, self.where(table_path), fix))

    def advise(self, what: str, table_path: str, fix: str) -> None:
        self.problems.append(Problem(what, self.where(table_path), fix, "advice"))


def read_document(path: str | os.PathLike) -> Document:
    """Read a .toml or .json file. Everything wrong with the text itself is in `problems`."""
    document = Document(open_home(path))
    suffix = document.path.suffix.lower()
    if suffix not in _PATH_VALUES:
        document.error(
            f"'{document.path.name}' is neither .toml nor .json.",
            "",
            "Give a dataset config of sd-scripts, in TOML or JSON.",
        )
        return document
    text = _read_text(document, suffix)
    if text is None:
        return document
    text, mended = _mend_paths(text, suffix)
    if suffix == ".toml":
        _parse_toml(document, text)
    else:
        _parse_json(document, text)
    for key, line, meant in mended:
        _tell_of_path(document, suffix, key, line, meant)
    if document.raw is not None and not isinstance(document.raw, dict):
        document.error("The file is not a table of settings.", "", 'Begin it with { "datasets": [ ... ] }.')
        document.raw = None
    return document


def _read_text(document: Document, suffix: str) -> str | None:
    try:
        data = read_regular(document.path, MAX_BYTES)
    except MissingFile:
        document.error("There is no such file.", "", "Check the spelling.")
        return None
    except ProblemsError as error:
        document.problems += error.problems
        return None
    if data.startswith(codecs.BOM_UTF8):
        document.notes.append("The file begins with a byte-order mark. It was passed over; sd-scripts refuses it.")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        document.notes.append("The file is UTF-16. It was read all the same; sd-scripts wants UTF-8.")
        return data.decode("utf-16", "replace").replace("\r\n", "\n")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        encoding = locale.getpreferredencoding(False)
        if suffix == ".json" and encoding.lower().replace("-", "") != "utf8":
            try:
                text = data.decode(encoding).replace("\r\n", "\n")
            except UnicodeDecodeError:
                text = ""
            if text:
                document.notes.append(f"The file is no UTF-8; it was read as {encoding}, as sd-scripts would here.")
                return text
        document.problems.append(
            Problem("The file is not UTF-8 text", f"{document.path}, line {line}", "save it as UTF-8 in your editor")
        )
        return None


# ---- paths with single backslashes


def _mend_paths(text: str, suffix: str) -> tuple[str, list[tuple[str, int, str]]]:
    """Paths written "C:\\new" with one backslash, put as they were meant: (text, [(key, line, meant path)])."""
    mended: list[tuple[str, int, str]] = []

    def mend(match: re.Match[str]) -> str:
        line_start = match.string.rfind("\n", 0, match.start()) + 1
        meant = _meant(match[3], suffix)
        if meant is None or (suffix == ".toml" and "#" in match.string[line_start : match.start()]):
            return match[0]
        mended.append((match[1], match.string.count("\n", 0, match.start()) + 1, meant))
        old = f'"{match[3]}"'
        return match[0].replace(old, json.dumps(meant, ensure_ascii=False), 1)

    whole, cut = _PATH_VALUES[suffix]
    return whole.sub(mend, cut.sub(mend, text)), mended


def _meant(written: str, suffix: str) -> str | None:
    """The path that was meant by what stands between the quotation marks; None where it is written well."""
    escapes = _ESCAPE.findall(written)
    good = ("\\", '"', "/") if suffix == ".json" else ("\\", '"')
    open_end = (len(written) - len(written.rstrip("\\"))) % 2 == 1
    if not open_end and all(escape in good or len(escape) > 1 for escape in escapes):
        return None
    if not open_end and os.path.exists(_as_escapes(written)):  # Linux allows tabs and line breaks in names
        return None
    return written.replace("\\\\", "\\")


def _as_escapes(written: str) -> str:
    try:
        return json.loads(f'"{written}"')
    except ValueError:
        return ""


def _tell_of_path(document: Document, suffix: str, key: str, line: int, meant: str) -> None:
    place = next((path for path, number in document.lines.items() if number == line and path.endswith(key)), "")
    where = document.where(place) if place else f"{document.path}, line {line}, {key}"
    slashed = meant.replace("\\", "/")
    if suffix == ".toml":
        what = f'{key} is written with single backslashes in "...": TOML reads \\n in it as a line break, \\t as a tab'
        quoted = f"{key} = '{meant}'" if "'" not in meant and not meant.endswith("\\") else f'{key} = "{slashed}"'
        fix = f'write {quoted}, or with slashes: "{slashed}"'
    else:
        what = f"{key} is written with single backslashes: JSON reads \\n in it as a line break, \\t as a tab"
        fix = f'write "{key}": "{slashed}", or double each backslash'
    if os.path.exists(resolve_path(meant)):
        document.problems.append(Problem(f"{what} It was taken for {meant}, which exists", where, fix, "advice"))
    else:
        document.problems.append(Problem(what, where, fix))


# ---- the two formats


def _parse_toml(document: Document, text: str) -> None:
    """By sd-scripts' own reader, which takes minutes for some texts that TOML 1.0's takes at once; those are not for it."""
    try:
        sound = tomllib.loads(text)
        check_depth(sound)
        first = ""
    except RecursionError:
        first = "it is nested too deep"
    except ValueError as error:
        first = str(error).rstrip(".")
    short = len(text) <= _FOR_TOML[0] and max(map(len, text.split("\n"))) <= _FOR_TOML[1]
    if not short and first:
        return _broken_toml(document, first)
    document.lines = toml_lines(text)
    if not short:
        document.raw = sound
        return None
    try:
        document.raw = _plain(toml.loads(text))
    except Exception as error:  # besides its own error the package raises IndexError and the like at broken text
        if first:
            return _broken_toml(document, first)
        document.raw = sound
        said = str(error).split(" (line")[0].rstrip(".").lower()
        document.notes.append(f"sd-scripts' own reader refuses this file ({said}); it was read as TOML 1.0.")
    return None


def _broken_toml(document: Document, said: str) -> None:
    """said: the reader's words, such as "Expected '=' after a key (at line 3, column 5)"."""
    place = re.search(r"\(at line (\d+), column (\d+)\)$", said)
    plain = said[: place.start()].strip() if place else said
    in_text = "in a string" in plain or "hex value" in plain
    fix = "a backslash between \"...\" begins an escape: use '...', or double it" if in_text else "correct that line"
    line, column = (int(place[1]), int(place[2])) if place else (None, None)
    _broken_text(document, f"The file is not valid TOML: {plain[:1].lower()}{plain[1:]}.", line, column, fix)


def _parse_json(document: Document, text: str) -> None:
    try:
        document.raw = parse_json(text, str(document.path), "correct it", max_values=MAX_VALUES, finite=False)
    except ProblemsError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError):
            what = f"The file is not valid JSON: {cause.msg[:1].lower()}{cause.msg[1:]}"
            _broken_text(document, what, cause.lineno, cause.colno)
        else:
            document.problems += error.problems
        return
    document.lines, twice = json_lines(text)
    for path, line in twice:
        document.problems.append(
            Problem(
                f"{path} is given twice; the last one counts, as in sd-scripts",
                f"{document.path}, line {line}",
                "remove one of them",
                "advice",
            )
        )


def _broken_text(document: Document, what: str, line: int | None, column: int | None, fix: str = "") -> None:
    place = f", line {line}" + (f", column {column}" if column else "") if line else ""
    document.problems.append(Problem(what, f"{document.path}{place}", fix or "Fix that line."))


def _plain(value: Any) -> Any:
    """Plain dicts and lists: both packages have their own kinds."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
