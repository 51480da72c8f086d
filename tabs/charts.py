"""Series for the charts: small, rounded, and the same bytes as long as nothing is new."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

FIGURES = 5


def rounded(value: Any) -> float | None:
    """Five figures; None for what cannot be drawn."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f"{value:.{FIGURES}g}")


def loss_series(points: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """[[step, raw, smooth], ...] as columns."""
    return {
        "steps": [int(point[0]) for point in points],
        "raw": [rounded(point[1]) for point in points],
        "smooth": [rounded(point[2]) for point in points],
    }


def rate_series(points: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """[[step, {"unet": 1e-4, ...}], ...] as columns; groups with the same rates throughout share one line."""
    names = list(dict.fromkeys(name for _, rates in points for name in rates))
    columns = {name: [rounded(rates.get(name)) for _, rates in points] for name in names}
    lines: dict[tuple, list[str]] = {}
    for name, values in columns.items():
        lines.setdefault(tuple(values), []).append(name)
    return {
        "steps": [int(point[0]) for point in points],
        "lines": [
            {"name": " and ".join(_words(name) for name in same), "values": list(values)}
            for values, same in lines.items()
        ],
    }


def _words(name: str) -> str:
    return {"unet": "U-Net", "text_encoder": "text encoder"}.get(name, name.replace("_", " "))
