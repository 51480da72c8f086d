"""The Runs tab without a browser: real run folders read by the real engine, no training."""

from __future__ import annotations

import json
import re
import shutil
import time

import gradio as gr
import pytest
from work_parts import HOSTILE, event, image, said

from core.engine.deleted import deleted_runs, restore_run
from core.engine.run_summary import RunSummary
from core.engine.waiting import Wait
from core.formats.hub.references import resolve
from core.generation.model import library
from core.record.kept import keep
from core.record.problems import ProblemsError
from core.record.run_about import MOST_NOTE, MOST_TITLE
from core.record.run_folder import RunFolder, seal_state
from core.record.space import folder_bytes
from core.record.units import size_text
from core.record.workspace import PROJECT
from core.settings.check import build
from core.settings.job import GenerateJob, TrainJob
from core.settings.presets.files import dump
from tabs.generate import form
from tabs.generate.form import generate_with, job_of
from tabs.generate.replaced import TAKE_BACK, take_back, use_run
from tabs.generate.tab import Fields
from tabs.monitor import tab as monitor
from tabs.runs import compare_view, details, view
from tabs.runs.compared import Side, sample_rows
from tabs.runs.tab import PUT_BACK, RunHandlers
from tabs.server.browsers import Browser
from tests.refusals import refused


def write_run(page, name: str, state: str = "done", steps: int = 30, *, message: str = "", job: TrainJob | None = None):
    """A run folder as training leaves it: settings, journal, samples, a file."""
    folder = page.workspace.runs / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "glyphs.safetensors").write_bytes(b"x" * 1000)
    image(folder / "samples" / "00000000_00.png")
    image(folder / "samples" / f"{steps:08d}_00.png")
    job = job or build(TrainJob, {"schedule": {"max_train_steps": steps}, "saving": {"output_name": "glyphs"}})
    (folder / "job.json").write_text(json.dumps(dump(job)), encoding="utf-8")
    now, lines = time.time() - 100, []

    def put(kind, **facts):
        lines.append({"v": 1, "seq": len(lines) + 1, "time": now + len(lines), "kind": kind, **facts})

    put("state", state="running", message="", fix="")
    put("planned", total=steps, epochs=5, images=24, sentence=f"24 images, {steps} steps")
    for step in (0, steps):
        put("sample", step=step, index=0, prompt=f"a fox {HOSTILE}", seed=1, file=f"samples/{step:08d}_00.png")
    numbers = list(range(1, steps + 1))
    put("steps", steps=numbers, losses=[0.2] * steps, rates={"unet": 1e-4}, epoch=5, seconds_per_step=0.5)
    put("saved", step=steps, file="checkpoints/glyphs.safetensors", bytes=1000)
    put("log", level="warning", text=f"look {HOSTILE}", fix="do this")
    if state != "interrupted":
        put("state", state=state, message=message, fix="lower the batch size" if message else "")
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def desk(page):
    return RunHandlers(page)


def test_no_runs_says_what_to_do(desk):
    assert "No runs yet." in desk._main({}) and "starter preset in Train" in desk._main({})


def test_the_table_names_state_steps_time_and_files(desk):
    write_run(desk.page, "20260101-120000_one")
    write_run(desk.page, "20260102-120000_two", "failed", message="out of memory")
    write_run(desk.page, "20260103-120000_three", "interrupted")
    shown = desk._main({})
    assert shown.index(">three<") < shown.index(">two<") < shown.index(">one<")  # newest first
    assert "interrupted at step 30" in shown and "failed at step 30" in shown and ">done<" in shown
    assert shown.count("30 / 30") == 3 and shown.count("<img") == 3


def test_the_table_is_filtered_and_paged(desk):
    for number in range(30):
        write_run(desk.page, f"20260101-1200{number:02d}_run{number}", "done" if number else "stopped", 2)
    assert desk._main({}).count("<tr>") == 1 + view.PAGE_SIZE
    assert desk._main({"page": 1}).count("<tr>") == 1 + 5
    assert desk._main({"show": "open"}).count("<tr>") == 1 + 1
    assert desk._main({"find": "RUN7"}).count("<tr>") == 1 + 1


def test_a_run_shows_its_preset_as_the_list_of_presets_does(starter):
    write_run(starter.page, "20260101-120000_one", "done")
    file = starter.page.workspace.runs / "20260101-120000_one" / "job.json"
    raw = json.loads(file.read_text("utf-8"))
    for preset, title in (("starter_lora", "Starter style LoRA"), ("user/mine", "mine"), ("gone", "gone")):
        file.write_text(json.dumps(raw | {"preset": preset}), "utf-8")
        listed = f"preset {title}</span>"
        assert listed in starter._main({}) and f"<dd>{title}</dd>" in starter._main({"open": file.parent.name})
        assert listed in starter._main({"find": title}) and listed in starter._main(
            {"find": preset.removeprefix("user/")}
        )
        assert listed not in starter._main({"find": "another"})


def test_an_open_run_shows_files_samples_settings_and_log(desk):
    write_run(desk.page, "20260101-120000_one", "failed", message="out of memory")
    shown = desk._main({"open": "20260101-120000_one"})
    assert "out of memory" in shown and "lower the batch size" in shown
    assert "glyphs.safetensors" in shown and 'download="glyphs.safetensors"' in shown
    assert "base model" in shown and "step 30" in shown
    assert "schedule.max_train_steps" in shown and "2 settings" in shown
    assert "<b>warning</b>" in shown and "do this" in shown


def test_what_a_person_wrote_never_becomes_markup(desk):
    job = build(TrainJob, {"dataset": {"folder": HOSTILE}, "samples": {"sample_prompts": [HOSTILE]}})
    write_run(desk.page, "20260101-120000_one", job=job)
    assert "<img src=x" not in desk._main({"open": "20260101-120000_one"}) + desk._main({"find": HOSTILE})


