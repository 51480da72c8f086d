"""No test is lost between `test`, its slices and `test --all`."""

import os
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.selection import ALWAYS, GONE, chosen, place, read_durations, runs, slice_number, slice_of, slice_of_day

NAMES = [f"tests/training/test_{file}.py::test_{test}[{case}]" for file in "abc" for test in "de" for case in range(50)]


@pytest.mark.parametrize("parts", range(1, 12))
def test_every_slow_test_is_in_exactly_one_slice_and_every_other_in_all(parts):
    for name in NAMES:
        held = [n for n in range(1, parts + 1) if runs(name, slow=True, everything=False, chosen=(n, parts), named=[])]
        assert held == [slice_number(name, parts)] and 1 <= held[0] <= parts
        assert all(runs(name, False, False, (n, parts), []) for n in range(1, parts + 1))
        assert not runs(name, True, False, None, []) and runs(name, True, True, None, [])


def test_every_name_in_the_list_of_slow_tests_is_a_test(request):
    gone = request.config.stash.get(GONE, None)
    if gone is None:
        pytest.skip("only where all tests are collected")
    assert not gone, f"tests/slow.txt: remove or rename {sorted(gone)[:5]}"


def test_three_weeks_have_every_slice():
    found = [slice_of_day(date(2027, 2, 20) + timedelta(days=n)) for n in range(21)]
    assert sorted(found) == [(n, 21) for n in range(1, 22)]


def test_slices_are_of_one_size_about():
    counts = [sum(slice_number(name, 8) == n for name in NAMES) for n in range(1, 9)]
    assert min(counts) > len(NAMES) / 8 / 2 and max(counts) < 2 * len(NAMES) / 8


def test_a_slow_test_that_is_named_runs():
    name = "tests/training/test_a.py::test_d[3]"
    assert runs(name, True, False, None, [name]) and runs(name, True, False, None, ["tests/training/test_a.py::test_d"])
    assert not runs(name, True, False, None, ["tests/training/test_a.py"])


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "3/0", "a/b", "", "-1/8"])
def test_what_is_no_slice_is_refused(text):
    with pytest.raises(ValueError, match="such as 3/8"):
        slice_of(text)


def test_the_longest_folders_come_first():
    names = ["tests/settings/test_a.py::t", "tests/test_selection.py::t", "tests/tabs/test_b.py::t"]
    assert sorted([*names, "tests/test_main_job.py::t"], key=place) == [
        "tests/test_main_job.py::t",
        names[2],
        *names[:2],
    ]


def test_pytest_runs_what_is_said(tmp_path):
    """The hooks themselves, on three tests in a folder of their own."""
    for name in ("conftest.py", "selection.py"):
        (tmp_path / "tests" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "tests" / name).write_text(Path(__file__).with_name(name).read_text("utf-8"))
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["."]\nmarkers = ["slow: late"]\n'
    )
    slow = ["tests/test_x.py::test_slow[0]", "tests/test_x.py::test_slow[1]"]
    (tmp_path / "tests" / "test_x.py").write_text(
        "import pytest\n@pytest.mark.slow\n@pytest.mark.parametrize('n', [0, 1])\ndef test_slow(n): pass\ndef test_quick(): pass\n"
    )

    def ran(*more):
        command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "--import-mode=importlib", *more]
        alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
        return done.returncode, [line for line in done.stdout.splitlines() if "::" in line]

    quick = "tests/test_x.py::test_quick"
    assert ran("tests")[1] == [quick]
    assert ran("tests", "--all")[1] == [*slow, quick]
    found = [ran("tests", f"--slice={n}/2")[1] for n in (1, 2)]
    assert (
        all(quick in names for names in found)
        and sorted(name for names in found for name in names if name != quick) == slow
    )
    assert ran(slow[1])[1] == [slow[1]]
    assert ran("tests", "--slice=3/2")[0] != 0


def test_of_each_file_the_first_longer_tests_stay_and_the_longest_do_not():
    seconds = {"a.py::one": 2.0, "a.py::two": 0.8, "a.py::three": 1.0, "b.py::long": 90.0, f"{ALWAYS[0]}::whole": 90.0}
    assert chosen(seconds, list(seconds)) == ["a.py::three", "b.py::long"]
    printed = "4.00s call     a.py::one[x y]\n1.50s setup    a.py::one[x y]\nother words\n"
    assert read_durations(printed) == {"a.py::one[x y]": 5.5}
