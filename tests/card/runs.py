"""Trainings on the card that computes nothing: `python -m tests.card.runs CASES.json`.

CASES is {"outputs": folder, "cases": {name: a job}}. Prints for each case what was found, as a line of JSON: {"name",
"building": bytes at most before the first step, "peak": in each step, "held": after each, "waits": lists, "operations": counts
by group, one for each step} or {"name", "error"}.
"""

import json
import sys
import traceback
from pathlib import Path

from tests.card.library import load_library

if __name__ == "__main__":
    load_library()

import torch

from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import SilentJournal
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import dump
from tests.card.operations import Operations
from tests.card.watched import card


def context(workspace, job, device):
    folder = RunFolder.create(workspace.runs, "card", dump(job))
    return JobContext(workspace, folder, SilentJournal(), NoCommands(), device)


def fill_caches(job, context):
    """With numbers, on the CPU: only they can be written."""
    from core.training.building.inputs import read_inputs
    from core.training.building.latents import build_latents
    from core.training.building.models import Models
    from core.training.building.texts import Texts

    inputs = read_inputs(job, context)
    models = Models(inputs)
    build_latents(inputs, models, at_once=True).close()
    if not inputs.method.trains_text:
        Texts(inputs, models).frozen()


def steps_on_the_card(workspace, job):
    from core.training.building.setup import build_training
    from core.training.loop.update import optimizer_update

    fill_caches(job, context(workspace, job, "cpu"))
    found = {"waits": [], "peak": [], "held": [], "operations": []}
    operations = Operations()
    with card(listener=operations) as watched:
        training = build_training(job, context(workspace, job, "cuda"))
        run = training.run
        operations.begin(training.inputs.method)
        found["building"] = watched.peak
        for _ in range(job.schedule.max_train_steps):
            watched.waits.clear()
            operations.counts.clear()
            watched.peak = watched.now
            optimizer_update(run)
            run.state.step += 1
            found["waits"].append(list(watched.waits))
            found["peak"].append(watched.peak)
            found["operations"].append(dict(operations.counts))
            found["held"].append(watched.now)
        training.release()
    return found


def main(listed: Path) -> None:
    given = json.loads(listed.read_text("utf-8"))
    workspace = Workspace(Path(given["outputs"]), PROJECT / "models", PROJECT / "presets")
    workspace.private.mkdir(parents=True, exist_ok=True)
    for name, values in given["cases"].items():
        try:
            found = steps_on_the_card(workspace, build(TrainJob, values))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error)[:600]}\n{traceback.format_exc()[-3000:]}"}
        print(json.dumps({"name": name} | found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
