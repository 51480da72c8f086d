"""torch's learning rate schedulers, run on a dummy optimizer and stored as lists of numbers."""

import importlib
import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from core.record.problems import ProblemsError, raise_any
from core.settings.optimization.torch_curves import PREFIX, offered, type_problems

MOMENTUM = ("CyclicLR", "OneCycleLR")  # these also change it, opposite to the rate, unless cycle_momentum is false


def simulated(name: str, arguments: Mapping[str, Any], step: int, total: int, base_rate: float) -> float:
    """Return the factor of a group's learning rate at step `step`, counted from 0.

    name, arguments   of torch's scheduler
    total             steps of the run
    base_rate         the group's learning rate
    """
    factors, _ = _run(name, json.dumps(arguments, sort_keys=True), total, base_rate)
    return factors[min(step, len(factors) - 1)]


def simulated_momentum(
    name: str, arguments: Mapping[str, Any], step: int, total: int, base_rate: float
) -> float | None:
    """Return the momentum, or first beta, that torch's scheduler sets at this step; None if it sets none. Arguments: see `simulated`."""
    if _bare(name) not in MOMENTUM or not arguments.get("cycle_momentum", True):
        return None
    _, momenta = _run(name, json.dumps(arguments, sort_keys=True), total, base_rate)
    return momenta[min(step, len(momenta) - 1)]


def _bare(name: str) -> str:
    """Return the class name of a scheduler in torch.optim.lr_scheduler, or the dotted name of another class."""
    return name.strip().removeprefix(PREFIX)


@lru_cache(maxsize=32)
def _run(name: str, arguments: str, total: int, base_rate: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (rates relative to the base rate, momenta), one of each per step, from one run of torch's scheduler. Raises ProblemsError for
    invalid arguments.
    arguments: of the scheduler, as JSON"""
    import torch

    keyword_arguments = json.loads(arguments)
    raise_any(type_problems(name, keyword_arguments))
    bare = _bare(name)
    path = PREFIX + bare if bare in offered() else name.strip()
    module, _, attribute = path.rpartition(".")
    rate = base_rate or 1.0
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=rate, momentum=0.9)
    rates, momenta = [], []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            schedule = getattr(importlib.import_module(module), attribute)(optimizer, **keyword_arguments)
            for _ in range(max(1, total)):
                rates.append(float(optimizer.param_groups[0]["lr"]))
                momenta.append(float(optimizer.param_groups[0]["momentum"]))
                optimizer.step()
                if len(rates) < total:
                    schedule.step()
    except Exception as error:  # the library's own check of its arguments
        what = f"{bare} cannot be created: {error}"
        fix = f"correct the argument it names; the schedule has {max(1, total)} steps"
        raise ProblemsError.one(what, "schedule.lr_scheduler_args", fix, "schedule.refused") from error
    return tuple(value / rate for value in rates), tuple(momenta)
