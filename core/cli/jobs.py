"""Run one job in this process, or hand it to the page that holds the output folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from core import tasks
from core.cli.main import BAD_INPUT, DONE, FAILED, INTERRUPTED
from core.cli.options import Options
from core.cli.progress import TerminalProgress
from core.engine.execute import execute, switches, write_details
from core.engine.explain import explain, sees_another_gone
from core.engine.launch import is_launched, supervise
from core.engine.other_process import forget_failure, tell_failure
from core.engine.owner import Ownership, hand_in, is_held
from core.engine.view import RunView
from core.record import machine
from core.record.cancel import CancelToken
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import SilentJournal
from core.record.problems import ProblemsError
from core.record.processes import SUPERVISED, Together, launched_processes
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace, display_path
from core.settings.base import Settings
from core.settings.job import TrainJob
from core.settings.presets import dump, to_values

STOP_SECONDS = 8  # until a job that hears no stop is killed
KILLER = 'test -n "$(head -c 1)" && sleep "$1" && kill -9 "$0"'  # its input: a byte for a signal, or the end
PASSED_ON_SECONDS = 3.0  # within which a launcher repeats the signal that all have heard


def run_job(task: str, job: Settings, title: str, options: Options, resume: RunFolder | None = None) -> int:
    """Do the job here and return the exit code. With --queue it goes to the running page."""
    workspace = options.workspace()
    if options.values.get("queue"):
        hand_in(workspace, task, title, to_values(job), resume.name if resume else "", options.preset_name)
        when = "" if is_held(workspace) else "; no page is open on this folder: the next one runs it"
        print(f"'{title}' is in the queue of {display_path(workspace.outputs)}{when}")
        return DONE
    if "device" in options.values:
        machine.check_device(options.values["device"])
    if task == "train" and launched_processes() > 1:
        return run_together(job, title, workspace, options, resume)
    reads = tasks.named(task).only_reads(job)
    owner = None if reads else Ownership(workspace, f"{task} '{title}' on the command line")
    try:
        folder = resume or _new_folder(task, job, title, workspace, options.preset_name)
        if task == "train":
            print(f"run folder: {display_path(folder.path)}", file=sys.stderr)
        return _execute(task, job, folder, workspace, options)
    finally:
        if owner is not None:
            owner.release()


def run_together(job: Settings, title: str, workspace: Workspace, options: Options, resume: RunFolder | None) -> int:
    """One of several processes that `accelerate launch` started: the first owns the run, the others compute their shares."""
    assert isinstance(job, TrainJob)
    processes = Together(job.memory.ddp_timeout)
    try:
        if not processes.first:
            return _follow(processes, workspace)
        supervised = os.environ.get(SUPERVISED)
        owner = None if supervised else Ownership(workspace, f"train '{title}' in {processes.count} processes")
        try:
            folder = resume or _new_folder("train", job, title, workspace, options.preset_name)
            print(f"run folder: {display_path(folder.path)}", file=sys.stderr)
            forget_failure(folder)
            processes.tell((folder.path, job))
            return _execute("train", job, folder, workspace, options, processes)
        finally:
            if owner is not None:
                owner.release()
    finally:
        processes.close()


def _follow(processes: Together, workspace: Workspace) -> int:
    """Compute a share of each batch. The first process decides when to stop; a signal to the whole group is its to hear."""
    from core.training.start import run_training

    path, job = cast("tuple[Path, TrainJob]", processes.tell(cast(Any, None)))
    if not path.is_dir():
        what = f"The run's folder {path} cannot be reached by process {processes.rank + 1}"
        raise ProblemsError.one(
            what, "--outputs", "put outputs on a drive that all machines share", "outputs.not-shared"
        )
    with StopOnSignal(CancelToken(), quiet=True, patient=True):
        context = JobContext(
            workspace, RunFolder(path), SilentJournal(), NoCommands(), processes.device, processes=processes
        )
        try:
            run_training(job, context)
        except Exception as error:
            write_details(context.folder, traceback.format_exc(), f"error_{processes.rank + 1}.txt")
            words = explain(error, lambda: switches("train", job, context))
            tell_failure(context.folder, words, None if sees_another_gone(error) else processes.rank + 1)
            raise
    return DONE


def _new_folder(task: str, job: Settings, title: str, workspace: Workspace, preset: str) -> RunFolder:
    place = workspace.runs if task == "train" else workspace.private / "jobs"
    return RunFolder.create(place, title, dump(job, task=task, preset=preset))


def _execute(
    task: str,
    job: Settings,
    folder: RunFolder,
    workspace: Workspace,
    options: Options,
    processes: Together | None = None,
) -> int:
    on_device = tasks.named(task).lane == "device"
    if on_device:
        import torch

        torch.set_num_threads(machine.threads())
    device = processes.device if processes else options.device() if on_device else "cpu"
    launched = is_launched(task, job)
    logging = job.logging if isinstance(job, TrainJob) else None
    if logging is not None and launched:  # whose first process writes the log file
        logging = logging.model_copy(update={"console_log_file": None})
    progress = TerminalProgress(logging, RunView.read(folder))
    token = CancelToken()
    with StopOnSignal(token, patient=task == "train") as stop:
        if launched:
            assert isinstance(job, TrainJob)
            state, words = supervise(job, folder, workspace, device, listener=progress, token=token)
        else:
            state, words = execute(
                task, job, folder, workspace, device, listener=progress, token=token, processes=processes
            )
    progress.close()
    if state == "done":
        return DONE
    if state == "failed":
        return BAD_INPUT if tasks.named(task).own and words is not None and words.asked else FAILED
    if task == "train":
        places = [f'--{name} "{options.values[name]}"' for name in ("outputs", "models") if name in options.values]
        print(" ".join(["To resume: python webui.py train --continue", folder.name, *places]), file=sys.stderr)
    return INTERRUPTED if stop.asked or state == "stopped" else FAILED


@contextmanager
def killer() -> Iterator[None]:
    """A process that kills this one some seconds after a signal: while a library computes, Python hears none, and while one
    holds its lock, no thread of it runs."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    words = ["/bin/sh", "-c", KILLER, str(os.getpid()), str(STOP_SECONDS)]
    process = subprocess.Popen(words, stdin=heard, start_new_session=True)
    os.close(heard)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(told)


