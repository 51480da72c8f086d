"""The list of runs: a few facts of each in a small file, journals only of those that are looked at."""

import json
import math
import os
import threading
import time

import pytest

from core.cli.jobs import find_run
from core.engine import runs as runs_module
from core.engine.engine import Engine
from core.engine.execute import execute
from core.engine.points import Points, spread
from core.engine.run_facts import FILE, read_facts, write_facts
from core.engine.runs import MAX_VIEWS, Runs
from core.engine.view import LOG_LINES, MAX_POINTS, STEP_SERIES, RunView, facts_of
from core.record import atomic, regular
from core.record.best import TOO_SHORT
from core.record.events import CONTROL_IMAGE, Planned, Sampled, Saved, StateChanged, Steps, Validated
from core.record.journal import Journal
from core.record.problems import ProblemsError, collected
from core.record.run_about import write_about
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import dump
from tests.tasks import stand_in


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")


@pytest.fixture
def engine(workspace):
    engine = Engine(workspace, "cpu")
    yield engine
    engine.close(wait_seconds=60)


def made(workspace, name="20260101-120000_one", state="done", steps=30) -> RunFolder:
    """The folder of a run that a process has left."""
    folder = RunFolder(workspace.runs / name)
    atomic.write_json(folder.job_file, dump(build(TrainJob, {"dataset": {"folder": "sets/foxes"}}), preset="mine"))
    with Journal(folder.path) as journal:
        write(journal, folder, steps)
        if state:
            journal.put(StateChanged(state, "the disk is full" if state == "failed" else ""))
    return folder


def write(journal, folder, steps):
    folder.checkpoints.mkdir(parents=True)
    journal.put(StateChanged("running"))
    journal.put(Planned(steps, 5, 6, 24))
    journal.put(Sampled(0, 0, "a fox", 1, "samples/0.png"))
    for step in range(1, steps + 1):
        journal.put(Steps([step], [1 / step], {"unet": 1e-4}, 1, 0.5, 0.1, [1.0]))
    for step, loss in ((10, 0.3), (steps, 0.2)):
        journal.put(Validated(step, loss, 0.1, loss - 0.1, {}, 2, each=[loss] * 8, each_of="a"))
        file = folder.checkpoints / f"{step}.safetensors"
        file.write_bytes(b"x")
        journal.put(Saved(step, f"checkpoints/{file.name}", 1))
    journal.put(Sampled(steps, 0, "a fox", 1, f"samples/{steps}.png"))


def go_on(folder, *events):
    with Journal(folder.path) as journal:
        for each in events:
            journal.put(each)


@pytest.fixture
def unread(monkeypatch):
    """From its call on, no line of any journal is taken in."""
    return lambda: monkeypatch.setattr(RunView, "apply", lambda *_: pytest.fail("a journal is read"))


# -- the file of facts


def test_a_run_that_ends_leaves_its_facts_and_the_list_reads_no_journal(engine, workspace, monkeypatch, unread):
    stand_in(monkeypatch, "train", lambda job, context: write(context.journal, context.folder, 30) or "done")
    folder, job = RunFolder.create(workspace.runs, "one", dump(TrainJob())), TrainJob()
    assert execute("train", job, folder, workspace, "cpu") == ("done", None)
    assert read_facts(folder) == facts_of(folder)
    unread()
    (found,) = engine.runs()
    assert engine.runs_so_far(60) == ([found], 0) and engine.run(found.name) == found
    assert (found.state, found.step, found.total, found.best) == ("done", 30, 30, (0.2, 30))
    assert found.best_file["step"] == 30 and found.thumbnail == found.folder / "samples" / "30.png"
    assert [file.name for file in found.files] == ["10.safetensors", "30.safetensors"]


def test_facts_are_those_of_the_snapshot(engine, workspace):
    for number, state in enumerate(("done", "stopped", "failed", "")):
        folder = made(workspace, f"20260101-12000{number}_one", state)
        found, shown = engine.run(folder.name), engine.snapshot(folder.name)
        for name in ("title", "state", "message", "fix", "step", "total", "started", "seconds", "resumable_step"):
            assert getattr(found, name) == shown[name], name
        assert [str(file) for file in found.files] == [file["path"] for file in shown["files"]]
        assert found.best_file == shown["best"] and str(found.thumbnail) == shown["samples"][-1]["file"]
        assert (found.words.dataset, found.words.preset) == ("foxes", "mine")


