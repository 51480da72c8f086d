"""Forecast of a run's memory and time: trains two steps on its largest batch and two on its smallest."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from core.dataset.buckets.batches import PlannedBatch
from core.dataset.buckets.plan import Plan
from core.record import atomic, machine
from core.record.context import JobContext, Outcome
from core.record.events import Forecasted
from core.record.memory import PeakMemory
from core.record.run_folder import RunFolder
from core.record.units import memory_text
from core.settings.job import TrainJob
from core.settings.presets.files import dump
from core.training.loop.run import Run
from core.training.loop.update import optimizer_update
from core.training.prove import short_job

if TYPE_CHECKING:
    from core.dataset.report import Report

STEPS = 2  # on each batch; the first one warms up and creates the optimizer state

Group = list[PlannedBatch]  # the micro-batches of a step


def forecast_sentence(forecast: Forecasted) -> str:
    """Return the memory and time of a forecast as a sentence."""
    each = "; ".join(f"{name}: {seconds:.2f} s" for name, seconds in forecast.seconds_per_step.items())
    return (
        f"Takes {memory_text(forecast.peak_bytes)} of {memory_text(forecast.device_bytes)} and about "
        f"{duration(forecast.total_seconds)} for {forecast.total_steps} steps without samples and saves (a step of {each})"
    )


def duration(seconds: float) -> str:
    """Return seconds as text: "2 h 05 min", "12 min" or "40 s"."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{max(1, round(seconds))} s"


class ProbePlan(Plan):
    """A plan of STEPS steps on each of the `groups` of micro-batches, in order."""

    def __init__(self, plan: Plan, groups: Sequence[Group]):
        self.__dict__.update(plan.__dict__)
        self.groups = [group for group in groups for _ in range(STEPS)]

    def step_batches(self, step: int) -> tuple[int, Group]:
        """Return (epoch, always 0; micro-batches of the step)."""
        return 0, self.groups[step]

    def next_batches(self, step: int) -> Group:
        """Return the micro-batches of this step and the next, to decode ahead."""
        return [batch for group in self.groups[step : step + 2] for batch in group]

    def captions(self, epoch: int) -> list[str]:
        """Return the captions of all steps, each once. epoch: without effect"""
        items = [(step, item) for step, group in enumerate(self.groups) for batch in group for item in batch.items]
        return list(dict.fromkeys(self.caption(placed, 0, repeat, step) for step, (placed, repeat) in items))


class ProbeBatches:
    """Selects the largest and the smallest batch of the first epoch, and reduces a report to their images, so that only these are
    encoded.

    groups   micro-batches of the selected steps, the step of the largest micro-batch first
    pixels   pixels of the images of each step of the first epoch, in one process
    """

    def __init__(self, job: TrainJob):
        self._job = job
        self.groups: list[Group] = []
        self.pixels: list[int] = []  # of each step of the first epoch

    def __call__(self, report: Report) -> Report:
        """Return the report with only the images of the selected batches; set `groups` and `pixels`."""
        job, processes = self._job, self._job.memory.num_processes
        groups = Plan(report.placed, job, job.schedule.seed or 0).epochs.groups(job.schedule.seed or 0, 0)
        shares = [[PlannedBatch(batch.bucket, batch.items[::processes]) for batch in group] for group in groups]
        self.pixels = [pixels_of(group) for group in shares]
        order = sorted(range(len(shares)), key=lambda index: (-largest_pixels(shares[index]), index))
        indices = list(dict.fromkeys([order[0], min(order, key=lambda index: self.pixels[index])]))
        self.groups = [shares[index] for index in indices]
        keys = {placed.key for group in self.groups for batch in group for placed, _ in batch.items}
        placed = tuple(each for each in report.placed if each.key in keys)
        return replace(report, placed=placed, validation=())


def pixels_of(group: Group) -> int:
    """Return the pixels of all images of a step."""
    return sum(prod(batch.bucket) * len(batch.items) for batch in group)


def largest_pixels(group: Group) -> int:
    """Return the pixels of the largest micro-batch of a step, which determines peak memory."""
    return max(prod(batch.bucket) * len(batch.items) for batch in group)


def probe(job: TrainJob, context: JobContext) -> Forecasted:
    """Train the job on its largest and smallest batch, in a temporary run folder, and return the forecast. Encoded latents and captions
    stay in the caches. Raises ProblemsError for problems of the job, and Cancelled."""
    parent = context.workspace.private / "probes" / secrets.token_hex(4)
    seeded = short_job(job, 1)
    length = {"max_train_steps": job.schedule.max_train_steps, "max_train_epochs": job.schedule.max_train_epochs}
    small = seeded.with_settings(schedule=length)
    folder = RunFolder.create(parent, "probe", dump(small))
    try:
        return _probe(small, replace(context, folder=folder))
    finally:
        atomic.remove_folder(parent)


def _probe(job: TrainJob, context: JobContext) -> Forecasted:
    """Do the work of `probe` in the context's run folder, which is not removed."""
    from core.training.building.setup import build_training

    batches = ProbeBatches(job)
    with PeakMemory(context.device) as peak:
        training = build_training(job, context, batches, at_once=True)  # its steps are measured
        run = training.run
        try:
            total = max(1, run.total)
            run.plan = plan = ProbePlan(run.plan, batches.groups)
            run.passes.text.need(plan.captions(0))
            context.stage("trying two batches")
            times = _step_seconds(run, len(plan.groups))
        finally:
            training.release()
    paces = [times[STEPS * number + 1] for number in range(len(batches.groups))]
    by_pixels = [(pixels_of(group), pace) for group, pace in zip(batches.groups, paces, strict=True)]
    mean = sum(_interpolated_seconds(by_pixels, pixels) for pixels in batches.pixels) / len(batches.pixels)
    seconds = {batch_title(group): pace for group, pace in zip(batches.groups, paces, strict=True)}
    return Forecasted(peak.bytes, machine.memory(context.device)[1], seconds, mean * total, total)


def _step_seconds(run: Run, steps: int) -> list[float]:
    """Train `steps` further steps; return the seconds of each."""
    times = []
    for _ in range(steps):
        run.context.check()
        started = time.perf_counter()
        optimizer_update(run)
        machine.synchronize(run.context.device)
        times.append(time.perf_counter() - started)
        run.state.step += 1
    return times


def _interpolated_seconds(measured: Sequence[tuple[int, float]], pixels: int) -> float:
    """Return the seconds of a step of `pixels` pixels, by linear interpolation between the first and the last of `measured`, each (pixels,
    seconds)."""
    (most_pixels, slow_seconds), (fewest_pixels, fast_seconds) = measured[0], measured[-1]
    if most_pixels == fewest_pixels:
        return slow_seconds
    return max(
        0.0, fast_seconds + (slow_seconds - fast_seconds) * (pixels - fewest_pixels) / (most_pixels - fewest_pixels)
    )


def batch_title(group: Group) -> str:
    """Return the size of a step's largest micro-batch and its number of images, such as "512x768, 4 images"."""
    batch = max(group, key=lambda each: prod(each.bucket) * len(each.items))
    count = sum(len(each.items) for each in group)
    return f"{batch.bucket[0]}x{batch.bucket[1]}, {count} image{'s' if count > 1 else ''}"


def run_probe(job: TrainJob, context: JobContext) -> Outcome:
    """Forecast a job's memory and time, a task of the engine; report the forecast as an event and a message. Raises as `probe`."""
    forecast = probe(job, context)
    context.journal.put(forecast)
    context.say(forecast_sentence(forecast))
    return Outcome()
