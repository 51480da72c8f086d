"""Best strength of a LoRA: the lowest whose loss is within noise of the lowest loss, and the drift of the base model at each strength."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from core.assess.measures import STRENGTHS
from core.record.best import clearly_lower


def measure(bench: Any, subject: Any) -> dict[str, Any]:
    """Return `strength_of` for STRENGTHS, with "on": the set whose loss was measured ("held_out" or "inside")."""
    losses = {strength: bench.losses(subject, "fit", strength) for strength in STRENGTHS}
    drift = [fmean(bench.changes(subject, "outside", strength)) for strength in STRENGTHS]
    return strength_of(bench.losses(bench.base, "fit"), losses, drift) | {"on": bench.target.set_named("fit")}


def strength_of(
    base_losses: Sequence[float], losses: Mapping[float, Sequence[float]], drift: Sequence[float]
) -> dict[str, Any]:
    """Choose the strength by loss.

    Returns {best: the lowest strength within noise of the lowest loss, None if that is not clearly below the base model's; lowest:
    strength with the lowest loss; most: the highest strength within noise; rows: [[strength, share of the base loss removed,
    drift]]}.

    base_losses   losses of the base model
    losses        {strength: losses}, in the order of `base_losses`
    drift         mean relative change of the predictions for other prompts at each strength
    """
    lowest = min(losses, key=lambda strength: (fmean(losses[strength]), strength))
    as_good = [
        s for s in sorted(losses) if s == lowest or not clearly_lower(losses[lowest], losses[s], len(losses) - 1)
    ]
    best = as_good[0]
    rows = [
        [s, round(1 - fmean(losses[s]) / fmean(base_losses), 4), round(change, 4)]
        for s, change in zip(losses, drift, strict=True)
    ]
    return {
        "best": best if clearly_lower(losses[best], base_losses) else None,
        "lowest": lowest,
        "most": as_good[-1],
        "rows": rows,
    }


def brief(data: Mapping[str, Any]) -> str:
    """Return the best strength, or "none", for a table cell."""
    return "none" if data["best"] is None else f"{data['best']:g}"


def sentence(data: Mapping[str, Any]) -> str:
    """Return the report's sentence for data of `measure`: the best strength with its gain and drift."""
    on, last = "held-out" if data["on"] == "held_out" else "training", data["rows"][-1]
    if data["best"] is None:
        return f"No strength has a clearly lower loss on {on} images than the base model."
    _, gain, drift = next(row for row in data["rows"] if row[0] == data["best"])
    text = f"Strength {data['best']:g} lowers the loss on {on} images by {gain:.1%} and changes other prompts by {drift:.1%}"
    most = data.get("most", data["best"])  # assessments before 0.4.20 have none
    text += f"; up to {most:g} cannot be told apart by it" if most > data["best"] else ""
    return f"{text}." if last[0] == data["best"] else f"{text}; {last[0]:g} by {last[1]:.1%} and {last[2]:.1%}."


def warning(data: Mapping[str, Any]) -> str:
    """Return the warning if no strength is clearly better than the base model on held-out images; otherwise ""."""
    held_out = data["on"] == "held_out"
    return "is no better than the base model on held-out images" if data["best"] is None and held_out else ""
