"""A forecast before a run: two real steps on its largest and two on its smallest batch, in a folder that is removed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from core.dataset.buckets.batches import Planned
from core.dataset.buckets.plan import Plan
from core.record import atomic, machine
from core.record.context import JobContext
from core.record.events import Forecasted
from core.record.memory import PeakMemory
from core.record.run_folder import RunFolder
from core.record.units import memory_words
from core.settings.job import TrainJob
from core.settings.presets.files import dump
from core.training.loop.run import Run
from core.training.prove import short_job

if TYPE_CHECKING:
    from core.dataset.report import Report

STEPS = 2  # on each batch; the first one warms up and creates the optimizer state

Group = list[Planned]  # the micro-batches of a step


@dataclass(frozen=True)
class Forecast:
    """What a run will take. peak_bytes: of the GPU, or resident memory; device_bytes: what there is in all.

    seconds_per_step   by batch: {"512x512, 4 images": 0.41}, the largest first
    total_seconds      of all steps, without saving and samples
    """

    peak_bytes: int
    device_bytes: int
    seconds_per_step: dict[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0
    total_steps: int = 0

    def words(self) -> str:
        each = "; ".join(f"{name}: {seconds:.2f} s" for name, seconds in self.seconds_per_step.items())
        return (
            f"Takes {memory_words(self.peak_bytes)} of {memory_words(self.device_bytes)} and about "
            f"{duration(self.total_seconds)} for {self.total_steps} steps (a step of {each})"
        )


def duration(seconds: float) -> str:
    """ "2 h 05 min", "12 min" or "40 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{max(1, round(seconds))} s"


class Probing(Plan):
    """A plan that shows chosen batches, each some times in a row, as steps 0, 1, ..."""

    def __init__(self, plan: Plan, groups: Sequence[Group]):
        self.__dict__.update(plan.__dict__)
        self.shown = [group for group in groups for _ in range(STEPS)]

    def update(self, step: int) -> tuple[int, Group]:
        return 0, self.shown[step]

    def next_batches(self, step: int) -> Group:
        return [batch for group in self.shown[step : step + 2] for batch in group]

    def captions(self, epoch: int) -> list[str]:
        items = [(step, item) for step, group in enumerate(self.shown) for batch in group for item in batch.items]
        return list(dict.fromkeys(self.caption(placed, 0, repeat, step) for step, (placed, repeat) in items))


class Chosen:
    """Finds the batches to probe, and leaves their images alone in the report: only these are encoded."""

    def __init__(self, job: TrainJob):
        self._job = job
        self.groups: list[Group] = []
        self.pixels: list[int] = []  # of each step of the first epoch

    def __call__(self, report: Report) -> Report:
        job, processes = self._job, self._job.memory.num_processes
        groups = Plan(report.placed, job, job.schedule.seed or 0).epochs.groups(job.schedule.seed or 0, 0)
        shares = [[Planned(batch.bucket, batch.items[::processes]) for batch in group] for group in groups]
        self.pixels = [pixels_of(group) for group in shares]
        order = sorted(range(len(shares)), key=lambda place: (-largest(shares[place]), place))
        places = list(dict.fromkeys([order[0], min(order, key=lambda place: self.pixels[place])]))
        self.groups = [shares[place] for place in places]
        wanted = {placed.key for group in self.groups for batch in group for placed, _ in batch.items}
        kept = tuple(each for each in report.placed if each.key in wanted)
        return replace(report, placed=kept, validation=())


def pixels_of(group: Group) -> int:
    """Pixels of a step."""
    return sum(prod(batch.bucket) * len(batch.items) for batch in group)


def largest(group: Group) -> int:
    """Pixels of its largest batch: what memory depends on."""
    return max(prod(batch.bucket) * len(batch.items) for batch in group)


def probe(job: TrainJob, context: JobContext) -> Forecast:
    """Build the run of this job as ever, with the images of two batches, and train on these. Latents and captions that
    are encoded on the way stay in the caches, as they do after a run; nothing else is kept."""
    place = context.workspace.private / "probes" / secrets.token_hex(4)
    seeded = short_job(job, 1)
    own = {"max_train_steps": job.schedule.max_train_steps, "max_train_epochs": job.schedule.max_train_epochs}
    small = seeded.model_copy(update={"schedule": seeded.schedule.model_copy(update=own)})
    folder = RunFolder.create(place, "probe", dump(small))
    try:
        return _probe(small, replace(context, folder=folder))
    finally:
        atomic.remove_folder(place)


def _probe(job: TrainJob, context: JobContext) -> Forecast:
    from core.training.building.setup import build_training

    chosen = Chosen(job)
    with PeakMemory(context.device) as peak:
        training = build_training(job, context, chosen, at_once=True)  # its steps are measured
        run = training.run
        try:
            total = max(1, run.total)
            run.plan = plan = Probing(run.plan, chosen.groups)
            run.passes.text.need(plan.captions(0))
            context.stage("trying two batches")
            times = _timed(run, len(plan.shown))
        finally:
            training.release()
    paces = [times[STEPS * number + 1] for number in range(len(chosen.groups))]
    by_pixels = [(pixels_of(group), pace) for group, pace in zip(chosen.groups, paces, strict=True)]
    mean = sum(_between(by_pixels, pixels) for pixels in chosen.pixels) / len(chosen.pixels)
    seconds = {title(group): pace for group, pace in zip(chosen.groups, paces, strict=True)}
    return Forecast(peak.bytes, machine.memory(context.device)[1], seconds, mean * total, total)


def _timed(run: Run, steps: int) -> list[float]:
    """Seconds of each step."""
    import torch

    from core.training.loop.update import optimizer_update

    times = []
    for _ in range(steps):
        run.context.check()
        started = time.perf_counter()
        optimizer_update(run)
        if run.context.device.startswith("cuda"):
            torch.cuda.synchronize(run.context.device)
        times.append(time.perf_counter() - started)
        run.state.step += 1
    return times


def _between(measured: Sequence[tuple[int, float]], pixels: int) -> float:
    """Seconds of a step of so many pixels, on the line through the measurements."""
    (most, slow), (least, quick) = measured[0], measured[-1]
    if most == least:
        return slow
    return max(0.0, quick + (slow - quick) * (pixels - least) / (most - least))


def title(group: Group) -> str:
    """ "512x768, 4 images"."""
    batch = max(group, key=lambda each: prod(each.bucket) * len(each.items))
    count = sum(len(each.items) for each in group)
    return f"{batch.bucket[0]}x{batch.bucket[1]}, {count} image{'s' if count > 1 else ''}"


def run_probe(job: TrainJob, context: JobContext) -> str:
    """The engine's task: the forecast as an event and a sentence."""
    found = probe(job, context)
    context.journal.put(
        Forecasted(found.peak_bytes, found.device_bytes, found.seconds_per_step, found.total_seconds, found.total_steps)
    )
    context.say(found.words())
    return "done"
