"""Which tests run: all but the ones marked slow, those of one slice too, or all; and in which order."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from zlib import crc32

import pytest

GONE = pytest.StashKey[set[str]]()  # names in the list of slow tests that no test has, where all were collected
LIST = Path(__file__).with_name("slow.txt")
QUICK = 0.5  # seconds: a test that takes less is never listed
OF_A_FILE = 2.5  # seconds of each file's longer tests that run by default, its first ones
LONGEST = 15.0  # seconds of a test that runs by default, but for the whole way through the product:
ALWAYS = ("tests/test_main_job.py", "tests/tabs/test_page_whole.py", "tests/seams/test_seams.py")
# Two processes take a file each: the folders whose files take longest come first, so that both end together.
LONGEST_FIRST = (
    "test_main_job.py",
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


def listed() -> set[str]:
    """Tests that slow.txt names, by what they took: `python -m tests.selection FILE` writes it from a run's durations."""
    return set(LIST.read_text("utf-8").splitlines()) if LIST.is_file() else set()


def slice_of(text: str) -> tuple[int, int]:
    """ "3/8" -> (3, 8); "today" -> the day's (UTC)"""
    if text == "today":
        return slice_of_day(datetime.now(UTC).date())
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= parts:
        raise ValueError(f"'{text}' is no slice: use today or N/M with N from 1 to M, such as 3/8")
    return number, parts


def slice_of_day(day: date) -> tuple[int, int]:
    """The next of 21 slices each day: known before a commit, the same for all of a day's."""
    return day.toordinal() % 21 + 1, 21


def slice_number(name: str, parts: int) -> int:
    """Which of the slices 1 to `parts` holds the test of this name: the same on every machine, whatever else is collected."""
    return crc32(name.encode()) % parts + 1


def runs(name: str, slow: bool, everything: bool, chosen: tuple[int, int] | None, named: list[str]) -> bool:
    """Whether a test runs. `named` are the arguments: a test that is named there runs, slow or not."""
    if not slow or everything or any("::" in word and name.startswith(word) for word in named):
        return True
    return chosen is not None and slice_number(name, chosen[1]) == chosen[0]


def place(name: str) -> int:
    """Sorts the files of a test run: those of the longest folders first, each folder's as they are."""
    part = name.split("/")[1].split("::")[0] if "/" in name else ""
    return LONGEST_FIRST.index(part) if part in LONGEST_FIRST else len(LONGEST_FIRST)


def chosen(seconds: dict[str, float], order: list[str]) -> list[str]:
    """The tests to list: of each file the longer ones beyond its first few. order: all tests as they are collected."""
    used: defaultdict[str, float] = defaultdict(float)
    found = []
    for name in order:
        took, file = seconds.get(name, 0.0), name.partition("::")[0]
        if took < QUICK:
            continue
        if (used[file] and used[file] + took > OF_A_FILE) or (took > LONGEST and file not in ALWAYS):
            found.append(name)
        else:
            used[file] += took
    return found


def read_durations(text: str) -> dict[str, float]:
    """{test: seconds, set up and taken down with it} of what pytest prints with --durations."""
    found: defaultdict[str, float] = defaultdict(float)
    for took, name in re.findall(r"^([\d.]+)s (?:setup|call|teardown) +(\S.*)$", text, re.MULTILINE):
        found[name.strip()] += float(took)
    return found


if __name__ == "__main__":  # the run: ./launch.sh test --collect-only -q > ORDER; ./launch.sh test --durations=0 > FILE
    order, durations = (Path(name).read_text("utf-8") for name in sys.argv[1:3])
    names = [line for line in order.splitlines() if "::" in line]
    LIST.write_text(
        "".join(f"{name}\n" for name in sorted({*listed(), *chosen(read_durations(durations), names)})), "utf-8"
    )
