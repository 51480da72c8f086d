"""*Run again with*, stars and the order of Runs, without a browser."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from made_runs import make_run
from work_parts import event, wait_until

from core.record.problems import ProblemsError
from tabs.runs.again import MOST_NAME, Agains, planned_runs
from tabs.runs.tab import RunHandlers
from tests.refusals import refused

A, B, C = "20260101-120000_one", "20260102-130000_two", "20260103-130000_three"


@pytest.fixture
def planned(page):
    """planned(path, values): what a run of 60 steps would be run again with."""
    make_run(page.workspace.runs, A)
    run, job, now = page.engine.run(A), page.engine.run_job(A), page.engine.snapshot(A)
    return lambda path, text: planned_runs(job, path, text, run, now)


def test_a_sweep_changes_one_setting_and_names_each_run(planned):
    found = planned("network.rank", "4, 8;32")
    assert [each.network.rank for each in found.jobs] == [4, 8, 32] and found.values == ["4", "8", "32"]
    assert [each.saving.output_name.rpartition("-rank-")[2] for each in found.jobs] == ["4", "8", "32"]
    assert {each.schedule.seed for each in found.jobs} == {found.jobs[0].schedule.seed}
    assert planned("network.rank", "4,8,32").values == planned("network.rank", "4,8 32").values == ["4", "8", "32"]
    assert (
        planned("optimizer.learning_rate", "1e-3,1e-2").values == planned("optimizer.learning_rate", "1e-3 1e-2").values
    )
    assert planned("optimizer.learning_rate", "0,5 0,25").values == ["0.5", "0.25"]
    for named in ("rank", " Network rank (dim)"):
        assert planned(named, "4").entry is found.entry


def test_a_long_name_is_cut_so_that_the_value_stays_in_it(page):
    make_run(page.workspace.runs, A)
    job, run, now = page.engine.run_job(A), page.engine.run(A), page.engine.snapshot(A)
    long = job.with_settings(saving={"output_name": "x" * MOST_NAME})
    (found,) = planned_runs(long, "network.rank", "32", run, now).jobs
    assert len(found.saving.output_name) == MOST_NAME and found.saving.output_name.endswith("-rank-32")


def test_runs_are_queued_all_or_none_and_a_run_that_is_gone_is_said(page, planned, monkeypatch):
    agains, queued = Agains(page), []

    def submit(task, job, preset):
        if queued:
            raise ProblemsError.one("full", "queue", "wait", "queue.full")
        queued.append("1")
        return "1"

    monkeypatch.setattr(page.engine, "submit", submit)
    monkeypatch.setattr(page.engine, "cancel", queued.remove)
    monkeypatch.setattr(page.checks, "report", lambda *given, **more: None)
    monkeypatch.setattr(page.checks, "problems", lambda *given, **more: [])
    with refused("queue.full"):
        agains._queue(planned("network.rank", "4 8"), "", SimpleNamespace(token=None))
    assert not queued
    with refused("runs.no-such-run"):
        agains.start("20260101-120000_gone", "network.rank", "4")


def test_one_value_in_two_spellings_is_one_run(planned):
    assert planned("optimizer.learning_rate", "1e-4 0.0001 2e-4").values == ["1e-4", "2e-4"]


def test_the_time_follows_the_number_of_steps_at_the_pace_of_the_run(page, planned):
    pace = page.engine.run(A).seconds / 60
    assert planned("network.rank", "4").seconds == pytest.approx(60 * pace)
    assert planned("schedule.max_train_steps", "30 120").seconds == pytest.approx(150 * pace)


@pytest.mark.parametrize(
    ("path", "text", "code"),
    [
        ("network.rank", "1 2 3 4 5 6 7 8 9", "again.values"),
        ("network.rank", " , ", "again.values"),
        ("noise.huber_scale", "2", "again.setting"),  # without effect
        ("saving.output_name", "x", "again.setting"),
        ("nothing.here", "1", "again.setting"),
    ],
)
def test_what_cannot_be_varied_is_refused(planned, path, text, code):
    with pytest.raises(ProblemsError) as refused:
        planned(path, text)
    assert [each.code for each in refused.value.problems] == [code]


@pytest.mark.parametrize(
    ("path", "shown"), [("nothing.here", "cannot be varied"), ("Network rank (dim)", "now "), ("", "such as")]
)
def test_an_unknown_setting_is_named_before_values_are_written(page, path, shown):
    make_run(page.workspace.runs, A)
    run, job, now = page.engine.run(A), page.engine.run_job(A), page.engine.snapshot(A)
    html = Agains(page).html(run, job, now, path, "")
    assert shown in html and ("cannot be varied" in html) == (path == "nothing.here")


def test_the_runs_follow_the_values_while_they_are_typed(page):
    make_run(page.workspace.runs, A)
    html = Agains(page).html(page.engine.run(A), page.engine.run_job(A), page.engine.snapshot(A), "network.rank", "4 8")
    field = re.search(r'<input[^>]*data-act="again-values"[^>]*>', html).group()
    assert " data-live " in field and "Add 2 runs" in html


def test_all_wrong_values_are_named_at_once(planned):
    with pytest.raises(ProblemsError) as refused:
        planned("network.rank", "8 0 many")
    assert len(refused.value.problems) == 2


def test_either_all_runs_are_queued_or_none(page, monkeypatch):
    make_run(page.workspace.runs, A)
    desk, bad = RunHandlers(page), []
    monkeypatch.setattr(page.checks, "report", lambda *_, **__: None)
    monkeypatch.setattr(page.checks, "problems", lambda job, *_, **__: bad if job.network.rank == 8 else [])
    place = {"open": A, "setting": "network.rank", "values": "4 8"}
    bad.append(ProblemsError.one("No images", "dataset.folder", "add some", "x").problems[0])
    desk.act(place, event("again", A))
    wait_until(lambda: desk.agains._tasks[A].done)
    assert page.engine.queue() == [] and "No images" in desk._main(place)
    bad.clear()
    desk.act(place | {"values": "4 8"}, event("again", A))
    wait_until(lambda: desk.agains._tasks[A].done)
    assert [entry.job["network"]["rank"] for entry in page.engine.queue()] == [4, 8]


def test_stars_are_kept_with_the_run_and_runs_are_sorted(page):
    for name, steps, best in ((A, 60, 0.3), (B, 20, 0.1), (C, 40, None)):
        make_run(page.workspace.runs, name, steps=steps, validated=[(10, best)] if best else ())
    desk, place = RunHandlers(page), {}

    def order(**about):
        return re.findall(r'class="open"[^>]*data-arg="([^"]+)"', desk._main(place | about))

    desk.act(place, event("star", A))
    assert order(show="starred") == [A] and order(sort="starred") == [A, C, B]
    assert order() == [C, B, A] and order(sort="oldest") == [A, B, C] and order(sort="best") == [B, A, C]
    assert order(sort="steps") == [A, C, B] and order(sort="made up") == [C, B, A]
    desk.act(place, event("star", A))
    assert order(show="starred") == [] and not (page.workspace.runs / A / "starred").exists()
