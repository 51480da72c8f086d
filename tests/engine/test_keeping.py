"""Keep writes into the file what it is, without touching its tensors; both Keep and moving the others away can be undone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.dataset.doctor.trash import put_back
from core.engine.in_use import require_unused
from core.engine.keeping import CHOICE, NAME, THUMBNAIL, mark_file, put_away_others, unmark_file
from core.engine.queue import QueueEntry
from core.engine.verdict import choice_reason
from core.generation.grids.folder import GridFolder
from core.generation.model.library import portable_name
from core.record.cancel import CancelToken
from core.record.kept import keep, read_kept
from core.record.preference import Choice
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GridJob
from core.tools.models import header_edit
from tests.refusals import refused


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models")


@pytest.fixture
def run(workspace):
    folder = workspace.runs / "20260101-120000_fox"
    (folder / "checkpoints").mkdir(parents=True)
    for step in (10, 20, 30):
        tensors = {"lora_unet_x.lora_down.weight": torch.full((2, 3), float(step))}
        save_file(tensors, folder / "checkpoints" / f"fox-step{step:08d}.safetensors", {"ss_steps": str(step)})
    Image.new("RGB", (900, 600), "orange").save(folder / "sample.png")
    return RunFolder(folder)


def metadata(file):
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def checkpoints(run):
    return sorted(run.checkpoints.glob("*.safetensors"))


def test_a_kept_file_says_its_name_and_why_and_shows_its_sample_and_undo_restores_each_byte(run, workspace):
    file = checkpoints(run)[1]
    before, stat, tensors = file.read_bytes(), file.stat(), load_file(file)
    assert mark_file(file, "my fox", "the lowest loss", run.path / "sample.png", workspace, CancelToken())
    found = metadata(file)
    assert (found["ss_steps"], found[NAME], found[CHOICE]) == ("20", "my fox", "the lowest loss")
    assert found[THUMBNAIL].startswith("data:image/jpeg;base64,")
    assert file.stat().st_mtime_ns == stat.st_mtime_ns, "images made with it stay as new as it is"
    (name, tensor), *_ = load_file(file).items()
    assert torch.equal(tensor, tensors[name]) and file.read_bytes().endswith(before[-24:])
    unmark_file(file, workspace, CancelToken())
    assert file.read_bytes() == before and file.stat().st_mtime_ns == stat.st_mtime_ns
    unmark_file(file, workspace, CancelToken())
    assert file.read_bytes() == before


def test_undo_leaves_what_was_written_into_the_file_since(run, workspace):
    file = checkpoints(run)[0]
    mark_file(file, "a", "b", None, workspace, CancelToken())
    header = header_edit.with_metadata(file, metadata(file) | {"modelspec.title": "Fox"})
    header_edit.replace_header(file, header, workspace, CancelToken())
    unmark_file(file, workspace, CancelToken())
    assert metadata(file) == {"ss_steps": "10", "modelspec.title": "Fox"}


def test_a_thumbnail_that_the_file_has_stays_and_other_formats_are_left_alone(run, workspace):
    file = checkpoints(run)[0]
    header_edit.replace_header(file, header_edit.with_metadata(file, {THUMBNAIL: "mine"}), workspace, CancelToken())
    mark_file(file, "a", "b", run.path / "sample.png", workspace, CancelToken())
    assert metadata(file) == {THUMBNAIL: "mine", NAME: "a", CHOICE: "b"}
    for other in (run.checkpoints, run.path / "sample.png"):
        assert not mark_file(other, "a", "b", None, workspace, CancelToken())


def test_checkpoints_that_are_not_kept_go_to_the_trash_and_come_back(run, workspace):
    files = checkpoints(run)
    with refused("kept.none"):
        put_away_others(run, files, workspace, [])
    keep(run.path, files[1], "")
    token = put_away_others(run, files, workspace, [])
    assert checkpoints(run) == [files[1]]
    with refused("kept.all"):
        put_away_others(run, checkpoints(run), workspace, [])
    assert sorted(put_back(token)) == [files[0], files[2]] and checkpoints(run) == files


def test_no_file_moves_while_a_job_reads_the_files_of_its_run(run, workspace):
    files = checkpoints(run)
    keep(run.path, files[1], "")
    grid = build(GridJob, {"grid": {"name": "fox", "x_axis": "lora", "x_values": portable_name(files[0], workspace)}})
    begun = GridFolder.create(workspace, grid, [], {})
    uses = {"loras": [{"file": portable_name(files[2], workspace)}]}
    for task, job in (
        ("assess", {"assess": {"run": run.name}}),
        ("grid", {"grid": {"folder": begun.name}}),
        ("generate", {"generate": uses}),
    ):
        entry = QueueEntry("1", task, task, job, "running")
        with refused("run.in-use", task):
            put_away_others(run, files, workspace, [entry])
        for other in (replace(entry, state="waiting"), replace(entry, task="train")):
            require_unused(run.name, [other], workspace)
        require_unused("20260101-120000_bear", [entry], workspace)
    entry = QueueEntry("1", "generate", "generate", {"generate": {"prompt": run.name}}, "running")
    require_unused(run.name, [entry], workspace)
    assert checkpoints(run) == files


def test_marks_outlive_a_missing_file_and_a_damaged_list_is_set_aside(run):
    files = checkpoints(run)
    keep(run.path, files[0], "one")
    away = files[0].rename(run.path / "away")
    keep(run.path, files[1], "two")
    away.rename(files[0])
    assert sorted(read_kept(run.path).values()) == ["one", "two"]
    (run.path / "kept.json").write_text("{")
    keep(run.path, files[2], "three")
    (aside,) = run.path.glob("kept-damaged-*.json")
    assert aside.read_text() == "{" and list(read_kept(run.path).values()) == ["three"]


def test_why_a_checkpoint_was_chosen_tells_blind_choices_from_what_was_measured():
    facts = {"best": None, "files": [{"name": "a", "step": 1}, {"name": "b", "step": 2}]}
    names, few = ["a", "b"], [Choice("a", "b", "p", "left")] * 9
    assert choice_reason(facts, names, few, "a") == choice_reason(facts, names, [], "a")
    assert "after 10 blind choices" in choice_reason(facts, names, [*few, few[0]], "a")
    assert choice_reason(facts, names, [*few, Choice("a", "b", "p", "skip")], "a") == choice_reason(
        facts, names, [], "a"
    )
    others = {"files": [*facts["files"], *({"name": str(step), "step": step} for step in range(3, 60))]}
    counted = choice_reason(facts | others, names, [*few, few[0]], "a")
    assert counted == choice_reason(facts, names, [*few, few[0]], "a"), "those that were not compared do not count"
    assert json.dumps(choice_reason(facts, names, few, "gone"))
    best = {"step": 2, "what": "loss", "sure": "clearly better than step 1", "as_good": [], "others": 2}
    assert (
        choice_reason(facts | {"best": best}, names, [], "b") == "It has the lowest loss: clearly better than step 1."
    )
    assert choice_reason(facts | {"best": best}, names, [], "a") == "By eye: step 2 has the lowest loss."
    average = "fox-average-1-to-2.safetensors"
    made = facts | {"best": best, "files": [*facts["files"], {"name": average, "step": 2}]}
    assert "the loss of an average is not measured" in choice_reason(made, names, [], average)
    equal = facts | {"best": best | {"as_good": [1]}}
    assert "1 other one cannot be told apart" in choice_reason(equal, names, [], "b")
    assert "its loss cannot be told apart from the lowest one, of step 2" in choice_reason(equal, names, [], "a")
