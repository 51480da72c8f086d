"""Changes of many captions: few at once, many on the light lane, where their progress and their end are told."""

from threading import Event

import pytest

from core.engine.light import LightLane
from core.record.problems import ProblemsError
from tabs.captions import rewriting as caption_rewriting
from tabs.captions.rewriting import AT_ONCE, Rewriting


@pytest.fixture
def rewriting(monkeypatch):
    monkeypatch.setattr(caption_rewriting, "WAIT_SECONDS", 0.0)
    lane = LightLane()
    return Rewriting(lambda work, *given, title: lane.submit(work, *given, title=title))


def test_few_files_are_changed_before_the_answer_and_told_by_it_alone(rewriting):
    assert rewriting.run("Add", AT_ONCE, lambda progress: "done") == "done"
    assert rewriting.state() == {} and not rewriting.busy


def test_many_are_told_while_they_are_changed_and_a_second_change_waits(rewriting):
    go, there = Event(), Event()

    def work(progress):
        progress(30, 300)
        there.set()
        assert go.wait(60)
        return "300 captions"

    assert "300" in rewriting.run("Add", 300, work) and there.wait(60)
    state = rewriting.state()
    assert (state["id"], state["share"], state["done"]) == (1, 0.1, False) and "30 of 300" in state["text"]
    assert rewriting.busy and "wait" in rewriting.run("Remove", 300, pytest.fail)
    assert rewriting.run("Edit", 1, lambda progress: "one") == "one", "a single one goes on meanwhile"
    go.set()
    rewriting._task.wait(60)
    assert rewriting.state() | {"said": "300 captions", "done": True, "problems": []} == rewriting.state()


def test_what_fails_after_the_answer_is_told_with_its_problems(rewriting):
    go = Event()

    def work(progress):
        assert go.wait(60)
        raise ProblemsError.one("The disk is full", "a.txt", "make room", "disk.full")

    rewriting.run("Add", 300, work)
    go.set()
    with pytest.raises(ProblemsError):
        rewriting._task.wait(60)
    state = rewriting.state()
    assert state["done"] and [each["code"] for each in state["problems"]] == ["disk.full"]
