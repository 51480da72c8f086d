"""A few real steps forecast memory and time, and leave nothing behind."""

import pytest

from core.engine.execute import execute
from core.record.commands import CommandReader
from core.record.context import JobContext
from core.record.events import Forecasted
from core.record.journal import Journal, read_lines
from core.record.run_folder import RunFolder
from core.settings.presets.files import dump
from core.training.probe import ProbeBatches, _interpolated_seconds, duration, forecast_sentence, probe


def test_the_forecast_is_of_the_largest_and_the_smallest_batch(workspace, make_job):
    job = make_job(schedule={"max_train_steps": 100, "gradient_accumulation_steps": 2})
    folder = RunFolder.create(workspace.private / "jobs", "p", dump(job))
    before = {path for path in workspace.private.rglob("*") if path.is_dir()}
    with Journal(folder.path) as journal:
        found = probe(job, JobContext(workspace, folder, journal, CommandReader(folder.path), "cpu"))
    assert 1 <= len(found.seconds_per_step) <= 2 and found.total_steps == 100
    quickest, slowest = min(found.seconds_per_step.values()), max(found.seconds_per_step.values())
    assert 50 * quickest < found.total_seconds < 200 * slowest
    assert 100e6 < found.peak_bytes < found.device_bytes
    left = {path for path in workspace.private.rglob("*") if path.is_dir()} - before
    assert {path.name for path in left} <= {"probes"}
    assert not list((workspace.private / "probes").iterdir())
    assert not workspace.runs.exists() or not list(workspace.runs.iterdir())


@pytest.mark.slow
def test_the_engine_tells_the_forecast_and_fails_in_words(workspace, make_job, monkeypatch):
    job = make_job()
    folder = RunFolder.create(workspace.private / "jobs", "p", dump(job, task="probe"))
    state, _ = execute("probe", job, folder, workspace, "cpu")
    (line,) = [line for line in read_lines(folder.journal_file) if line["kind"] == "forecast"]
    assert state == "done" and line["total_steps"] == 4 and line["peak_bytes"] > 0

    import core.training.loop.passes as passes

    monkeypatch.setattr(
        passes, "training_loss", lambda *given, **named: (_ for _ in ()).throw(RuntimeError("out of memory"))
    )
    state, words = execute("probe", job, RunFolder.create(workspace.private / "jobs", "q", dump(job)), workspace, "cpu")
    assert state == "failed" and words.what == "The device ran out of memory"


def test_only_the_images_of_two_batches_are_encoded(workspace, make_job):
    from core.dataset.preflight import preflight

    job = make_job(dataset={"train_batch_size": 1})
    report = preflight(job, workspace, decode=False)
    chosen = ProbeBatches(job)
    assert len(chosen(report).placed) == len(chosen.groups) <= 2 < len(report.placed)
    assert len(chosen.pixels) == len(report.placed)


def test_times_between_and_their_words():
    assert _interpolated_seconds([(400, 4.0), (100, 1.0)], 200) == 2.0
    assert _interpolated_seconds([(400, 4.0)], 400) == 4.0
    assert (duration(40), duration(700), duration(7500)) == ("40 s", "12 min", "2 h 05 min")
    words = forecast_sentence(Forecasted(4 << 30, 8 << 30, {"512x512, 1 image": 0.5}, 700, 1400))
    assert all(fact in words for fact in ("4.0 GB of 8.0 GB", "12 min", "1400 steps", "512x512, 1 image: 0.50 s"))