def test_deleting_moves_the_open_run_to_the_trash_and_undo_puts_it_back(desk):
    folder = write_run(desk.page, "20260101-120000_one")
    desk.act({}, event("delete", folder.name))  # of a run that is not open
    assert folder.is_dir()
    place = {"open": folder.name}
    shown = desk.act(place, event("delete", folder.name))["main"]
    assert not folder.exists() and "moved to the trash" in said(desk) and "No runs yet." in shown
    assert [path.name.startswith(folder.name) for path in desk.page.workspace.trash.iterdir()] == [True]
    browser = desk.page.browser
    desk.page.commands[PUT_BACK]({}, browser)
    assert (folder / "job.json").is_file() and "1 run restored" in browser.message["text"]
    assert browser.redraws[""] == 1 and ">one<" in desk._main({}) and not [*desk.page.workspace.trash.iterdir()]
    before = browser.message
    desk.page.commands[PUT_BACK]({}, browser)
    assert browser.message == before, "once"


def test_undo_goes_back_from_one_deletion_to_the_one_before(desk):
    folders, browser = [write_run(desk.page, f"20260101-12000{n}_one") for n in range(3)], desk.page.browser
    desk.act({"picked": [each.name for each in folders[:2]]}, event("delete-picked"))
    desk.act({"open": folders[2].name}, event("delete", folders[2].name))
    desk.page.commands[PUT_BACK]({}, browser)
    assert [each.is_dir() for each in folders] == [False, False, True] and browser.message["undo_by"] == PUT_BACK
    (gone, _) = sorted(desk.page.workspace.trash.iterdir())
    shutil.rmtree(gone)  # as by Delete for good
    desk.page.commands[PUT_BACK]({}, browser)
    assert [each.is_dir() for each in folders] == [False, True, True]
    assert [problem["code"] for problem in browser.message["problems"]] == ["runs.not-in-trash"]
    assert not browser.message["undo_by"] and not browser.deleted_runs


def test_the_second_of_two_presses_of_undo_finds_nothing_to_do(desk, monkeypatch):
    folder = write_run(desk.page, "20260101-120000_one")
    desk.act({"open": folder.name}, event("delete", folder.name))
    browser, twice = desk.page.browser, restore_run

    def while_pressed_again(*arguments):
        desk.page.commands[PUT_BACK]({}, browser)
        return twice(*arguments)

    monkeypatch.setattr("tabs.runs.tab.restore_run", while_pressed_again)
    desk.page.commands[PUT_BACK]({}, browser)
    assert folder.is_dir() and "1 run restored" in browser.message["text"] and not browser.message["problems"]


def test_a_run_is_not_put_back_over_another_and_one_that_is_gone_says_so(desk):
    folder = write_run(desk.page, "20260101-120000_one")
    other = write_run(desk.page, "20260101-120001_two")
    desk.act({"picked": [folder.name, other.name]}, event("delete-picked", ""))
    made = write_run(desk.page, folder.name)
    browser = desk.page.browser
    assert not desk.page.browsers.of("another").deleted_runs
    desk.page.commands[PUT_BACK]({}, browser)
    assert [problem["code"] for problem in browser.message["problems"]] == ["runs.name-taken"]
    assert other.is_dir() and browser.message["undo_by"] == PUT_BACK, "one that can come back does, the other can later"
    (in_trash,) = deleted_runs(desk.page.workspace)
    made.rename(made.with_name("20260101-120002_made"))
    desk.page.commands[PUT_BACK]({}, browser)
    assert folder.is_dir() and not browser.message["undo_by"] and not browser.deleted_runs
    desk.act({"open": folder.name}, event("delete", folder.name))
    (in_trash,) = deleted_runs(desk.page.workspace)
    assert in_trash.run == folder.name and (desk.page.workspace.trash / in_trash.name / "job.json").is_file()
    for name in ("../outside-1234567890", "20260101-120000_other-1234567890", ""):
        with refused("runs.not-in-trash"):
            restore_run(name, desk.page.workspace)


@pytest.mark.parametrize("state", ["done", "interrupted"])
def test_a_run_without_its_settings_is_listed_as_damaged_and_can_be_deleted(desk, state):
    folder = write_run(desk.page, "20260101-120000_one", state)
    (folder / "job.json").unlink()
    engine = desk.page.engine
    assert [run.state for run in engine.runs()] == [run.state for run in engine.run_states(5)] == ["damaged"]
    shown = desk._main({"open": folder.name})
    assert ">one<" in desk._main({}) and "glyphs.safetensors" in shown
    assert "job.json is missing" in shown and 'data-act="delete"' in shown and size_text(folder_bytes(folder)) in shown
    assert 'data-act="continue"' not in shown and 'data-act="use"' not in shown
    for act in ("continue", "use", "prove"):
        with pytest.raises(ProblemsError):
            desk.act({"open": folder.name}, event(act, folder.name))
    desk.act({"open": folder.name}, event("delete", folder.name))
    assert not folder.exists() and engine.runs() == []
    (desk.page.workspace.runs / "notes").mkdir()  # a person's own folder is no run
    assert engine.runs() == []


def test_a_running_run_is_not_deleted(desk):
    folder = write_run(desk.page, "20260101-120000_one", "interrupted")
    held = RunFolder(folder)
    held.lock()
    try:
        assert ">Delete<" not in desk._main({"open": folder.name})
        with pytest.raises(ProblemsError, match="running"):
            desk.act({"open": folder.name}, event("delete", folder.name))
    finally:
        held.unlock()
    assert folder.is_dir()


@pytest.mark.parametrize("name", ["..", "../..", "", "x/../../y", "\0"])
def test_a_made_up_name_reaches_no_folder(desk, name):
    write_run(desk.page, "20260101-120000_one")
    for act in ("continue", "use", "delete", "draw"):
        with pytest.raises(ProblemsError):
            desk.act({"open": name}, event(act, name))
    assert desk.page.workspace.runs.is_dir() and "one" in desk._main({"open": name})


