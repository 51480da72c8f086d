"""The comparison of a run's checkpoints without a browser: from samples to the grid, kept with the run, resumed, chosen."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made_runs import dataset, make_run
from PIL import Image
from safetensors.torch import load_file, save_file
from test_grids import RUN, desk, trained  # noqa: F401
from work_parts import image, wait_until

from core.assess.measures import MEASURES
from core.engine.average import average_weights, save_average
from core.engine.keeping import CHOICE, NAME, THUMBNAIL
from core.engine.queue import QueueEntry
from core.engine.verdict import FILE, read_verdict
from core.engine.view import RunView
from core.formats.tensors.header import read_header
from core.generation.grids.folder import list_grids
from core.generation.grids.plan import grid_of
from core.generation.grids.reuse import reuse
from core.generation.model.library import find_file
from core.record.cancel import CancelToken
from core.record.events import Saved
from core.record.file_titles import label_of
from core.record.journal import Journal
from core.record.kept import keep, read_kept
from core.record.preference import Choice, add_choice, read_choices
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.units import count
from core.record.workspace import PROJECT, Workspace, display_path
from core.settings.job import TrainJob
from core.tasks import tasks
from core.tools.models.edit_metadata import thumbnail_url
from core.training.loop.samples import prompts_of, settings_digest
from tabs.form.lora_steps import brief, checkpoints
from tabs.form.task_form import TaskForm
from tabs.monitor import comparison as comparisons
from tabs.monitor import verdict
from tabs.monitor.answer import answer_of
from tests.assess.test_card import card
from tests.assess.test_card import lora as foreign
from tests.refusals import refused


@pytest.fixture
def page(desk):  # noqa: F811
    """A run that has ended with two checkpoints and a sample of the first."""
    folder = trained(desk)
    (folder / "dataset.json").write_text(json.dumps(dataset()))
    sample = {"kind": "sample", "step": 20, "index": 0, "prompt": "a fox", "seed": 4, "file": "samples/20.png"}
    image(folder / sample["file"])
    with open(folder / "events.jsonl", "a") as journal:
        journal.write(json.dumps({"v": 1, "seq": 900, "time": 9.0, **sample}) + "\n")
    return desk.page


def part(page):
    return verdict.part(page, RUN, page.engine.snapshot(RUN), page.engine.run_job(RUN))


def command(page, name, **data):
    verdict.COMMANDS[name](page, {"run": RUN, **data}, page.browsers.of(None))


def make(folder, *positions):
    folder.cells.mkdir(exist_ok=True)
    for position in positions:
        Image.new("RGB", (64, 64)).save(folder.cell(position))


def test_a_run_that_ended_shows_its_samples_at_once_and_the_images_of_its_grid_as_they_come(page):
    before = part(page)
    assert [column["label"] for column in before["columns"]] == ["base model", "step 20", "step 40"]
    assert [bool(column["best"]) for column in before["columns"]] == [False, False, True]
    assert before["columns"][1]["loss"] == 0.2 and "40" in before["sentence"]
    shows = [prompt["shows"] for prompt in before["prompts"]]
    assert len(shows) == 5 and shows[:2] == ["sample prompt", "held-out caption"]
    assert [[bool(cell) for cell in line] for line in before["images"]["1"][:2]] == [[False, True, False], [False] * 3]
    assert (before["making"]["state"], before["making"]["missing"]) == ("", 15) and before["blind"] is None
    assert part(page) is before, "nothing is computed again while nothing changed"

    command(page, "grid")
    (folder,) = list_grids(page.workspace)
    run = page.workspace.runs / RUN
    assert folder.content().size == (3, 5, 1) and read_verdict(run).grid == folder.name
    assert part(page)["making"]["state"] == "waiting" and "open" not in page.project.tab_state("Grids")
    command(page, "grid")
    assert len(page.engine.jobs) == 1, "twice is once"
    make(folder, (0, 0, 0), (1, 0, 0), (2, 0, 0), (1, 1, 0))
    shown = part(page)
    assert [[bool(cell) for cell in line] for line in shown["images"]["1"][:2]] == [[True] * 3, [False, True, False]]
    assert shown["making"]["missing"] == 11
    page.engine.entries = []
    folder.change(failed={(2, 1, 0): "The device ran out of memory"})
    assert part(page)["making"]["state"] == "stopped" and "memory" in part(page)["images"]["1"][1][2]["failed"]
    command(page, "grid")
    assert len(page.engine.jobs) == 2 and len(list_grids(page.workspace)) == 1, "it is resumed"
    command(page, "verdict_all")
    assert page.project.tab_state("Grids")["open"] == folder.name


def test_samples_of_the_run_with_equal_settings_are_not_made_again(page):
    run, job = page.workspace.runs / RUN, page.engine.run_job(RUN)
    prompts = prompts_of(job, find_file(job.model.base_model, page.workspace))
    digest = settings_digest(prompts[0], job.samples)
    lines = [{"step": step, "file": f"samples/{step}.png", "settings": digest} for step in (0, 40)]
    lines.append({"step": 20, "file": "samples/20.png", "settings": "other"})
    with open(run / "events.jsonl", "a") as journal:
        for number, line in enumerate(lines):
            image(run / line["file"])
            event = {
                "v": 1,
                "seq": 901 + number,
                "time": 9.0,
                "kind": "sample",
                "index": 0,
                "prompt": "a fox",
                "seed": 4,
            }
            journal.write(json.dumps(event | line) + "\n")
    (run / "samples" / "0.png").touch()

    def numbers():
        making = part(page)["making"]
        return [making[each] for each in ("state", "total", "missing", "taken")]

    assert numbers() == ["", 15, 15, 2]
    shown = [bool(cell) for cell in part(page)["images"]["1"][0]]
    assert shown == [True, False, True], "none of other settings next to them"
    command(page, "grid")
    (folder,) = list_grids(page.workspace)
    assert folder.content().samples == {(0, 0, 0): "0.png", (2, 0, 0): "40.png"} and numbers() == ["waiting", 15, 15, 2]
    make(folder, (0, 0, 0), (1, 0, 0))
    page.engine.entries = []
    assert numbers() == ["stopped", 15, 13, 1]
    make(folder, *((x, y, 0) for x in range(3) for y in range(5)))
    making = part(page)["making"]
    assert making["more_images"] == 3 * making["more"] and making["strength_images"] == 10
    (run / "samples" / "40.png").unlink()
    assert numbers() == ["done", 15, 0, 0]


def test_a_file_without_a_step_in_its_metadata_has_that_of_the_journal(page):
    run = page.workspace.runs / RUN
    line = {"v": 1, "seq": 9000, "kind": "saved", "step": 27, "file": "checkpoints/edges.safetensors", "bytes": 1}
    with open(RunFolder(run).journal_file, "a", encoding="utf-8") as journal:
        journal.write(json.dumps(line) + "\n")
    (run / "checkpoints" / "edges.safetensors").write_bytes(b"")
    assert brief(run / "checkpoints" / "edges.safetensors", page.workspace).checkpoint.label == "step 27"


def test_a_checkpoint_without_a_sample_is_shown_by_its_image_in_the_comparison(page):
    run = page.workspace.runs / RUN
    files = {step: run / "checkpoints" / f"fox-step{step:08d}.safetensors" for step in (20, 40)}
    sample = (run / "samples" / "20.png").rename(run / "samples" / "00000020_00.png")

    def shown():
        return [each.sample for each in checkpoints(page, files[20])], brief(files[40], page.workspace).image

    assert shown() == ([sample, None], sample)
    sample.unlink()
    command(page, "grid", strength=0.6)
    (grid,) = list_grids(page.workspace)
    make(grid, (1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 1, 1))
    assert shown() == ([None, grid.cell((2, 1, 0))], grid.cell((2, 1, 0))), "at strength 1, not 0.6"
    samples = {step: card(file, page.workspace, captions=True).samples for step, file in files.items()}
    assert [(each.step, each.prompt) for each in samples[40]] == [
        (40, read_verdict(run).prompts[row].text) for row in (0, 1)
    ]
    grid.path.rename(grid.path.with_name("gone"))
    assert shown() == ([None, None], None)


def test_more_prompts_are_a_grid_that_takes_over_equal_cells_which_no_file_has_changed_since(page):
    command(page, "grid")
    (first,) = list_grids(page.workspace)
    make(first, *((x, y, 0) for x in range(3) for y in range(5)))
    page.engine.entries = []
    assert part(page)["making"]["state"] == "done" and part(page)["making"]["more"] > 0
    run = page.workspace.runs / RUN
    os.utime(run / "checkpoints" / "fox-step00000040.safetensors", (2e9, 2e9))  # trained again since
    command(page, "grid", more=True)
    second = next(folder for folder in list_grids(page.workspace) if folder.name != first.name)
    made, total = len(second.generated()), part(page)["making"]["total"]
    assert len(part(page)["prompts"]) > 5 and part(page)["making"]["missing"] == total - made and made == 10
    assert {x for x, _, _ in second.generated()} == {0, 1}
    assert reuse(second, grid_of(second.job(), page.workspace), page.workspace) == 0
    assert second.cell((0, 0, 0)).stat().st_mtime_ns == first.cell((0, 0, 0)).stat().st_mtime_ns


def test_a_further_strength_takes_over_every_image_and_comes_within_the_minutes_that_are_kept(page):
    command(page, "grid", minutes=7)
    (first,) = list_grids(page.workspace)
    assert first.content().minutes == 7 and part(page)["strengths"] == [0.4, 0.6, 0.8, 1.0, 1.2]
    make(first, *((x, y, 0) for x in range(3) for y in range(5)))
    page.engine.entries = []
    shown = part(page)
    assert list(shown["images"]) == ["1"] and shown["making"]["strength_images"] == 10, "the base model has no strength"
    first.cell((2, 4, 0)).rename(first.path / "away.png")
    first.change(state="late")
    assert part(page)["making"]["late"] and part(page)["making"]["missing"] == 1
    (first.path / "away.png").rename(first.cell((2, 4, 0)))
    command(page, "grid", strength=0.6)
    assert read_verdict(page.workspace.runs / RUN).strengths == (0.6, 1.0) and part(page)["making"]["minutes"] == 7
    second = (
        list_grids(page.workspace)[0]
        if list_grids(page.workspace)[0].name != first.name
        else list_grids(page.workspace)[1]
    )
    for y, x in ((0, 0), (4, 2)):
        linked = second.cell((x, 1, y) if x else (0, 0, y))  # [0.6, 1.0]; equal cells share the first one
        assert linked.stat().st_mtime_ns == first.cell((x, y, 0)).stat().st_mtime_ns
    after = part(page)
    assert (after["making"]["total"], after["making"]["missing"], after["making"]["state"]) == (25, 10, "waiting")
    images = after["images"]
    assert [bool(cell) for cell in images["0.6"][3]] == [True, False, False] and all(map(all, images["1"]))
    assert images["0.6"][3][0] == images["1"][3][0] and after["blind"] is not None
    assert len(page.engine.jobs) == 2
    command(page, "grid", strength=0.6)
    assert len(page.engine.jobs) == 2 and len(list_grids(page.workspace)) == 2, "twice is once"
    for wrong, code in (({"strength": 0.7}, "verdict.strength"), ({"minutes": "x"}, "verdict.minutes")):
        with refused(code):
            command(page, "grid", **wrong)


def test_what_is_not_made_can_be_left_out_of_a_comparison_without_losing_an_image(page):
    command(page, "grid")
    (first,) = list_grids(page.workspace)
    page.engine.entries = []
    assert part(page)["making"]["complete"] == 0
    with refused("verdict.nothing-complete"):
        command(page, "verdict_leave_out")
    make(first, *((x, y, 0) for x in range(3) for y in range(5)))
    command(page, "grid", strength=0.6, more=True)
    second = next(folder for folder in list_grids(page.workspace) if folder.name != first.name)
    page.engine.entries = []
    later = part(page)["making"]
    assert later["incomplete"] == f"{count(len(part(page)['prompts']) - 5, 'prompt')} and strength 0.6"
    assert later["state"] == "stopped" and later["missing"] > 0 and later["complete"] == 15
    make(second, *((x, 0, y) for x in (1, 2) for y in range(4)))  # [0.6, 1.0] by prompt; 0.6 is not complete
    assert part(page)["making"]["complete"] == 15
    make(second, (1, 0, 4), (2, 0, 4), (1, 0, 5))
    assert part(page)["making"]["complete"] == 25
    jobs = len(page.engine.jobs)
    command(page, "verdict_leave_out")
    after = part(page)
    assert (after["making"]["state"], after["making"]["total"], after["making"]["missing"]) == ("done", 25, 0)
    assert len(after["prompts"]) == 5 and after["making"]["more"] > 0 and len(page.engine.jobs) == jobs
    assert all(map(all, [*after["images"]["0.6"], *after["images"]["1"]]))
    third = read_verdict(page.workspace.runs / RUN)
    assert third.strengths == (0.6, 1.0) and len(third.files) == 3
    command(page, "verdict_leave_out")
    assert read_verdict(page.workspace.runs / RUN).content == third.content, "twice is once"


@pytest.mark.parametrize(("prompts", "offered"), [(2, False), (3, True)])
def test_blind_choices_begin_with_three_pairs(page, prompts, offered):
    command(page, "grid")
    (folder,) = list_grids(page.workspace)
    make(folder, *((x, y, 0) for x in (1, 2) for y in range(prompts)))
    assert (part(page)["blind"] is not None) is offered


def test_checkpoints_without_an_image_are_left_out_and_can_be_added_again(page):
    command(page, "grid")
    (first,) = list_grids(page.workspace)
    make(first, *((x, y, 0) for x in range(2) for y in range(2)))
    page.engine.entries = []
    assert part(page)["making"]["complete"] == 4
    assert part(page)["making"]["incomplete"] == "step 40 and 3 prompts"
    command(page, "verdict_leave_out")
    after = part(page)
    assert [column["label"] for column in after["columns"]] == ["base model", "step 20"] and len(after["prompts"]) == 2
    assert after["making"]["missing"] == 0 and after["making"]["new"] == 1
    assert after["making"]["new_images"] == 2, "one for each prompt"


def test_the_first_prompts_are_as_many_as_the_minutes_allow(page, monkeypatch):
    monkeypatch.setattr(verdict.assess, "seconds_per_prediction", lambda facts, job: 0.5)  # two of them in a step
    steps = comparisons.expected_steps(
        comparisons.comparison_to_generate(page, page.engine.snapshot(RUN), page.engine.run_job(RUN), None).grid.job, ()
    )
    before = len(part(page)["prompts"])
    command(page, "verdict_minutes", minutes=3 * steps * 2.5 / 60)
    assert before > len(part(page)["prompts"]) == 2 and part(page)["making"]["total"] == 6, "said before they are made"
    with refused("verdict.minutes"):
        command(page, "verdict_minutes", minutes=0)
    command(page, "grid", minutes=3 * steps * 2.5 / 60)
    assert len(part(page)["prompts"]) == 2 and part(page)["making"]["more"] > 0
    command(page, "grid", more=True)
    assert len(part(page)["prompts"]) > 5


def test_choices_and_the_kept_checkpoint_stay_with_the_run(page):
    command(page, "grid")
    (folder,) = list_grids(page.workspace)
    make(folder, *((x, y, 0) for x in range(3) for y in range(5)))
    names = [column["file"] for column in part(page)["columns"][1:]]
    for number in range(10):
        blind = part(page)["blind"]
        assert {blind["left"], blind["right"]} == set(names) and blind["number"] == number + 1
        pair = {name: blind[name] for name in ("left", "right", "prompt")}
        command(page, "verdict_choose", **pair, outcome="left" if blind["left"] == names[0] else "right")
        assert bool(part(page)["preferred"]["rows"]) == (number == 9)
    assert part(page)["answer"].startswith("Use step 20: your blind choices prefer it, first with ")
    assert [column.get("preferred") for column in part(page)["columns"]] == [None, True, False]
    first = part(page)["preferred"]["rows"][0]
    assert first["file"] == names[0] and first["low"] < first["share"] < first["high"] and first["first"] > 0.9
    command(page, "verdict_choose", outcome="undo")
    run = page.workspace.runs / RUN
    assert len(read_choices(run)) == 9
    for wrong in ({"left": "../x", "right": names[0]}, {"left": names[0], "right": names[0]}):
        with refused("file.gone" if "../x" in wrong.values() else "choice.invalid"):
            command(page, "verdict_choose", **wrong, prompt="p", outcome="left")
    command(page, "verdict_keep", file=names[1], keep=True)
    assert part(page)["answer"].startswith("You kept step 40: ")
    assert list(read_kept(run)) == [f"checkpoints/{names[1]}"] and part(page)["columns"][2]["kept"]
    assert part(page)["others"] == {"left": 1, "away": 0}
    command(page, "verdict_put_away")
    assert part(page)["others"] == {"left": 0, "away": 1} and part(page)["columns"][1]["gone"]
    command(page, "verdict_put_back")
    assert part(page)["others"] == {"left": 1, "away": 0} and not part(page)["columns"][1]["gone"]
    command(page, "verdict_keep", file=names[1], keep=False)
    assert read_kept(run) == {}
    (run / "checkpoints" / names[1]).unlink()
    assert [column["gone"] for column in part(page)["columns"]] == [False, False, True]


def test_blind_choices_prefer_a_checkpoint_only_if_its_first_place_is_likely(tmp_path):
    columns = [
        {"file": file, "label": label, "use": file == "b", "gone": False}
        for file, label in (("", "base model"), ("a", "step 20"), ("b", "step 40"))
    ]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "b").write_bytes(b"")
    for probability, preferred in ((0.49, False), (0.5, True)):
        rows = [{"file": "a", "label": "step 20", "first": probability, "gone": False}]
        choices = {"rows": rows, "file": "a" if preferred else None}
        why, file = ("preferred", "a") if preferred else ("lowest", "b")
        answer, decided = answer_of(tmp_path, columns, tmp_path / file, why, choices)
        assert answer.startswith("Use step 20: ") if preferred else answer.startswith("Use step 40 for now: ")
        assert f"{probability:.0%}" in answer + decided and bool(decided) is not preferred
        keep(tmp_path, tmp_path / "checkpoints" / "b", "")
        answer, decided = answer_of(tmp_path, columns, tmp_path / "b", "kept", choices)
        assert answer.startswith("You kept step 40: ") and ("prefer" in decided) is preferred and "step 20" in decided
        keep(tmp_path, tmp_path / "checkpoints" / "b", None)


def test_a_loss_on_training_images_recommends_no_checkpoint(page):
    """It falls for as long as the training lasts, also when every image is copied."""
    journal = page.workspace.runs / RUN / "events.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    trained_on = [line | {"measured_on": "training"} if line["kind"] == "validated" else line for line in lines]
    journal.write_text("".join(json.dumps(line) + "\n" for line in trained_on))
    command(page, "grid")
    assert part(page)["answer"].startswith("Look at step 40 first")


def test_where_the_loss_tells_nothing_blind_choices_tell_what_to_look_at_first(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    columns = [{"file": file, "label": file, "use": file == "b"} for file in ("", "a", "b")]
    row = {"file": "a", "label": "step 20", "first": 0.4, "gone": False}
    for gone, look_at in ((False, "Look at step 20 first"), (True, "Look at b first")):
        choices = {"rows": [row | {"gone": gone}], "file": None}
        answer, decided = answer_of(tmp_path, columns, tmp_path / "b", "trained", choices)
        assert answer.startswith(look_at) and not decided, "said once"


def test_what_was_moved_to_the_trash_is_no_more_said_to_lead_or_to_be_unmeasured(page):
    command(page, "grid")
    run, (first, last) = page.workspace.runs / RUN, [column["file"] for column in part(page)["columns"][1:]]
    for _ in range(12):
        add_choice(run, Choice(first, last, "a fox", "left"))
    assert part(page)["preferred"]["file"] == first and "step 20" in part(page)["answer"]
    (run / "checkpoints" / first).unlink()
    shown = part(page)
    assert shown["preferred"]["rows"][0]["label"] == "step 20, deleted" and shown["preferred"]["rows"][0]["gone"]
    assert "step 40" in shown["answer"] and "step 20" not in shown["answer"] + shown["sentence"]


def test_a_kept_checkpoint_that_is_not_in_the_comparison_is_named(page):
    command(page, "grid")
    run = page.workspace.runs / RUN
    average = run / "checkpoints" / "fox-average-20-to-40.safetensors"
    average.write_bytes((run / "checkpoints" / "fox-step00000020.safetensors").read_bytes())
    keep(run, average, "")
    shown = part(page)
    assert shown["answer"].startswith("You kept average 20 to 40, which is not in this comparison")
    assert not any(column.get("use") for column in shown["columns"])


def test_files_do_not_move_under_a_job_that_reads_them_and_come_back_once(page):
    names = [column["file"] for column in part(page)["columns"][1:]]
    command(page, "verdict_keep", file=names[0], keep=True)
    going = QueueEntry("1", "assess", "Assessment: fox", {"assess": {"run": RUN}}, "running")
    page.engine.entries = [going]
    with refused("run.in-use", "Assessment: fox"):
        command(page, "verdict_put_away")
    page.engine.entries, page.averages[RUN] = [], SimpleNamespace(done=False)
    with refused("average.running"):
        command(page, "verdict_put_away")
    del page.averages[RUN]
    command(page, "verdict_put_away")
    assert len(page.engine.snapshot(RUN)["files"]) == 1
    command(page, "verdict_put_back")
    assert len(page.engine.snapshot(RUN)["files"]) == 2
    with refused("trash.already-restored"):
        command(page, "verdict_put_back")


def test_an_average_becomes_a_new_checkpoint_of_the_comparison(page):
    sample = {"kind": "sample", "step": 40, "index": 0, "prompt": "a fox", "seed": 4, "file": "samples/40.png"}
    with open(page.workspace.runs / RUN / "events.jsonl", "a") as journal:
        journal.write(json.dumps({"v": 1, "seq": 901, "time": 9.0, **sample}) + "\n")
    command(page, "grid")
    names = [column["file"] for column in part(page)["columns"][1:]]
    command(page, "verdict_average", files=names, power="")
    shown = part(page)
    assert shown["making"]["new"] == 1 and shown["average"]["saved"] == "average 20 to 40"
    average = page.engine.snapshot(RUN)["files"][-1]
    command(page, "verdict_keep", file=average["name"], keep=True, title="mean")
    wait_until(lambda: NAME in read_header(Path(average["path"]))[1])
    assert THUMBNAIL not in read_header(Path(average["path"]))[1], "the sample of its last step is not its own"
    page.engine.entries = []
    command(page, "grid")
    shown = part(page)
    assert [column["label"] for column in shown["columns"]][-1] == "average 20 to 40"
    assert [bool(cell) for cell in shown["images"]["1"][0]][-2:] == [True, False]


def test_bad_input_is_said_or_leaves_nothing_to_show(page):
    run = page.workspace.runs / RUN
    facts = page.engine.snapshot(RUN)
    assert verdict.part(page, RUN, facts | {"state": "running"}, TrainJob()) is None
    assert verdict.part(page, RUN, facts | {"files": []}, TrainJob()) is None
    assert verdict.part(page, RUN, facts, None) is None
    (run / "dataset.json").write_text("[]")
    for damaged in (
        "{",
        "[]",
        '{"grid": "../..", "files": [], "prompts": []}',
        '{"grid": "gone", "files": [""], "prompts": []}',
    ):
        (run / FILE).write_text(damaged)
        page.verdicts = {}
        assert part(page)["making"]["state"] == "" and len(part(page)["columns"]) == 3
    moved = page.engine.run_job(RUN)
    gone = moved.with_settings(samples={"sample_prompts_file": "gone.txt"})
    page.verdicts = {}
    assert verdict.part(page, RUN, facts, gone)["problems"]


def test_an_assessment_is_started_once_and_what_it_measured_is_shown_with_the_losses(page, monkeypatch):
    run = page.workspace.runs / RUN
    before = part(page)["assess"]
    assert (before["state"], before["missing"], before["rows"]) == ("", 2, {}) and before["about"]
    command(page, "verdict_assess")
    command(page, "verdict_assess")
    assert [job.assess.run for job in page.engine.jobs] == [RUN] and part(page)["assess"]["state"] == "waiting"
    page.engine.entries[-1] = replace(page.engine.entries[-1], state="running")
    for done, entry, left in ((3, page.engine.entries[-1].id, "1:15"), (4, "another", "")):
        now, done_now = {"job": {"entry": entry, "eta_seconds": 75.0}}, {"done": done, "total": 9}
        monkeypatch.setattr(page.engine, "progress", lambda entry, now=done_now: now, raising=False)
        monkeypatch.setattr(page.engine, "status", lambda now=now: now, raising=False)
        shown = part(page)["assess"]
        assert (shown["done"], shown["total"], shown["left"]) == (done, 9, left)
    page.engine.entries[-1] = replace(page.engine.entries[-1], state="done")
    files = ["assess/one.png", "assess/../../../x.png", "assess/gone.png"]
    image(run / files[0])
    copy = {"distance": 0.1, "limit": 0.5, "typical": 0.8, "near": 2, "images": 8, "name": "fox.png", "files": files}
    every = {name: {"why": "x"} for name in MEASURES} | {"copies": copy}
    cells = {"fox-step00000040.safetensors": every}
    (run / "assess.json").write_text(json.dumps({"version": 1, "cells": cells}))
    shown = part(page)
    assert "step 40" in shown["sentence"] and "fox.png" in shown["sentence"] and shown["assess"]["missing"] == 1
    rows = shown["assess"]["rows"]["fox-step00000040.safetensors"]
    assert [row["title"] for row in rows] == [measure.title for measure in MEASURES.values()]
    assert [len(row["images"]) for row in rows] == [1 if row["warning"] else 0 for row in rows], "only files of the run"
    page.engine.entries[-1] = replace(page.engine.entries[-1], state="failed")
    command(page, "verdict_assess")
    assert len(page.engine.jobs) == 2


@pytest.mark.parametrize(
    ("use", "why", "leads", "label", "strength"),
    [
        ("a", "lowest", "", "Use step a", " Its best strength is 0.8."),
        ("b", "trained", "", "Look at step b first", " Its best strength is 0.6."),
        ("a", "trained", "b", "Look at step b first", " Its best strength is 0.6."),
        ("c", "lowest", "", "Use step c", "it has the lowest loss."),
    ],
)
def test_the_first_line_names_the_best_strength_of_the_checkpoint_that_it_names(
    tmp_path, use, why, leads, label, strength
):
    cells = {name: {"strength": {"best": best}} for name, best in (("a", 0.8), ("b", 0.6))}
    (tmp_path / "assess.json").write_text(json.dumps({"version": 1, "cells": cells}))
    columns = [
        {"file": each, "label": f"step {each}" if each else "base model", "use": each == use}
        for each in ("", "a", "b", "c")
    ]
    row = {"file": leads, "label": f"step {leads}", "gone": False, "first": 0.4}
    answer, _ = answer_of(
        tmp_path, columns, tmp_path / "checkpoints" / use, why, {"rows": [row], "file": None} if leads else None
    )
    assert answer.startswith(label) and answer.endswith(strength)
    diverged = [column | {"use": False, "loss": math.nan} for column in columns]
    assert answer_of(tmp_path, diverged, None, "", None)[0].startswith("Do not use step c")


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


STATED = {"modelspec.resolution": "128x128", "ss_tag_frequency": '{"10_fox": {"fox": 3}}'}


def lora(path, number):
    random = torch.Generator().manual_seed(number)
    tensors = {
        f"{LAYER}.lora_down.weight": torch.randn(4, 64, generator=random),
        f"{LAYER}.lora_up.weight": torch.randn(32, 4, generator=random),
        f"{LAYER}.alpha": torch.tensor(2.0),
    }
    own = {"ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora", "ss_steps": str(number)}
    save_file(tensors, path, STATED | own)
    return tensors


def test_an_average_has_the_mean_of_the_factors_and_is_a_checkpoint_of_the_run(tmp_path, monkeypatch):
    workspace = Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models")
    run = RunFolder(make_run(workspace.runs, "20260102-030405_fox", steps=40, saved=(20, 40)))
    names = [f"fox-step{step:08d}.safetensors" for step in (20, 40)]
    one, other = (lora(run.checkpoints / name, number) for number, name in enumerate(names))

    def facts():
        return RunView.read(run).snapshot(False)

    path = save_average(run, facts(), names, False, workspace, CancelToken())
    for name, value in load_file(path).items():
        assert torch.allclose(value, (one[name] + other[name]) / 2, atol=1e-6), name
    metadata = read_header(path)[1]
    assert STATED.items() <= metadata.items() and "ss_steps" not in metadata, "what both state, and no more"
    (added,) = [file for file in facts()["files"] if file["name"] not in names]
    assert (added["path"], added["step"]) == (str(path), 40)
    assert label_of(path.name, 40) == "average 20 to 40"
    assert label_of("fox-step00000020.safetensors", None) == "step 20"
    power = save_average(run, facts(), names, True, workspace, CancelToken())
    weights = average_weights([20, 40], True)
    for name, value in load_file(power).items():
        assert torch.allclose(value, weights[0] * one[name] + weights[1] * other[name], atol=1e-6), name
    assert save_average(run, facts(), names, False, workspace, CancelToken()) not in (path, power)
    with refused("average.of-average", path.name):
        save_average(run, facts(), [*names, path.name], False, workspace, CancelToken())
    for too_few in ([], names[:1], [names[0], "gone.safetensors"]):
        with refused("average.too-few"):
            save_average(run, facts(), too_few, False, workspace, CancelToken())
    with refused("file.gone", "gone.safetensors"):
        save_average(run, facts(), [*names, "gone.safetensors"], False, workspace, CancelToken())
    save_file(other, run.checkpoints / names[1], {"modelspec.resolution": "512x512"})
    with_another = save_average(run, facts(), names, False, workspace, CancelToken())
    assert "ss_tag_frequency" not in read_header(with_another)[1]
    before, files = facts()["files"], sorted(run.checkpoints.iterdir())
    monkeypatch.setattr(Journal, "flush", lambda journal: None)  # a disk that is full by then
    with refused("average.not-recorded"):
        save_average(run, facts(), names, False, workspace, CancelToken())
    assert facts()["files"] == before and sorted(run.checkpoints.iterdir()) == files


def test_an_average_is_no_checkpoint_of_its_last_step(tmp_path):
    """It is listed with the step of its newest file, whose loss is not its own."""
    workspace = Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models")
    folder = make_run(workspace.runs, "20260101-120000_fox", saved=(20, 40), validated=[(20, 0.2), (40, 0.1)])
    step = foreign(folder / "checkpoints" / "fox-step00000040.safetensors")
    average = foreign(folder / "checkpoints" / "fox-average-20-to-40.safetensors")
    with Journal(folder) as journal:
        journal.put(Saved(40, f"checkpoints/{average.name}", 9))
    among = [card(file, workspace).data()["measures"]["among"] for file in (step, average)]
    assert among[0].startswith("This is step 40. ") and "no loss was measured" not in among[0]
    assert among[1].startswith("This is average 20 to 40. ") and among[1].endswith("no loss was measured.")


def test_keep_on_the_page_writes_choice_and_sample_into_the_file_and_undo_removes_them(page):
    run = page.workspace.runs / RUN
    (file,) = [each for each in page.engine.snapshot(RUN)["files"] if each["step"] == 20]
    path = Path(file["path"])
    tensors = lora(path, 1)
    before = path.read_bytes()
    for number in range(10):
        other = next(each["name"] for each in page.engine.snapshot(RUN)["files"] if each["name"] != path.name)
        add_choice(run, Choice(path.name, other, f"prompt {number}", "left"))
    command(page, "verdict_keep", file=path.name, keep=True, title="fox final")
    wait_until(lambda: NAME in read_header(path)[1])
    metadata = read_header(path)[1]
    assert metadata[NAME] == "fox final" and "blind choices" in metadata[CHOICE]
    assert metadata[THUMBNAIL] == thumbnail_url(run / "samples" / "20.png"), "the sample of its own step"
    assert all(torch.equal(load_file(path)[name], value) for name, value in tensors.items())
    command(page, "verdict_keep", file=path.name, keep=False)
    wait_until(lambda: path.read_bytes() == before)


def test_a_lora_of_a_merge_is_the_card_of_its_run_with_the_other_steps(page):
    folder = page.workspace.runs / RUN / "checkpoints"
    files = [folder / f"fox-step{step:08d}.safetensors" for step in (20, 40)]
    image(folder.parent / "samples" / "00000040_00.png")
    merge = TaskForm(page, tasks()["merge_loras"], "tool-merge_loras", "field", (dict, print))
    card = merge._card(str(files[0]))
    assert 'aria-label="Strength of fox, step 20"' in card and files[0].stem not in re.sub(
        'data-[a-z]+="[^"]*"', "", card
    )
    asked = {name: re.search(f'data-{name}="([^"]*)"', card)[1] for name in ("steps", "form")}
    steps = page.picker.answer(asked)["steps"]
    assert re.findall('data-value="([^"]*)"', steps) == [display_path(file) for file in files]
    assert ["<img" in each for each in steps.split("<li>")[1:3]] == [False, True]
    gone = merge._card("/gone/owl.safetensors")
    assert "<span>owl</span>" in gone and "is not on this machine" in gone and "data-steps" not in gone
    assert "is not on this machine" not in merge._card(""), "a file that the server has not read yet"


@pytest.mark.parametrize("bad", ["no base model", "one checkpoint", "a long name", "a long prompt", "no samples"])
def test_the_comparison_of_a_poor_run_says_what_is_wrong_or_works(page, bad):
    run, job, facts = page.workspace.runs / RUN, page.engine.run_job(RUN), page.engine.snapshot(RUN)
    if bad == "no base model":
        job = job.with_settings(model={"base_model": "models/gone"})
    elif bad == "one checkpoint":
        (run / "checkpoints" / "fox-step00000020.safetensors").unlink()
        facts = page.engine.snapshot(RUN)
    elif bad == "a long name":
        facts = facts | {"title": "x" * 200}
    elif bad == "a long prompt":
        samples = job.samples.model_copy(update={"sample_prompts": ["a fox " * 700]})
        job = job.model_copy(update={"samples": samples})
    else:
        (run / "samples" / "20.png").unlink()
        (run / "dataset.json").unlink()
        facts = facts | {"samples": []}
    page.engine.snapshot, page.engine.run_job = lambda name: facts, lambda name: job
    shown = verdict.part(page, RUN, facts, job)
    assert "problems" in shown or len(shown["columns"]) == len(facts["files"]) + 1
    if bad == "no base model":
        with pytest.raises(ProblemsError):
            command(page, "grid")
        assert not page.engine.jobs and read_verdict(run) is None and not list_grids(page.workspace)
    else:
        command(page, "grid")
        assert verdict.part(page, RUN, facts, job)["making"]["state"] == "waiting"


def test_images_are_timed_by_the_training_before_any_and_by_their_own_grid_later(page, monkeypatch):
    """The newest grid may be of another model and size."""
    monkeypatch.setattr(verdict.grids, "seconds_per_step", lambda workspace: 1000.0)
    job = TrainJob().with_settings(dataset={"train_batch_size": 2})
    comparison = SimpleNamespace(grid=SimpleNamespace(job=page.engine.run_job(RUN)))
    monkeypatch.setattr(comparisons, "expected_steps", lambda job, axes: 10)
    few, content = SimpleNamespace(steps=79, seconds=790.0), SimpleNamespace(steps=80, seconds=20.0)
    stepped = {"seconds_per_step": 0.6}
    sampled = stepped | {"seconds_per_sample": 0.5 * job.samples.sample_steps}
    times = [
        comparisons.seconds_per_image(page, comparison, facts, job, made)
        for facts, made in (
            (stepped, None),
            (sampled, None),
            (sampled, few),
            (stepped, few),
            (sampled, content),
            ({}, None),
        )
    ]
    assert times == pytest.approx([10 * 2 * 0.6 / (3 * 2), 10 * 0.5, 10 * 0.5, 10 * 10, 10 / 4, 10 * 1000])
