"""The light lane: what is in hand when it closes is cancelled and waited for."""

import threading

import pytest

from core.engine.light import LightLane
from core.record.problems import ProblemsError


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