def test_continue_queues_the_run_once_and_leads_to_monitor(desk):
    write_run(desk.page, "20260101-120000_one", "interrupted")
    desk.act({}, event("continue", "20260101-120000_one"))
    assert desk.page.browser.message["go"] == "Monitor"
    assert [entry.run for entry in desk.page.engine.queue()] == ["20260101-120000_one"]
    with refused("runs.queued"):
        desk.act({}, event("continue", "20260101-120000_one"))


def test_a_run_that_is_resumed_behind_another_job_says_so_and_leads_nowhere(desk):
    write_run(desk.page, "20260101-120000_one", "interrupted")
    desk.page.engine.waits = lambda: {entry.id: Wait("fox", 80.0) for entry in desk.page.engine.queue()}
    desk.act({}, event("continue", "20260101-120000_one"))
    assert not desk.page.browser.message["go"] and f"Added to the queue: one, {Wait('fox', 80.0).message}." in said(
        desk
    )


@pytest.mark.parametrize("tab", ["Runs", "Monitor"])
def test_resuming_says_what_happens_to_the_queue_and_a_run_that_waits_offers_no_resume(desk, tab):
    page, engine = desk.page, desk.page.engine
    names = [f"20260101-12000{number}_{title}" for number, title in enumerate(("one", "two", "three"))]
    for name in names:
        write_run(page, name, "interrupted")

    def resume(name):
        if tab == "Runs":
            return desk.act({}, event("continue", name))
        return monitor._command(page, "continue", {"run": name}, page.browser)

    engine.pause_queue()
    engine._queue_run(names[1])
    resume(names[0])
    assert engine.queue_paused and not page.browser.message["go"]
    assert "Added to the queue: one, waiting in the paused queue, after 1 job." in said(desk)
    assert "waiting in the queue" in desk._main({}) and "waiting in the queue" in desk._main({"open": names[0]})
    assert desk._main({}).count('data-act="continue"') == 1 and 'act="continue"' not in desk._main({"open": names[0]})
    assert [each["state"] for each in monitor.run_names(page)] == ["interrupted", "waiting", "waiting"]
    engine._queue.paused_by = None
    resume(names[2])
    assert "three continues; the queue runs again, 2 jobs wait behind it." in said(desk)
    assert [entry.run for entry in engine.queue()] == [names[2], names[1], names[0]] and not engine.queue_paused


def saved_state(folder, step: int = 30):
    state = folder / "state" / f"step{step:08d}"
    state.mkdir(parents=True)
    (state / "training.pt").write_bytes(b"weights")
    seal_state(state)


def test_a_run_is_offered_from_its_newest_state_that_is_not_cut_off(desk):
    folder = write_run(desk.page, "20260101-120000_one", "stopped")
    for step in (12, 30):
        saved_state(folder, step)
    (folder / "state" / "step00000030" / "training.pt").write_bytes(b"wei")
    assert "From step 12," in desk._main({"open": folder.name})
    assert desk.page.engine.runs()[0].resumable_step == 12


def test_a_finished_run_is_continued_with_more_steps_or_epochs(desk):
    name = "20260101-120000_one"
    saved_state(write_run(desk.page, name))
    shown = desk._main({"open": name})
    assert "Train longer, with more steps" in shown and 'min="31"' in shown and "learning rate rises" not in shown
    for wrong, given in (("30", "'30'"), ("45.5", "'45.5'"), ("12345678", "'12345678'"), ("", "empty")):
        with pytest.raises(ProblemsError) as caught:
            desk.act({"open": name}, event("longer", name, wrong))
        (problem,) = caught.value.problems
        assert problem.what == f"The new length is {given}"
        assert problem.fix == "use a whole number of steps, 31 to 9999999"
    assert desk.page.engine.queue() == []
    desk.act({"open": name}, event("longer", name, "45"))
    (entry,) = desk.page.engine.queue()
    assert entry.run == name and entry.job["schedule"]["max_train_steps"] == 45
    assert desk.page.engine.run_job(name).schedule.max_train_steps == 45
    by_epochs = build(TrainJob, {"schedule": {"max_train_epochs": 5, "lr_scheduler": "cosine"}})
    other = "20260102-120000_two"
    saved_state(write_run(desk.page, other, job=by_epochs))
    assert "Train longer, with more epochs" in (shown := desk._main({"open": other})) and "learning rate rises" in shown
    desk.act({"open": other}, event("longer", other, "9"))
    assert desk.page.engine.run_job(other).schedule.max_train_epochs == 9


@pytest.mark.parametrize("after", ["constant", "restart"])
def test_a_run_whose_rate_would_jump_is_trained_on_as_chosen(desk, after):
    name = "20260101-120000_one"
    job = build(TrainJob, {"schedule": {"max_train_steps": 30, "lr_scheduler": "cosine"}})
    saved_state(write_run(desk.page, name, job=job))
    assert f'data-act="longer-{after}"' in desk._main({"open": name})
    desk.act({"open": name}, event(f"longer-{after}", name, "60"))
    schedule = desk.page.engine.run_job(name).schedule
    assert (schedule.max_train_steps, schedule.lr_scheduler_steps, schedule.lr_scheduler_after) == (60, 30, after)


def test_monitor_reads_a_runs_settings_again_once_they_change(desk, monkeypatch):
    page, name = desk.page, "20260101-120000_one"
    folder = write_run(page, name)
    whole = (folder / "job.json").read_text(encoding="utf-8")
    (folder / "job.json").write_text("{", encoding="utf-8")
    assert page.readable_job(name) is None  # as while it is written
    (folder / "job.json").write_text(whole, encoding="utf-8")
    assert page.readable_job(name).schedule.max_train_steps == 30
    saved_state(folder)
    desk.act({"open": name}, event("longer", name, "45"))
    assert page.readable_job(name).schedule.max_train_steps == 45
    monkeypatch.setattr(page.engine, "run_job", None)
    assert page.readable_job(name).schedule.max_train_steps == 45  # without being read


