r"""Parse a dataset config file into raw tables with the line of every key; problems name the line and the fix.

sd-scripts reads TOML with the `toml` package, which turns "C:\
ew\\train" into a line break and a tab. Such paths are
found in the text before it is parsed.
"""

import json
import locale
import os
import re
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import toml

from core.dataset.captions.encodings import decode_text
from core.imports.dataset_options import PATHS
from core.record.bounded_json import parse_json
from core.record.bounded_toml import bounded_loads
from core.record.problems import Problem, ProblemsError, collected
from core.record.regular import read_regular
from core.record.workspace import open_home, resolve_path

MAX_BYTES, MAX_VALUES = 4_000_000, 200_000
_MAX_TOML = (200_000, 5_000)  # characters of a text, and of a line in it
_KEYS = "|".join(PATHS)
_WHOLE, _CUT = r'"(?!"")((?:[^"\\\n]|\\.)*)"', r'"([^"\n]*[^"\\\n]\\)"[ \t]*'
# key = "value" and "key": "value"; second: a string whose last backslash escapes the closing quote
_PATH_VALUES = {
    suffix: (re.compile(before + _WHOLE), re.compile(f"{before}{_CUT}{after}$", re.MULTILINE))
    for suffix, before, after in (
        (".toml", rf"\b({_KEYS})(\s*=\s*)", r"(?:#[^\n]*)?"),
        (".json", rf'(?<=")({_KEYS})("\s*:\s*)', r"[,}]?[ \t]*"),
    )
}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")


@dataclass
class Document:
    """A parsed file.

    raw    its tables; None if unreadable
    lines  {path of a table or key: line number from 1}
    notes  sentences for the report
    alone  whether no other file is read or looked for
    """

    path: Path
    raw: dict[str, Any] | None = None
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    alone: bool = False

    def where(self, table_path: str = "") -> str:
        """Return the location of a table or key for messages: "dataset.toml, line 14, datasets[0].subsets[2].image_dir"."""
        line = nearest_line(self.lines, table_path)
        return ", ".join([str(self.path), *([f"line {line}"] if line else []), *([table_path] if table_path else [])])

    def error(self, what: str, table_path: str, fix: str, slug: str) -> None:
        """Add an error with the code dataset-config.SLUG.

        what, fix    as in `Problem`
        table_path   of the table or key, "datasets[0].subsets[2].image_dir"; "" for the whole file
        """
        self.problems.append(Problem(what, self.where(table_path), fix, code=f"dataset-config.{slug}"))

    def advise(self, what: str, table_path: str, fix: str, slug: str) -> None:
        """Add advice with the code dataset-config.SLUG. Arguments: see `error`"""
        self.problems.append(Problem(what, self.where(table_path), fix, "advice", code=f"dataset-config.{slug}"))


def read_document(path: str | os.PathLike) -> Document:
    """Read and parse a .toml or .json file. Problems with the file or its syntax are in the result's `problems`."""
    document = Document(open_home(path))
    suffix = document.path.suffix.lower()
    if suffix not in _PATH_VALUES:
        what = f"'{document.path.name}' is neither .toml nor .json"
        document.error(what, "", "choose a dataset config of sd-scripts, in TOML or JSON", "unknown-format")
        return document
    text = _read_text(document, suffix)
    if text is None:
        return document
    text, repaired = _repair_paths(text, suffix)
    if suffix == ".toml":
        _parse_toml(document, text)
    else:
        _parse_json(document, text)
    for key, line, intended in repaired:
        _report_path(document, suffix, key, line, intended)
    if document.raw is not None and not isinstance(document.raw, dict):
        document.error("The file is not a JSON object", "", 'start it with { "datasets": [ ... ] }', "not-a-table")
        document.raw = None
    return document


def _read_text(document: Document, suffix: str) -> str | None:
    """Return the file's text; None, with a problem added to the document, if it is unreadable."""
    data = collected(document.problems, read_regular, document.path, MAX_BYTES)
    if data is None:
        return None
    decoded = decode_text(data)
    if decoded.encoding == "utf-8 with a mark":
        document.notes.append("The file starts with a byte order mark. It was ignored; sd-scripts refuses it.")
    elif decoded.encoding in ("utf-16", "utf-32"):
        document.notes.append(f"The file is {decoded.encoding.upper()}. It was read anyway; sd-scripts requires UTF-8.")
    if not decoded.guessed:
        return decoded.text.replace("\r\n", "\n")
    encoding = locale.getpreferredencoding(False)
    if suffix == ".json" and encoding.lower().replace("-", "") != "utf8":
        with suppress(UnicodeDecodeError):
            text = data.decode(encoding).replace("\r\n", "\n")
            note = f"The file is not UTF-8; it was read as {encoding}, as sd-scripts does on this machine."
            document.notes.append(note)
            return text
    line = data.decode("utf-8", "replace").partition("\ufffd")[0].count("\n") + 1
    where, fix = f"{document.path}, line {line}", "save it as UTF-8 in your editor"
    document.problems.append(Problem("The file is not UTF-8 text", where, fix, code="file.not-utf8"))
    return None


