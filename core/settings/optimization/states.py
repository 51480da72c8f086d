"""Memory of optimizer states, from optimizer_states.json, which `python -m workshop.optimizer_states` measures."""

import json
from collections.abc import Mapping
from functools import cache
from math import inf, prod
from pathlib import Path
from typing import Any

from core.settings.optimization.optimizer import OptimizerSettings, arguments_in_force
from core.settings.optimization.optimizers import Entry, find

FILE = Path(__file__).with_name("optimizer_states.json")
Shape = tuple[int, ...]
UNKNOWN: Mapping[str, list[float]] = {"matrix": [8.0]}  # Adam's two fp32 numbers for each weight
USUAL = (1280, 1280)  # the shape of weights whose shapes are not known
# Arguments that add an fp32 number of state to each weight where they are off by default.
OPTIONAL_STATES = ("momentum", "beta1", "amsgrad", "ams_bound", "centered")
LIMITS = ("max_precondition_dim", "max_size_triangular", "max_dim")  # sides above have no square of state


@cache
def measured_states() -> dict[str, dict[str, list[float]]]:
    """Return {optimizer's name: {shape class: bytes per unit of each of `terms`}}, as measured."""
    return {name: entry["state"] for entry in json.loads(FILE.read_text("utf-8")) for name in entry["names"]}


def shape_class(shape: Shape) -> str:
    """Return the class of a weight's shape: "vector", "matrix", "pointwise" (1x1 convolution) or "convolution"."""
    if len(shape) < 3:
        return "matrix" if len(shape) == 2 else "vector"
    return "convolution" if prod(shape[2:]) > 1 else "pointwise"


def terms(shape: Shape, limit: float = inf, block: float = inf) -> tuple[float, ...]:
    """Return the quantities that a weight's optimizer state can grow with: (elements, rows, columns, rows squared, columns squared), for a
    vector (n, n squared).

    limit  squares of longer sides are 0, since optimizers keep no square preconditioner for them
    block  the square of a side is at most side x block
    """
    sides = tuple(float(side) for side in shape[:2]) if len(shape) > 1 else (float(prod(shape)),)
    squares = tuple(side * min(side, block) if side <= limit else 0.0 for side in sides)
    return (float(prod(shape)), *(sides if len(sides) > 1 else ()), *squares)


def state_bytes(settings: OptimizerSettings, shapes: Mapping[Shape, float]) -> float:
    """Return the size of the optimizer state in bytes. shapes: {shape: number of weights with it}

    Unmeasured optimizers count as Adam; those of bitsandbytes that need a GPU count as their counterpart.
    """
    entry = find(settings.optimizer_type)
    arguments = {} if entry is None else arguments_in_force(settings, entry)
    state = _state(entry)
    optional = sum(
        bool(arguments.get(name)) and not entry.arguments[name].default
        for name in OPTIONAL_STATES
        if entry is not None and name in entry.arguments and name not in entry.implied
    )
    return sum(count * _weight_state_bytes(shape, state, entry, arguments, optional) for shape, count in shapes.items())


def _weight_state_bytes(
    shape: Shape, state: Mapping[str, list[float]], entry: Entry | None, arguments: Mapping[str, Any], optional: int
) -> float:
    """Return the bytes of optimizer state of one weight.

    state     {shape class: bytes per unit of each of `terms`}
    optional  number of optional states that the arguments turn on, such as momentum
    """

    def argument(name: str) -> float | None:
        """Return the numeric value of an optimizer argument, by default the optimizer's; None for others."""
        known = None if entry is None else entry.arguments.get(name)
        value = arguments.get(name, known.default if known else None)
        return float(value) if isinstance(value, (int, float)) else None  # other values are reported by the rules

    limit = next((value for name in LIMITS if (value := argument(name)) is not None), inf)
    sizes = terms(shape, limit, argument("block_size") or argument("rank") or inf)
    small = "small" in state and prod(shape) < (argument("min_8bit_size") or 4096)
    factors = state["small"] if small else state.get(shape_class(shape), state["matrix"])
    added = optional * (1 if "small" in state and not small else 4)
    return sum(size * factor for size, factor in zip(sizes, factors, strict=False)) + added * sizes[0]


def _state(entry: Entry | None) -> Mapping[str, list[float]]:
    """Return {shape class: bytes per unit of each of `terms`} of an optimizer or its counterpart; Adam's if neither is measured."""
    if entry is None:
        return UNKNOWN
    counterpart = entry.name.replace("Paged", "").replace("32bit", "")
    return measured_states().get(entry.name) or measured_states().get(counterpart) or UNKNOWN
