"""Held-out loss: the validation loss that the training measured at each checkpoint, and its paired difference to the lowest."""

from collections.abc import Mapping
from typing import Any

from core.assess.statistics import Interval, NotMeasured, mean_of
from core.assess.target import Checkpoint, Target
from core.record.best import BestTracker
from core.record.file_titles import is_average
from core.record.journal import read_lines
from core.record.units import loss_text


def recorded(target: Target, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return `loss_of` for the checkpoint's step from the run's journal. Raises NotMeasured, also for an average of checkpoints."""
    if is_average(checkpoint.path.name):
        raise NotMeasured("the training did not measure averages")
    tracker = BestTracker()
    for line in read_lines(target.run.journal_file):
        tracker.take(line)
    return loss_of({line["step"]: line for line in tracker.measured}, checkpoint.step)


def loss_of(lines: Mapping[int, Mapping[str, Any]], step: int) -> dict[str, Any]:
    """Return the held-out loss at `step`: {loss, images, step, lowest: step with the lowest loss, above}. Raises NotMeasured.

    above   `Interval` data of the paired difference to the lowest loss; missing at that step, or if other images were measured
    lines   "validated" journal events by step
    """
    lines = {at: line for at, line in lines.items() if line.get("measured_on", "held_out") == "held_out"}
    if step not in lines:
        raise NotMeasured("the training did not measure this step" if lines else "no images were held out")
    line, lowest = lines[step], min(lines.values(), key=lambda each: (each["loss"], each["step"]))
    data = {"loss": line["loss"], "images": line["images"], "lowest": lowest["step"], "step": step}
    each, others = line.get("each") or (), lowest.get("each") or ()
    if line is not lowest and line.get("each_of") == lowest.get("each_of") and len(each) == len(others) > 0:
        data["above"] = mean_of([loss - other for loss, other in zip(each, others, strict=True)]).data
    return data


def brief(data: Mapping[str, Any]) -> str:
    """Return the held-out loss for a table cell."""
    return loss_text(data["loss"])


def sentence(data: Mapping[str, Any]) -> str:
    """Return the report's sentence for data of `recorded`: the loss and its distance to the lowest."""
    text = f"{loss_text(data['loss'])} on {data['images']} held-out images"
    if data["step"] == data["lowest"]:
        return f"{text}, the lowest."
    if "above" not in data:
        return f"{text}; step {data['lowest']:,} has the lowest."
    above = Interval.of(data["above"])
    text = f"{text}: {above.value:.4f} above step {data['lowest']:,}"
    if above.low is None:
        return f"{text}."
    return f"{text} ({above.low:.4f} to {above.high:.4f}){'' if above.low > 0 else ', within noise'}."