def test_a_failed_run_that_would_fail_again_is_not_listed_as_resumable(desk):
    def summary(name, **more):
        return RunSummary(
            name, name, "failed", 0, 10, 0.0, 0.0, None, [], "no such folder", desk.page.workspace.runs / name, **more
        )

    runs = [summary("a", fix="choose a folder"), summary("b", fix="choose a folder", resumable_step=5), summary("c")]
    assert [run.name for run in view.listed(runs, desk.page.presets, "open")] == ["b", "c"]


def test_a_run_without_a_state_offers_no_greater_length(desk):
    write_run(desk.page, "20260101-120000_one")
    assert "Continue with more" not in desk._main({"open": "20260101-120000_one"})


def test_prove_it_shows_both_hashes(desk, monkeypatch):
    from core.training import prove

    name = "20260101-120000_one"
    write_run(desk.page, name)
    assert "Test resuming" in desk._main({"open": name})
    asked = []

    def pretend(job, workspace, device, steps, *, token, say):
        asked.append((job.schedule.max_train_steps, steps))
        say("training 10 steps without a break")
        return prove.Proof(steps, steps // 2, "a" * 64, "a" * 64 if len(asked) == 1 else "b" * 64, True, ("unet/up",))

    monkeypatch.setattr(prove, "prove", pretend)
    desk.act({"open": name}, event("prove", name))
    desk.proofs._tasks[name].wait(60)
    shown = desk._main({"open": name})
    assert asked == [(30, 10)] and shown.count("a" * 64) == 2 and "Bit-identical" in shown
    desk.act({"open": name}, event("prove", name))
    desk.proofs._tasks[name].wait(60)
    shown = desk._main({"open": name})
    assert "Not identical" in shown and "unet/up" in shown and "b" * 64 in shown


def test_nothing_is_proven_while_a_job_runs(desk, monkeypatch):
    write_run(desk.page, "20260101-120000_one")
    monkeypatch.setattr(desk.page.engine, "status", lambda: {"job": {"title": "other"}})
    with pytest.raises(ProblemsError, match="A job is running"):
        desk.act({}, event("prove", "20260101-120000_one"))


def test_a_whole_model_becomes_the_base_model_of_generate(desk):
    job = build(TrainJob, {"method": {"kind": "fine_tune"}, "samples": {"guidance_scale": 3}})
    write_run(desk.page, "20260101-120000_one", job=job)
    desk.act({}, event("draw", "20260101-120000_one"))
    values = desk.page.project.tab_state("Generate")["values"]
    assert values["base_model"].endswith("checkpoints/glyphs.safetensors") and values["loras"] == []
    space = desk.page.workspace
    assert resolve(values["base_model"], space.models, space.outputs).is_file()
    word = build(TrainJob, {"method": {"kind": "embedding"}, "embedding": {"token_string": "zunkel"}})
    write_run(desk.page, "20260102-120000_two", job=word)
    desk.act({}, event("draw", "20260102-120000_two"))
    values = desk.page.project.tab_state("Generate")["values"]
    [text] = values["embeddings"]
    assert text.startswith("zunkel=") and text.endswith("_two/checkpoints/glyphs.safetensors") and not values["loras"]


def test_use_its_settings_fills_train_and_undo_brings_the_former_back(desk):
    write_run(desk.page, "20260101-120000_one", steps=7)
    before = desk.page.project.job
    desk.act({}, event("use", "20260101-120000_one"))
    assert desk.page.project.job.schedule.max_train_steps == 7
    desk.page.project.undo()
    assert desk.page.project.job == before


@pytest.fixture
def starter(desk):
    """The desk with the starter's preset loaded."""
    desk.page.workspace.presets.mkdir(parents=True, exist_ok=True)
    shutil.copy(PROJECT / "presets" / "starter_lora.json", desk.page.workspace.presets)
    desk.page.project.choose("starter_lora")
    return desk


@pytest.mark.parametrize(("preset", "loaded"), [("starter_lora", "starter_lora"), ("user/gone", "")])
def test_use_its_settings_compares_with_the_preset_that_the_run_came_from(starter, preset, loaded):
    page, name = starter.page, "20260101-120000_one"
    job = page.project.job
    folder = write_run(page, name, job=job.with_settings(schedule={"seed": 7}))
    raw = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(raw | {"preset": preset}))
    for use in (
        lambda: starter.act({}, event("use", name)),
        lambda: monitor.command(page, {"name": "settings", "run": name}, Browser("")),
    ):
        page.project.replace(TrainJob(), preset="")
        use()
        assert page.project.preset == loaded and page.project.job.schedule.seed == 7
        assert (list(page.project.changed()) == ["schedule.seed"]) is bool(loaded)


def test_the_settings_of_a_cancelled_training_come_back_into_the_form(starter):
    page = starter.page
    page.engine.pause_queue()
    page.engine.submit("train", page.project.job, "mine", "starter_lora")
    entry = page.engine.queue()[-1]
    page.engine.cancel(entry.id)
    page.project.replace(TrainJob(), preset="")
    monitor.command(page, {"name": "settings", "entry": entry.id}, Browser(""))
    assert page.project.job.saving.output_name == "glyph_style"
    assert (page.project.preset, page.project.changed()) == ("starter_lora", {})


