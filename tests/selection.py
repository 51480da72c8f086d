"""Which tests run and in which order: all but the slow ones, all, those from one file on, or those near a change.

A test is slow if it says so: `@pytest.mark.slow` for all its cases, `slow(but=("plain",))` for all but these cases,
`slow(only=("sdxl",))` for these alone. A name that no case has is an error as soon as the file is collected.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

# Two processes take a file each: the folders whose files take longest come first, so that both end together.
LONGEST_FIRST = (
    "test_main_job.py",
    "facts",
    "tabs",
    "training",
    "generation",
    "hostile",
    "seams",
    "tools",
    "captioning",
    "networks",
    "cli",
)


def slow_unless(quick: Callable, values: Iterable) -> list:
    """Values for parametrize, marked slow but for those of which `quick` is true."""
    return [value if quick(value) else pytest.param(value, marks=pytest.mark.slow) for value in values]


def is_slow(item: pytest.Item) -> bool:
    """Whether a test, or this case of it, is marked slow."""
    return any(_covers(mark, case_of(item)) for mark in item.iter_markers("slow"))


def _covers(mark: pytest.Mark, case: str) -> bool:
    if "only" in mark.kwargs:
        return case in mark.kwargs["only"]
    return case not in mark.kwargs.get("but", ())


def case_of(item: pytest.Item) -> str:
    """A parametrized test's id, as between the brackets of its name; empty for others."""
    return item.nodeid.partition("[")[2].removesuffix("]")


def stale_cases(items: Iterable[pytest.Item]) -> list[str]:
    """Cases that a slow mark names and no collected test has: 'FILE::TEST[case]'."""
    named: defaultdict[str, set[str]] = defaultdict(set)
    cases: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        test = item.nodeid.partition("[")[0]
        cases[test].add(case_of(item))
        for mark in item.iter_markers("slow"):
            named[test] |= {*mark.kwargs.get("but", ()), *mark.kwargs.get("only", ())}
    return sorted(f"{test}[{case}]" for test in named for case in named[test] - cases[test])


def names_a_test(arguments: list[str], name: str) -> bool:
    """Whether the command line names this test (FILE::TEST): then it runs, slow or not."""
    return any("::" in word and name.startswith(word) for word in arguments)


def position(name: str) -> int:
    """Where a test's folder stands in a run: the longest folders first, all others as they are."""
    part = name.split("/")[1].split("::")[0] if "/" in name else ""
    return LONGEST_FIRST.index(part) if part in LONGEST_FIRST else len(LONGEST_FIRST)


def backwards(folder: Path) -> list[str]:
    """All that may hold tests in a folder, last first. Two processes that collect from both ends each find half of the files
    compiled by the other: compiling them (asserts are rewritten) takes as long as all else about collecting."""
    names = sorted((path for path in folder.iterdir() if path.name[0] not in "._"), reverse=True)
    return [str(path) for path in names if path.is_dir() or path.name.startswith("test_")]


def file_of(name: str) -> str:
    """tests/a/test_b.py of tests/a/test_b.py::test_c[d]"""
    return name.partition("::")[0]


def starting_at(names: list[str], file: str) -> list[str]:
    """The tests of `file` and of all that come after it. ValueError: none is in that file."""
    first = next((index for index, name in enumerate(names) if file_of(name) == file), None)
    if first is None:
        raise ValueError(f"no test of this run is in {file}")
    return names[first:]
