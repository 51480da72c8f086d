"""Best strength: the lowest whose loss is within noise of the lowest loss, and how far the base model drifts at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from core.assess.measures import STRENGTHS
from core.record.best import clearly_lower

if TYPE_CHECKING:
    from core.assess.bench import Bench, Subject


def measure(bench: Bench, subject: Subject) -> dict[str, Any]:
    from core.assess.bench import relative_change

    name, targets = bench.target.set_named("fit"), subject.targets("fit")

    def losses(predictions: Any) -> list[float]:
        return [float(each) for each in (predictions - targets).square().flatten(1).mean(dim=1)]

    each = {strength: losses(subject.predicted("fit", strength)) for strength in STRENGTHS}
    outside = bench.base["outside"]
    drift = [fmean(relative_change(subject.predicted("outside", strength), outside)) for strength in STRENGTHS]
    return strength_of(losses(bench.base[name]), each, drift) | {"on": name}


def strength_of(base: Sequence[float], each: Mapping[float, Sequence[float]], drift: Sequence[float]) -> dict[str, Any]:
    """The strength to use. base: losses of the base model; each: losses at each strength, paired; drift: at each strength

    best   None where no strength has a clearly lower loss than the base model
    """
    lowest = min(each, key=lambda strength: (fmean(each[strength]), strength))
    compared = len(each) - 1
    best = next(
        strength
        for strength in sorted(each)
        if strength >= lowest or not clearly_lower(each[lowest], each[strength], compared)
    )
    gains = [1 - fmean(losses) / fmean(base) for losses in each.values()]
    if not clearly_lower(each[best], base):
        best = None
    rows = [
        [strength, round(gain, 4), round(moved, 4)] for strength, gain, moved in zip(each, gains, drift, strict=True)
    ]
    return {"best": best, "lowest": lowest, "rows": rows}


def brief(data: Mapping[str, Any]) -> str:
    return "none" if data["best"] is None else f"{data['best']:g}"


def sentence(data: Mapping[str, Any]) -> str:
    rows = {row[0]: row[1:] for row in data["rows"]}
    on = "held-out" if data["on"] == "held_out" else "training"
    if data["best"] is None:
        return f"No strength has a clearly lower loss on {on} images than the base model."
    gain, drift = rows[data["best"]]
    effect = f"the loss on {on} images is {gain:.1%} below the base model's, and other prompts change by {drift:.0%}"
    parts = [f"Strength {data['best']:g} is enough: {effect}"]
    above = [strength for strength in rows if strength > data["best"]]
    if above:
        parts.append(f"at {above[-1]:g} {rows[above[-1]][0]:.1%} and {rows[above[-1]][1]:.0%}")
    return "; ".join(parts) + "."


def warning(data: Mapping[str, Any]) -> str:
    return (
        "is no better than the base model on held-out images"
        if data["best"] is None and data["on"] == "held_out"
        else ""
    )