@pytest.mark.parametrize("task", ["train", "generate"])
def test_jobs_that_were_removed_from_the_queue_come_back_to_their_places_by_undo(starter, task):
    page, browser = starter.page, Browser("")
    page.engine.pause_queue()
    job = page.project.job if task == "train" else GenerateJob()
    ids = [page.engine.submit(task, job, title, "starter_lora") for title in ("one", "two", "three")]
    monitor.command(page, {"name": "cancel", "entry": ids[1]}, browser)
    assert "two" in browser.message["text"] and browser.message["undo_by"] == monitor.REQUEUE
    monitor.command(page, {"name": "cancel", "entry": ids[0], "waits": True}, browser)
    for back, more in (("one", True), ("two", False), ("two", False)):  # the last press finds nothing to do
        monitor.requeue(page, browser)
        assert back in browser.message["text"] and (browser.message["undo_by"] == monitor.REQUEUE) is more
    queue = [(each.task, each.title, each.state, each.preset) for each in page.engine.queue()]
    assert queue == [(task, title, "waiting", "starter_lora") for title in ("one", "two", "three")]


def test_generate_with_it_puts_the_newest_file_into_generate(desk):
    write_run(desk.page, "20260101-120000_one")
    desk.act({}, event("draw", "20260101-120000_one"))
    desk.act({}, event("draw", "20260101-120000_one"))
    loras = desk.page.project.tab_state("Generate")["values"]["loras"]
    assert [use["file"].endswith("20260101-120000_one/checkpoints/glyphs.safetensors") for use in loras] == [True]
    job = build(TrainJob, {"samples": {"guidance_scale": 4}})
    write_run(desk.page, "20260102-120000_two", job=job)
    monitor.command(desk.page, {"name": "generate", "run": "20260102-120000_two"}, browser := Browser(""))
    values = desk.page.project.tab_state("Generate")["values"]
    assert [use["file"].split("/")[-3] for use in values["loras"]] == ["20260102-120000_two"]  # alone, as its samples
    assert values["guidance_scale"] == 4 and browser.message["go"] == "Generate"
    assert browser.message["undo_by"] == TAKE_BACK
    take_back(desk.page, {}, browser)
    assert desk.page.project.tab_state("Generate")["values"]["loras"] == loras, "what it replaced is taken back"
    assert browser.message["text"].endswith("are back.")
    monitor.command(desk.page, {"name": "generate", "run": "20260102-120000_two"}, browser)
    state = desk.page.project.tab_state("Generate")
    typed = state["values"] | {"guidance_scale": 6.5, "steps": 9}  # the first was replaced, the second was not
    desk.page.project.keep("Generate", state | {"values": typed})
    take_back(desk.page, {}, browser)
    values = desk.page.project.tab_state("Generate")["values"]
    assert (values["loras"], values["guidance_scale"], values["steps"]) == (loras, 6.5, 9)
    assert "changed since" in browser.message["text"]


@pytest.mark.parametrize(("best", "strength"), [(0.8, 0.8), (None, 1.0), ("1", 1.0), (-1.0, 1.0), (1.0, 1.0)])
def test_generate_with_it_takes_the_best_strength_of_the_assessment(desk, best, strength):
    write_run(desk.page, "20260101-120000_one")
    run, browser = desk.page.workspace.runs / "20260101-120000_one", Browser("")
    cells = {"glyphs.safetensors": {"strength": {"best": best}}}
    (run / "assess.json").write_text(json.dumps({"version": 1, "cells": cells}))
    monitor.command(desk.page, {"name": "generate", "run": run.name}, browser)
    (use,) = desk.page.project.tab_state("Generate")["values"]["loras"]
    assert use["strength"] == strength and ("0.8 is the best" in browser.message["text"]) is (strength == 0.8)
    desk.page.project.update_tab("Generate", values={"loras": [use | {"strength": 0.5}]})
    desk.act({}, event("draw", run.name))
    (use,) = desk.page.project.tab_state("Generate")["values"]["loras"]
    assert use["strength"] == 0.5, "the user's own stays"


def test_only_a_seed_that_it_has_set_is_called_the_one_of_the_samples(desk):
    job, browser = build(TrainJob, {"samples": {"sample_prompts": ["a fox --d 4"]}}), Browser("")
    write_run(desk.page, "20260101-120000_one", job=job)
    desk.page.project.keep("Generate", {"values": form.start_values() | {"prompt": "my own", "seed": 77}})
    use_run(desk.page, browser, "20260101-120000_one")
    assert desk.page.project.tab_state("Generate")["values"]["seed"] == 77 and "samples" not in browser.message["text"]
    desk.page.project.keep("Generate", {"values": form.start_values()})
    use_run(desk.page, browser, "20260101-120000_one")
    assert (
        "The seed of its samples, 4, is set." in browser.message["text"] and "Still set" not in browser.message["text"]
    )
    desk.page.project.keep(
        "Generate", {"values": form.start_values() | {"region_map": "map.png", "highres_fix_scale": 2.0}}
    )
    use_run(desk.page, browser, "20260101-120000_one")
    assert "Still set: Hires and Regions." in browser.message["text"]


def test_generate_with_it_takes_a_sample_prompt_of_the_run_unless_another_was_written(desk):
    def drawn_with(name: str, line: str) -> str:
        write_run(desk.page, name, job=build(TrainJob, {"samples": {"sample_prompts": ["# first", line]}}))
        desk.act({}, event("draw", name))
        return desk.page.project.tab_state("Generate")["values"]["prompt"]

    assert drawn_with("20260101-120000_one", "ndc dog in the snow --w 128 --n blurry") == "ndc dog in the snow"
    assert drawn_with("20260102-120000_two", "a zunkel on a table") == "a zunkel on a table"
    state = desk.page.project.tab_state("Generate")
    desk.page.project.keep("Generate", state | {"values": state["values"] | {"prompt": "my own"}})
    assert drawn_with("20260103-120000_three", "a fox") == "my own"


