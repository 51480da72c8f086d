"""No test is lost between `test` and `test --all`, and what is near a change is found by imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.near import changed_files, importers, near
from tests.selection import position

QUICK, SLOW = "tests/test_x.py::test_quick", ["tests/test_x.py::test_slow[0]", "tests/test_x.py::test_slow[1]"]
BUT, ONLY = ([f"tests/test_x.py::test_{name}[{case}]" for case in ("one", "two", "three")] for name in ("but", "only"))
TESTS = """
import pytest
@pytest.mark.slow
@pytest.mark.parametrize('n', [0, 1])
def test_slow(n): pass
@pytest.mark.slow(but=('one',))
@pytest.mark.parametrize('n', ['one', 'two', 'three'])
def test_but(n): pass
@pytest.mark.slow(only=('two', 'three'))
@pytest.mark.parametrize('n', ['one', 'two', 'three'])
def test_only(n): pass
def test_quick(): pass
"""


@pytest.fixture
def project(tmp_path):
    """Runs pytest with this folder's hooks on tests of its own; returns (exit code, tests collected, what it printed)."""
    for name in ("conftest.py", "selection.py"):
        (tmp_path / "tests" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "tests" / name).write_text(Path(__file__).with_name(name).read_text("utf-8"))
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["."]\nmarkers = ["slow: late"]\n'
    )

    def run(*arguments, tests=TESTS, more=()):
        (tmp_path / "tests" / "test_x.py").write_text(tests)
        for name, text in more:
            (tmp_path / "tests" / name).write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "--import-mode=importlib", *arguments]
        alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
        done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
        ran = [
            line.removeprefix("PASSED ") for line in done.stdout.splitlines() if line.startswith(("PASSED ", "tests/"))
        ]
        return done.returncode, ran, done.stdout + done.stderr

    return run


def test_slow_tests_and_cases_run_with_all_or_by_name(project):
    assert project("tests")[1] == [BUT[0], ONLY[0], QUICK]
    assert project("tests", "--all")[1] == [*SLOW, *BUT, *ONLY, QUICK]
    assert project("tests/test_x.py::test_slow", BUT[2])[1] == [*SLOW, BUT[2]]


def test_a_slow_mark_that_names_no_case_is_an_error(project):
    code, ran, text = project(
        "tests",
        tests=TESTS.replace("'two', 'three'),", "'two', 'four'),").replace(
            "only=('two', 'three')", "only=('two', 'four')"
        ),
    )
    assert code != 0 and not ran and "test_only[four]" in text


def test_a_run_goes_on_at_the_file_where_it_was_cut_off(project):
    dies = "import os\ndef test_first(): pass\ndef test_dies(): os._exit(9)\n"
    last = ("test_z.py", "def test_last(): pass\n")
    assert project("tests", "--all", more=[("test_y.py", dies), last])[0] == 9
    code, ran, _ = project("tests", "--all", "--from", more=[("test_y.py", "def test_first(): pass\n"), last])
    assert code == 0 and ran == ["tests/test_y.py::test_first", "tests/test_z.py::test_last"]
    assert project("tests", "--from", "tests/test_gone.py")[0] != 0


def test_no_test_begins_after_the_time_and_what_is_left_out_is_said(project):
    _, ran, text = project("--until=1e-9", "tests/test_x.py")
    assert not ran and "left out" in text and "3 tests of 1 files" in text


def test_the_longest_folders_come_first():
    names = ["tests/settings/test_a.py::t", "tests/test_selection.py::t", "tests/tabs/test_b.py::t"]
    assert sorted([*names, "tests/test_main_job.py::t"], key=position) == [
        "tests/test_main_job.py::t",
        names[2],
        *names[:2],
    ]


SOURCES = {
    "core/__init__.py": "",
    "core/low/sizes.py": "def double(): pass\nTABLE = 'sizes.json'",
    "core/high/page.py": "def show():\n    from core.low.sizes import double",
    "core/high/late.py": "LATER = 'core.low.sizes'",
    "core/high/tools.py": "def tool(module): later(f'core.low.{module}')\ntool('sizes')",
    "tests/low/conftest.py": "import core.low.sizes",
    "tests/low/test_other.py": "",
    "tests/low/test_sizes.py": "from core.low import sizes",
    "tests/high/test_page.py": "from core.high.page import show",
    "tests/high/test_alone.py": "import os",
}


def test_near_tests_are_found_by_imports_nearest_first_and_those_of_its_room_before_others():
    assert importers(SOURCES)["core/low/sizes.py"] == {
        "core/high/page.py",
        "core/high/late.py",
        "core/high/tools.py",
        "tests/low/conftest.py",
        "tests/low/test_sizes.py",
    }
    assert list(near(["core/low/sizes.py"], SOURCES).items()) == [
        ("tests/low/test_sizes.py", 1),
        ("tests/low/test_other.py", 2),  # by its conftest
        ("tests/high/test_page.py", 2),
    ]
    named = SOURCES | {"tests/high/test_sizes.py": "import tests.high.test_page"}
    assert list(near(["core/low/sizes.py"], named))[:2] == ["tests/low/test_sizes.py", "tests/high/test_sizes.py"]
    assert near(["core/low/sizes.json"], SOURCES)["tests/low/test_sizes.py"] == 2
    assert near(["tests/high/test_alone.py"], SOURCES) == {"tests/high/test_alone.py": 0}
    assert near(["README.md"], SOURCES) == {}


def test_changed_files_are_those_of_the_working_tree_and_new_ones(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    git("add", "."), git("commit", "-qm", "one")
    (tmp_path / "a.py").write_text("x = 2\n")
    (tmp_path / "new.py").write_text("")
    assert changed_files(tmp_path, "HEAD") == ["a.py", "new.py"]
    with pytest.raises(ValueError, match="nothing"):
        changed_files(tmp_path, "nothing")
