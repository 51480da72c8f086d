"""Saves, back-ups and samples."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import declared, every, value_of
from core.settings.job import TrainJob
from core.settings.names import bad_name

PERIODS = (
    "saving.save_every_n_epochs",
    "saving.save_every_n_steps",
    "saving.save_every_minutes",
    "saving.save_n_evenly",
    "saving.save_last_n",
    "samples.sample_every_n_steps",
    "samples.sample_every_n_epochs",
)


def problems(job: TrainJob) -> Iterator[Problem]:
    titles = {entry.path: entry.title for entry in declared(TrainJob)}
    for path in PERIODS:
        value = value_of(job, path)
        if value is not None and value < 0:
            what = f"{titles[path]} is {value}, which is treated as off"
            yield Problem(what, path, "leave it empty or write 0", "advice")
    if not every(job.saving.save_every_minutes) and not every(job.saving.save_every_n_steps):
        what = "A crash would lose everything since the last epoch save"
        yield Problem(what, "saving.save_every_minutes", "back up every 10 minutes", "advice")
    name = job.saving.output_name
    reason = bad_name(name)
    if reason is not None:
        what = f"'{name}' cannot be a file name: {reason}"
        yield Problem(what, "saving.output_name", "use letters, digits, - and _")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    if not job.samples.sample_prompts:
        for entry in declared(TrainJob):
            if entry.group == "samples" and entry.name != "sample_prompts":
                yield entry.path, "ignored: there are no sample prompts"
