"""Classifier-free guidance: from what the model makes of the prompt and of its opposites to one output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEGATIVE, POSITIVE, EMPTY = "negative", "positive", "empty"  # the texts that a model is shown
Outputs = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Guidance:
    """sides: the texts that it compares, in the order of the batch; combine: their outputs, float32 -> one."""

    sides: tuple[str, ...]
    combine: Callable[[Outputs], Tensor]


UNGUIDED = Guidance((POSITIVE,), lambda outputs: outputs[POSITIVE])


def guidance_of(scale: float, negative_scale: float | None = None, rescale: float = 0.0) -> Guidance:
    """Guidance of Ho and Salimans 2022 (arXiv:2207.12598): n + scale (p - n); none up to a scale of 1.

    negative_scale   e + scale (p - e) - negative_scale (n - e) with e of an empty prompt, as in sd-scripts' generator
    rescale          the share of Lin et al. 2023 (arXiv:2305.08891, section 3.4): 0 is off
    """
    if scale <= 1:
        return UNGUIDED

    def classic(outputs: Outputs) -> Tensor:
        away, to = outputs[NEGATIVE], outputs[POSITIVE]
        return away + scale * (to - away)

    def with_negative(outputs: Outputs) -> Tensor:
        assert negative_scale is not None
        away, to, empty = outputs[NEGATIVE], outputs[POSITIVE], outputs[EMPTY]
        return empty + scale * (to - empty) - negative_scale * (away - empty)

    sides = (NEGATIVE, POSITIVE) if negative_scale is None else (NEGATIVE, POSITIVE, EMPTY)
    combine = classic if negative_scale is None else with_negative
    if not rescale:
        return Guidance(sides, combine)
    return Guidance(sides, lambda outputs: rescaled(combine(outputs), outputs[POSITIVE], rescale))


def composed(base: Guidance, weights: Sequence[float]) -> Guidance:
    """Guidance towards several prompts at once (Liu et al. 2022, arXiv:2206.01714): n + sum of weight (p - n) in place of p;
    without a negative prompt, their weighted mean."""
    parts = [part_side(number) for number in range(len(weights))]
    sides = [each for side in base.sides for each in (parts if side == POSITIVE else [side])]

    def combine(outputs: Outputs) -> Tensor:
        away = outputs.get(NEGATIVE)
        zero = outputs[parts[0]] * 0 if away is None else away
        summed = sum((weight * (outputs[part] - zero) for part, weight in zip(parts, weights, strict=True)), zero)
        whole = summed if away is not None else summed / sum(weights)
        return base.combine({**outputs, POSITIVE: whole})

    return Guidance(tuple(sides), combine)


def part_side(number: int) -> str:
    return f"{POSITIVE} {number}"


def rescaled(guided: Tensor, positive: Tensor, share: float) -> Tensor:
    """The deviation of each image's output brought back to that of its prompt alone, by `share`."""
    axes = tuple(range(1, guided.ndim))
    factor = positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (share * factor + 1 - share)
