"""Rules on when validation loss is measured."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import every
from core.settings.dataset.concepts import any_folder
from core.settings.job import TrainJob
from core.settings.needs import ignored


def holds_out(job: TrainJob) -> bool:
    """Return whether any dataset folder holds out images for validation."""
    return any_folder(job, lambda each: each.holds_out)


def measures_loss(job: TrainJob) -> bool:
    """Return whether validation loss is measured at steps or epochs."""
    validation = job.validation
    return bool(every(validation.validate_every_n_steps) or every(validation.validate_every_n_epochs))


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield advice if images are held out but validation loss is never measured."""
    if holds_out(job) and not measures_loss(job) and job.validation.best_checkpoint == "off":
        what = "Images are held out, but validation loss is never measured"
        fix = "validate every epoch, or train on all images"
        yield Problem(what, "validation.validate_every_n_epochs", fix, "advice", code="validation.never-measured")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for validation settings without effect."""
    held, chosen = holds_out(job), job.validation.best_checkpoint != "off"
    why = "there are no validation images" + ("; the best checkpoint is measured at each save" if chosen else "")
    never = held and not chosen and not measures_loss(job)
    yield from ignored(
        (not held, "validation.validate_every_n_steps validate_every_n_epochs max_validation_steps", why),
        (never, "validation.max_validation_steps", "validation loss is never measured"),
    )
