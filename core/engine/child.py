"""Runs a job in a child process with half of the CPU threads and low priority, so that the page and trainings stay fast."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

from core import extensions
from core.engine.execute import execute
from core.engine.explain import Explanation
from core.engine.follow import follow
from core.record import machine
from core.record.allowed import allow, allowed_modules, limits_of_launched, take_limits
from core.record.cancel import CancelToken
from core.record.journal import Line
from core.record.priority import lower_priority
from core.record.run_folder import RunFolder
from core.record.worker import APART
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import JOBS
from core.settings.presets.files import parse

STOP_SECONDS = 6.0  # until one that hears no stop is killed: before the page that closes has gone (engine.py)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_in_child(
    folder: RunFolder, workspace: Workspace, *, listener: Callable[[Line], None], token: CancelToken
) -> tuple[str, Explanation | None]:
    """Run the job of this run folder in a child process and wait for its end. Return (state, explanation of a failure or None)."""
    return follow(
        lambda log: _start(folder, workspace, log), folder, listener=listener, token=token, patience=STOP_SECONDS
    )


def _start(folder: RunFolder, workspace: Workspace, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the child process with half of the CPU threads, with its output in `log`; return it."""
    request = {
        "folder": str(folder.path.resolve()),
        "person": workspace.person,
        "folders": [str(path.resolve()) for path in (workspace.outputs, workspace.models, workspace.presets)],
        "extensions": extensions.EXTENSIONS,
        "modules": sorted(allowed_modules()),
    }
    threads = str(max(1, machine.threads() // 2))
    return subprocess.Popen(
        [sys.executable, "-m", "core.engine.child", json.dumps(request)],
        env=os.environ | limits_of_launched() | dict.fromkeys(THREADS, threads),
        cwd=PROJECT,
        stdin=subprocess.PIPE,  # whose end tells it that this process is gone
        stdout=log,
        stderr=subprocess.STDOUT,
        **APART,  # Ctrl-C is for this process, which passes it on
    )


def main(text: str) -> None:
    """Entry point of the child process.
    text: JSON object {"folder": of the run, "person": login, "folders": [outputs, models, presets], "extensions", "modules": names}"""
    request = json.loads(text)
    lower_priority()
    extensions.EXTENSIONS = tuple(request["extensions"])
    take_limits()
    for name in request["modules"]:
        allow(name)
    token = CancelToken()
    threading.Thread(target=_cancel_with_parent, args=(token,), daemon=True).start()
    folder = RunFolder(Path(request["folder"]))
    extensions.load()
    preset = parse(folder.job(), str(folder.job_file))
    job = build(JOBS[preset.task], preset.values, str(folder.job_file))
    workspace = replace(Workspace.of(*request["folders"]), person=request["person"])
    execute(preset.task, job, folder, workspace, "cpu", token=token)


def _cancel_with_parent(token: CancelToken) -> None:
    """Cancel `token` once stdin is closed: the parent process stops the job or is gone."""
    while os.read(0, 1024):  # not sys.stdin: its lock, held here, would crash Python's end
        pass
    token.cancel()


if __name__ == "__main__":
    main(sys.argv[1])
