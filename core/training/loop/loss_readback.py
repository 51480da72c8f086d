"""Losses on the device, read back to the host several steps at once, so that no step waits for the transfer."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, ProblemsError
from core.record.units import first_of

if TYPE_CHECKING:
    from core.families.components import Components

EVENT_SECONDS = 0.3
MOST_WAITING = 10
MOST_OVERFLOWS = 50  # in a row; 16 halvings bring the initial scale, 65536, to 1: more are no matter of range


@dataclass(frozen=True)
class StepImage:
    """An image of a step.

    key        of the image, in the addresses of random numbers
    timestep   0 to 1000
    weight     factor that its loss includes
    """

    key: tuple[str, ...]
    timestep: float
    weight: float = 1.0


@dataclass(frozen=True)
class StepRecord:
    """Numbers of an optimizer step that are still on the device.

    loss, norm          0-d; norm: of the gradient, before clipping
    images, timesteps   names and timesteps of the step's images, for error messages
    step_images         the images of all processes
    by_image            losses of `step_images`, [B]
    weight_norm         of all trained weights, 0-d; None in most steps
    numbers             the method's numbers by logged name, 0-d
    """

    step: int
    loss: Tensor
    norm: Tensor
    images: list[str]
    timesteps: list[float]
    step_images: list[StepImage] = field(default_factory=list)
    by_image: Tensor | None = None
    weight_norm: Tensor | None = None
    numbers: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """Return all tensors as float32 [n], in the order in which `LossBuffer.read` reads the values."""
        tensors = [self.loss, self.norm, self.by_image, self.weight_norm, *self.numbers.values()]
        return [tensor.detach().float().reshape(-1) for tensor in tensors if tensor is not None]


@dataclass(frozen=True)
class ReadBack:
    """Numbers of finished steps, read back from the device. Lists have one entry for each finite step.

    norm          gradient norm of the newest step
    by_image      losses of `step_images`
    weight_norm   the newest norm of all trained weights; None if no step has one
    numbers       {logged name: norm or number of the method} of each step
    skipped       errors of the non-finite steps that were left out
    end           error of a non-finite step that ends the run
    """

    steps: list[int]
    losses: list[float]
    norm: float
    step_images: list[list[StepImage]] = field(default_factory=list)
    by_image: list[list[float]] = field(default_factory=list)
    weight_norm: float | None = None
    numbers: list[dict[str, float]] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)
    end: ProblemsError | None = None


DAMAGED_FIX = "download or copy the model again; if that does not help, use bf16 or fp32 instead of fp16"


class LossBuffer:
    """Collects StepRecords and reads them back a few times a second.

    scaled    losses are scaled (fp16), so single gradients may overflow
    allowed   number of non-finite steps that are skipped and reported; one more ends the run
    """

    def __init__(self, *, scaled: bool = False, allowed: int = 0):
        self._allowed = allowed
        self._waiting: list[StepRecord] = []
        self._last = time.monotonic()
        self._scaled = scaled
        self._overflows = 0

    def put(self, record: StepRecord) -> None:
        self._waiting.append(record)

    def read_if_due(self) -> ReadBack | None:
        """Call `read` if MOST_WAITING records or EVENT_SECONDS have accumulated; else return None."""
        if len(self._waiting) >= MOST_WAITING or time.monotonic() - self._last >= EVENT_SECONDS:
            return self.read()
        return None

    def forget(self) -> None:
        """Drop the records unread: only one of several processes reports."""
        self._waiting = []

    def read(self) -> ReadBack | None:
        """Wait for the device and read the collected records, up to a non-finite step that ends the run. None if there are no records."""
        self._last = time.monotonic()
        records, self._waiting = self._waiting, []
        if not records:
            return None
        values = iter(torch.cat([part for record in records for part in record.tensors()]).tolist())
        finite: list[StepRecord] = []
        skipped: list[Problem] = []
        end = None
        losses, by_image, weight_norm, numbers = [], [], None, []
        norm = 0.0
        for record in records:
            loss, gradient_norm = next(values), next(values)
            image_losses = [next(values) for _ in record.step_images]
            of_step = {"norm/gradient": gradient_norm}
            if record.weight_norm is not None:
                of_step["norm/weights"] = weight_norm = next(values)
            of_step |= {name: next(values) for name in record.numbers}
            # With scaled losses the scaler handles an infinite gradient: it skips the step and lowers the scale.
            self._overflows = 0 if math.isfinite(gradient_norm) else self._overflows + 1
            too_many = self._overflows > (MOST_OVERFLOWS if self._scaled else 0)
            if not math.isfinite(loss) or too_many:
                error = not_finite(record, "loss" if not math.isfinite(loss) else "gradient", image_losses)
                if self._allowed <= 0:
                    end = error
                    break
                self._allowed -= 1
                skipped += error.problems
                continue
            finite.append(record)
            losses.append(loss)
            by_image.append(image_losses)
            numbers.append(of_step)
            norm = gradient_norm
        steps, images = [record.step for record in finite], [record.step_images for record in finite]
        return ReadBack(steps, losses, norm, images, by_image, weight_norm, numbers, skipped, end)


def not_finite(record: StepRecord, what: str, losses: Sequence[float]) -> ProblemsError:
    """Return the error of a non-finite step, which names the images with a non-finite loss, or all images if there is none.

    what     "loss" or "gradient"
    losses   of the step's images
    """
    named_images = list(zip(record.images, record.timesteps, strict=True))
    broken = [each for each, loss in zip(named_images, losses, strict=False) if not math.isfinite(loss)] or named_images
    names = first_of([name for name, _ in broken], 8)
    steps = ", ".join(f"{timestep:g}" for _, timestep in broken[:8])
    return ProblemsError.one(
        f"The {what} of step {record.step} is NaN or infinite; the weights were not changed by this step",
        f"step {record.step}: {names} at timesteps {steps}",
        "lower the learning rate, use bf16 or fp32, or check these images; then resume from the last training state",
        code="training.not-finite",
    )


def damaged_weights(components: Components) -> ProblemsError | None:
    """Return the error of a base model with NaN or infinite weights; None if all are finite."""
    parts = [("U-Net", components.denoiser), *(("text encoder", each) for each in components.text_encoders)]
    for title, part in parts:
        weights = part.named_parameters() if part else ()
        names = [name for name, weight in weights if not (_is_packed(weight) or weight.float().isfinite().all())]
        if names:
            what = f"The {title} of the base model contains NaN or infinite values, such as in {names[0]}"
            return ProblemsError.one(what, str(components.source or ""), DAMAGED_FIX, code="model.not-finite")
    return None


def _is_packed(weight: Any) -> bool:
    """Return whether the tensor is a placeholder of one number for a packed frozen weight (core/networks/frozen.py)."""
    return weight.untyped_storage().nbytes() < weight.numel() * weight.element_size()
