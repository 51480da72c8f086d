"""A run folder and a preset as version 1 wrote them: continued, read and migrated, with the numbers that version 1 gave."""

import json
import lzma
import shutil
from pathlib import Path

import pytest

from core.engine.extend import job_to_resume
from core.engine.queue import _entry
from core.engine.view import RunView
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import Journal, read_lines
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import parse
from core.settings.presets.migrations import to_version_2
from core.training.start import run_training

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
    packed = folder.path / "state" / "step00000003" / "training.pt.xz"
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
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
    snapshot = RunView.read(folder).snapshot(False)
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


def test_each_tool_of_a_former_job_is_a_task_of_its_own():
    former = {"action": "crop", "folder": "a", "crop_size": [64, 64], "edge_low": 3, "max_resolution": [9]}
    assert to_version_2("pictures", {"pictures": former}) == ("crop", {"crop": {"folder": "a", "crop_size": [64, 64]}})
    assert to_version_2("images", {"images": {}}) == ("resize", {"resize": {}})
    values = {"name": "download", "file": None, "output": None, "hub_id": "sd15"}
    assert to_version_2("tool", {"tool": values}) == ("download", {"download": {"hub_id": "sd15"}})
    assert to_version_2("crop", {"crop": {"folder": "a"}}) == ("crop", {"crop": {"folder": "a"}})
    waiting = {"id": "1", "title": "t", "task": "images", "job": {"images": {"action": "edges", "folder": "b"}}}
    entry = _entry(waiting)
    own = {"preprocessor": "canny", "edge_low": 32, "edge_high": 224, "folder": "b"}
    assert (entry.task, entry.job, entry.state) == ("make_hints", {"make_hints": own}, "waiting")


def switched(**groups):
    """What version 1 had for the groups with switches, all off but those given."""
    off = {
        "model": {"compatibility": "none"},
        "dataset": {"reg_balance": "rotate", "crop_conditioning": "true"},
        "captions": {"compatibility": "none"},
        "network": {"weights_scale": "file", "base_weights_layers": "own"},
        **{name: {"compatibility": "none"} for name in ("optimizer", "schedule", "noise", "samples")},
    }
    merged = {name: fields | groups.get(name, {}) for name, fields in off.items()}
    return parse({"kind": "job", "schema_version": 1, "task": "train", **merged}, "old")


EVERY_ONE = {
    "dataset": {"reg_balance": "kohya", "crop_conditioning": "kohya"},
    "network": {"weights_scale": "kohya", "base_weights_layers": "kohya"},
    **{name: {"compatibility": "kohya"} for name in ("model", "captions", "optimizer", "schedule", "noise", "samples")},
}


@pytest.mark.parametrize(
    ("groups", "found", "codes"),
    [
        ({}, "none", []),
        (EVERY_ONE, "sd-scripts-0.10", []),
        (EVERY_ONE | {"noise": {"compatibility": "kohya_0.9"}}, "sd-scripts-0.9", []),
        ({"noise": {"compatibility": "kohya"}}, "sd-scripts-0.10", ["preset.compatibility-merged"]),
        (
            {"dataset": {"sources": [{"folder": "a", "compatibility": "kohya"}]}},
            "sd-scripts-0.10",
            ["preset.compatibility-merged"],
        ),
    ],
)
def test_switches_become_one_compatibility_and_what_was_mixed_is_said(groups, found, codes):
    preset = switched(**groups)
    job = build(TrainJob, preset.values)
    assert job.model.compatibility == found and [each.code for each in preset.notes] == codes
    assert (job.noise.compatibility != "none") == (found != "none") and job.dataset.reg_balance == (
        "rotate" if found == "none" else "kohya"
    )


def test_a_run_that_mixed_them_is_not_continued(run):
    folder, _ = run
    assert job_to_resume(folder).model.compatibility == "none"
    folder.job_file.write_text(
        folder.job_file.read_text("utf-8").replace('"compatibility": "none"', '"compatibility": "kohya"', 1)
    )
    with pytest.raises(ProblemsError) as caught:
        job_to_resume(folder)
    assert caught.value.codes == ["preset.compatibility-merged"]


def test_the_former_switches_are_no_settings_now():
    with pytest.raises(ProblemsError) as caught:
        build(TrainJob, {"noise": {"compatibility": "kohya"}})
    assert caught.value.codes == ["settings.unknown-name"]


def test_what_follows_compatibility_follows_in_copies_too_and_is_not_saved():
    job = build(TrainJob, {"model": {"compatibility": "sd-scripts-0.9"}})
    assert job.noise.compatibility == "kohya_0.9" and "compatibility" not in job.model_dump()["noise"]
    plain = job.with_settings(model={"compatibility": "none"})
    assert plain == build(TrainJob, {}) and plain.noise.compatibility == "none"
