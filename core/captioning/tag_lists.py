"""Tag lists for autocomplete: CSV files in `models/tag_lists` in the format of A1111's tag autocomplete.

Rows without a header: `name,category,count,"alias,alias"`.
"""

import csv
import heapq
import io
import re
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from core.dataset.captions.encodings import decode_text
from core.dataset.captions.words import comparable
from core.record.problems import Problem, ProblemsError, collected
from core.record.regular import read_regular
from core.record.stamps import Stamp, stamp
from core.record.workspace import Workspace

MAX_BYTES = 64 << 20
MAX_ENTRIES = 400_000  # tags and aliases of a file: they take 150 bytes each
MOST_ALIASES = 50  # of a tag
LONGEST = 200  # characters of a tag or an alias
OTHER_EXCEL = re.compile(r"[^,;]+;\d+;")  # a first row as Excel saves it where the comma is in numbers


class ListedTag(NamedTuple):
    """A tag of a list with its post count (`post_count`). `alias`: an alias to look the tag up by, "" for the tag itself."""

    tag: str
    post_count: int
    alias: str = ""


normalized = comparable.__wrapped__  # each name once: its cache would only grow


class TagList:
    """Tags and aliases sorted for lookup by prefix."""

    def __init__(self, known: Iterable[ListedTag]):
        """`known`: an entry for each tag and each alias."""
        rows = sorted(((normalized(each.alias or each.tag), each) for each in known), key=lambda row: row[0])
        self._keys, self._known = [key for key, _ in rows], [each for _, each in rows]

    def __len__(self) -> int:
        return len(self._known)

    def complete(self, text: str, most: int) -> list[ListedTag]:
        """Return the `most` most frequent tags whose name or alias starts with `text`, each once."""
        prefix = comparable(text)
        if not prefix:
            return []
        first, last = bisect_left(self._keys, prefix), bisect_left(self._keys, prefix + "\U0010ffff")
        matches: dict[str, ListedTag] = {}
        for each in heapq.nlargest(
            2 * most, self._known[first:last], key=lambda known: (known.post_count, not known.alias)
        ):
            matches.setdefault(each.tag, each)
        return list(matches.values())[:most]


def tag_lists(workspace: Workspace) -> tuple[TagList, list[Problem]]:
    """Return (all tag lists of the models folder as one, problems of unreadable ones)."""
    folder = workspace.models / "tag_lists"
    files = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    return _read_all(tuple((path, stamp(path)) for path in files))


@lru_cache(maxsize=1)
def _read_all(files: tuple[tuple[Path, Stamp], ...]) -> tuple[TagList, list[Problem]]:
    """Read and join tag lists, cached until a file changes. `files`: with their stamps."""
    known: list[ListedTag] = []
    problems: list[Problem] = []
    for path, _ in files:
        known += collected(problems, read_tag_list, path) or []
    return TagList(known), problems


def read_tag_list(path: Path) -> list[ListedTag]:
    """Read the tags and aliases of a file. Raises ProblemsError."""
    text = decode_text(read_regular(path, MAX_BYTES)).text
    tags: list[ListedTag] = []
    try:
        delimiter = ";" if OTHER_EXCEL.match(text) else ","
        for number, row in enumerate(csv.reader(io.StringIO(text, newline=None), delimiter=delimiter), 1):
            if row and 0 < len(row[0]) <= LONGEST:
                tags += _row(row)
            if max(number, len(tags)) > MAX_ENTRIES:
                raise _list_error(path, f"it has more than {MAX_ENTRIES:,} tags and aliases", "remove rare tags")
    except csv.Error as error:
        raise _list_error(path, str(error), "use rows such as 1girl,0,6008644") from error
    if not tags:
        raise _list_error(path, "it contains no tags", "use rows such as 1girl,0,6008644")
    return tags


def _row(row: list[str]) -> list[ListedTag]:
    """Return the tag of a CSV row, followed by an entry for each alias."""
    tag = row[0].strip()
    numbers = [int(each) for each in row[1:3] if each.strip().isdecimal() and len(each) < 12]
    post_count = numbers[-1] if numbers else 0
    aliases = (each.strip() for each in row[3].split(",")[:MOST_ALIASES]) if len(row) > 3 else ()
    return [
        ListedTag(tag, post_count),
        *(ListedTag(tag, post_count, alias) for alias in aliases if 0 < len(alias) <= LONGEST),
    ]


def _list_error(path: Path, why: str, fix: str) -> ProblemsError:
    """Return the error that a tag list cannot be used. `why`: a clause."""
    return ProblemsError.one(f"The tag list cannot be used: {why}", str(path), fix, "tags.bad-list")
