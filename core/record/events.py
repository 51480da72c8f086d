"""The events of a run: frozen dataclasses, one JSON line each in the run's journal."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

VERSION = 1


@dataclass(frozen=True)
class Event:
    """Base class of all events. kind: name of the event in the journal; urgent: written to disk at once, not at the next flush."""

    kind: ClassVar[str]
    urgent: ClassVar[bool]

    def __init_subclass__(cls, kind: str, urgent: bool = False) -> None:
        cls.kind, cls.urgent = kind, urgent

    def facts(self) -> dict[str, Any]:
        """Return {field: value} of the event's fields, as written to the journal."""
        return dict(vars(self))


@dataclass(frozen=True)
class StateChanged(Event, kind="state", urgent=True):
    """The run's state: "running", "paused", "done", "stopped" or "failed"; "interrupted" and "damaged" are only inferred by readers.
    message, fix, code: of the problem, if the run failed"""

    state: str
    message: str = ""
    fix: str = ""
    code: str = ""


@dataclass(frozen=True)
class Stage(Event, kind="stage"):
    """The current stage `text` and its progress, `done` of `total` (0 if unknown), in bytes with `of_bytes`.
    step, steps: sampling step of the image that is being generated, and their number"""

    text: str
    done: int = 0
    total: int = 0
    step: int = 0
    steps: int = 0
    of_bytes: bool = False


@dataclass(frozen=True)
class Result(Event, kind="result", urgent=True):
    """The result of a job. lines: as text; found: the same as JSON values."""

    lines: list[str]
    found: dict[str, Any]


@dataclass(frozen=True)
class Planned(Event, kind="planned"):
    """The planned length of a training. total: steps; images: in the dataset; sentence: how the length follows from the settings."""

    total: int
    epochs: int
    steps_per_epoch: int
    images: int
    sentence: str = ""


@dataclass(frozen=True)
class Steps(Event, kind="steps"):
    """Losses and other measurements of the newest training steps.

    steps, losses   number and loss of each step
    rates           {part of the model: learning rate}
    corrected       each loss divided by the expected loss at its timesteps (core/training/loop/watching.py)
    grad_norm       of the newest step, before clipping
    weight_norm     of all trained weights; None unless measured
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
    """The forecast of a training's memory and duration, from a few of its steps (core/training/probe.py).

    peak_bytes         of VRAM, or of resident memory on a CPU
    device_bytes       total memory of the device
    seconds_per_step   by batch, the largest first: {"512x512, 4 images": 0.41}
    total_seconds      of all `total_steps`, without saving and samples
    """

    peak_bytes: int
    device_bytes: int
    seconds_per_step: dict[str, float]
    total_seconds: float
    total_steps: int


@dataclass(frozen=True)
class MemoryUsed(Event, kind="memory", urgent=True):
    """Peak memory of a training: VRAM of its GPU, or resident memory of its process on a CPU."""

    peak_bytes: int
    device: str


@dataclass(frozen=True)
class Validated(Event, kind="validated", urgent=True):
    """The loss on held-out images and on the same number of training images, at fixed timesteps with fixed noise.

    gap          loss - train_loss, which grows with overfitting; both None if not measured
    by_timestep  {timestep as text: loss}
    measured_on  "held_out", or "training" if no image is held out
    each         the loss of each (image, timestep), always in the same order; an even subset if there are thousands
    each_of      identifies the images and order of `each`: only measurements with equal values are comparable
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
    """Return {step: title} in order of step, for the samples of `steps`: "step 250", "base model", or a title of COMPARED.
    at_base: whether step 0 is the base model (`TrainJob.starts_at_base`); with COMPARED steps (a ControlNet) it is just step 0"""
    named = {CONTROL_IMAGE: "control image", WITHOUT_CONTROL: "without control"}
    sampled_steps = sorted(set(steps))
    if at_base and sampled_steps and sampled_steps[0] >= 0:
        named[0] = "base model"
    return {step: named.get(step, f"step {step:,}") for step in sampled_steps}


def prompt_rows(samples: Iterable[dict[str, Any]]) -> list[dict[int, dict[str, Any]]]:
    """Return {step: sample} in order of step for each prompt and its settings, which a resumed run may have changed; rows that begin
    earlier first. samples: of a run's snapshot"""
    rows: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for each in sorted(samples, key=lambda sample: (sample["step"], sample["index"])):
        rows.setdefault((each["prompt"], each.get("settings") or each["index"]), {})[each["step"]] = each
    return list(rows.values())


def newest_rows(samples: Iterable[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return {prompt: its row of `prompt_rows` that ends last}: images that differ by their step alone."""
    return {next(iter(row.values()))["prompt"]: row for row in sorted(prompt_rows(samples), key=max)}


@dataclass(frozen=True)
class Sampled(Event, kind="sample", urgent=True):
    """A sample was generated.

    step       0 is before training; negative steps are listed in COMPARED
    index      position of the prompt among the sample prompts
    file       relative to the run folder
    settings   `settings_digest` of the sample
    seconds    how long the generation took
    """

    step: int
    index: int
    prompt: str
    seed: int
    file: str
    settings: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Saved(Event, kind="saved", urgent=True):
    """A checkpoint was written. file: relative to the run folder; bytes: its size."""

    step: int
    file: str
    bytes: int


@dataclass(frozen=True)
class BackedUp(Event, kind="backed_up", urgent=True):
    """A training state was written after `step`."""

    step: int


@dataclass(frozen=True)
class LogMessage(Event, kind="log"):
    """A log message. level: "info", "warning" or "error"; fix, code: as in `Problem`."""

    level: str
    text: str
    fix: str = ""
    code: str = ""


@dataclass(frozen=True)
class ImageGenerated(Event, kind="image", urgent=True):
    """An image was generated with `seed`. file: its absolute path."""

    file: str
    seed: int