def test_generate_with_it_takes_what_makes_the_first_sample_again(desk):
    line = "a (zunkel:1.2) --n blurry --w 128 --h 64 --d 5 --s 7 --l 3 --ss euler"
    own = {"clip_skip": 2, "prediction": "v"}
    samples = {"sample_prompts": [line], "prompt_weights": False}
    write_run(desk.page, "20260101-120000_one", job=build(TrainJob, {"samples": samples, "model": own}))
    desk.act({}, event("draw", "20260101-120000_one"))
    values = desk.page.project.tab_state("Generate")["values"]
    job = job_of(values, TrainJob())
    asked = job.generate
    assert (asked.prompt, asked.negative_prompt, asked.width, asked.height) == ("a (zunkel:1.2)", "blurry", 128, 64)
    assert (asked.seed, asked.steps, asked.guidance_scale, asked.sampler) == (5, 7, 3.0, "euler")
    assert not asked.prompt_weights and (job.model.clip_skip, job.model.prediction) == (2, "v")
    Fields(desk.page).change("base_model", "models/other")
    other = job_of(desk.page.project.tab_state("Generate")["values"], TrainJob()).model
    assert other.base_model == "models/other" and (other.clip_skip, other.prediction) == (None, "auto")


def test_a_run_of_another_version_is_shown_without_its_settings(desk):
    folder = write_run(desk.page, "20260101-120000_one")
    (folder / "job.json").write_text('{"kind": "job", "schema_version": 99}')
    shown = desk._main({"open": folder.name})
    assert "cannot be read by this version" in shown and "Use its settings" not in shown


def test_nothing_is_sent_when_nothing_is_new(desk):
    write_run(desk.page, "20260101-120000_one")
    seen = desk.tick("", {})["client"]
    assert desk.tick(seen, {}) == gr.skip()
    write_run(desk.page, "20260102-120000_two")
    with desk.page.engine.listing:  # for a browser that opens the list
        assert desk.tick(seen, {}) == gr.skip()
    assert desk.tick(seen, {}) != gr.skip()


def test_the_settings_of_a_run_are_those_that_it_uses():
    groups = {"embedding": {"token_string": "zkw", "init_word": "fox"}, "network": {"conv_rank": 8, "rank": 4}}
    shown = [
        details._settings(build(TrainJob, {"method": {"kind": kind}, **groups})) for kind in ("lora", "controlnet")
    ]
    for path, uses in (("embedding.token_string", 0), ("network.rank", 1), ("network.conv_rank", 1)):
        assert [page.count(f">{path}<") for page in shown] == [uses, 0], path


def test_a_samples_table_of_many_steps_is_thinned_with_base_and_last_kept():
    samples = [{"step": step, "index": 0, "prompt": "a fox", "file": f"{step}.png"} for step in range(0, 1000, 10)]
    shown = re.findall(r"<td><a href=\"(\d+)\.png", details._samples(samples, str.format, str))
    assert (shown[0], shown[-1], len(shown)) == ("0", "990", details.SAMPLE_STEPS)
    heads = [re.search("<th>(.*?)</th>", details._samples(samples, str.format, str, each))[1] for each in (True, False)]
    assert heads == ["base model", "step 0"]


def test_the_size_of_a_folder_is_the_sum_of_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x" * 300)
    (tmp_path / "c").write_bytes(b"x" * 200)
    assert folder_bytes(tmp_path) == 500 and folder_bytes(tmp_path / "gone") == 0


@pytest.mark.slow
def test_images_that_train_worst_are_shown_where_their_folder_is_known(desk, tmp_path):
    page = desk.page
    path = image(tmp_path / "set" / "a.png", caption="a fox")
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    job = page.project.job
    page.checks.facts(job)
    seen = [{"source": "set", "name": name, "corrected": loss, "count": 3} for name, loss in (("a.png", 1.5), ("b", 1))]
    watch = {"step": 30, "bands": [], "images": seen, "images_seen": 2}
    for name, run_job in (("20260101-120000_one", job), ("20260102-120000_two", TrainJob())):
        folder = write_run(page, name, job=run_job)
        (folder / "watch.json").write_text(json.dumps(watch), encoding="utf-8")
    first, second = (
        monitor.further_losses(page, run.name, page.engine.snapshot(run.name)) for run in page.engine.runs()[::-1]
    )
    assert [(row["name"], row["loss"], bool(row["small"])) for row in first["images"]] == [
        ("a.png", 1.5, True),
        ("b", 1.0, False),
    ]
    assert path.name in first["images"][0]["small"]
    assert not any(row["small"] for row in second["images"])  # trained from another folder


def test_the_list_in_monitor_reads_only_the_ends_of_long_journals(page, monkeypatch):
    write_run(page, "20260101-120000_one", "done")
    write_run(page, "20260102-120000_two", "failed", message="out of memory")
    write_run(page, "20260103-120000_three", "interrupted")
    long = write_run(page, "20260104-120000_four", "stopped") / "events.jsonl"
    many = [json.dumps({"v": 1, "seq": number, "time": 1.0, "kind": "stage"}) for number in range(100, 5000)]
    begin, end = long.read_text().rstrip("\n").rsplit("\n", 1)
    long.write_text("\n".join([begin, *many, end]) + "\n" + '{"kind": "state", "state": "ru')  # the last one is torn
    went_on = write_run(page, "20260105-120000_five", "stopped") / "events.jsonl"
    with open(went_on, "a") as handle:  # continued, and killed when its end was far away
        handle.write("\n".join(many) + "\n")
    monkeypatch.setattr("core.engine.view.RunView.apply", lambda *_: pytest.fail("a journal is read whole"))
    assert [(run["title"], run["state"]) for run in monitor.run_names(page)] == [
        ("five", "interrupted"),
        ("four", "stopped"),
        ("three", "interrupted"),
        ("two", "failed"),
        ("one", "done"),
    ]


def test_the_list_in_monitor_tells_what_another_process_runs(page):
    folder = RunFolder(write_run(page, "20260101-120000_one", "interrupted"))
    folder.lock()
    try:
        assert [run["state"] for run in monitor.run_names(page)] == ["running"]
    finally:
        folder.unlock()


