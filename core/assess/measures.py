"""The measures, a row each; a new measure is a file next to this one and a row here. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2)


@dataclass(frozen=True)
class Measure:
    """A measure, computed by the module of the same name.

    The module has `measure(bench, subject) -> data`, of a `Bench` and the `Subject` of a checkpoint (bench.py), or
    `recorded(target, checkpoint) -> data`, and `sentence(data)`. Optional:
    `brief(data)`, the text in a table (default: data["value"]); `warning(data)`, a clause to read before choosing the checkpoint,
    or ""; `remark(data of all checkpoints)`, a sentence about all of them, or "".

    meaning    what a high or low value means
    reads      (set of predictions, strength of the LoRA) that the module uses; computed once for all measures
    images     whether generated images are needed
    kinds      the values of `Target.kind` that the measure applies to, separated by spaces: "network", "model", "embedding"
    more       predictions for each image of a set beyond `reads`
    recorded   whether the training measured it: then no model is loaded, and it applies to every method
    """

    name: str
    title: str
    meaning: str
    reads: Sequence[tuple[str, float]] = ()
    images: bool = False
    kinds: str = "network model embedding"
    more: int = 0
    recorded: bool = False

    def call(self, name: str, *args: Any) -> Any:
        """Call the function `name` ("measure", "recorded", "brief", "sentence", "warning" ...) of the measure's module with `args` and
        return its result; "" if the module has none."""
        function = getattr(import_module(f"core.assess.{self.name}"), name, {"brief": _value}.get(name))
        return function(*args) if function else ""

    def text(self, name: str, data: Mapping[str, Any]) -> str:
        """Return the text `name` ("brief", "sentence" or "warning") for measured data, or for {"why": reason, "warning": clause or missing}
        if it was not measured."""
        if "why" in data:
            return {"brief": "-", "sentence": f"Not measured: {data['why']}."}.get(name, str(data.get(name, "")))
        return str(self.call(name, data))


def _value(data: Mapping[str, Any]) -> str:
    """Return data["value"] with 2 decimals: the default text in a table."""
    return f"{data['value']:.2f}"


_INSIDE, _OUTSIDE, _PLAIN = ("inside", 1.0), ("outside", 1.0), ("plain", 1.0)
_EACH = [(name, strength) for strength in STRENGTHS for name in ("fit", "outside")]
_ROWS = (
    Measure(
        "loss",
        "Held-out loss",
        "How well it denoises images that it was not trained on; lower is better.",
        recorded=True,
    ),
    Measure(
        "fit",
        "Fit to the training images",
        "Below 1 it fits them better than the base model; 1 or more: the training failed.",
        [_INSIDE],
        kinds="network model",
    ),
    Measure(
        "copies",
        "Near-copies",
        "Distance of its images to the nearest training image; a near-copy is marked.",
        images=True,
    ),
    Measure(
        "drift",
        "Drift of the base",
        "Near 0 keeps other prompts, 1 changes all alike.",
        [_INSIDE, _OUTSIDE],
        kinds="network model",
    ),
    Measure(
        "blocks",
        "Drift by block",
        "The part of the LoRA, by its name in block weights, that its change of other prompts needs most, with the share.",
        [_INSIDE, _OUTSIDE],
        kinds="network",
        more=12,  # six parts, two sets
    ),
    Measure("trigger", "Trigger word", "1: the word does nothing.", [_INSIDE, _PLAIN], kinds="network model"),
    Measure("diversity", "Diversity over seeds", "Near 0: every seed gives the same image.", images=True),
    Measure("strength", "Best strength", "The lowest within noise of the lowest loss.", _EACH, kinds="network"),
    Measure("rank", "Used rank", "Directions that hold the change, and what resizing loses.", kinds="network"),
)
MEASURES = {row.name: row for row in _ROWS}
