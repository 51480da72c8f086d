"""Heat maps of values by layer: a map for each part of the model, rows by kind of layer, columns by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from core.tools.charts import heat_map
from core.tools.loras.layers import columns_of, place_of

Place = tuple[str, str, str]  # part, row, column


def root_of_squares(values: Sequence[float]) -> float:
    """The norm of several layers together: sqrt of the sum of squares."""
    return math.sqrt(sum(value * value for value in values))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def maps(
    title: str,
    numbers: Iterable[tuple[Place, float]],
    together: Callable[[Sequence[float]], float],
    notes: Mapping[Place, str] | None = None,
    **drawn: Any,
) -> list[dict[str, Any]]:
    """A heat map for each part. numbers: (cell, value) of each layer; together: combines several values of a cell."""
    cells: dict[str, dict[tuple[str, str], list[float]]] = {}
    for (part, row, column), value in numbers:
        cells.setdefault(part, {}).setdefault((row, column), []).append(value)
    found = []
    for part, held in sorted(cells.items(), key=lambda item: (item[0] != "U-Net", item[0])):
        rows = sorted({row for row, _ in held})
        columns = columns_of(part, {column for _, column in held})
        values = [
            [together(held[row, column]) if (row, column) in held else None for column in columns] for row in rows
        ]
        marked = {f"{row}|{column}": note for (each, row, column), note in (notes or {}).items() if each == part}
        found.append(heat_map(f"{title}: {part}", rows, columns, values, notes=marked, **drawn))
    return found


def layer_maps(title: str, numbers: Mapping[str, float], together: Any, **drawn: Any) -> list[dict[str, Any]]:
    """`maps` for {LoRA layer's name: value}."""
    return maps(title, ((place_of(name), value) for name, value in numbers.items()), together, **drawn)
