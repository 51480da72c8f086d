"""The events of a run, frozen, one JSON line each in its journal."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

VERSION = 1


@dataclass(frozen=True)
class Event:
    """Base of all events. kind: its name in the journal, which adds v, seq and time; urgent: flushed to the disk at once"""

    kind: ClassVar[str]
    urgent: ClassVar[bool]

    def __init_subclass__(cls, kind: str, urgent: bool = False) -> None:
        cls.kind, cls.urgent = kind, urgent

    def facts(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class StateChanged(Event, kind="state", urgent=True):
    """state: "running", "paused", "done", "stopped" or "failed"; "interrupted" and "damaged" are inferred by readers."""

    state: str
    message: str = ""
    fix: str = ""
    code: str = ""


@dataclass(frozen=True)
class Stage(Event, kind="stage"):
    """The current stage with its count, if any. step, steps: of the image that is being generated."""

    text: str
    done: int = 0
    total: int = 0
    step: int = 0
    steps: int = 0
    of_bytes: bool = False


@dataclass(frozen=True)
class Result(Event, kind="result", urgent=True):
    """The result of a job: lines of text, and the same as plain JSON (`found`)."""

    lines: list[str]
    found: dict[str, Any]


@dataclass(frozen=True)
class Planned(Event, kind="planned"):
    """Length of the run in steps, once it is known. sentence: how it results from the settings"""

    total: int
    epochs: int
    steps_per_epoch: int
    images: int
    sentence: str = ""


@dataclass(frozen=True)
class Steps(Event, kind="steps"):
    """Losses read back from the device for some steps; learning rates by part.

    corrected    each loss divided by the expected loss at its timesteps (core/training/loop/watching.py)
    grad_norm    of the newest step, before clipping       weight_norm  of all trained weights, now and then
    """

    steps: list[int]
    losses: list[float]
    rates: dict[str, float]
    epoch: int
    seconds_per_step: float
    grad_norm: float | None = None
    corrected: list[float] = field(default_factory=list)
    weight_norm: float | None = None


@dataclass(frozen=True)
class Forecasted(Event, kind="forecast", urgent=True):
    """The forecast of a training, from a few of its steps (core/training/probe.py).

    peak_bytes         of the GPU, or resident memory         device_bytes   total memory of the device
    seconds_per_step   by batch: {"512x512, 4 images": 0.41}, the largest first
    total_seconds      of all steps, without saving and samples
    """

    peak_bytes: int
    device_bytes: int
    seconds_per_step: dict[str, float]
    total_seconds: float
    total_steps: int


@dataclass(frozen=True)
class MemoryUsed(Event, kind="memory", urgent=True):
    """Peak memory of a training: of its GPU, or resident memory of its process."""

    peak_bytes: int
    device: str


@dataclass(frozen=True)
class Validated(Event, kind="validated", urgent=True):
    """The loss on held-out images at fixed timesteps with fixed noise, and on as many training images.

    gap          loss - train_loss, which grows with overfitting; both None if not measured
    by_timestep  {timestep as text: loss on held-out images}
    measured_on  "held_out", or "training" if no image is held out
    each         the loss of each (image, timestep), always in the same order; an even subset if there are thousands
    each_of      identifies that order and the images: only measurements with equal values are comparable
    effect       of a ControlNet or LLLite: |prediction with - without| / |without|
    """

    step: int
    loss: float
    train_loss: float | None
    gap: float | None
    by_timestep: dict[str, float]
    images: int
    measured_on: str = "held_out"
    each: list[float] = field(default_factory=list)
    each_of: str = ""
    effect: float | None = None


# Steps of what a run's samples are compared with: a prompt's control image, and its image without the ControlNet.
COMPARED = CONTROL_IMAGE, WITHOUT_CONTROL = -2, -1


def sample_titles(steps: Iterable[int], at_base: bool = True) -> dict[int, str]:
    """Return {step: title of its samples} in order. A ControlNet's samples of step 0 need not be the base model's. at_base:
    whether the run's step 0 is the base model (`TrainJob.starts_at_base`)"""
    named = {CONTROL_IMAGE: "control image", WITHOUT_CONTROL: "without control"}
    sampled_steps = sorted(set(steps))
    if at_base and sampled_steps and sampled_steps[0] >= 0:
        named[0] = "base model"
    return {step: named.get(step, f"step {step:,}") for step in sampled_steps}


@dataclass(frozen=True)
class Sampled(Event, kind="sample", urgent=True):
    """A sample was generated. step: 0 is before training, negative ones are the images of COMPARED; file: relative to the
    run folder; settings: `settings_digest`; seconds: that it took."""

    step: int
    index: int
    prompt: str
    seed: int
    file: str
    settings: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Saved(Event, kind="saved", urgent=True):
    """A checkpoint was written. file is relative to the run folder."""

    step: int
    file: str
    bytes: int


@dataclass(frozen=True)
class BackedUp(Event, kind="backed_up", urgent=True):
    """A training state was written."""

    step: int


@dataclass(frozen=True)
class LogMessage(Event, kind="log"):
    """A log message. level: "info", "warning" or "error"; code: as of a `Problem`."""

    level: str
    text: str
    fix: str = ""
    code: str = ""


@dataclass(frozen=True)
class ImageGenerated(Event, kind="image", urgent=True):
    """A generated image. file is absolute: it is in outputs/images."""

    file: str
    seed: int
