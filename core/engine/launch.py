"""A training on several GPUs, started from this process: launch, follow its journal, pass on a stop.

The launched processes own the run folder and write its journal; this one only reads along, so that the page shows the
run as any other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from core.engine.explain import Explanation, explain
from core.engine.other_process import forget_failure, told_failure
from core.engine.view import ENDED
from core.record import commands, machine
from core.record.allowed import allowed_modules, limits_of_launched
from core.record.cancel import CancelToken
from core.record.events import StateChanged
from core.record.journal import Journal, Line, Tail, read_lines
from core.record.problems import ProblemsError
from core.record.processes import SUPERVISED, launched_processes
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.job import TrainJob

POLL_SECONDS = 0.3
END_SECONDS = 20


def is_launched(task: str, job: object) -> bool:
    """Whether this job needs processes of its own: a training does; one process tries batches or fills caches for all."""
    several = isinstance(job, TrainJob) and job.memory.num_processes > 1
    return task == "train" and several and launched_processes() == 1


def supervise(
    job: TrainJob,
    folder: RunFolder,
    workspace: Workspace,
    device: str,
    *,
    listener: Callable[[Line], None],
    token: CancelToken,
) -> tuple[str, Explanation | None]:
    """Train in as many processes as the job wants, to the end. Returns (state, explanation of a failure)."""
    try:
        check_cards(job.memory.num_processes, device)
    except ProblemsError as error:
        return write_failure(folder, explain(error), listener)
    tail = Tail(folder.journal_file)
    before = max((line["seq"] for line in tail.lines()), default=0)
    folder.logs.mkdir(exist_ok=True)
    forget_failure(folder)
    told = False
    with open(folder.logs / "processes.txt", "ab") as log:
        child = _start(job, folder, workspace, log)
        try:
            while child.poll() is None:
                if token.wanted and not told:
                    commands.send(folder.path, "stop")
                    told = True
                _pass_on(tail, listener)
                time.sleep(POLL_SECONDS)
        except BaseException:
            child.terminate()
            child.wait(timeout=60)
            raise
    _wait_for_end(folder)
    _pass_on(tail, listener)
    return _ending(folder, before, child.returncode, listener)


def check_cards(wanted: int, device: str) -> None:
    """ProblemsError when the machine has fewer cards."""
    if device.startswith("cuda"):
        import torch

        there = torch.cuda.device_count()
        if there < wanted:
            what = f"{wanted} GPUs are asked for and this machine has {there}"
            raise ProblemsError.one(
                what, "memory.num_processes", f"use {there} or fewer, or accelerate launch for more machines"
            )


def _start(job: TrainJob, folder: RunFolder, workspace: Workspace, log: IO[bytes]) -> subprocess.Popen:
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(job.memory.num_processes)]
    quiet = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    places = ["--outputs", str(workspace.outputs.resolve()), "--models", str(workspace.models.resolve())]
    places += [word for name in sorted(allowed_modules()) for word in ("--allow-module", name)]
    program = [str(PROJECT / "webui.py"), "train", "--continue", str(folder.path.resolve()), *places]
    threads = str(max(1, machine.threads() // job.memory.num_processes))
    environment = os.environ | limits_of_launched() | {SUPERVISED: str(os.getpid()), "OMP_NUM_THREADS": threads}
    return subprocess.Popen(
        [sys.executable, *launcher, *quiet, *program],
        env=environment,
        cwd=Path(PROJECT),
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        # Ctrl-C is for this process, which passes it on: the launcher would end the others before they have saved.
        start_new_session=os.name != "nt",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def _wait_for_end(folder: RunFolder) -> None:
    """Until the processes have let go of the run: they notice within a second that their launcher was killed."""
    end = time.monotonic() + END_SECONDS
    while folder.held and time.monotonic() < end:
        time.sleep(POLL_SECONDS)


def _pass_on(tail: Tail, listener: Callable[[Line], None]) -> None:
    for line in tail.lines():
        listener(line)


def _ending(
    folder: RunFolder, before: int, code: int, listener: Callable[[Line], None]
) -> tuple[str, Explanation | None]:
    """The last state in the journal after `before`. Where the first process ended without a word (the launcher kills one
    that waits for its card), what another one told is written there, or that none did."""
    last: Line = {}
    for line in read_lines(folder.journal_file, before):
        if line["kind"] == "state":
            last = line
    state = str(last.get("state", ""))
    if state in ENDED:
        words = Explanation(str(last.get("message", "")), str(last.get("fix", ""))) if state == "failed" else None
        return state, words
    what = f"The processes ended without a word (code {code})"
    none = Explanation(what, f"see {folder.logs / 'processes.txt'}; continue the run")
    return write_failure(folder, told_failure(folder) or none, listener)


def write_failure(
    folder: RunFolder, words: Explanation, listener: Callable[[Line], None]
) -> tuple[str, Explanation | None]:
    """Put a failure that happened outside the run into its journal."""
    with Journal(folder.path) as journal:
        journal.listen(listener)
        journal.put(StateChanged("failed", words.what, words.fix))
    return "failed", words
