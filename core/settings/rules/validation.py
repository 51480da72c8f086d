"""When the loss is measured on held-out images, and when it cannot be."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import every
from core.settings.concepts import anywhere
from core.settings.job import TrainJob


def holds_out(job: TrainJob) -> bool:
    """Whether a person keeps any image from training."""
    return anywhere(job, lambda each: each.holds_out)


def measures(job: TrainJob) -> bool:
    """Whether the loss on held-out images is ever measured."""
    own = job.validation
    return bool(every(own.validate_every_n_steps) or every(own.validate_every_n_epochs))


def problems(job: TrainJob) -> Iterator[Problem]:
    if holds_out(job) and not measures(job) and job.validation.best_checkpoint == "off":
        what = "Images are held out, and the loss on them is never measured"
        fix = "measure it every epoch, or let them train"
        yield Problem(what, "validation.validate_every_n_epochs", fix, "advice")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    if not holds_out(job):
        chosen = job.validation.best_checkpoint != "off"
        why = "the best checkpoint is measured at each save" if chosen else "no image is held out"
        for name in ("validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps"):
            yield f"validation.{name}", f"ignored: {why}"
    elif not measures(job) and job.validation.best_checkpoint == "off":
        yield "validation.max_validation_steps", "ignored: the loss on held-out images is never measured"
