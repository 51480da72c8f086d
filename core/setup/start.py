"""Commands of `launch.sh` and `launch.bat`, run by a suitable Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from core.setup.stamp import is_current, python_of, read_stamp

USAGE = """\
Atelier: usage (launch.bat on Windows)
  ./launch.sh                     start the page (the first time, this installs everything)
  ./launch.sh train|generate|tag|resize|inspect|... [what]   a job without the page; --help lists all
  ./launch.sh update              update the code (with Git) and the environment
  ./launch.sh test [for pytest]   run the tests (--all: the slow ones too; --near: those near your changes)
  ./launch.sh webui.py check      check what works on this machine, in at most 3 minutes
  ./launch.sh check               format, lint and types of Atelier's source, for developers
  ./launch.sh docs                regenerate docs/settings.md and the other generated pages
  ./launch.sh deepspeed           install DeepSpeed (Linux)
Options of the page: --port --listen --share --host NAME --auth user:password --auth-file FILE --allow DIR --lend-keys --models DIR
  --outputs DIR --presets DIR --device NAME --allow-module NAME --no-browser --resume
  ./launch.sh COMMAND --help      the settings of a job: train, generate, tag ...
Variables: ATELIER_PYTHON (a Python), ATELIER_BUILD (cpu, cu126, cu130, rocm7.2), ATELIER_TORCH_INDEX (a mirror of
PyTorch's wheel index), ATELIER_BROWSER (for the tests). See docs/install.md.
"""

POISONED = 75  # webui.py: a CUDA error that only a new process can clear
RESTARTS, SHORT_RUN = 3, 120.0  # give up after this number of runs in a row, each shorter than these seconds


def run(root: str, arguments: list[str]) -> int:
    """Run the launcher's command and return the exit code. On Linux and macOS a job replaces this process, so signals reach it directly."""
    for name, value in (("HF_HUB_DISABLE_TELEMETRY", "1"), ("GRADIO_ANALYTICS_ENABLED", "False"), ("PYTHONUTF8", "1")):
        os.environ.setdefault(name, value)
    # `launch.sh webui.py check`, as in the guides, runs the command of webui.py, not the launcher's of the same name
    webui_named = arguments[:1] == ["webui.py"]
    arguments = arguments[1:] if webui_named else arguments
    command = arguments[0] if arguments else ""
    if command in ("help", "-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    if problem := "" if webui_named and command in COMMANDS else unknown_command(root, command):
        sys.stderr.write(f"Atelier: {problem}\n")
        return 2
    try:
        if command == "update" and not webui_named:
            from pathlib import Path

            from core.setup.environment import update

            return update(Path(root))
        ready = set_up(root, force=command == "sync")
        if not ready or command == "sync":
            return 0 if ready else 1
        if command in COMMANDS and not webui_named:
            return COMMANDS[command](root, arguments[1:])
        webui = [python_of(os.path.join(root, ".venv")), os.path.join(root, "webui.py"), *arguments]
        return page(webui) if not command or command.startswith("-") else replace_by(webui)
    except KeyboardInterrupt:
        sys.stderr.write("Atelier: stopped.\n")
        return 130


def unknown_command(root: str, command: str) -> str:
    """Return the message for a mistyped command if nothing is installed yet; otherwise "".

    Spares the user minutes of installation before webui.py could refuse the command; docs/command_line.md lists the commands.
    """
    import difflib
    import re

    if not re.fullmatch(r"\w+", command) or read_stamp(os.path.join(root, ".venv")) is not None:
        return ""
    try:
        with open(os.path.join(root, "docs", "command_line.md"), encoding="utf-8") as file:
            listed = re.findall(r"(?m)^python webui\.py (?:caption (?=\w))?(\w+)", file.read())
    except OSError:
        return ""
    known = {"update", "sync", "caption", *FORMER, *COMMANDS, *listed}
    near = difflib.get_close_matches(command.lower(), sorted(known), 1)
    fix = f"did you mean {near[0]}?" if near else "./launch.sh help lists them."
    return "" if command in known else f"there is no command '{command}': {fix} Nothing was installed."


FORMER = ("tool", "images", "edges", "export_diffusers")  # commands of earlier versions, which webui.py translates


def set_up(root: str, *, force: bool = False) -> bool:
    """Update the environment if necessary. Return whether a usable one exists: current, or the previous one after a failed update.

    With `force`, a failed update returns False.
    """
    if not force and is_current(root):
        return True
    from core.setup.environment import say, sync

    if setup_succeeds(sync, root, force=force):
        return True
    if force or read_stamp(os.path.join(root, ".venv")) is None:
        return False
    say("the previous environment still works, so it is used.")
    return True


def setup_succeeds(step: Callable[..., None], root: str, **options: bool) -> bool:
    """Call step(root, **options); if it raises SetupError, print the message. Return whether it succeeded."""
    from pathlib import Path

    from core.setup.environment import SetupError, say

    try:
        step(Path(root), **options)
    except SetupError as error:
        say(str(error))
        return False
    return True


def replace_by(command: list[str]) -> int:
    """Replace this process by a command; on Windows run it as a child and return its exit code."""
    if os.name != "nt":
        os.execv(command[0], command)
    return supervise(command)


def page(command: list[str]) -> int:
    """Run the page and return its exit code; restart it after exit code POISONED (CUDA broke), since its queue resumes by itself.

    Gives up after more than RESTARTS runs in a row that were shorter than SHORT_RUN seconds.
    """
    import time

    short_runs = 0
    while True:
        started = time.monotonic()
        code = supervise(command)
        if code != POISONED:
            return code
        short_runs = short_runs + 1 if time.monotonic() - started < SHORT_RUN else 0
        if short_runs > RESTARTS:
            sys.stderr.write(
                f"Atelier: the GPU failed {short_runs} times in a row, so the page is not restarted: "
                "restart the computer or update the GPU driver.\n"
            )
            return code
        sys.stderr.write("Atelier: the GPU driver failed: restarting.\n")
        if "--no-browser" not in command:
            command = [*command, "--no-browser"]  # the tab is open already


def supervise(command: list[str]) -> int:
    """Run a child process and return its exit code, 128 + signal if it was killed. Forwards signals except a Ctrl-C that reaches it
    anyway."""
    import signal
    import subprocess

    forwarded = ("SIGTERM", "SIGHUP") if child_receives_ctrl_c() else ("SIGTERM", "SIGHUP", "SIGINT")
    children: list[subprocess.Popen] = []

    def forward(number: int, frame: object) -> None:
        """Signal handler: send the signal to the child, unless it gets it from the terminal."""
        if children and signal.Signals(number).name in forwarded:
            children[0].send_signal(number)

    handlers = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # An ignored signal (nohup, a background job) stays ignored, here and in the child.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            handlers[number] = signal.signal(number, forward)
    try:
        children.append(subprocess.Popen(command))
        code = children[0].wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code  # a child killed by a signal: 130 for SIGINT, as in shells


def child_receives_ctrl_c() -> bool:
    """Return whether Ctrl-C reaches the child directly, being in the terminal's foreground process group (Windows: always)."""
    if os.name == "nt":
        return True
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def run_tests(root: str, arguments: list[str]) -> int:
    """Install the test packages and a browser if possible, then run pytest; return the exit code."""
    from core.setup.browser import MISSING, find_browser, install_browser
    from core.setup.environment import say, sync_deepspeed, sync_tests

    if not setup_succeeds(sync_tests, root):
        return 1
    if not setup_succeeds(sync_deepspeed, root):
        say("DeepSpeed could not be installed: its tests are skipped.")
    if find_browser() is None:
        install_browser()
    if find_browser() is None:
        say(MISSING)
        if os.environ.get("CI"):
            return 1
    os.chdir(root)
    # Each process that a test starts would compile the product again, and each of the two their tests.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Two processes, one file each: one waits for a browser or disk while the other computes. Files keep the order given by
    # tests/selection.py. Named tests run in one process: their output appears at once, and a debugger works.
    two_processes = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    python = python_of(os.path.join(root, ".venv"))
    if "--near" in arguments:
        near = near_tests(python, arguments)
        return replace_by([python, "-m", "pytest", *two_processes, *near]) if near else 0
    if "--all" in arguments:
        two_processes.append("--durations=20")
    all_tests = not set(arguments) - {"--all", "--from"} or arguments[-2:-1] == ["--from"]
    return replace_by([python, "-m", "pytest", *(two_processes if all_tests else []), *arguments])


def near_tests(python: str, arguments: list[str]) -> list[str]:
    """Return pytest's arguments for `--near [REVISION]`: tests near the changes. Empty if there are none. Raises SystemExit if Git
    fails."""
    import subprocess

    index = arguments.index("--near")
    after = arguments[index + 1 :]
    revision = after[:1] if after and not after[0].startswith("-") else []
    command = [python, "-m", "tests.near", *revision]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stderr.write(result.stderr)
    if result.returncode:
        raise SystemExit(result.returncode)
    files = result.stdout.split()
    return [*files, *arguments[:index], *after[len(revision) :]] if files else []


def run_checks(root: str, arguments: list[str]) -> int:
    """Run ruff format, ruff check and mypy, all of them even if one fails; return 1 if any failed, else 0."""
    import subprocess

    from core.setup.environment import say, sync_tests

    if not setup_succeeds(sync_tests, root):
        return 1
    python = python_of(os.path.join(root, ".venv"))
    failed = []
    for check in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]):
        say(" ".join(check))
        if subprocess.run([python, "-m", *check], cwd=root, check=False).returncode:
            failed.append(" ".join(check))
    say(
        f"failed: {'; '.join(failed)}"
        if failed
        else "all checks of the source passed. To check this machine: ./launch.sh webui.py check"
    )
    return 1 if failed else 0


def write_docs(root: str, arguments: list[str]) -> int:
    """Regenerate the docs; return the exit code."""
    os.chdir(root)
    return replace_by([python_of(os.path.join(root, ".venv")), "-m", "workshop.docs", *arguments])


def add_deepspeed(root: str, arguments: list[str]) -> int:
    """Install DeepSpeed; return the exit code. `arguments` are ignored."""
    from core.setup.environment import say, sync_deepspeed

    if sys.platform != "linux":
        say("DeepSpeed runs on Linux only.")
        return 1
    if not setup_succeeds(sync_deepspeed, root):
        return 1
    say("DeepSpeed is installed: turn on sharding.deepspeed.")
    return 0


COMMANDS = {"deepspeed": add_deepspeed, "test": run_tests, "check": run_checks, "docs": write_docs}
