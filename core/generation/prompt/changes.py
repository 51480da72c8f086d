"""A copy of a job with some settings replaced."""

from collections.abc import Mapping
from typing import Any, TypeVar

from core.settings.base import Job

AnyJob = TypeVar("AnyJob", bound=Job)


def with_settings(job: AnyJob, **groups: Mapping[str, Any]) -> AnyJob:
    """Return a copy of `job` with the settings in `groups` replaced, without validation: with_settings(job, generate={"seed": 1})."""
    return job.model_copy(update={name: getattr(job, name).model_copy(update=groups[name]) for name in groups})
