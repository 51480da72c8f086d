"""launch.sh with invented Pythons: which one it takes, and what it says when none fits. No real one is in reach."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "dirname", "readlink", "uname", "cat")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="launch.bat serves Windows")


class Machine:
    """A folder that stands for a whole machine: its PATH, its home, its /opt, and Atelier in a folder with a space."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.project = folder / "my (own) folder"
        (self.project / "core" / "setup").mkdir(parents=True)
        text = (ROOT / "launch.sh").read_text()
        places = re.compile(r"(?<=[\s\"])/(?=(?:opt|usr/local|usr/bin|home|Library)/)")
        assert len(places.findall(text)) >= 8
        self.script = self.project / "launch.sh"
        self.script.write_text(places.sub(f"{folder}/", text).replace("#!/bin/sh", f"#!{shutil.which('sh')}"))
        self.script.chmod(0o755)
        shutil.copy(ROOT / "core" / "setup" / "probe.py", self.project / "core" / "setup")
        self.tools = folder / "tools"
        self.tools.mkdir()
        for tool in TOOLS:
            (self.tools / tool).symlink_to(shutil.which(tool))
        self.path = [folder / "bin", folder / "bin2", self.tools]

    def python(self, place: str, version: str, fitness: str = "ok") -> Path:
        """A program that answers as that Python would, and tells what it was started with."""
        file = self.folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            '#!/bin/sh\ncase "$1" in\n'
            f'  */probe.py) echo "{version}|{fitness}|$0" ;;\n'
            '  */launch.py) echo "started $0"; shift; for word in "$@"; do echo "<$word>"; done; exit 42 ;;\n'
            "esac\n"
        )
        file.chmod(0o755)
        return file

    def launch(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {"PATH": ":".join(map(str, self.path)), "HOME": str(self.folder / "home")} | variables
        return subprocess.run([self.script, *arguments], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_arguments_and_exit_code_pass_through_unchanged(machine):
    python = machine.python("bin/python3.12", "3.12")
    run = machine.launch("train", "my preset.json", "--auth", "a:b c", "", "*")
    assert run.stdout.splitlines() == [
        f"started {python}",
        "<train>",
        "<my preset.json>",
        "<--auth>",
        "<a:b c>",
        "<>",
        "<*>",
    ]
    assert run.returncode == 42


def test_3_11_is_preferred_wherever_it_is(machine):
    machine.python("bin/python3.13", "3.13")
    machine.python("bin/python3.12", "3.12")
    wanted = machine.python("bin2/python", "3.11")
    assert f"started {wanted}" in machine.launch().stdout


def test_without_3_11_comes_3_12_then_3_13(machine):
    newest = machine.python("bin/python3.13", "3.13")
    assert f"started {newest}" in machine.launch().stdout
    wanted = machine.python("bin2/python3.12", "3.12")
    assert f"started {wanted}" in machine.launch().stdout


def test_a_pyenv_shim_that_refuses_is_passed_over_for_the_real_one(machine):
    shim = machine.python("bin/python3.11", "3.11")
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n")
    wanted = machine.python("bin2/python3.11", "3.11")
    assert f"started {wanted}" in machine.launch().stdout


@pytest.mark.parametrize(
    "place",
    [
        "home/.pyenv/versions/3.12.1/bin/python",
        "opt/homebrew/opt/python@3.11/bin/python3.11",
        "usr/local/opt/python@3.13/bin/python3.13",
        "Library/Frameworks/Python.framework/Versions/3.11/bin/python3.11",
        "home/.local/share/uv/python/cpython-3.12.7-linux-x86_64-gnu/bin/python",
        "home/miniconda3/bin/python",
        "home/miniforge3/envs/art/bin/python",
        "opt/conda/bin/python",
        "usr/bin/python3.11",
    ],
)
def test_pythons_beside_path_are_found(machine, place):
    version = (re.findall(r"3\.1[123]", place) or ["3.11"])[0]
    wanted = machine.python(place, version)
    assert f"started {wanted}" in machine.launch().stdout


def test_a_pyenv_elsewhere_is_found_by_its_variable(machine):
    wanted = machine.python("pyenv place/versions/3.11.9/bin/python", "3.11")
    assert f"started {wanted}" in machine.launch(PYENV_ROOT=str(machine.folder / "pyenv place")).stdout


def test_only_an_older_python_gives_one_sentence_with_what_to_install(machine):
    machine.python("bin/python3", "3.9", "old")
    machine.python("bin2/python3", "3.9", "old")
    machine.python("bin/python", "2.7", "old")
    run = machine.launch()
    assert run.returncode == 1 and run.stdout == ""
    (sentence,) = run.stderr.splitlines()
    assert "found only 3.9, 2.7:" in sentence and "install Python 3.11" in sentence


def test_no_python_at_all_gives_one_sentence(machine):
    run = machine.launch()
    assert run.returncode == 1
    (sentence,) = run.stderr.splitlines()
    assert "found none: install Python 3.11" in sentence


def test_a_newer_or_unfit_python_is_named_with_its_reason(machine):
    machine.python("bin/python3", "3.14", "new")
    machine.python("bin2/python3.13", "3.13", "freethreaded")
    (sentence,) = machine.launch().stderr.splitlines()
    assert "found only 3.13 (freethreaded), 3.14:" in sentence


def test_debian_without_venv_is_told_which_package_to_install(machine):
    machine.python("bin/python3.11", "3.11", "novenv")
    (sentence,) = machine.launch().stderr.splitlines()
    assert "sudo apt install python3.11-venv" in sentence


def test_a_python_with_venv_is_preferred_over_one_without(machine):
    machine.python("bin/python3.11", "3.11", "novenv")
    wanted = machine.python("bin/python3.12", "3.12")
    assert f"started {wanted}" in machine.launch().stdout


def test_the_named_python_is_taken_without_a_search(machine):
    machine.python("bin/python3.11", "3.11")
    wanted = machine.python("elsewhere/python", "3.13")
    assert f"started {wanted}" in machine.launch(ATELIER_PYTHON=str(wanted)).stdout


def test_an_environment_that_is_there_is_used_at_once(machine):
    machine.python("bin/python3.11", "3.11")
    inside = machine.python("my (own) folder/.venv/bin/python", "3.12")
    assert f"started {inside}" in machine.launch().stdout


def test_an_environment_whose_python_is_gone_is_passed_over(machine):
    wanted = machine.python("bin/python3.11", "3.11")
    broken = machine.project / ".venv" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.symlink_to(machine.folder / "gone")
    assert f"started {wanted}" in machine.launch().stdout


def test_a_link_to_the_script_starts_the_real_one(machine):
    machine.python("bin/python3.11", "3.11")
    link = machine.folder / "bin" / "atelier"
    link.symlink_to(os.path.relpath(machine.script, link.parent))
    machine.script = link
    assert machine.launch("help").stdout.endswith("<help>\n")


def test_the_current_folder_stays_the_users(machine, tmp_path):
    file = machine.python("bin/python3.11", "3.11")
    file.write_text(file.read_text().replace('echo "started $0"', "pwd"))
    here = tmp_path / "images"
    here.mkdir()
    environment = {"PATH": ":".join(map(str, machine.path)), "HOME": str(tmp_path)}
    run = subprocess.run([machine.script], env=environment, cwd=here, capture_output=True, text=True, timeout=300)
    assert run.stdout.splitlines()[0] == str(here)


def test_packages_of_another_program_are_out_of_reach(machine):
    file = machine.python("bin/python3.11", "3.11")
    file.write_text(file.read_text().replace('echo "started $0"', 'echo "<$PYTHONHOME$PYTHONPATH>"'))
    assert machine.launch(PYTHONHOME="/opt/other", PYTHONPATH="/opt/other/lib").stdout.splitlines()[0] == "<>"


def test_the_script_holds_no_bashism():
    checker = shutil.which("dash") or shutil.which("sh")
    assert subprocess.run([checker, "-n", ROOT / "launch.sh"], check=False).returncode == 0
    assert (ROOT / "launch.sh").read_bytes().startswith(b"#!/bin/sh\n")
    assert b"\r" not in (ROOT / "launch.sh").read_bytes()
