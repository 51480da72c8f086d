"""Classifier-free guidance: from what the model makes of the prompt and of its opposites to one output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from core.generation.moment import Moment

NEGATIVE, POSITIVE, EMPTY = "negative", "positive", "empty"  # the texts that a model is shown
PERTURBED = "perturbed"  # the prompt once more, with a changed model
Outputs = Mapping[str, "Tensor"]


def _unchanged(module: Any, at: Moment, others: int, sides: int) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class Guidance:
    """How the outputs of a model at one evaluation become one.

    sides     the texts that it compares, in the order of the batch; perturbed ones are the last
    combine   (their outputs, float32; where the stage is) -> one output
    changed   (denoiser, where the stage is, sides that are not perturbed, all sides) -> entered for an evaluation: it changes
              the denoiser for the rows of the perturbed sides
    """

    sides: tuple[str, ...]
    combine: Callable[[Outputs, Moment], Tensor]
    changed: Callable[[Any, Moment, int, int], AbstractContextManager[Any]] = _unchanged

    def around(self, module: Any, at: Moment) -> AbstractContextManager[Any]:
        """Entered for an evaluation of `module`."""
        others = sum(not side.startswith(PERTURBED) for side in self.sides)
        return self.changed(module, at, others, len(self.sides))


UNGUIDED = Guidance((POSITIVE,), lambda outputs, at: outputs[POSITIVE])


def classic(scale: float, negative_scale: float | None = None) -> Guidance:
    """Guidance of Ho and Salimans 2022 (arXiv:2207.12598): n + scale (p - n); none up to a scale of 1.

    negative_scale   e + scale (p - e) - negative_scale (n - e) with e of an empty prompt, as in sd-scripts' generator
    """
    if scale <= 1:
        return UNGUIDED

    def plain(outputs: Outputs, at: Moment) -> Tensor:
        away, to = outputs[NEGATIVE], outputs[POSITIVE]
        return away + scale * (to - away)

    def with_negative(outputs: Outputs, at: Moment) -> Tensor:
        assert negative_scale is not None
        away, to, empty = outputs[NEGATIVE], outputs[POSITIVE], outputs[EMPTY]
        return empty + scale * (to - empty) - negative_scale * (away - empty)

    if negative_scale is None:
        return Guidance((NEGATIVE, POSITIVE), plain)
    return Guidance((NEGATIVE, POSITIVE, EMPTY), with_negative)


def composed(base: Guidance, weights: Sequence[float]) -> Guidance:
    """Guidance towards several prompts at once (Liu et al. 2022, arXiv:2206.01714): n + sum of weight (p - n) in place of p;
    without a negative prompt, their weighted mean."""
    several = {side: parts_of_side(side, len(weights)) for side in base.sides if side in (POSITIVE, PERTURBED)}
    sides = [each for side in base.sides for each in several.get(side, (side,))]

    def whole(outputs: Outputs, parts: Sequence[str]) -> Tensor:
        away = outputs.get(NEGATIVE)
        zero = outputs[parts[0]] * 0 if away is None else away
        summed = sum((weight * (outputs[part] - zero) for part, weight in zip(parts, weights, strict=True)), zero)
        return summed if away is not None else summed / sum(weights)

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        return base.combine({**outputs, **{side: whole(outputs, parts) for side, parts in several.items()}}, at)

    return replace(base, sides=tuple(sides), combine=combine)


def parts_of_side(side: str, count: int) -> tuple[str, ...]:
    """The names of a side's prompts where it has several."""
    return tuple(f"{side} {number}" for number in range(count))


def with_rescale(base: Guidance, share: float) -> Guidance:
    """The share of Lin et al. 2023 (arXiv:2305.08891, section 3.4); 0 is off."""
    if not share or base is UNGUIDED:
        return base
    return replace(base, combine=lambda outputs, at: rescaled(base.combine(outputs, at), outputs[POSITIVE], share))


def rescaled(guided: Tensor, positive: Tensor, share: float) -> Tensor:
    """The deviation of each image's output brought back to that of its prompt alone, by `share`."""
    axes = tuple(range(1, guided.ndim))
    factor = positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (share * factor + 1 - share)
