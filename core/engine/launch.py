"""Starts a training on several GPUs in processes of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from core.engine.explain import Explanation, explain
from core.engine.follow import follow, write_failure
from core.engine.other_process import clear_failure
from core.record import machine
from core.record.allowed import allowed_modules, limits_of_launched
from core.record.cancel import CancelToken
from core.record.journal import Line
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.record.processes import PERSON, SUPERVISED, launched_processes
from core.record.run_folder import RunFolder
from core.record.worker import APART
from core.record.workspace import PROJECT, Workspace
from core.settings.job import TrainJob


def is_launched(task: str, job: object) -> bool:
    """Whether this job is to be started in several processes: a training with num_processes above 1, unless this process is one of several
    already."""
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
    """Train in `num_processes` processes and wait for their end. Return (state, explanation of a failure or None)."""
    try:
        check_gpus(job.memory.num_processes, device)
    except ProblemsError as error:
        return write_failure(folder, explain(error), listener)
    clear_failure(folder)
    return follow(lambda log: _start(job, folder, workspace, log), folder, listener=listener, token=token)


def check_gpus(required: int, device: str) -> None:
    """Raise ProblemsError if `device` is CUDA and the machine has fewer GPUs than `required`."""
    if device.startswith("cuda"):
        available = torch.cuda.device_count()
        if available < required:
            what = f"{required} GPUs are requested, but this machine has {available}"
            fix = f"use {available} or fewer, or accelerate launch for more machines"
            raise ProblemsError.one(what, "memory.num_processes", fix, "jobs.too-few-gpus")


def _start(job: TrainJob, folder: RunFolder, workspace: Workspace, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start `accelerate launch` for this run, with its output in `log`; return its process."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(job.memory.num_processes)]
    # Each option that accelerate would otherwise take from the user's accelerate config, or warn about.
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    # torch's Windows builds lack libuv, which torch's launcher requires unless the processes find each other by a file.
    by_file = sys.platform == "win32"
    plain += ["--rdzv_backend", "c10d", "--rdzv_conf", "store_type=file"] if by_file else []
    options = ["--outputs", str(workspace.outputs.resolve()), "--models", str(workspace.models.resolve())]
    options += [word for name in sorted(allowed_modules()) for word in ("--allow-module", name)]
    program = [str(PROJECT / "webui.py"), "train", "--continue", str(folder.path.resolve()), *options]
    threads = str(max(1, machine.threads() // job.memory.num_processes))
    marks = {SUPERVISED: str(os.getpid()), PERSON: workspace.person, "OMP_NUM_THREADS": threads}
    marks |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if by_file else {}
    return subprocess.Popen(
        [sys.executable, *launcher, *plain, *program],
        env=os.environ | limits_of_launched() | marks,
        cwd=Path(PROJECT),
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        **APART,  # at Ctrl-C, the launcher would end the others before they have saved
    )
