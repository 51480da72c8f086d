"""Learning-rate curves as pure functions of the step: nothing to save, nothing to resume.

The values are those of sd-scripts (transformers' schedules): the first optimizer step is tick 0, so under any warm-up
its rate is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim import Optimizer

# after the warm-up: part of the way from its end to the last step, 0..1 -> multiplier
CURVES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
    "linear": lambda done: 1.0 - done,
}


def multiplier(name: str, step: int, warmup: int, total: int) -> float:
    """What every group's own rate is multiplied by at optimizer step `step` (the first is 0), 0 to 1.

    warmup    steps over which the multiplier rises from 0 to 1
    total     steps of the whole run, warm-up included; later steps keep the curve's end
    """
    if step < warmup:
        return step / warmup
    done = (step - warmup) / max(1, total - warmup)
    return CURVES[name](min(1.0, done))


def set_learning_rates(optimizer: Optimizer, factor: float) -> list[float]:
    """Put `factor` times its own rate (`initial_lr`) in force for each group; returns the rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return [group["lr"] for group in optimizer.param_groups]