def test_the_list_in_monitor_is_read_again_as_soon_as_a_job_of_the_queue_ends(page, monkeypatch):
    monkeypatch.setattr(monitor.time, "monotonic", lambda: 0.0)
    page.engine.pause_queue()
    page.engine.submit("train", page.project.job, "mine")
    assert monitor.run_names(page) == []
    write_run(page, "20260101-120000_one")
    assert monitor.run_names(page) == []  # nothing has happened that the page knows of
    page.engine.cancel(page.engine.queue()[-1].id)
    assert [run["title"] for run in monitor.run_names(page)] == ["one"]


def measured_run(page, name="20260101-120000_measured", on="held_out"):
    """A run with three checkpoints, the second one clearly best."""
    folder = write_run(page, name)
    numbers = (0, 0.02, 0.01, 0.03, 0.02, 0.01, 0.03, 0.02)
    lines = (folder / "events.jsonl").read_text("utf-8").splitlines()

    def put(kind, **facts):
        lines.append(json.dumps({"v": 1, "seq": len(lines) + 1, "time": time.time(), "kind": kind, **facts}))

    for step, loss in ((0, 0.5), (10, 0.3), (20, 0.2), (30, 0.4)):
        if step:
            file = f"checkpoints/m-step{step:08d}.safetensors"
            (folder / file).write_bytes(b"x")
            put("saved", step=step, file=file, bytes=1)
        each = [loss + number * (1 + step / 100) for number in numbers]
        facts = {"loss": loss, "train_loss": None, "gap": None, "by_timestep": {}, "images": 2}
        facts |= {"measured_on": on, "each": each, "each_of": "a"}
        put("validated", step=step, **facts)
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_run_names_its_best_checkpoint_in_runs_and_monitor_and_generate_takes_it(desk, page):
    folder = measured_run(page)
    shown = desk._main({"open": folder.name})
    assert "lowest" in shown and "m-step00000020.safetensors" in shown and "clearly better" in shown
    found = monitor.parts(page, folder.name)["best"]
    assert found["step"] == 20 and found["others"] == 2 and not found["as_good"]
    generate_with(page, folder.name)
    (lora,) = page.project.tab_state("Generate")["values"]["loras"]
    assert lora["file"].endswith("m-step00000020.safetensors")
    values = page.project.tab_state("Generate")["values"]
    page.project.update_tab("Generate", values=values | {"loras": [lora | {"enabled": False, "strength": 0.8}]})
    generate_with(page, folder.name)
    (again,) = page.project.tab_state("Generate")["values"]["loras"]
    assert again == lora | {"enabled": True, "strength": 0.8}, "a LoRA that was turned off is turned on"
    row = desk._main({})
    assert re.findall(r'data-steps="[^"]*/([^"/]*)"', row) == ["m-step00000020.safetensors"]
    assert ">step 20, best</span></summary>" in row
    desk.act({}, event("draw", f"{folder.name}/m-step00000010.safetensors"))
    (other,) = page.project.tab_state("Generate")["values"]["loras"]
    assert other["file"].endswith("m-step00000010.safetensors")
    for step in (10, 30):
        keep(folder, folder / "checkpoints" / f"m-step{step:08d}.safetensors", "")
    generate_with(page, folder.name)
    (kept,) = page.project.tab_state("Generate")["values"]["loras"]
    assert kept["file"].endswith("m-step00000030.safetensors"), "what was kept last counts more than what was measured"
    assert ">step 30, kept</span></summary>" in desk._main({})
    (folder / "kept.json").unlink()
    (folder / "checkpoints" / "m-step00000020.safetensors").unlink()
    assert monitor.parts(page, folder.name)["best"]["step"] == 10


def test_a_run_of_a_control_net_is_generated_with_and_compared_by_its_control_image(desk, page, tmp_path):
    from core.engine.run_grid import run_grid_of

    samples = {"sample_prompts": [f"a fox --cn {tmp_path}/edges.png"]}
    job = build(TrainJob, {"method": {"kind": "controlnet"}, "samples": samples})
    folder = write_run(page, "20260101-120000_control", job=job)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "c.safetensors").write_bytes(b"x")
    line = {"v": 1, "seq": 99, "time": time.time(), "kind": "saved", "step": 4, "file": "checkpoints/c.safetensors"}
    with open(folder / "events.jsonl", "a", encoding="utf-8") as journal:
        journal.write(json.dumps(line | {"bytes": 1}) + "\n")
    generate_with(page, folder.name)
    values = page.project.tab_state("Generate")["values"]
    assert values["loras"] == []
    (net,) = values["nets"]
    assert net["file"].endswith("c.safetensors") and net["image"] == f"{tmp_path}/edges.png"
    grid = run_grid_of(page.engine.snapshot(folder.name), job, page.workspace).job
    assert (grid.grid.x_axis, grid.grid.y_axis, grid.grid.z_axis) == ("control_net", "control_weight", "")
    assert grid.controls.control_image == f"{tmp_path}/edges.png"
    without = build(TrainJob, {"method": {"kind": "controlnet"}})
    with refused("run-grid.no-prompt"):
        run_grid_of(page.engine.snapshot(folder.name), without, page.workspace, fallback_prompt="a fox")


def test_samples_of_a_control_net_stand_next_to_their_control_image_and_the_one_without_it(desk, page):
    folder = write_run(page, "20260101-120000_control")
    with open(folder / "events.jsonl", "a", encoding="utf-8") as journal:
        for step, name in ((-1, "without_00.png"), (-2, "control_00.png")):
            image(folder / "samples" / name)
            line = {"v": 1, "seq": 90 - step, "time": time.time(), "kind": "sample", "step": step, "index": 0}
            journal.write(json.dumps(line | {"prompt": "a fox", "seed": 1, "file": f"samples/{name}"}) + "\n")
    shown = desk._main({"open": folder.name})
    heads = re.findall("<th>([^<]*)</th>", shown[shown.index('class="run-samples"') :])
    assert heads[:2] == ["control image", "without control"] and "base model" not in heads
    assert monitor.parts(page, folder.name)["samples"]["steps"][:2] == [-2, -1]
    side = Side("A", page.engine.snapshot(folder.name))
    assert all(each["step"] >= 0 for row in sample_rows(side, side) for moment in row.moments for each in moment)