# ---- paths with single backslashes


def _repair_paths(text: str, suffix: str) -> tuple[str, list[tuple[str, int, str]]]:
    r"""Double the single backslashes of quoted paths such as "C:\images"; return (text, [(key, line number, intended path)] of those
    repaired).
    suffix: of the file, ".toml" or ".json" (its escapes differ)
    """
    repaired: list[tuple[str, int, str]] = []

    def repair(match: re.Match[str]) -> str:
        """Return the matched key and value with the path's backslashes doubled; the match unchanged if correct or in a comment."""
        line_start = match.string.rfind("\n", 0, match.start()) + 1
        intended = _intended_path(match[3], suffix)
        if intended is None or (suffix == ".toml" and "#" in match.string[line_start : match.start()]):
            return match[0]
        repaired.append((match[1], match.string.count("\n", 0, match.start()) + 1, intended))
        old = f'"{match[3]}"'
        return match[0].replace(old, json.dumps(intended, ensure_ascii=False), 1)

    whole, cut = _PATH_VALUES[suffix]
    return whole.sub(repair, cut.sub(repair, text)), repaired


def _intended_path(written: str, suffix: str) -> str | None:
    """Return the path that the text between quotes was meant as, if its backslashes are not escaped; None if it is escaped correctly."""
    escapes = _ESCAPE.findall(written)
    good = ("\\", '"', "/") if suffix == ".json" else ("\\", '"')
    open_end = (len(written) - len(written.rstrip("\\"))) % 2 == 1
    if not open_end and all(escape in good or len(escape) > 1 for escape in escapes):
        return None
    if not open_end and os.path.exists(_unescaped(written)):  # Linux allows tabs and line breaks in names
        return None
    return written.replace("\\\\", "\\")


def _unescaped(written: str) -> str:
    """Return the text with its escapes decoded; "" if they are invalid."""
    try:
        return json.loads(f'"{written}"')
    except ValueError:
        return ""


def _report_path(document: Document, suffix: str, key: str, line: int, path: str) -> None:
    """Add the problem of a path with single backslashes: advice if the intended path exists, else an error.

    suffix      ".toml" or ".json"
    key, line   name of the key, and its line from 1
    path        the intended path
    """
    table_path = next((known for known, number in document.lines.items() if number == line and known.endswith(key)), "")
    where = document.where(table_path) if table_path else f"{document.path}, line {line}, {key}"
    slashed = path.replace("\\", "/")
    if suffix == ".toml":
        what = f'{key} uses single backslashes in "...", which TOML reads as escapes (\\n is a line break, \\t a tab)'
        quoted = f"{key} = '{path}'" if "'" not in path and not path.endswith("\\") else f'{key} = "{slashed}"'
        fix = f'write {quoted}, or use slashes: "{slashed}"'
    else:
        what = f"{key} uses single backslashes, which JSON reads as escapes (\\n is a line break, \\t a tab)"
        fix = f'write "{key}": "{slashed}", or double each backslash'
    if os.path.exists(resolve_path(path)):
        what = f"{what}; it was read as {path}, which exists"
        document.problems.append(Problem(what, where, fix, "advice", code="dataset-config.backslashes-repaired"))
    else:
        document.problems.append(Problem(what, where, fix, code="dataset-config.backslashes"))


# ---- the two formats


def _parse_toml(document: Document, text: str) -> None:
    """Parse TOML into the document as sd-scripts' parser does; add a problem for invalid TOML. Very long texts, which that takes minutes
    for, are parsed as TOML 1.0; so is a text that only sd-scripts' parser refuses, with a note."""
    reason = ""
    try:
        document.raw = bounded_loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).rstrip(".")
    short = len(text) <= _MAX_TOML[0] and max(map(len, text.split("\n"))) <= _MAX_TOML[1]
    if short or not reason:
        document.lines = toml_lines(text)
    if short:
        try:
            document.raw, reason = _plain(toml.loads(text)), ""
        except Exception as error:  # on broken text the package raises IndexError and the like
            if not reason:
                refused = str(error).split(" (line")[0].rstrip(".").lower()
                document.notes.append(f"sd-scripts' parser refuses this file ({refused}); it was read as TOML 1.0.")
    if reason:
        _broken_toml(document, reason)


def _broken_toml(document: Document, reason: str) -> None:
    """Add the problem of invalid TOML. `reason` is the parser's message, "Expected '=' after a key (at line 3, column 5)"."""
    match = re.search(r"\(at line (\d+), column (\d+)\)$", reason)
    plain = reason[: match.start()].strip() if match else reason
    in_text = "in a string" in plain or "hex value" in plain
    fix = "use '...' instead of \"...\", or double each backslash" if in_text else "correct that line"
    what = f"The file is not valid TOML: {plain[:1].lower()}{plain[1:]}"
    position = f", line {match[1]}, column {match[2]}" if match else ""
    _broken_text(document, what, position, "file.not-toml", fix)


