"""Classifier-free guidance: combines the model's outputs for prompt, negative prompt and others into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.record.lazy_torch import Tensor

if TYPE_CHECKING:
    from core.generation.sample.noise import ImageNoise

NEGATIVE, POSITIVE, EMPTY = "negative", "positive", "empty"  # sides of a guidance
PERTURBED = "perturbed"  # the prompt, with a perturbed model
Outputs = Mapping[str, Tensor]


@dataclass
class Moment:
    """The state of a stage at one evaluation of the model. Hooks may change `latents`.

    noises     random numbers of each image
    index      number of the evaluation, from 0
    steps      number of evaluations of the image, including a refiner's
    timestep   of this evaluation
    latents    noisy latents, float32 [B, C, h, w]
    sides      guidance sides in the model's batch, B rows each
    unguided   the model's output for the negative prompt; None if the guidance does not use it
    """

    scheduler: Any
    noises: Sequence[ImageNoise]
    index: int
    steps: int
    timestep: Tensor
    latents: Tensor
    sides: Sequence[str] = ()
    unguided: Tensor | None = None


def _unchanged(module: Any, at: Moment, unperturbed: int, sides: int) -> AbstractContextManager[Any]:
    """Return a context that changes nothing (default of `Guidance.changed`)."""
    return nullcontext()


@dataclass(frozen=True)
class Guidance:
    """How the model's outputs at one evaluation are combined.

    sides     names of the conditionings to evaluate, in batch order, perturbed ones last
    combine   ({side: output, float32 [B, C, h, w]}, moment) -> the combined output, [B, C, h, w]
    changed   (denoiser, moment, number of unperturbed sides, number of all sides) -> context that perturbs the denoiser for the
              rows of perturbed sides
    """

    sides: tuple[str, ...]
    combine: Callable[[Outputs, Moment], Tensor]
    changed: Callable[[Any, Moment, int, int], AbstractContextManager[Any]] = _unchanged

    def around(self, module: Any, at: Moment) -> AbstractContextManager[Any]:
        """Return the context for an evaluation of the denoiser `module`: `changed`, with the numbers of unperturbed sides and of all
        sides."""
        unperturbed = sum(not side.startswith(PERTURBED) for side in self.sides)
        return self.changed(module, at, unperturbed, len(self.sides))


UNGUIDED = Guidance((POSITIVE,), lambda outputs, at: outputs[POSITIVE])


def at_any_scale(scale: float) -> Guidance:
    """Return classifier-free guidance n + scale (p - n), also for scales up to 1."""

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        negative, positive = outputs[NEGATIVE], outputs[POSITIVE]
        return negative + scale * (positive - negative)

    return Guidance((NEGATIVE, POSITIVE), combine)


def classic(scale: float, negative_scale: float | None = None) -> Guidance:
    """Return classifier-free guidance n + scale (p - n) of Ho and Salimans 2022 (arXiv:2207.12598), none for scales up to 1.
    negative_scale: instead e + scale (p - e) - negative_scale (n - e) with e of an empty prompt, as in sd-scripts' generator"""
    if scale <= 1:
        return UNGUIDED

    def with_negative(outputs: Outputs, at: Moment) -> Tensor:
        assert negative_scale is not None
        negative, positive, empty = outputs[NEGATIVE], outputs[POSITIVE], outputs[EMPTY]
        return empty + scale * (positive - empty) - negative_scale * (negative - empty)

    if negative_scale is None:
        return at_any_scale(scale)
    return Guidance((NEGATIVE, POSITIVE, EMPTY), with_negative)


def composed(base: Guidance, weights: Sequence[float]) -> Guidance:
    """Return guidance towards several prompts at once (Liu et al. 2022, arXiv:2206.01714).

    Replaces the output p for the prompt by n + sum of weight (p - n) over the prompts, or, if `base` has no negative side n,
    by their weighted mean.

    weights   of the prompts joined by AND
    """
    parts_of = {side: parts_of_side(side, len(weights)) for side in base.sides if side in (POSITIVE, PERTURBED)}
    sides = [each for side in base.sides for each in parts_of.get(side, (side,))]

    def weighted_mean(outputs: Outputs, parts: Sequence[str]) -> Tensor:
        """Return n + sum of weight (p - n) over the outputs of `parts`, or without a negative output n their weighted mean."""
        negative = outputs.get(NEGATIVE)
        origin = outputs[parts[0]] * 0 if negative is None else negative
        summed = sum((weight * (outputs[part] - origin) for part, weight in zip(parts, weights, strict=True)), origin)
        return summed if negative is not None else summed / sum(weights)

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        means = {side: weighted_mean(outputs, parts) for side, parts in parts_of.items()}
        return base.combine({**outputs, **means}, at)

    return replace(base, sides=tuple(sides), combine=combine)


def parts_of_side(side: str, count: int) -> tuple[str, ...]:
    """Return the names of `count` sides that replace one: "positive" -> "positive 0", "positive 1" ..."""
    return tuple(f"{side} {number}" for number in range(count))


def with_rescale(base: Guidance, phi: float) -> Guidance:
    """Return guidance rescaled by Lin et al. 2023 (arXiv:2305.08891, section 3.4). phi: 0 (off) to 1"""
    if not phi or base is UNGUIDED:
        return base
    return replace(base, combine=lambda outputs, at: rescaled(base.combine(outputs, at), outputs[POSITIVE], phi))


def rescaled(guided: Tensor, positive: Tensor, phi: float) -> Tensor:
    """Return the guided output [B, C, h, w], its standard deviation per image moved by `phi` (0..1) towards that of `positive`."""
    axes = tuple(range(1, guided.ndim))
    deviation = guided.std(dim=axes, keepdim=True).clamp(min=1e-20)  # 0 at the zero steps of CFG-Zero*
    factor = positive.std(dim=axes, keepdim=True) / deviation
    return guided * (phi * factor + 1 - phi)
