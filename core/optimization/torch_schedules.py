"""torch's learning-rate schedules, run beside the training on an optimizer of nothing and kept as a list of numbers."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from core.record.problems import ProblemsError
from core.settings.torch_curves import PREFIX, offered, type_problems


def simulated(name: str, arguments: Mapping[str, Any], step: int, total: int, base_rate: float) -> float:
    """The multiplier at this step of a group with this rate."""
    factors = _factors(name, json.dumps(arguments, sort_keys=True), total, base_rate)
    return factors[min(step, len(factors) - 1)]


@lru_cache(maxsize=32)
def _factors(name: str, arguments: str, total: int, base_rate: float) -> tuple[float, ...]:
    """The rate of every step over the base rate, by running the schedule once."""
    import torch

    given = json.loads(arguments)
    problems = type_problems(name, given)
    if problems:
        raise ProblemsError(problems)
    bare = name.strip().removeprefix(PREFIX)
    path = PREFIX + bare if bare in offered() else name.strip()
    module, _, attribute = path.rpartition(".")
    rate = base_rate or 1.0
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=rate)
    if bare in ("CyclicLR", "OneCycleLR"):
        given.setdefault("cycle_momentum", False)  # of the nothing that it steps: only the rate is taken
    rates = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule = getattr(importlib.import_module(module), attribute)(optimizer, **given)
            for _ in range(max(1, total)):
                rates.append(float(optimizer.param_groups[0]["lr"]))
                optimizer.step()
                if len(rates) < total:
                    schedule.step()
    except Exception as error:  # the library's own check of its arguments
        raise ProblemsError.one(
            f"{bare} cannot be set up: {error}", "schedule.lr_scheduler_args", "correct the argument it names"
        ) from error
    return tuple(value / rate for value in rates)