def _changed(**changes):
    return lambda folder: (folder.path / FILE).write_text(
        json.dumps(json.loads((folder.path / FILE).read_text()) | changes)
    )


SPOILT = {
    "missing": lambda folder: (folder.path / FILE).unlink(),
    "empty": lambda folder: (folder.path / FILE).write_bytes(b""),
    "cut off": lambda folder: (folder.path / FILE).write_bytes((folder.path / FILE).read_bytes()[:-9]),
    "a folder": lambda folder: ((folder.path / FILE).unlink(), (folder.path / FILE).mkdir()),
    "deep": lambda folder: (folder.path / FILE).write_text("[" * 100_000),
    "of another version": _changed(version=2),
    "of other kinds": _changed(step="many"),
    "of an impossible time": _changed(started=1e300),
    "a journal that was written after": lambda folder: go_on(folder, StateChanged("stopped", "again")),
    "a journal of an earlier time": lambda folder: os.utime(folder.journal_file, (1, 1)),
    "other settings": lambda folder: atomic.write_json(folder.job_file, dump(build(TrainJob, {}), preset="other")),
    "no settings": lambda folder: folder.job_file.unlink(),
    "a model less": lambda folder: (folder.checkpoints / "30.safetensors").unlink(),
}


@pytest.mark.parametrize("about_error", SPOILT)
@pytest.mark.parametrize("restarted", [True, False])
def test_facts_that_do_not_stand_are_made_again(engine, workspace, about_error, restarted):
    folder = made(workspace)
    before = engine.runs()
    SPOILT[about_error](folder)
    if restarted:
        engine._runs = runs_module.Runs(workspace, lambda name: False)
    (found,) = engine.runs()
    (folder.path / FILE).unlink() if (folder.path / FILE).is_file() else None
    engine._runs = runs_module.Runs(workspace, lambda name: False)
    assert [found] == engine.runs(), "as read from the journal"
    changed = {"a journal that was written after", "other settings", "no settings", "a model less"}
    assert ([found] != before) == (about_error in changed)


def test_the_best_of_the_models_that_are_left_is_told(engine, workspace):
    folder = made(workspace)
    assert engine.run(folder.name).best_file["step"] == 30
    (folder.checkpoints / "30.safetensors").rename(workspace.outputs / "aside")
    assert engine.run(folder.name).best_file["step"] == 10
    (workspace.outputs / "aside").rename(folder.checkpoints / "30.safetensors")
    assert engine.run(folder.name).best_file["step"] == 30


def test_where_nothing_can_be_written_journals_are_read_once(engine, workspace, monkeypatch, unread):
    def refuse(*_, **__):
        raise PermissionError

    folder = made(workspace)
    monkeypatch.setattr(atomic, "write_bytes", refuse)
    found = engine.runs()
    assert not (folder.path / FILE).exists() and found[0].state == "done"
    unread()
    assert engine.runs() == found


def test_a_renamed_folder_keeps_its_facts(engine, workspace, unread):
    folder = made(workspace)
    engine.runs()
    folder.path.rename(folder.path.with_name("20260101-120000_two"))
    unread()
    (found,) = engine.runs()
    assert (found.name, found.title) == ("20260101-120000_two", "two")
    assert all(file.is_file() and file.parent.parent == found.folder for file in found.files)


def test_a_name_of_a_run_is_as_long_as_the_system_counts_it(workspace, monkeypatch):
    monkeypatch.setattr(RunFolder, "exists", True)
    for windows, name, found in (
        (False, "狐" * 85, True),
        (False, "狐" * 86, False),
        (True, "狐" * 255, True),
        (True, "🦊" * 128, False),
    ):
        monkeypatch.setattr(regular, "WINDOWS", windows)
        assert (collected([], Runs(workspace, running=bool).folder, name) is not None) == found


def test_a_title_needs_no_journal(engine, workspace, unread):
    folder = made(workspace)
    engine.runs()
    unread()
    write_about(folder, title="Best fox", note="keep")
    assert [(run.title, run.note) for run in engine.runs()] == [("Best fox", "keep")]


