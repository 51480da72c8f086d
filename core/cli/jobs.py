"""Run one job in this process, or hand it to the page that holds the output folder."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from core.cli.main import BAD_INPUT, DONE, FAILED, INTERRUPTED
from core.cli.options import Options
from core.cli.progress import TerminalProgress
from core.engine.execute import execute
from core.engine.owner import Ownership, hand_in, is_held
from core.record import machine
from core.record.cancel import CancelToken
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace, display_path
from core.settings.base import Settings
from core.settings.presets import dump, to_values


def run_job(task: str, job: Settings, title: str, options: Options, resume: RunFolder | None = None) -> int:
    """Do the job here and return the exit code. With --queue it goes to the running page."""
    workspace = options.workspace()
    if options.values.get("queue"):
        hand_in(workspace, task, title, to_values(job), run=resume.name if resume else "")
        when = "" if is_held(workspace) else "; no page holds this folder now: the next one that is opened takes it up"
        print(f"'{title}' is in the queue of {display_path(workspace.outputs)}{when}")
        return DONE
    if "device" in options.values:
        machine.check_device(options.values["device"])
    owner = Ownership(workspace, f"{task} '{title}' on the command line")
    try:
        folder = resume or _new_folder(task, job, title, workspace)
        if task == "train":
            print(f"run folder: {display_path(folder.path)}", file=sys.stderr)
        return _execute(task, job, folder, workspace, options)
    finally:
        owner.release()


def _new_folder(task: str, job: Settings, title: str, workspace: Workspace) -> RunFolder:
    place = workspace.runs if task == "train" else workspace.private / "jobs"
    return RunFolder.create(place, title, dump(job, task=task))


def _execute(task: str, job: Settings, folder: RunFolder, workspace: Workspace, options: Options) -> int:
    import torch

    torch.set_num_threads(machine.threads())
    device = options.values.get("device") or machine.default_device()
    progress, token = TerminalProgress(), CancelToken()
    with StopOnSignal(token) as stop:
        state, words = execute(task, job, folder, workspace, device, listener=progress, token=token)
    progress.close()
    if state == "done":
        return DONE
    if state == "failed":
        return BAD_INPUT if task == "tool" and words is not None and words.asked else FAILED
    if task == "train":
        places = [f'--{name} "{options.values[name]}"' for name in ("outputs", "models") if name in options.values]
        print(" ".join(["To go on: python webui.py train --continue", folder.name, *places]), file=sys.stderr)
    return INTERRUPTED if stop.asked or state == "stopped" else FAILED


class StopOnSignal:
    """First Ctrl-C (or a polite end, or a terminal that is closed): save and stop. Second: stop now."""

    def __init__(self, token: CancelToken):
        self._token = token
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopOnSignal:
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # the last two: not on Windows, only on Windows
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                continue  # under nohup a closed terminal is no reason to stop
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._token.cancel()
        with suppress(OSError):  # the terminal may be gone
            # os.write: a print could meet itself half-way through
            os.write(2, b"\nSaving and stopping. Press Ctrl-C again to stop now.\n")


def find_run(name: str, workspace: Workspace) -> RunFolder:
    """A run by its folder's name or path."""
    from core.record.problems import ProblemsError

    for path in (workspace.runs / Path(name).name, Path(name)):
        if (path / "job.json").is_file():
            return RunFolder(path)
    raise ProblemsError.one(f"There is no run '{name}'", str(workspace.runs), "give the name of a folder in there")
