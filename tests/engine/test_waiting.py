"""What a waiting job waits for: its name, the time left of it, and how many jobs come between."""

import pytest

from core.engine.queue import QueueEntry
from core.engine.view import RunView
from core.engine.waiting import Wait, waits
from core.record.events import Planned, Stage, Steps
from core.record.journal import Journal
from tests.engine.test_engine import engine, job, stepper, until, workspace  # noqa: F401
from tests.tasks import stand_in


def entries(*states: str, task: str = "train") -> list[QueueEntry]:
    return [QueueEntry(f"e{n}", task, f"run_{n}", {}, state=state) for n, state in enumerate(states)]


def told(listed, *, left=80.0, on_pause=False, paused=False, lent_to=""):
    return waits(listed, lambda entry: (left, on_pause), paused=paused, lent_to=lent_to)


def test_every_waiting_job_names_the_one_at_work_with_its_time_and_what_stands_between():
    found = told(entries("done", "running", "waiting", "waiting"))
    assert found == {"e2": Wait("run_1", 80.0), "e3": Wait("run_1", 80.0, ahead=1)}
    assert found["e2"].message == "starts in about 1:20, after run_1"
    assert found["e3"].message == "starts in at least 1:20, after run_1 and 1 more"
    assert told(entries("running", "waiting"), left=0.0)["e1"].message == "starts after run_0"
    on_pause = told(entries("running", "waiting", "waiting"), on_pause=True)
    assert on_pause["e1"].message == "starts after run_0, which is paused"
    assert on_pause["e2"].message == "starts after run_0, which is paused, and 1 more"


def test_where_nothing_is_at_work_the_first_begins_and_the_next_waits_for_it():
    found = told(entries("waiting", "waiting", "waiting"))
    assert found["e0"].begins and not found["e1"].begins
    assert [(wait.on, wait.ahead) for wait in found.values()] == [("", 0), ("run_0", 0), ("run_0", 1)]


def test_a_paused_queue_and_a_borrowed_device_are_what_is_waited_for():
    assert all(
        wait.queue_paused and not wait.begins for wait in told(entries("waiting", "waiting"), paused=True).values()
    )
    lent = told(entries("waiting", "waiting"), lent_to="the resume test")
    assert [(wait.on, wait.ahead) for wait in lent.values()] == [("the resume test", 0), ("the resume test", 1)]


@pytest.mark.parametrize("task", ["download", "resize"])
def test_jobs_beside_the_device_wait_for_their_own_lane_only(task):
    beside = [QueueEntry("b0", task, "first", {}, state="running"), QueueEntry("b1", task, "second", {})]
    found = told(entries("running", "waiting") + beside, paused=True)
    assert found["b1"] == Wait("first", 80.0) and found["e1"].queue_paused


def test_the_engine_tells_it_of_a_training_while_it_runs(engine, monkeypatch):  # noqa: F811
    stand_in(monkeypatch, "train", stepper(total=100_000, wait=0.01))
    engine.start()
    first, second = engine.submit("train", job("fox")), engine.submit("train", job("owl"))
    until(lambda: engine.waits().get(second, Wait()).left > 0)
    wait = engine.waits()[second]
    assert wait.on == "fox" and wait.left == pytest.approx(engine.status()["job"]["eta_seconds"], rel=0.2)
    assert first not in engine.waits()
    engine.cancel(first)
    until(lambda: second not in engine.waits())
    engine.cancel(second)


def test_the_time_left_is_that_of_the_steps_else_of_what_the_stage_counts(tmp_path):
    from core.record.run_folder import RunFolder

    folder = RunFolder.create(tmp_path, "a", {})
    now = [1000.0]
    with Journal(folder.path, lambda: now[0]) as journal:
        view = RunView(folder)
        journal.listen(view.apply)
        journal.put(Stage("captioning", 0, 40))
        assert view.seconds_left == 0.0  # nothing is known of its pace
        now[0] += 0.2
        journal.put(Stage("captioning", 10, 40))
        assert view.seconds_left == pytest.approx(0.6)
        journal.put(Planned(100, 1, 100, 4))
        journal.put(Steps([20], [0.5], {"unet": 1e-4}, 1, 0.5))
        assert view.seconds_left == 40.0
