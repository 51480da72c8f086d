"""Noise, timesteps and the loss."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.concepts import anywhere
from core.settings.job import TrainJob


def problems(job: TrainJob) -> Iterator[Problem]:
    low, high = job.noise.min_timestep, job.noise.max_timestep
    if low >= high:
        what = f"The lowest timestep ({low}) is not below the highest ({high})"
        yield Problem(what, "noise.min_timestep", "lower it, or raise noise.max_timestep")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    if not anywhere(job, lambda each: each.pictures.masked_loss or each.pictures.alpha_mask):
        yield "noise.mask_mean", "ignored: there are no masks"
