"""How many of each the engine keeps, admits and shows, and which ones, each at the edge of its limit."""

import pytest

from core.engine import engine as engine_module
from core.engine.engine import Engine
from core.engine.queue import GUEST, Queue
from core.engine.view import RunView, thin
from core.engine.waiting import Wait
from core.record.run_folder import RunFolder, list_runs
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.named import Limits
from tests.refusals import refused


@pytest.mark.parametrize("ended", [49, 50, 51])
def test_of_the_jobs_that_have_ended_the_newest_50_stay_and_all_that_wait(tmp_path, monkeypatch, ended):
    monkeypatch.setattr("core.record.atomic.write_json", lambda path, content: None)
    queue = Queue(tmp_path / "queue.json")
    waits = queue.add("train", "waits", {})
    for number in range(ended):
        queue.add("train", str(number), {}, state=("done", "failed", "cancelled", "interrupted")[number % 4])
    newest = [str(number) for number in range(max(0, ended - 50), ended)]
    assert [entry.title for entry in queue.entries()] == ["waits", *newest]
    assert queue.get(waits.id).state == "waiting"


@pytest.fixture
def engine(tmp_path):
    engine = Engine(Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets"), "cpu")
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("others", "mine", "code"),
    [(0, 7, None), (0, 8, "queue.full-for-guest"), (8, 7, None), (13, 6, None), (13, 7, "queue.full")],
)
def test_a_shared_page_takes_20_jobs_and_8_of_one_guest(engine, monkeypatch, others, mine, code):
    waiting = [*["other"] * others, *["guest"] * mine]
    entries = [engine_module.QueueEntry(str(n), "train", "", {}, guest=name) for n, name in enumerate(waiting)]
    running = engine_module.QueueEntry("r", "train", "", {}, state="running", guest="guest")
    monkeypatch.setattr(engine, "queue", lambda: [running, *entries])
    engine.limits = Limits.of(engine.workspace)
    token = GUEST.set("guest")
    try:
        if code is None:
            engine._admit_new(build(TrainJob, {}))
        else:
            with refused(code):
                engine._admit_new(build(TrainJob, {}))
    finally:
        GUEST.reset(token)


@pytest.mark.parametrize("there", [99, 100, 101])
def test_100_folders_of_tools_are_kept_and_each_training(engine, there):
    places = {"tools": engine.workspace.private / "jobs", "train": engine.workspace.runs}
    for place in places.values():
        for number in range(there):
            folder = place / f"20260101-{number:06}_x"
            folder.mkdir(parents=True)
            (folder / "job.json").write_text("{}")
    assert len(list_runs(places["tools"])) == there
    for task in ("resize_lora", "train"):
        engine._new_folder(engine_module.QueueEntry("a", task, "new", {}), build(TrainJob, {}))
    left = [run.name for run in list_runs(places["tools"])]
    assert [name for name in left if name.endswith("_x")] == [
        f"20260101-{number:06}_x" for number in range(there - 1, max(0, there - 100) - 1, -1)
    ]
    assert len(list_runs(places["train"])) == there + 1


def test_the_folder_of_a_job_that_still_runs_is_kept(engine):
    jobs = engine.workspace.private / "jobs"
    for number in range(101):
        (jobs / f"20260101-{number:06}_x").mkdir(parents=True)
        (jobs / f"20260101-{number:06}_x" / "job.json").write_text("{}")
    oldest = RunFolder(jobs / "20260101-000000_x")
    oldest.lock()
    try:
        engine._new_folder(engine_module.QueueEntry("a", "resize_lora", "new", {}), build(TrainJob, {}))
    finally:
        oldest.unlock()
    assert oldest.path.is_dir() and len(list_runs(jobs)) == 102


@pytest.mark.parametrize("lines", [199, 200, 201])
def test_a_run_shows_the_last_200_lines_of_its_log(tmp_path, lines):
    view = RunView(RunFolder.create(tmp_path, "x", {}))
    for seq in range(1, lines + 1):
        view.apply({"kind": "log", "seq": seq, "time": 1.0, "level": "info", "text": str(seq), "fix": ""})
    assert [line["text"] for line in view.log] == [str(seq) for seq in range(max(1, lines - 199), lines + 1)]


@pytest.mark.parametrize("damage", [{"time": "late"}, {"kind": 7}, {"seq": 0}])
def test_a_line_whose_time_or_kind_is_none_or_that_was_read_already_changes_nothing(tmp_path, damage):
    view = RunView(RunFolder.create(tmp_path, "x", {}))
    view.apply({"kind": "log", "seq": 1, "time": 1.0, "level": "info", "text": "a", "fix": ""} | damage)
    assert (view.seq, view.log, view.started) == (0, [], 0.0)


def test_the_smoothed_loss_is_the_mean_of_20_steps_then_follows_a_twentieth_of_each(tmp_path):
    view = RunView(RunFolder.create(tmp_path, "x", {}))
    losses = [float(n % 7) for n in range(1, 24)]
    for step, loss in enumerate(losses, 1):
        facts = {"steps": [step], "losses": [loss], "corrected": [2 * loss], "rates": {}, "epoch": 1}
        view.apply({"kind": "steps", "seq": step, "time": 1.0, "seconds_per_step": 0.1, **facts})
    expected = sum(losses[:20]) / 20
    assert view.losses[19][2] == pytest.approx(expected) and view.corrected[19][1] == pytest.approx(2 * expected)
    for number in (20, 21, 22):
        expected = 0.95 * expected + 0.05 * losses[number]
        assert view.losses[number][2] == pytest.approx(expected)


def test_a_chart_has_500_points():
    assert len(thin([[n] for n in range(500)])) == 500 and len(thin([[n] for n in range(501)])) == 500
    assert thin([[n] for n in range(5)], 3) == [[0], [2], [4]]


@pytest.mark.parametrize(("length", "shown"), [(40, "x" * 40), (41, "x" * 39 + "…")])
def test_a_name_of_40_letters_is_whole_where_a_job_waits_for_it(length, shown):
    assert Wait(on="x" * length).message == f"starts after {shown}"
