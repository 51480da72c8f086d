"""Trainings in the processes that this script is started in, one after the other: `accelerate launch sharded_runs.py CASES`.

CASES is a JSON list of {"name", "job", "stop_at", "continues"}; the outputs lie in its folder, the run of a case at `name`.
"""

import json
import os
import sys
from pathlib import Path

import torch

from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import Journal, SilentJournal
from core.record.processes import Processes, Together, launched_processes
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.training.start import run_training


def train(case, place: Path, processes) -> None:
    workspace = Workspace(place, PROJECT / "models", PROJECT / "presets")
    workspace.private.mkdir(parents=True, exist_ok=True)
    job = build(TrainJob, case["job"])
    folder = RunFolder(place / case.get("continues", case["name"]))
    if processes.first:
        for part in (folder.path, folder.checkpoints, folder.logs):
            part.mkdir(parents=True, exist_ok=True)
    processes.broadcast(0)
    with Journal(folder.path) if processes.first else SilentJournal() as journal:
        context = JobContext(workspace, folder, journal, NoCommands(), "cpu", processes=processes)
        run_training(job, context, case.get("stop_at"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    listed = Path(sys.argv[1])
    together = Together() if launched_processes() > 1 else Processes()
    for each in json.loads(listed.read_text("utf-8")):
        together._used = None  # the weights of the case before
        train(each, listed.parent, together)
    together.close()
    os._exit(0)  # DeepSpeed leaves threads that end with the process