class StopOnSignal:
    """First Ctrl-C (or a polite end, or a terminal that is closed): save and stop. Second: stop now.

    A job that does not stop is killed, unless this is `patient`, as for a training, which saves first.
    The launcher of several processes hears a Ctrl-C too, and passes it on to each: that is no second one.
    """

    def __init__(self, token: CancelToken, quiet: bool = False, patient: bool = False):
        self._token, self._quiet, self._patient = token, quiet, patient
        self.asked = False
        self._passed_on = launched_processes() > 1
        self._first = 0.0
        self._before: dict[int, object] = {}
        self._ends = ExitStack()

    def __enter__(self) -> StopOnSignal:
        if not self._patient and os.name != "nt":
            self._ends.enter_context(killer())
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # the last two: not on Windows, only on Windows
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                continue  # under nohup a closed terminal is no reason to stop
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._ends.close()

    def _handle(self, number: int, frame: object) -> None:
        if self.asked:
            if self._passed_on and time.monotonic() - self._first < PASSED_ON_SECONDS:
                return
            raise KeyboardInterrupt
        self.asked, self._first = True, time.monotonic()
        self._token.cancel()
        if self._quiet:
            return
        with suppress(OSError):  # the terminal may be gone
            # os.write: a print could meet itself half-way through
            os.write(2, b"\nSaving and stopping. Press Ctrl-C again to stop now.\n")


def find_run(name: str, workspace: Workspace) -> RunFolder:
    """A run by its folder's name or path. A path counts before a run of the same name in the output folder."""
    places = [workspace.runs / Path(name).name, Path(name)]
    for path in places if Path(name).name == name else reversed(places):
        if (path / "job.json").is_file():
            return RunFolder(path)
    raise ProblemsError.one(
        f"There is no run '{name}'", str(workspace.runs), "use the name of a folder in it", "runs.no-such-run"
    )
