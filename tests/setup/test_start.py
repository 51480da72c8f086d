"""From the launcher to webui.py: arguments, exit codes, signals, and the new start after a broken CUDA."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.cli.former import FORMER, REPLACED_TOOLS
from core.cli.options import commands
from core.setup import start
from core.setup.stamp import SCHEMA, digest, python_version, write_stamp

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and bin/ of Linux and macOS")

WEBUI = """
import json, os, signal, sys, time
log = os.environ["LOG"]
def note(**facts):
    with open(log, "a") as file:
        file.write(json.dumps(facts) + "\\n")
note(started=sys.argv[1:], folder=os.getcwd(), telemetry=os.environ["HF_HUB_DISABLE_TELEMETRY"],
     analytics=os.environ["GRADIO_ANALYTICS_ENABLED"], utf8=os.environ["PYTHONUTF8"])
if "--wait" in sys.argv:
    def stop(number, frame):
        note(signal=number)
        sys.exit(130 if number == signal.SIGINT else 143)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    note(ready=os.getpid())
    time.sleep(600)
codes = os.environ.get("CODES", "0").split()
runs = sum("started" in json.loads(line) for line in open(log))
sys.exit(int(codes[min(runs, len(codes)) - 1]))
"""


class Project:
    """A folder with a webui.py that keeps a log, and an environment that the launcher takes for a fitting one."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder / "a project", folder / "log"
        (self.folder / ".venv" / "bin").mkdir(parents=True)
        (self.folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
        (self.folder / "webui.py").write_text(WEBUI)
        (self.folder / "requirements.txt").write_text("torch==2.13.0\n")
        made_from = digest(str(self.folder / "requirements.txt"))
        stamp = {"schema": SCHEMA, "python": python_version(), "requirements": made_from, "build": {"name": "cpu"}}
        write_stamp(str(self.folder / ".venv"), stamp)
        self.launcher = self.folder / "start.py"  # launch.py takes the folder it lies in; this takes the one it is told
        self.launcher.write_text(
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from core.setup.start import run\n"
            f"sys.exit(run({str(self.folder)!r}, sys.argv[1:]))\n"
        )

    def popen(self, *arguments, **variables):
        # what the launcher sets itself is taken out: Gradio, imported by another test, sets some of it in this process
        own = ("ATELIER", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED", "PYTHONUTF8")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
        environment |= {"LOG": str(self.log), **variables}
        return subprocess.Popen(
            [sys.executable, self.launcher, *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a shell's background job ignores Ctrl-C, and would hand that on
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments, **variables):
        """(exit code, what the launcher said)"""
        process = self.popen(*arguments, **variables)
        _, said = process.communicate(timeout=300)
        return process.returncode, said

    def notes(self, key):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [note[key] for note in map(json.loads, lines) if key in note]

    def wait_for(self, key):
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if self.notes(key):
                return self.notes(key)[0]
            time.sleep(0.02)
        raise AssertionError(f"webui.py never noted '{key}'")


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--port", "7870", "--listen", "--share", "--auth", "user:pass word", "--models", "my models", "--no-browser"],
        ["generate", "--prompt", "a fox, glyph style"],
    ],
)
def test_arguments_reach_webui_unchanged_from_the_users_folder(project, arguments):
    code, said = project.run(*arguments)
    assert (code, said) == (0, "")
    assert project.notes("started") == [arguments]
    assert project.notes("folder") == [os.getcwd()]


@pytest.mark.parametrize(("command", "code"), [("train", 1), ("bench", 130), ("--port", 2)])
def test_the_exit_code_passes_through(project, command, code):
    assert project.run(command, CODES=str(code))[0] == code
    assert len(project.notes("started")) == 1


def test_telemetry_is_off_and_text_is_utf8(project):
    project.run()
    assert [project.notes(key) for key in ("telemetry", "analytics", "utf8")] == [["1"], ["False"], ["1"]]


def test_exit_code_75_starts_the_page_again_without_a_second_browser_tab(project):
    code, said = project.run("--port", "7861", CODES="75 75 3")
    assert code == 3
    assert project.notes("started") == [["--port", "7861"], *[["--port", "7861", "--no-browser"]] * 2]
    assert said.count("restarting") == 2


def test_it_gives_up_when_the_card_fails_again_and_again(project):
    code, said = project.run(CODES="75")
    assert code == 75
    assert len(project.notes("started")) == start.RESTARTS + 1
    assert "not restarted" in said


def test_a_job_without_the_page_is_not_run_twice(project):
    assert project.run("train", CODES="75")[0] == 75
    assert len(project.notes("started")) == 1


@pytest.mark.parametrize("arguments", [["--wait"], ["train", "--wait"]], ids=["page", "job"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_webui_once_and_its_exit_code_comes_back(project, arguments, number, code):
    process = project.popen(*arguments)
    project.wait_for("ready")
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == code
    assert project.notes("signal") == [number]


def test_a_job_replaces_the_launcher_so_a_kill_meets_the_job_itself(project):
    process = project.popen("train", "--wait")
    assert project.wait_for("ready") == process.pid
    process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL


def test_ctrl_c_at_a_terminal_reaches_the_page_once(project):
    """The page on a terminal of its own; Ctrl-C is typed into it."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:  # the child: nothing of pytest may run on here
        os.environ["LOG"] = str(project.log)
        os.execv(sys.executable, [sys.executable, str(project.launcher), "--wait"])
    try:
        project.wait_for("ready")
        os.write(terminal, b"\x03")
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
    assert project.notes("signal") == [signal.SIGINT]


def test_a_child_that_a_signal_ends_counts_as_in_a_shell():
    assert start.supervise([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 128 + 9


def test_docs_runs_the_module_in_the_project(project):
    (project.folder / "workshop").mkdir()
    (project.folder / "workshop" / "docs.py").write_text("import os; open('written', 'w').write(os.getcwd())\n")
    assert project.run("docs")[0] == 0
    assert (project.folder / "written").read_text() == str(project.folder)


def test_check_runs_all_three_and_fails_when_one_does(project, monkeypatch):
    tools = project.folder / "tools"
    tools.mkdir()
    (tools / "ruff.py").write_text("import sys; sys.exit('--check' in sys.argv)\n")
    (tools / "mypy.py").write_text("print('types')\n")
    (project.folder / "requirements-test.txt").write_text("ruff==1\n")
    stamp = json.loads((project.folder / ".venv" / "atelier.json").read_text())
    write_stamp(str(project.folder / ".venv"), stamp | {"tests": digest(str(project.folder / "requirements-test.txt"))})
    code, said = project.run("check", PYTHONPATH=str(tools))
    assert code == 1
    assert [word in said for word in ("ruff format --check .", "ruff check .", "mypy")] == [True] * 3
    assert said.rstrip().endswith("failed: ruff format --check .")
    (tools / "ruff.py").write_text("")
    assert project.run("check", PYTHONPATH=str(tools))[0] == 0


def test_in_ci_a_missing_browser_fails_the_tests_and_elsewhere_it_is_said(project, monkeypatch, capsys):
    from core.setup import browser, environment

    monkeypatch.setattr(environment, "sync_tests", lambda root: None)
    monkeypatch.setattr(browser, "find_browser", lambda: None)
    monkeypatch.setattr(browser, "install_browser", lambda: None)
    monkeypatch.setattr(start, "replace_by", lambda command: 0)
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("CI", "true")
    assert start.run_tests(str(project.folder), []) == 1
    monkeypatch.delenv("CI")
    assert start.run_tests(str(project.folder), []) == 0
    assert capsys.readouterr().err.count("sudo apt install chromium") == 2


def test_test_hands_its_arguments_to_pytest(project, monkeypatch):
    from core.setup import browser, environment

    ran = []
    monkeypatch.setattr(environment, "sync_tests", lambda root: None)
    monkeypatch.setattr(browser, "find_browser", lambda: "/usr/bin/chromium")
    monkeypatch.setattr(start, "replace_by", ran.append)
    monkeypatch.chdir(project.folder)
    start.run_tests(str(project.folder), ["tests/setup", "-k", "a b"])
    start.run_tests(str(project.folder), [])
    start.run_tests(str(project.folder), ["--all", "--from", "tests/setup/test_start.py"])
    start.run_tests(str(project.folder), ["--all", "tests/setup"])
    pytest_ = [str(project.folder / ".venv" / "bin" / "python"), "-m", "pytest"]
    whole = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    assert ran == [
        [*pytest_, "tests/setup", "-k", "a b"],
        [*pytest_, *whole],
        [*pytest_, *whole, "--durations=20", "--all", "--from", "tests/setup/test_start.py"],
        [*pytest_, "--all", "tests/setup"],
    ]


def test_near_runs_the_files_that_are_named_by_imports(project, monkeypatch):
    found = subprocess.CompletedProcess([], 0, "--until=150\ntests/a/test_b.py\n", "1 file changed\n")
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or found)
    assert start.near_tests("python", ["--near", "v1", "-x"]) == ["--until=150", "tests/a/test_b.py", "-x"]
    assert start.near_tests("python", ["--near", "-x"]) == ["--until=150", "tests/a/test_b.py", "-x"]
    assert [command[3:] for command in commands] == [["v1"], []]
    found.stdout = ""
    assert start.near_tests("python", ["--near"]) == []


def test_help_needs_no_environment(project):
    shutil.rmtree(project.folder / ".venv")
    process = subprocess.run([sys.executable, project.launcher, "--help"], capture_output=True, text=True, check=True)
    named = re.search(r"launch.sh (train\|[a-z_|]+)", process.stdout)[1].strip("|").split("|")
    assert set(named) <= set(commands()), "every command that is named is there"
    for word in ("update", "--no-browser", "ATELIER_PYTHON"):
        assert word in process.stdout


@pytest.mark.parametrize("words", [["check"], ["check", "--json", "a.json"], ["test"], ["update"], []])
def test_webui_named_after_the_launcher_is_run_in_the_environment(project, words):
    assert project.run("webui.py", *words) == (0, "")
    assert project.notes("started") == [words]


def test_a_mistyped_command_is_refused_before_anything_is_installed(project, monkeypatch):
    shutil.rmtree(project.folder / ".venv")
    shutil.copytree(
        ROOT / "docs", project.folder / "docs", ignore=lambda folder, names: set(names) - {"command_line.md"}
    )
    code, said = project.run("chekc")
    assert code == 2 and said == "Atelier: there is no command 'chekc': did you mean check? Nothing was installed.\n"
    known = {*commands(), *FORMER, *REPLACED_TOOLS, *start.COMMANDS, "update", "sync", "", "--port"}
    assert not [word for word in known if start.unknown_command(str(project.folder), word)], (
        "docs/command_line.md lists them"
    )


def test_webui_outside_of_its_environment_runs_in_it_or_says_how(project, tmp_path):
    bare = tmp_path / "bare"  # a Python without any package
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    for name in ("core", "webui.py"):
        (tmp_path / "copy" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "copy" / name).symlink_to(ROOT / name)
    command = [bare / "bin" / "python", "-c", RUN_AS_FILE, tmp_path / "copy" / "webui.py", "--version"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "./launch.sh webui.py --version" in process.stderr
    environment = tmp_path / "copy" / ".venv"
    environment.symlink_to(bare)  # an installation that lost its packages: another start would not bring them back
    write_stamp(str(bare), {"schema": SCHEMA})
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1 and "delete" in process.stderr
    environment.unlink()
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (environment / "bin" / "python").chmod(0o755)
    write_stamp(str(environment), {"schema": SCHEMA})
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.startswith("Atelier ")


# the path of a link stays as it is
RUN_AS_FILE = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_start_with_a_fitting_environment_imports_next_to_nothing(project):
    """The second start has 10 seconds until the address; the launcher must not spend them."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from core.setup import start; start.replace_by = print;"
        "start.run(sys.argv[2], ['train']); print(*sorted(sys.modules))"
    )
    command = [sys.executable, "-c", code, ROOT, project.folder]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "core.setup.stamp" in loaded
    assert not {"core.setup.environment", "core.setup.facts", "urllib.request", "subprocess", "torch"} & set(loaded)
