"""The forecast beside the form: the plan, the slider, the try."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from work_parts import make_page, wait_until

from core.engine.engine import Engine
from core.record.problems import ProblemsError
from core.settings.levels import level_of
from tabs.browsers import Browser


@pytest.fixture
def page(tmp_path):
    page = make_page(tmp_path)
    page.workspace.outputs.mkdir(exist_ok=True)
    page.engine = Engine(page.workspace, device="cpu", what="a test")  # never started: nothing runs
    yield page
    page.engine.close()


def facts(page):
    return page.forecast.facts(page.project.job)


def test_nothing_is_counted_before_torch_is_there_or_wanted(page, monkeypatch):
    monkeypatch.setattr("tabs.forecast.sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(page.engine, "light", lambda *work, **more: pytest.fail("torch would be loaded unasked"))
    found = facts(page)
    assert not found["wanted"] and not found["fresh"] and len(found["levels"]) >= 4
    assert found["level"] == 1


def test_the_plan_adds_up_and_says_what_each_place_saves(page, monkeypatch):
    monkeypatch.setattr("core.record.machine.default_device", lambda: "cpu")
    page.forecast.ask({}, Browser(""))
    facts(page)
    wait_until(lambda: facts(page)["fresh"], 120)
    found = facts(page)
    assert "problem" not in found and "torch" in sys.modules
    assert found["total"] == pytest.approx(sum(part["bytes"] for part in found["parts"]), abs=6e6)
    assert found["saved"][1] == 0 and found["saved"][2] > 0  # checkpointing
    assert page.forecast.hints(page.project.job)["memory.gradient_checkpointing"].startswith("In this job: ")
    page.project.edit("dataset.resolution", "256")
    assert not facts(page)["fresh"] and page.forecast.hints(page.project.job) == {}
    wait_until(lambda: facts(page)["fresh"], 120)  # a thread in the middle of torch's work would abort the exit


def test_a_model_that_is_not_there_is_said_instead_of_a_number(page):
    page.project.edit("model.base_model", "models/none.safetensors")
    page.forecast.ask({}, Browser(""))
    facts(page)
    wait_until(lambda: facts(page)["fresh"], 60)
    assert facts(page)["problem"] and "parts" not in facts(page)


def test_the_slider_sets_the_group_and_undo_takes_it_back(page):
    before = page.project.job
    page.forecast.set_level({"level": 2}, Browser(""), None)
    assert page.project.job.memory.gradient_checkpointing and level_of(page.project.job) == 2
    page.project.undo()
    assert page.project.job == before
    for wrong in (9, None, "x"):
        with pytest.raises(ProblemsError, match="no such place"):
            page.forecast.set_level({"level": wrong}, Browser(""), None)


def test_a_try_waits_in_the_queue_once(page):
    page.forecast.try_it({}, Browser(""))
    assert [entry.task for entry in page.engine.queue()] == ["probe"]
    assert facts(page)["tried"]["state"] == "waiting"
    with pytest.raises(ProblemsError, match="being tried already"):
        page.forecast.try_it({}, Browser(""))
