"""The measures, a row each: a new one is a file next to this one and a row here. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2)


@dataclass(frozen=True)
class Measure:
    """A measure. Its module, of its name, has `measure(bench, subject) -> data`, `brief(data)` for a table, `sentence(data)`, and if
    it warns `warning(data)`: a clause on what to know before choosing the checkpoint, or "".

    meaning   what a high or low value means
    reads     (set of predictions, strength of the LoRA), shared with other measures      images   it needs generated images
    kinds     of what trained that it applies to (`Target.kind`): "network", "model", "embedding"
    """

    name: str
    title: str
    meaning: str
    reads: Sequence[tuple[str, float]] = ()
    images: bool = False
    kinds: str = "network model embedding"

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of its module; "" if it has none of this name."""
        function = getattr(import_module(f"core.assess.{self.name}"), name, None)
        return function(*args) if function else ""

    def words(self, name: str, data: Mapping[str, Any]) -> str:
        """`brief`, `sentence` or `warning` of measured data, or of the reason why there is none."""
        if "why" in data:
            return {"brief": "-", "sentence": f"Not measured: {data['why']}."}.get(name, "")
        return str(self.call(name, data))


_ROWS = (
    Measure("loss", "Held-out loss", "How well it denoises images that it was not trained on; lower is better."),
    Measure(
        "copies",
        "Near-copies",
        "Distance of its images to the nearest training image, and below which it is one.",
        images=True,
    ),
    Measure(
        "drift",
        "Drift of the base model",
        "Change of predictions for other prompts as a multiple of that for the dataset's; near 0 keeps the base model.",
        [("inside", 1.0), ("outside", 1.0)],
        kinds="network model",
    ),
    Measure(
        "trigger",
        "Trigger word",
        "Share of the effect that is there without the trigger word; low means that the word switches it on.",
        [("inside", 1.0), ("plain", 1.0)],
        kinds="network model",
    ),
    Measure(
        "diversity",
        "Diversity over seeds",
        "Difference of images of one prompt as a multiple of the base model's; low means that seeds change little.",
        images=True,
    ),
    Measure(
        "strength",
        "Best strength",
        "The lowest strength whose loss is within noise of the lowest; above it the base model drifts for nothing.",
        [(name, strength) for strength in STRENGTHS for name in ("fit", "outside")],
        kinds="network",
    ),
    Measure("rank", "Used rank", "Directions that hold 90% of the change, and what resizing loses.", kinds="network"),
)
MEASURES = {row.name: row for row in _ROWS}
