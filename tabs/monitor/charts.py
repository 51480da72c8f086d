"""Series for the charts, rounded so that they are small and change only with new values."""

import math
from collections.abc import Sequence
from typing import Any

FIGURES = 5


def rounded(value: Any) -> float | None:
    """Return the value rounded to five significant digits; None if it is not a finite number."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f"{value:.{FIGURES}g}")


def loss_series(points: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """Return {"steps", "raw", "smooth"}: the columns of [[step, raw, smooth], ...]."""
    return {
        "steps": [int(point[0]) for point in points],
        "raw": [rounded(point[1]) for point in points],
        "smooth": [rounded(point[2]) for point in points],
    }


def rate_series(points: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return {"steps", "lines": [{"name", "values"}]} of [[step, {"unet": 1e-4, ...}], ...].

    Parameter groups with equal rates share a line.
    """
    names = list(dict.fromkeys(name for _, rates in points for name in rates))
    columns = {name: [rounded(rates.get(name)) for _, rates in points] for name in names}
    lines: dict[tuple, list[str]] = {}
    for name, values in columns.items():
        lines.setdefault(tuple(values), []).append(name)
    return {
        "steps": [int(point[0]) for point in points],
        "lines": [
            {"name": " and ".join(_series_name(name) for name in group), "values": list(values)}
            for values, group in lines.items()
        ],
    }


def validation_points(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return columns of validations ("validated" events): {"steps", "loss", "train": training loss, "gap": between both, "effect": of a
    ControlNet, "images", "on": number and kind of images of the newest validation}."""
    newest = points[-1] if points else {}
    return {
        "steps": [int(point["step"]) for point in points],
        "loss": [rounded(point["loss"]) for point in points],
        "train": [rounded(point["train_loss"]) for point in points],
        "gap": [rounded(point["gap"]) for point in points],
        "effect": [rounded(point.get("effect")) for point in points],
        "images": newest.get("images", 0),
        "on": newest.get("measured_on", "held_out"),
    }


def value_series(points: Sequence[Sequence[Any]], index: int = 1) -> dict[str, list[Any]]:
    """Return {"steps", "values"} of [[step, value, ...], ...] with the value at `index`; points without a value are left out."""
    pairs = [(int(point[0]), value) for point in points if (value := rounded(point[index])) is not None]
    return {"steps": [step for step, _ in pairs], "values": [value for _, value in pairs]}


def _series_name(name: str) -> str:
    """Return the display name of a parameter group."""
    text = (
        name.replace("text_encoder_2", "second text encoder")
        .replace("unet", "U-Net")
        .replace("controlnet", "control layers")
    )
    return text.replace("_", " ")
