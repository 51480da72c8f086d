"""Losses stay on the device and are read back together, so that no step waits for the host."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from torch import Tensor

    from core.families.components import Components

EVENT_SECONDS = 0.3
MOST_WAITING = 10
MOST_OVERFLOWS = 50  # 16 halvings bring the scaler's first factor, 65536, to 1: many more are no matter of range


@dataclass(frozen=True)
class Seen:
    """One image of one step. key: its address; weight: what its loss counts, which is taken out again here."""

    key: tuple[str, ...]
    timestep: float
    weight: float = 1.0


@dataclass(frozen=True)
class StepRecord:
    """What a step leaves until it is read back. loss, norm: 0-d on the device; images, timesteps: to name a culprit.

    seen         its images, of all processes       by_image  their losses, [B] on the device
    weight_norm  of all that trains, 0-d; only now and then
    numbers      of the method's own, by the name they are logged under, 0-d each
    """

    step: int
    loss: Tensor
    norm: Tensor
    images: list[str]
    timesteps: list[float]
    seen: list[Seen] = field(default_factory=list)
    by_image: Tensor | None = None
    weight_norm: Tensor | None = None
    numbers: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """Everything on the device as float32 [n], in the order `LossBuffer.read` takes it apart."""
        own = [self.loss, self.norm, self.by_image, self.weight_norm, *self.numbers.values()]
        return [tensor.detach().float().reshape(-1) for tensor in own if tensor is not None]


@dataclass(frozen=True)
class ReadBack:
    """Steps whose numbers have arrived. norm, weight_norm, numbers: the newest. skipped: those that were not finite.
    end: one more that was not, which ends the run."""

    steps: list[int]
    losses: list[float]
    norm: float
    seen: list[list[Seen]] = field(default_factory=list)
    by_image: list[list[float]] = field(default_factory=list)
    weight_norm: float | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    skipped: list[Problem] = field(default_factory=list)
    end: ProblemsError | None = None


DAMAGED_FIX = "download or copy the model again; if that does not help, use bf16 or fp32 instead of fp16"


class LossBuffer:
    """Collects StepRecords; `read_if_due` hands out finished numbers a few times a second.

    allowed   steps that may be not finite; they change no weight and are reported by name
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
        if len(self._waiting) >= MOST_WAITING or time.monotonic() - self._last >= EVENT_SECONDS:
            return self.read()
        return None

    def forget(self) -> None:
        """Drop what waits, unread: only one of several processes reports."""
        self._waiting = []

    def read(self) -> ReadBack | None:
        """Wait for the device and read everything, up to the first step that was not finite and may not be."""
        import torch

        self._last = time.monotonic()
        records, self._waiting = self._waiting, []
        if not records:
            return None
        numbers = iter(torch.cat([part for record in records for part in record.tensors()]).tolist())
        good: list[StepRecord] = []
        skipped: list[Problem] = []
        end = None
        losses, by_image, weight_norm, own = [], [], None, {}
        norm = 0.0
        for record in records:
            loss, length = next(numbers), next(numbers)
            each = [next(numbers) for _ in record.seen]
            weight_norm = next(numbers) if record.weight_norm is not None else weight_norm
            own = {name: next(numbers) for name in record.numbers}
            # With scaled losses an infinite gradient is the scaler's business: it skips the step and scales less.
            self._overflows = 0 if math.isfinite(length) else self._overflows + 1
            too_many = self._overflows > (MOST_OVERFLOWS if self._scaled else 0)
            if not math.isfinite(loss) or too_many:
                error = not_finite(record, "loss" if not math.isfinite(loss) else "gradient", each)
                if self._allowed <= 0:
                    end = error
                    break
                self._allowed -= 1
                skipped += error.problems
                continue
            good.append(record)
            losses.append(loss)
            by_image.append(each)
            norm = length
        steps, seen = [record.step for record in good], [record.seen for record in good]
        return ReadBack(steps, losses, norm, seen, by_image, weight_norm, own, skipped, end)


def not_finite(record: StepRecord, what: str, losses: Sequence[float]) -> ProblemsError:
    """losses: of its images; those that are not finite are named, else all."""
    named = list(zip(record.images, record.timesteps, strict=True))
    broken = [each for each, loss in zip(named, losses, strict=False) if not math.isfinite(loss)] or named
    names = ", ".join(name for name, _ in broken[:8]) + (" and more" if len(broken) > 8 else "")
    steps = ", ".join(f"{timestep:g}" for _, timestep in broken[:8])
    return ProblemsError.one(
        f"The {what} of step {record.step} is NaN or infinite; the weights were not changed by this step",
        f"step {record.step}: {names} at timesteps {steps}",
        "lower the learning rate, use bf16 or fp32, or check these images; then resume from the last training state",
        code="training.not-finite",
    )


def not_finite_itself(components: Components) -> ProblemsError | None:
    """The problem with a base model whose own weights are not finite, since then no step can be finite."""
    parts = [("U-Net", components.denoiser), *(("text encoder", each) for each in components.text_encoders)]
    for title, part in parts:
        weights = part.named_parameters() if part else ()
        names = [name for name, weight in weights if not (_is_elsewhere(weight) or weight.float().isfinite().all())]
        if names:
            what = f"The {title} of the base model contains NaN or infinite values, such as in {names[0]}"
            return ProblemsError.one(what, str(components.source or ""), DAMAGED_FIX, code="model.not-finite")
    return None


def _is_elsewhere(weight: Any) -> bool:
    """Whether one number stands for all: a frozen weight that is packed for the layer (core/networks/frozen.py)."""
    return weight.untyped_storage().nbytes() < weight.numel() * weight.element_size()
