"""The assessment of a run's checkpoints below their comparison: data for assets/verdict.js, and its start."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.assess.measures import MEASURES
from core.assess.results import FILE, not_worse, read_results, rows_of, with_warnings
from core.assess.target import Target, checkpoints_of
from core.engine.queue import QueueEntry
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.stamps import stamp_or_none
from core.record.units import clock, listed
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.tools.assess import AssessSettings
from core.tasks import named

if TYPE_CHECKING:
    from tabs.context import Page

TASK = "assess"
SMALL = 160  # pixels of an image
_STARTING = threading.Lock()
PASSES = 3  # of a prediction, that the forward and the backward pass of a training take


def stamp(page: Page, run: Path) -> tuple[Any, ...]:
    """Return a value that changes whenever the result of `part` changes."""
    entry = _entry(page, run.name)
    return stamp_or_none(run / FILE), entry and (entry.id, entry.state, entry.message), _progress(page, entry)


def part(page: Page, run: Path, facts: Mapping[str, Any], job: TrainJob) -> dict[str, Any] | None:
    """Return the assessment of a run for assets/verdict.js; None if its checkpoints cannot be assessed. facts: the run's snapshot

    "state", "entry", "message"   of its job in the queue, id; "" without one
    "done", "total", "left"       predictions of the running job; text of the time left, "" if unknown
    "missing", "about"            number of checkpoints that are not fully measured, text of the time that measuring them takes
    "measures"                    names of the measures, as text
    "rows"                        {file: [`_row` of each measure]}
    """
    cells = read_results(run)
    try:
        settings = AssessSettings(run=run.name)
        checkpoints = checkpoints_of(facts, job, page.workspace)
    except ProblemsError:
        return None
    target = Target(RunFolder(run), job, settings, page.workspace, Path(), checkpoints, tuple(MEASURES.values()))
    measures = [each.title.lower() for each in MEASURES.values() if target.applies(each) and not each.recorded]
    if not measures:
        return None
    missing = [checkpoint for checkpoint in checkpoints if MEASURES.keys() - cells.get(checkpoint.path.name, {}).keys()]
    seconds = target.predictions(missing, target.measures) * seconds_per_prediction(facts, job)
    entry, (done, total) = _entry(page, run.name), _progress(page, _entry(page, run.name))
    return {
        "state": entry.state if entry else "",
        "entry": entry.id if entry else "",
        "message": entry.message if entry and entry.state == "failed" else "",
        "done": done,
        "total": total,
        "left": time_left(page, entry) if done else "",
        "missing": len(missing),
        "measures": listed(measures),
        "about": clock(seconds) if seconds else "",
        "rows": {file: [_row(page, run, row) for row in rows_of(measured)] for file, measured in cells.items()},
    }


def with_assessment(
    sentence: str, run: Path, columns: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None
) -> str:
    """Return `sentence`, on the losses of a run's checkpoints, with what the assessment adds. columns: of the comparison"""
    not_worse_files = not_worse(best, {column["file"]: column["step"] for column in columns})
    # Checkpoints without a loss are named as such, which is not a reason against them
    not_worse_files |= {column["file"] for column in columns if column["loss"] is None}
    return with_warnings(
        sentence, {column["file"]: column["label"] for column in columns}, read_results(run), not_worse_files
    )


def _row(page: Page, run: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a measure's row (`rows_of` in core/assess/results.py) with "images": [{"small", "whole": URL}] in place of its "files"."""
    paths = [path for name in row["files"] if (path := run / TASK / Path(str(name)).name).is_file()]
    images = [{"small": page.thumb_url(path, SMALL), "whole": page.file_url(path)} for path in paths]
    return {**row, "files": [], "images": images}


def run_of(entry: QueueEntry) -> str:
    """Return the name of the run that a queued job assesses; "" for another job."""
    return str(entry.job.get(TASK, {}).get("run", "")) if entry.task == TASK else ""


def _entry(page: Page, run: str) -> QueueEntry | None:
    """Return the run's newest assessment in the queue, if it is waiting, running or failed; else None."""
    entries = [entry for entry in page.engine.queue() if run_of(entry) == run]
    newest = entries[-1] if entries else None
    return newest if newest is not None and newest.state in ("waiting", "running", "failed") else None


def _progress(page: Page, entry: QueueEntry | None) -> tuple[int, int]:
    """Return (predictions done, predictions in all) of a running assessment; (0, 0) for others."""
    if entry is None or entry.state != "running":
        return 0, 0
    try:
        progress = page.engine.progress(entry.id)
        return progress["done"], progress["total"]
    except ProblemsError:
        return 0, 0


def time_left(page: Page, entry: QueueEntry | None) -> str:
    """Return the text of the time that the running job `entry` still takes; "" if unknown."""
    running = page.engine.status()["job"]
    seconds = running.get("eta_seconds") if running and entry and running["entry"] == entry.id else 0
    return clock(seconds) if seconds else ""


def seconds_per_prediction(facts: Mapping[str, Any], job: TrainJob) -> float:
    """Return the expected seconds of a model prediction for one image, from a training step's time; 0 if unknown.

    facts: the run's snapshot
    """
    views = job.dataset.train_batch_size * job.schedule.gradient_accumulation_steps
    return (facts.get("seconds_per_step") or 0.0) / (PASSES * max(views, 1))


def start(page: Page, run: str) -> None:
    """Queue the assessment of the run's checkpoints that are not measured yet, unless one waits or runs. Raises ProblemsError."""
    facts = page.engine.snapshot(page.engine.editable_run(run).name)
    with _STARTING:
        entry = _entry(page, Path(run).name)
        if entry is None or entry.state == "failed":
            job = build(named(TASK).job, {TASK: {"run": Path(run).name}})
            page.engine.submit(TASK, job, f"Assessment: {facts['title']}")
