"""Changed settings for a resumed run: length, saving, samples, logging. Settings that affect what is trained cannot change."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.engine.queue import QueueEntry
from core.optimization.jumps import planned_length, steps_of_job
from core.record import atomic
from core.record.problems import Problem, ProblemsError, raise_any, write_errors
from core.record.run_folder import RunFolder, state_step, state_to_resume, states_in
from core.settings.base import declared, value_of
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.named import Limits, admit
from core.settings.presets.files import dump, parse, to_values

LENGTH = tuple(
    f"schedule.{name}" for name in ("max_train_steps", "max_train_epochs", "lr_scheduler_steps", "lr_scheduler_after")
)
GROUPS = ("saving", "samples", "logging", "hub")  # they change nothing that is trained
VALIDATION = ("validation.validate_every_n_steps", "validation.validate_every_n_epochs")


def may_change(path: str) -> bool:
    """Whether the setting with the dotted name `path` may change when a run is resumed."""
    return path in (*LENGTH, *VALIDATION) or path.split(".", 1)[0] in GROUPS


def job_of(folder: RunFolder) -> TrainJob:
    """Return the validated settings of a run. Raises ProblemsError if they are damaged or invalid."""
    return build(TrainJob, parse(folder.job(), str(folder.job_file)).values, str(folder.job_file))


def job_to_resume(folder: RunFolder) -> TrainJob:
    """Return the validated settings of a run to resume. Raises ProblemsError also if all of its training states are damaged, and for a run
    of an earlier version with partial sd-scripts compatibility, which would not train as before."""
    state_to_resume(folder.states, quick=True)
    preset = parse(folder.job(), str(folder.job_file))
    if preset.notes:
        fix = "start a new run from its settings, or finish it with the version that started it"
        raise ProblemsError([Problem(note.what, note.where, fix, code=note.code) for note in preset.notes])
    return build(TrainJob, preset.values, str(folder.job_file))


def check_not_queued(folder: RunFolder, entries: Iterable[QueueEntry]) -> None:
    """Raise ProblemsError if the run is running, or a job among `entries` waits or runs for it."""
    name = folder.name
    if folder.held:
        raise ProblemsError.one(f"'{name}' is running", name, "watch it in Monitor", "runs.running")
    if any(entry.run == name and entry.state in ("waiting", "running") for entry in entries):
        raise ProblemsError.one(f"'{name}' is already in the queue", name, "wait for its turn", "runs.queued")


def extended(before: TrainJob, changes: Mapping[str, Any], folder: RunFolder, limits: Limits | None = None) -> TrainJob:
    """Return settings `before` with `changes`; writes nothing. Raises ProblemsError with every setting that may not change.

    changes   {group: {setting: value}}
    limits    what a shared page's job may name
    """
    after = build(TrainJob, merge(to_values(before), dict(changes)), folder.name)
    admit(after, limits)
    raise_any([*_refused(before, after), *_ended_before(before, after, folder)])
    return after


def extend(folder: RunFolder, changes: Mapping[str, Any], limits: Limits | None = None) -> TrainJob:
    """Write a run's settings with `changes` and return them; the earlier ones are saved as job-1.json, job-2.json ... Raises
    ProblemsError with every setting that may not change.

    changes   {group: {setting: value}}
    limits    what a shared page's job may name
    """
    before = job_to_resume(folder)
    after = extended(before, changes, folder, limits)
    if after == before:
        return before
    number = next(number for number in range(1, 10_000) if not (folder.path / f"job-{number}.json").exists())
    with write_errors("The run's settings cannot be written", str(folder.path)):
        atomic.write_json(folder.path / f"job-{number}.json", folder.job())
        atomic.write_json(folder.job_file, dump(after, preset=folder.preset))
    return after


def _ended_before(before: TrainJob, after: TrainJob, folder: RunFolder) -> Iterator[Problem]:
    """Yield a problem if `after` sets fewer steps than the run's newest training state has trained."""
    plan, states = planned_length(folder), states_in(folder.states)
    changed = [path for path in LENGTH[:2] if value_of(before, path) != value_of(after, path)]
    steps = steps_of_job(after, plan[1]) if plan and changed else None
    if steps and states and steps < (trained := state_step(states[0])):
        what = f"The run has trained {trained:,} steps, so it cannot end at step {steps:,}"
        yield Problem(what, changed[0], "enter a later end, or leave it as it was", code="resume.ends-before")


def _refused(before: TrainJob, after: TrainJob) -> Iterator[Problem]:
    """Yield a problem for each setting that differs and may not change when a run is resumed."""
    for entry in declared(TrainJob):
        if value_of(before, entry.path) == value_of(after, entry.path):
            continue
        if entry.path == "saving.output_name":
            what, fix = "The output name cannot change when a run is resumed", "rename its files when it is done"
            yield Problem(what, entry.path, fix, code="resume.output-name-changed")
        elif not may_change(entry.path):
            what = f"'{entry.title}' cannot change when a run is resumed: its training state would not fit"
            fix = "start a new run from this one: set resume.resume, or network.network_weights"
            yield Problem(what, entry.path, fix, code="resume.setting-changed")
