"""Held-out loss: what the training measured at each checkpoint, with the paired difference to the lowest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.assess.statistics import Interval, mean_of
from core.record.journal import Line, read_lines

if TYPE_CHECKING:
    from core.assess.bench import Bench, Subject


def measure(bench: Bench, subject: Subject) -> dict[str, Any]:
    assert subject.checkpoint is not None
    lines = {line["step"]: line for line in read_lines(bench.target.run.journal_file) if line["kind"] == "validated"}
    return loss_of(lines, subject.checkpoint.step)


def loss_of(lines: Mapping[int, Line], step: int) -> dict[str, Any]:
    """The loss at a step. lines: "validated" events by step"""
    held_out = {at: line for at, line in lines.items() if line.get("measured_on", "held_out") == "held_out"}
    if step not in held_out:
        return {"why": "no held-out images were measured" if not held_out else "the training did not measure this step"}
    line, lowest = held_out[step], min(held_out.values(), key=lambda each: (each["loss"], each["step"]))
    data = {"step": step, "loss": line["loss"], "images": line["images"], "lowest": lowest["step"]}
    pairs = line.get("each") or (), lowest.get("each") or ()
    if step != lowest["step"] and line.get("each_of") == lowest.get("each_of") and len(pairs[0]) == len(pairs[1]) > 0:
        data["above"] = mean_of([one - other for one, other in zip(*pairs, strict=True)]).to_dict()
    return data


def brief(data: Mapping[str, Any]) -> str:
    return f"{data['loss']:.4f}"


def sentence(data: Mapping[str, Any]) -> str:
    what = f"{data['loss']:.4f} on {data['images']} held-out images"
    if "above" not in data:
        return (
            f"{what}, the lowest."
            if data["lowest"] == data["step"]
            else f"{what}; step {data['lowest']:,} has the lowest."
        )
    above = Interval.of(data["above"])
    if above.low is None or above.high is None:
        return f"{what}, {above.value:.4f} above step {data['lowest']:,}."
    noise = "clearly" if above.low > 0 else "within noise"
    return f"{what}, {above.value:.4f} ({above.low:.4f} to {above.high:.4f}) above step {data['lowest']:,}: {noise}."


def warning(data: Mapping[str, Any]) -> str:
    return ""