def test_a_deleted_run_leaves_no_folder_and_no_row(engine, workspace):
    folder = made(workspace)
    facts = facts_of(folder)
    engine.runs()
    engine.delete_run(folder.name)
    write_facts(folder, facts)
    assert not folder.path.exists() and engine.runs() == [] and engine.runs_so_far(60) == ([], 0)
    assert engine.run(folder.name) is None and not engine._runs._facts
    for find in (engine.command, lambda name, command: find_run(name, workspace)):
        with pytest.raises(ProblemsError) as error:
            find(folder.name, "stop")
        (problem,) = error.value.problems
        assert problem.code == "runs.no-such-run" and "deleted" in problem.what


def test_a_journal_changed_by_hand_spoils_its_own_row_alone(engine, workspace):
    folder, other = made(workspace), made(workspace, "20260102-120000_two")
    go_on(folder, Saved(1, {"no": "name"}, 1))
    assert [(run.name, run.step) for run in engine.runs()] == [(other.name, 30), (folder.name, 0)]


# -- runs that another process works on


def test_a_run_that_another_process_resumes_is_followed_and_then_told_by_new_facts(engine, workspace, unread):
    folder = made(workspace, state="stopped")
    assert [run.state for run in engine.runs()] == ["stopped"]
    other = RunFolder(folder.path)
    other.lock()
    go_on(folder, StateChanged("running"), Steps([31], [0.1], {"unet": 1e-4}, 2, 0.5))
    assert [(run.state, run.step) for run in engine.runs_so_far(60)[0]] == [("running", 31)]
    go_on(folder, Steps([32], [0.1], {"unet": 1e-4}, 2, 0.5))
    assert [run.step for run in engine.runs()] == [32] and engine.run_states(1)[0].state == "running"
    other.unlock()
    assert [run.state for run in engine.runs()] == ["interrupted"]
    go_on(folder, StateChanged("done"))
    assert [(run.state, run.step) for run in engine.runs_so_far(60)[0]] == [("done", 32)]
    unread()
    assert engine.run_states(1)[0].state == "done"


def test_an_interrupted_run_is_running_from_the_moment_another_process_has_it(engine, workspace):
    folder = made(workspace, state="")
    assert [run.state for run in engine.runs()] == ["interrupted"] and read_facts(folder).state == "running"
    other = RunFolder(folder.path)
    other.lock()
    assert [run.state for run in engine.runs_so_far(60)[0]] == ["running"]
    other.unlock()
    assert [run.state for run in engine.runs_so_far(60)[0]] == ["interrupted"]


def test_the_list_of_monitor_takes_states_from_the_facts(engine, workspace, monkeypatch):
    for number, state in enumerate(("done", "", "failed")):
        made(workspace, f"20260101-12000{number}_one", state)
    before = engine.run_states(5)
    assert [run.state for run in before] == ["failed", "interrupted", "done"]
    engine.runs()
    monkeypatch.setattr(runs_module, "last_of_kind", lambda *_: pytest.fail("a journal is read"))
    assert engine.run_states(5) == before


# -- reading in the background


def test_the_newest_runs_are_there_first_while_the_others_are_read(engine, workspace, monkeypatch):
    names = [made(workspace, f"20260101-12000{number}_one", steps=12).name for number in range(4)][::-1]
    go, real, read = threading.Semaphore(2), runs_module.facts_of, []

    def slow(folder):
        assert go.acquire(timeout=60)
        read.append(folder.name)
        return real(folder)

    monkeypatch.setattr(runs_module, "facts_of", slow)
    end = time.monotonic() + 60
    while (found := engine.runs_so_far(0.05))[1] > 2 and time.monotonic() < end:
        pass
    assert ([run.name for run in found[0]], found[1]) == (names[:2], 2)
    go.release(2)
    found = engine.runs_so_far(60)
    assert ([run.name for run in found[0]], found[1]) == (names, 0) and read == names


def test_what_is_known_of_a_run_is_shown_until_its_changed_journal_is_read(engine, workspace, monkeypatch):
    folder, go, real = made(workspace, state="stopped"), threading.Event(), runs_module.facts_of
    engine.runs()
    monkeypatch.setattr(runs_module, "facts_of", lambda folder: go.wait(60) and real(folder))
    go_on(folder, StateChanged("done"))
    found, left = engine.runs_so_far(0.01)
    assert ([run.state for run in found], left) == (["stopped"], 0)
    go.set()
    assert [run.state for run in engine.runs_so_far(60)[0]] == ["done"]


# -- points