def test_the_loss_on_training_images_is_not_called_the_best(desk, page):
    folder = measured_run(page, on="training")
    shown = desk._main({"open": folder.name})
    assert "lowest" in shown and "cannot show overfitting" in shown
    assert page.engine.runs()[0].best is None, "the column of validation is for validation images"


def test_runs_are_told_apart_by_what_they_were_made_of_and_found_by_it(desk, tmp_path):
    job = {"dataset": {"folder": str(tmp_path / "red foxes")}, "model": {"base_model": "models/dreamy.safetensors"}}
    folder = write_run(desk.page, "20260101-120000_one", job=build(TrainJob, job | {"method": {"kind": "fine_tune"}}))
    raw = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(raw | {"preset": f"mine {HOSTILE}"}))
    write_run(desk.page, "20260102-120000_two")
    shown = desk._main({})
    assert "red foxes · dreamy.safetensors · " in shown and "<img src=x" not in shown
    desk.act({}, event("note", folder.name, "too strong\nat 0.8"))
    for find in ("FOXES", "dreamy", "foxes  dreamy", "fine-tuning", "preset mine", "too strong", "one"):
        assert desk._main({"find": find}).count("<tr>") == 2, find
    assert "No matches." in desk._main({"find": "foxes 20260102"})
    (folder / "job.json").write_text('{"kind": "job", "schema_version": 99}')
    assert ">one<" in desk._main({}) and "dreamy" not in desk._main({})


def test_a_run_is_renamed_everywhere_and_its_folder_and_journal_stay(desk):
    page = desk.page
    folder = write_run(page, "20260101-120000_one")
    before = (folder / "events.jsonl").read_bytes()
    assert monitor.run_names(page)[0]["title"] == "one"
    desk.act({}, event("rename", folder.name, f"  Best \u202e fox\n{HOSTILE}"))
    title = f"Best fox {HOSTILE}"
    assert monitor.run_names(page)[0]["title"] == page.engine.snapshot(folder.name)["title"] == title
    assert compare_view.head((folder.name, "x"), [RunFolder(folder)]).count("Best fox &lt;img") == 1
    assert library._run_label(folder) == f"{title} ({folder.name})"
    assert "<img src=x" not in desk._main({}) + desk._main({"open": folder.name})
    assert folder.is_dir() and (folder / "events.jsonl").read_bytes() == before
    desk.act({}, event("rename", folder.name, ""))  # its own name again
    assert page.engine.snapshot(folder.name)["title"] == "one"


@pytest.mark.parametrize(("act", "most"), [("rename", MOST_TITLE), ("note", MOST_NOTE)])
def test_a_title_or_note_that_is_too_long_is_refused(desk, act, most):
    folder = write_run(desk.page, "20260101-120000_one")
    desk.act({}, event(act, folder.name, "x" * most))
    with pytest.raises(ProblemsError, match=f"{most:,}"):
        desk.act({}, event(act, folder.name, "y" * (most + 1)))
    assert ("x" * most) in (folder / "about.json").read_text()


@pytest.mark.parametrize("held", ["{", "[" * 5000, '{"title": "' + "x" * 50_000 + '"}', '["a"]'])
def test_a_damaged_about_file_is_told_and_kept(desk, held):
    folder = write_run(desk.page, "20260101-120000_one")
    (folder / "about.json").write_text(held)
    assert ">one<" in desk._main({}) and "about.json" in desk._main({"open": folder.name})
    with pytest.raises(ProblemsError, match=r"about\.json"):
        desk.act({}, event("note", folder.name, "mine"))
    assert (folder / "about.json").read_text() == held


@pytest.mark.parametrize("held", ['{"title": 5, "note": ["a"]}', '{"title": "\\u0000 \\n "}', "{}"])
def test_other_values_in_an_about_file_count_as_none(desk, held):
    folder = write_run(desk.page, "20260101-120000_one")
    (folder / "about.json").write_text(held)
    assert ">one<" in desk._main({})


@pytest.mark.parametrize(
    ("state", "message", "saved", "name"),
    [
        ("failed", "out of memory", True, "continue"),
        ("failed", "out of memory", False, "settings"),
        ("failed", "", False, "continue"),
        ("stopped", "", True, "continue"),
        ("interrupted", "", False, "continue"),
    ],
)
def test_monitor_and_runs_offer_the_same_next_step_files_and_the_error_once(desk, state, message, saved, name):
    page, folder = desk.page, write_run(desk.page, "20260101-120000_one", state, message=message)
    if saved:
        saved_state(folder)
    head = monitor.parts(page, folder.name)["run"]
    assert head["next"]["name"] == head["actions"][0] == name and "generate" in head["actions"]
    act = {"settings": "use"}.get(name, name)
    for shown in (desk._main({}), desk._main({"open": folder.name})):
        assert shown.count(f'data-act="{act}"') == 1 and f">{head['next']['text']}</button>" in shown
    assert 'data-act="draw"' in shown and f'data-copy="{folder / "checkpoints" / "glyphs.safetensors"}"' in shown
    assert not message or shown.count(message) == 1
    assert ("step 30" in head["next"]["about"]) == saved


def test_a_run_that_goes_on_or_is_done_has_no_next_step(desk):
    folder = write_run(desk.page, "20260101-120000_one")
    assert monitor.parts(desk.page, folder.name)["run"]["next"] is None
