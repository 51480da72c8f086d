"""The lanes next to the device's: what is in hand when they close is cancelled and waited for."""

import threading

import pytest

from core.engine.engine import Engine
from core.engine.light import LightLane, LightTask
from core.engine.queue import GUEST
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import JOBS, TrainJob
from tests.tabs.work_parts import image, wait_until
from tests.tasks import stand_in


def test_a_lane_that_closes_cancels_all_and_outlives_none_of_it():
    """A thread that computes in C++ while Python ends takes the process down."""
    lane, begun = LightLane(), threading.Semaphore(0)

    def work(task):
        begun.release()
        while True:
            task.token.check()

    tasks = [lane.submit(work) for _ in range(LightLane.THREADS["short"] + 1)]  # the last one waits for its turn
    for _ in range(LightLane.THREADS["short"]):
        begun.acquire()
    lane.close(wait_seconds=60)
    assert not any(thread.is_alive() for thread in lane._threads)
    for task in tasks:
        with pytest.raises(ProblemsError, match="Cancelled"):
            task.wait(0)


def test_what_hears_of_no_cancel_does_not_hold_up_the_end():
    lane, begun, go = LightLane(), threading.Event(), threading.Event()

    def work(task):
        begun.set()
        go.wait()

    lane.submit(work)
    begun.wait()
    lane.close(wait_seconds=0.01)
    go.set()


@pytest.mark.parametrize(("kind", "most"), [("short", 3), ("downloads", 1), ("copies", 1), ("process", 1)])
def test_so_many_of_a_kind_run_at_once_and_the_next_one_waits(kind, most):
    lane, begun, go = LightLane(), threading.Semaphore(0), threading.Event()

    def work(task):
        begun.release()
        go.wait()

    tasks = [lane.submit(work, kind=kind) for _ in range(most + 1)]
    for _ in range(most):
        assert begun.acquire(timeout=60)
    assert not begun.acquire(timeout=0.05)
    go.set()
    for task in tasks:
        task.wait(60)
    lane.close(wait_seconds=60)


@pytest.mark.parametrize("kind", ["downloads", "copies"])
def test_downloads_and_copies_wait_for_their_like_and_hold_up_nothing_else(kind):
    lane, go, order = LightLane(), threading.Event(), []

    def work(name, task):
        go.wait()
        order.append(name)

    long = [lane.submit(work, name, kind=kind) for name in "abcd"]
    assert lane.submit(lambda task: "looked").wait(60) == "looked"
    go.set()
    for task in long:
        task.wait(60)
    assert order == list("abcd")
    lane.close()


def test_a_tool_that_was_asked_to_stop_says_so_until_it_has(tmp_path, monkeypatch):
    engine = Engine(Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets"), "cpu", "a test")
    go = threading.Event()
    stand_in(monkeypatch, "inspect", lambda job, context: go.wait(120) and context.check())
    try:
        engine.start()
        job = engine.submit("inspect", build(JOBS["inspect"], {"inspect": {"file": "models/starter"}}))
        wait_until(lambda: engine.progress(job)["state"] == "running")
        assert not engine.progress(job)["stopping"]
        engine.cancel(job)
        assert engine.progress(job)["stopping"]
        go.set()
        wait_until(lambda: engine.progress(job)["state"] == "stopped")
        assert not engine.progress(job)["stopping"]
    finally:
        go.set()
        engine.close(wait_seconds=60)


@pytest.mark.slow
def test_tools_run_beside_a_training_and_while_the_queue_is_paused(tmp_path, monkeypatch):
    """A light one on a thread, an image tool in a process of its own; both have run folders as trainings do."""
    engine = Engine(Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets"), "cpu", "a test")
    go = threading.Event()
    stand_in(monkeypatch, "train", lambda job, context: go.wait(120) and "done")
    image(tmp_path / "set" / "a.png", (64, 64))
    try:
        engine.start()
        engine.submit("train", TrainJob())
        wait_until(lambda: engine.status()["job"] is not None)
        engine.pause_queue()
        asked = {
            "inspect": {"file": "models/starter"},
            "crop": {"folder": str(tmp_path / "set"), "crop_size": [32, 32]},
        }
        jobs = [engine.submit(name, build(JOBS[name], {name: values})) for name, values in asked.items()]
        wait_until(lambda: all(engine.progress(each)["state"] not in ("waiting", "running") for each in jobs), 120)
        assert [engine.progress(each)["problems"] for each in jobs] == [[], []]
        assert engine.progress(jobs[1])["facts"]["written"] and engine.status()["job"]["task"] == "train"
        logs = [engine._runs.folder(engine.progress(each)["run"]).logs / "processes.txt" for each in jobs]
        assert [log.is_file() for log in logs] == [False, True] and logs[1].read_text() == ""
        waiting = [engine.submit("train", TrainJob()) for _ in range(2)]
        engine.move(waiting[1], 0)
        assert [entry.id for entry in engine.queue() if entry.state == "waiting"] == waiting[::-1]
    finally:
        go.set()
        engine.close(wait_seconds=60)


def test_no_work_is_lost_that_is_asked_for_at_the_same_time(monkeypatch):
    lane, locked = LightLane(), []
    monkeypatch.setattr(LightTask, "done", property(lambda task: locked.append(lane._lock.locked())))
    for _ in range(2):
        lane.submit(lambda task: None)
    assert locked == [True] and len(lane._open) == 2  # nothing else changes the list between
    lane.close()


def test_work_is_that_of_the_guest_who_asks_for_it():
    lane = LightLane()
    for name in ("one", "two", ""):
        token = GUEST.set(name)
        work = lane.submit(lambda task: GUEST.get(), kind="copies")  # one thread for all three
        GUEST.reset(token)
        assert work.wait(60) == name
    lane.close()
