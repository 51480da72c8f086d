"""The measures, a row each: a new one is a file next to this one and a row here. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.assess.bench import Bench, Subject

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2)
Reads = tuple[str, float]  # a set of predictions ("inside", "plain", "fit", "outside") and the strength of the LoRA


@dataclass(frozen=True)
class Measure:
    """A measure; its module has `measure(bench, subject) -> data`, `brief(data) -> str` for a table, `sentence(data) -> str` and
    `warning(data) -> str`, a clause on what the user should know before choosing the checkpoint, "" for nothing.

    meaning    what a high or low value means
    reads      the predictions that it compares, which the measures share; empty: it needs no model and no dataset
    images     whether it needs generated images
    methods    the kinds of change that it applies to: "network", "model", "embedding"
    """

    name: str
    title: str
    meaning: str
    reads: Sequence[Reads] = ()
    images: bool = False
    methods: Sequence[str] = ("network", "model", "embedding")

    @property
    def of_dataset(self) -> bool:
        return bool(self.reads) or self.images

    def measure(self, bench: Bench, subject: Subject) -> dict[str, Any]:
        found: dict[str, Any] = self._module.measure(bench, subject)
        return found

    def brief(self, data: Mapping[str, Any]) -> str:
        return "-" if "why" in data else str(self._module.brief(data))

    def sentence(self, data: Mapping[str, Any]) -> str:
        return f"Not measured: {data['why']}." if "why" in data else str(self._module.sentence(data))

    def warning(self, data: Mapping[str, Any]) -> str:
        return "" if "why" in data else str(self._module.warning(data))

    @property
    def _module(self) -> Any:
        return import_module(f"core.assess.{self.name}")


_STRENGTHS = [(name, strength) for strength in STRENGTHS for name in ("fit", "outside")]
MEASURES = {
    measure.name: measure
    for measure in (
        Measure("loss", "Held-out loss", "How well it denoises images that it was not trained on; lower is better."),
        Measure(
            "copies",
            "Near-copies",
            "Distance of its images to the nearest training image, against that of training images among themselves.",
            images=True,
        ),
        Measure(
            "drift",
            "Drift of the base model",
            "Change of predictions for other prompts as a multiple of that for the dataset's; near 0 keeps the base model.",
            [("inside", 1.0), ("outside", 1.0)],
            methods=("network", "model"),
        ),
        Measure(
            "trigger",
            "Trigger word",
            "Share of the effect that is there without the trigger word; low means that the word switches it on.",
            [("inside", 1.0), ("plain", 1.0)],
            methods=("network", "model"),
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
            _STRENGTHS,
            methods=("network",),
        ),
        Measure(
            "rank",
            "Used rank",
            "How many directions hold 90% of the change, and what resizing loses.",
            methods=("network",),
        ),
    )
}
