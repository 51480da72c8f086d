"""Wildcards of models/wildcards: .txt files with a line for each variant, and lists in YAML files as in Dynamic Prompts."""

import difflib
import os
import unicodedata
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from core.dataset.captions.encodings import decode_text
from core.dataset.sources.files import is_junk, walk_folders
from core.generation.prompt.wildcards import WildcardError, has_variants
from core.record.bounded_json import reason_of
from core.record.bounded_yaml import bounded_yaml
from core.record.problems import ProblemsError
from core.record.regular import read_regular
from core.record.stamps import cached_until_changed
from core.record.workspace import Workspace

MOST_BYTES = 4_000_000
Lines = Callable[[], list[str]]


def wildcard_lines(workspace: Workspace, name: str) -> list[str]:
    """Return the lines of a wildcard: of models/wildcards/NAME.txt without comments and empty lines, or of the list NAME in a YAML file.

    A name with * or ** combines all that match. Raises WildcardError if there are no lines or a file cannot be read.
    """
    folder = (workspace.models / "wildcards").resolve()
    pattern, faults = name.strip("/"), list[str]()
    file = folder / f"{pattern}.txt"
    if "*" not in pattern and os.path.isfile(file) and file.resolve().is_relative_to(folder):
        readers: list[Lines] = [partial(_lines_of_text, file)]
    else:
        names = _wildcards(workspace, faults)
        composed = partial(unicodedata.normalize, "NFC")  # macOS writes accents as letters of their own
        readers = [names[each] for each in sorted(names) if _matches_wildcard(composed(pattern), composed(each))]
    if lines := [line for read in readers for line in read()]:
        return lines
    if readers:
        raise WildcardError(f"the wildcard '{name}' is empty")
    near = difflib.get_close_matches(name, wildcard_names(workspace), 1)
    hints = [f"did you mean '{each}'?" for each in near] + faults[:3]
    raise WildcardError("; ".join([f"no wildcard '{name}' in models/wildcards", *hints]))


def _matches_wildcard(pattern: str, name: str) -> bool:
    """Return whether a name matches a pattern: * within one folder or file name, ** for any folders, at the end everything below."""
    parts, names = pattern.split("/"), name.split("/")
    matched_counts = {0}  # numbers of names that the parts so far can match
    for part in [*parts, "*"] if parts[-1] == "**" else parts:
        if part == "**":
            matched_counts = set(range(min(matched_counts), len(names) + 1)) if matched_counts else matched_counts
        else:
            matched_counts = {n + 1 for n in matched_counts if n < len(names) and fnmatch(names[n], part)}
    return len(names) in matched_counts


def wildcard_names(workspace: Workspace) -> list[str]:
    """Return the names of the wildcards that prompts can write, such as "animals/cats"; others, such as "hair (long)", only match a *."""
    return [name for name in sorted(_wildcards(workspace, [])) if has_variants(f"__{name}__")]


def _wildcards(workspace: Workspace, faults: list[str]) -> dict[str, Lines]:
    """Return {name: function that reads its lines} of all wildcards; of equal names a .txt file's. faults: receives what is wrong in YAML
    files"""
    folder, lists, texts = workspace.models / "wildcards", dict[str, Lines](), dict[str, Lines]()
    files = (parent / name for parent, _, names in walk_folders(folder) for name in names if not is_junk(name))
    for file in sorted(files):
        if file.suffix.lower() == ".txt":
            texts[file.relative_to(folder).with_suffix("").as_posix()] = partial(_lines_of_text, file)
        elif file.suffix.lower() in (".yaml", ".yml"):
            try:
                entries = _lists_in(file).items()
                lists |= {name: partial(_lines_of_list, each, f"'{name}' in '{file.name}'") for name, each in entries}
            except WildcardError as error:
                faults.append(str(error))
    return lists | texts


def _text_of(file: Path) -> str:
    """Return the text of a wildcard file. Raises WildcardError if it cannot be read or its encoding is uncertain."""
    try:
        decoded = decode_text(read_regular(file, MOST_BYTES))
    except ProblemsError as error:
        raise WildcardError(f"the wildcard file '{file.name}' cannot be used: {error.problems[0].what}") from error
    if decoded.guessed:
        raise WildcardError(f"the wildcard file '{file.name}' is not UTF-8 text")
    return decoded.text


def _lines_of_text(file: Path) -> list[str]:
    """Return the lines of a .txt file without comments and empty lines."""
    lines = (line.strip() for line in _text_of(file).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@cached_until_changed(64, missing={})
def _lists_in(file: Path) -> dict[str, list[Any] | None]:
    """Return {name: entries} of all lists in a YAML file: keys joined by "/", of a list alone the file's name; None for a list with a key
    that the file repeats. Raises WildcardError."""
    text = _text_of(file)
    try:
        content, repeated = bounded_yaml(text)
    except (ValueError, RecursionError) as error:
        raise WildcardError(f"the wildcard file '{file.name}' is not valid YAML: {reason_of(error)}") from None

    def lists(value: Any, *keys: str) -> Iterator[tuple[str, list[Any]]]:
        if isinstance(value, list):
            yield "/".join(keys) or file.stem, value
        for key, each in value.items() if isinstance(value, dict) else ():
            yield from lists(each, *keys, key)

    twice = {each.rpartition(" (line ")[0] for each in repeated}
    return {name: entries if twice.isdisjoint(name.split("/")) else None for name, entries in lists(content)}


def _lines_of_list(entries: list[Any] | None, where: str) -> list[str]:
    """Return the entries of a list as lines, without empty ones. Raises WildcardError for None and for entries that are no text.
    where: the list and its file, for messages"""
    if entries is None:
        raise WildcardError(f"the file has a name of the wildcard {where} twice; rename one, or join their lists")
    return [line for entry in entries if (line := _line_of_entry(entry, where))]


def _line_of_entry(entry: Any, where: str) -> str:
    """Return a text or number, or {text, weight} as "weight::text"; "" for an empty entry. Raises WildcardError for others."""
    match entry:
        case None:
            return ""
        case {"text": str(text), **more} | {"content": str(text), **more} if isinstance(
            more.get("weight", 1), int | float
        ):
            return f"{more['weight']}::{text}" if "weight" in more else text
        case str() | int() | float() if not isinstance(entry, bool):
            return str(entry).strip()
    raise WildcardError(f"an entry of the wildcard {where} is not a text; write it in quotes: {str(entry)[:40]}")