def as_lists(lines):
    """The series of a journal as lists of lists, written down step by step."""
    series = {name: [] for name in STEP_SERIES}
    smooth = corrected = None
    for line in lines:
        if series["losses"] and series["losses"][-1][0] >= line["steps"][0]:
            series = {name: [each for each in points if each[0] < line["steps"][0]] for name, points in series.items()}
            smooth, corrected = series["losses"][-1][2], series["corrected"][-1][1]
        for step, loss, quotient in zip(line["steps"], line["losses"], line["corrected"], strict=True):
            weight = max(1 / 20, 1 / (len(series["losses"]) + 1))
            corrected = quotient if corrected is None else corrected + weight * (quotient - corrected)
            smooth = loss if smooth is None else smooth + weight * (loss - smooth)
            series["losses"].append([step, loss, smooth])
            series["corrected"].append([step, corrected])
        series["rates"].append([line["steps"][-1], line["rates"]])
        series["norms"].append([line["steps"][-1], line["grad_norm"], line["weight_norm"]])
    return series


def test_points_in_arrays_are_those_of_lists(tmp_path):
    lines = []
    for first in [*range(1, 700, 2), *range(500, 900, 2)]:  # resumed from step 499
        rates = {"unet": 1e-4 / first} | ({"text_encoder": 0} if first > 300 else {})
        norms = {"grad_norm": 0.1 * first, "weight_norm": None if first % 5 else 3}
        lines.append({"kind": "steps", "seq": len(lines) + 1, "time": 1.0, "epoch": 1, "seconds_per_step": 0.1}
                     | {"steps": [first, first + 1], "losses": [1 / first, 2], "corrected": [1.5, 1 / first]}
                     | {"rates": rates} | norms)  # fmt: skip
    view, expected = RunView(RunFolder.create(tmp_path, "x", {})), as_lists(lines)
    for line in lines:
        view.apply(line)
    for name in STEP_SERIES:
        assert list(getattr(view, name)) == expected[name], name
        assert getattr(view, name)[-1] == expected[name][-1] and getattr(view, name)[2:4] == expected[name][2:4]
    shown = view.snapshot(True)
    for name, key in (("losses", "loss"), ("rates", "lr"), ("corrected", "corrected"), ("norms", "norms")):
        places = spread(len(expected[name]), 500)
        assert shown[key] == [expected[name][place] for place in places], name


def test_numbers_that_are_none_or_wrong_leave_the_points_whole():
    points = Points()
    points.add(1, [0.5, None])
    points.add(2, [math.nan, 2])
    for step, numbers in ((3, ["x", 1]), ("3", [1, 2]), (3, [10**400, 1]), (2**70, [1, 1]), (3, {"a": 1})):
        with pytest.raises((TypeError, OverflowError)):
            points.add(step, numbers)
    assert list(points) == [[1, 0.5, None], [2, None, 2.0]]
    with pytest.raises(IndexError):
        points[2]
    named = Points(named=True)
    for numbers in ({}, {"unet": 1e-4, "b": None}, {"b": 2}):
        named.add(1, numbers)
    assert list(named) == [[1, {}], [1, {"unet": 1e-4, "b": None}], [1, {"b": 2.0}]]
    with pytest.raises(TypeError):
        named.add(1, [1])


def test_points_of_a_long_run_take_few_bytes_and_those_of_one_that_ended_no_more_than_2000_take(tmp_path):
    view = RunView(RunFolder.create(tmp_path, "x", {}))
    facts = {"rates": {"unet": 1e-4}, "epoch": 1, "seconds_per_step": 0.1, "grad_norm": 1.0, "time": 1.0}
    for step in range(1, 4001):
        line = {"kind": "steps", "seq": step, "steps": [step], "losses": [1.0], "corrected": [1.0]}
        view.apply(line | facts)
    held = sum(getattr(view, name).nbytes for name in STEP_SERIES)
    assert held <= 4000 * 8 * (4 * 3 + 6), "step, end, names and numbers of each point"
    view.apply({"kind": "state", "seq": 4001, "time": 2.0, "state": "done", "message": "", "fix": ""})
    assert sum(getattr(view, name).nbytes for name in STEP_SERIES) == held * MAX_POINTS // 4000