def _parse_json(document: Document, text: str) -> None:
    """Parse JSON into the document; adds a problem for invalid JSON and advice for duplicate keys."""
    try:
        document.raw = parse_json(text, str(document.path), "correct it", max_values=MAX_VALUES, finite=False)
    except ProblemsError as error:
        cause = error.__cause__
        if isinstance(cause, json.JSONDecodeError):
            what = f"The file is not valid JSON: {cause.msg[:1].lower()}{cause.msg[1:]}"
            _broken_text(document, what, f", line {cause.lineno}, column {cause.colno}", "file.not-json")
        else:
            document.problems += error.problems
        return
    document.lines, duplicates = json_lines(text)
    for path, line in duplicates:
        what, where = f"{path} appears twice; the last one counts, as in sd-scripts", f"{document.path}, line {line}"
        problem = Problem(what, where, "remove one of them", "advice", code="dataset-config.duplicate-key")
        document.problems.append(problem)


def _broken_text(document: Document, what: str, position: str, code: str, fix: str = "correct that line") -> None:
    """Add a problem with the file's syntax. position: in the file, ", line 3, column 5"; "" if unknown. code: complete"""
    document.problems.append(Problem(what, f"{document.path}{position}", fix, code=code))


def _plain(value: Any) -> Any:
    """Convert the `toml` package's subclasses of dict and list to plain dicts and lists."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


# ---- lines

_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(rf"\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")
# Strings, those that are not closed too, so that no character is read twice, and comments.
_BLANKED = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"""|\\?\Z)|' + r"'''.*?(?:'''|\Z)|" + r'"(?:\\[^\n]|[^"\\\n])*+"?|' + r"'[^'\n]*+'?|#[^\n]*",
    re.DOTALL,
)
_JSON_PART = re.compile(r'"(?:\\.|[^"\\])*"(?P<key>\s*:)?|(?P<opened>[\[{])')


def nearest_line(lines: dict[str, int], path: str) -> int | None:
    """Return the line of a table or key, or of the nearest table above it; None if neither is known."""
    while path:
        if path in lines:
            return lines[path]
        path = path[: path.rindex("[")] if path.endswith("]") else path.rpartition(".")[0]
    return None


def toml_lines(text: str) -> dict[str, int]:
    """Return {path: line number from 1} of the tables and keys of a TOML text. Keys in inline tables are not listed; they have the line of
    that table."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    table, depth = "", 0
    code_only = _BLANKED.sub(lambda match: "\n" * match[0].count("\n"), text)
    for number, (line, code) in enumerate(zip(text.split("\n"), code_only.split("\n"), strict=True), 1):
        at_top = depth == 0 and bool(code.strip())
        if at_top and (header := _HEADER.match(line)):
            table = _table(_parts(header[2]), header[1] == "[[", counts)
            lines.setdefault(table, number)
            continue
        if at_top and (key := _KEY.match(line)):
            lines.setdefault(".".join(filter(None, [table, *_parts(key[1])])), number)
        depth = max(0, depth + sum(code.count(mark) for mark in "[{") - sum(code.count(mark) for mark in "]}"))
    return lines


def _parts(dotted: str) -> list[str]:
    """Split a dotted TOML key into its parts, without quotes."""
    return [part.strip("\"'") for part in re.findall(_NAME, dotted)]


def _table(parts: list[str], new: bool, counts: dict[str, int]) -> str:
    """Return the path of a table header, with the index of the current element of each array of tables in it.

    parts   of the dotted name in the header
    new     whether the header is [[...]], which begins an element
    counts  {path of an array of tables: elements so far}, updated in place
    """
    path = ""
    for position, part in enumerate(parts):
        path = f"{path}.{part}" if path else part
        if new and position == len(parts) - 1:
            counts[path] = counts.get(path, 0) + 1
        if path in counts:
            path = f"{path}[{counts[path] - 1}]"
    return path


def json_lines(text: str) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """Return ({path: line number} of the objects, lists and keys of a valid JSON text, [(path, line number)] of duplicate keys)."""
    lines: dict[str, int] = {}
    duplicates: list[tuple[str, int]] = []
    breaks = [match.end() for match in re.finditer("\n", text)]
    parts = (match for match in _JSON_PART.finditer(text) if match["key"] or match["opened"])
    numbers = (bisect_right(breaks, match.start()) + 1 for match in parts)

    def visit(value: Any, path: str) -> None:
        """Record the lines of a parsed value and of everything in it. Objects are tuples of (key, value)."""
        if isinstance(value, tuple | list):
            lines.setdefault(path, next(numbers))
        if isinstance(value, tuple):  # the keys and values of an object
            for name, each in value:
                key, line = f"{path}.{name}" if path else name, next(numbers)
                duplicates.extend([(key, line)] if key in lines else [])
                lines[key] = line
                visit(each, key)
        elif isinstance(value, list):
            for index, each in enumerate(value):
                visit(each, f"{path}[{index}]")

    visit(json.loads(text.removeprefix("\ufeff"), object_pairs_hook=tuple), "")
    lines.pop("", None)
    return lines, duplicates
