"""A run folder and a preset as version 1 wrote them: continued, read and migrated, with the numbers that version 1 gave."""

import json
import shutil
from pathlib import Path

import pytest

from core.engine.view import RunView
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import Journal, read_lines
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.migrations import to_version_2
from core.settings.presets import parse
from core.training.run import run_training

RUN = Path(__file__).parent / "run_v1"
IMAGES = ("fox", "bear", "bird", "fish", "frog")
LATER = {4: 0.030247913673520088, 5: 0.7138068079948425, 6: 0.18337933719158173}  # what version 1 went on to, unbroken


@pytest.fixture
def run(tmp_path):
    """(its folder, its job): copied, with its images where the job says they are."""
    images = tmp_path / "images"
    images.mkdir()
    for name in IMAGES:
        for ending in (".png", ".txt"):
            shutil.copy(PROJECT / "models" / "starter" / "images" / (name + ending), images / (name + ending))
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(RUN, folder.path)
    folder.job_file.write_text(folder.job_file.read_text("utf-8").replace("@IMAGES@", str(images)), "utf-8")
    return folder, build(TrainJob, parse(folder.job(), str(folder.job_file)).values)


def test_it_goes_on_to_the_losses_of_its_own_version(run, tmp_path):
    folder, job = run
    workspace = Workspace(tmp_path, PROJECT / "models", PROJECT / "presets")
    workspace.private.mkdir(parents=True, exist_ok=True)
    with Journal(folder.path) as journal:
        run_training(job, JobContext(workspace, folder, journal, NoCommands(), "cpu"))
    lines = [line for line in read_lines(folder.journal_file) if line["kind"] == "steps"]
    losses = {step: loss for line in lines for step, loss in zip(line["steps"], line["losses"], strict=True)}
    assert {step: losses[step] for step in LATER} == pytest.approx(LATER, rel=1e-3)


def test_its_journal_is_shown(run):
    folder, _ = run
    snapshot = RunView.read(folder).snapshot(0, False)
    assert snapshot["images"] == 3 and [point["images"] for point in snapshot["validation"]] == [2, 2]


def test_its_words_are_those_of_now(run):
    _, job = run
    assert job.noise.mask_mean == "image"


def test_every_former_word_of_a_preset_is_read():
    dataset = {"folder": "models/starter/pictures", "sources": [{"folder": "a", "role": "regularisation"}]}
    dataset["sources"][0]["validation_pictures"] = ["b.png"]
    values = {"dataset": dataset, "method": {"kind": "dreambooth", "prior": "pictures"}}
    raw = {"kind": "job", "schema_version": 1, "task": "train", **values}
    job = build(TrainJob, parse(json.loads(json.dumps(raw)), "old").values)
    (source,) = job.dataset.sources
    assert (source.role, source.validation_images, job.method.prior) == ("regularization", ["b.png"], "images")
    assert job.dataset.folder == "models/starter/images"
    assert to_version_2("class_pictures", {"class_pictures": {}}) == ("class_images", {"class_images": {}})