def test_the_list_holds_no_journal_and_few_of_those_that_were_opened_are_held(engine, workspace):
    names = [made(workspace, f"20260101-1200{number:02}_one", steps=12).name for number in range(MAX_VIEWS + 2)]
    engine.runs()
    assert not engine._runs._views
    shown = {name: engine.snapshot(name) for name in names}
    assert list(engine._runs._views) == names[2:]
    engine.snapshot(names[2])
    assert engine.snapshot(names[0]) == shown[names[0]]
    assert list(engine._runs._views) == [*names[4:], names[2], names[0]]


def test_the_journal_of_a_running_job_is_never_let_go(engine, workspace):
    running, *others = [made(workspace, f"20260101-1200{n:02}_one", "", 12).name for n in range(MAX_VIEWS + 3)]
    engine._runs._running = lambda name: name == running
    view = engine._runs.view(running)
    for name in others:
        engine._runs.view(name)
    assert engine._runs.view(running) is view and len(engine._runs._views) == MAX_VIEWS + 1


def test_the_newest_sample_tells_how_long_one_takes_but_a_control_image_does_not(tmp_path):
    view = RunView(RunFolder(tmp_path))
    sample = {"kind": "sample", "time": 1.0, "index": 0, "prompt": "a fox", "seed": 1, "file": "samples/a.png"}
    assert view.snapshot(False)["seconds_per_sample"] == 0.0
    lines = [
        sample | {"step": step, "seconds": seconds} for step, seconds in ((0, 3.5), (4, 2.0), (CONTROL_IMAGE, 0.1))
    ]
    for number, line in enumerate(lines, 1):
        view.apply(line | {"seq": number})
    assert view.snapshot(False)["seconds_per_sample"] == 2.0


def test_a_run_that_was_too_short_to_measure_says_so_whatever_its_log_still_holds(tmp_path):
    view = RunView(RunFolder(tmp_path))
    log = {"kind": "log", "level": "info", "text": "x", "fix": "", "time": 1.0}
    view.apply(log | {"seq": 1})
    assert not view.snapshot(False)["too_short"]
    for number, code in enumerate([TOO_SHORT, *[""] * LOG_LINES], 2):
        view.apply(log | {"code": code, "seq": number})
    assert view.snapshot(False)["too_short"]


@pytest.mark.parametrize("jump", [0.0, 3600.0, -3600.0, 86400.0])  # the machine slept, or the clock was set
def test_the_time_a_training_took_is_without_sleep_and_changes_of_the_clock(tmp_path, jump):
    view = RunView(RunFolder(tmp_path))
    facts = {"kind": "steps", "losses": [1.0], "rates": {}, "epoch": 1, "seconds_per_step": 1.0}
    view.apply({"kind": "state", "state": "running", "message": "", "fix": "", "time": 1e6, "seq": 1})
    for step in range(1, 11):
        view.apply(facts | {"steps": [step], "time": 1e6 + step + jump * (step > 5), "seq": step + 1})
    view.apply({"kind": "state", "state": "done", "message": "", "fix": "", "time": 1e6 + 11 + jump, "seq": 12})
    assert view.snapshot(False)["seconds"] == pytest.approx(11, abs=1)


def test_the_time_left_of_a_training_includes_samples_and_saves_as_they_were_so_far(tmp_path):
    view = RunView(RunFolder(tmp_path))
    facts = {"losses": [1.0], "rates": {}, "epoch": 1, "seconds_per_step": 1.0}
    state = {"kind": "state", "message": "", "fix": ""}
    plan = {"kind": "planned", "total": 21, "epochs": 1, "images": 4, "sentence": "", "time": 2.0}
    lines = [state | {"state": "running", "time": 1.0}, plan]
    lines += [{"kind": "steps", "steps": [step], "time": time, **facts} for step, time in ((1, 10.0), (2, 11.0))]
    lines += [state | {"state": "paused", "time": 12.0}, state | {"state": "running", "time": 512.0}]
    lines += [{"kind": "steps", "steps": [step], "time": time, **facts} for step, time in ((3, 513.0), (11, 537.0))]
    lines += [{"kind": "steps", "steps": [step], "time": time, **facts} for step, time in ((12, 1438.0), (13, 1441.0))]
    left = []
    for number, line in enumerate(lines, 1):
        view.apply(line | {"seq": number})
        left.append(view.seconds_left)
    assert left[:-2] == [0.0, 0.0, 20.0, 19.0, 19.0, 19.0, 18.0, 10 * 24 / 8]
    assert left[-2:] == [9 * 24 / 9, 8 * 27 / 10], "the machine slept for a quarter of an hour"
