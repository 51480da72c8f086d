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

    noises    of the images         index, steps   number of the evaluation from 0, and of how many
    timestep  of this evaluation    latents        [B, C, h, w], float32
    sides     in the model's batch, B rows each
    unguided  the output for the negative prompt, where the guidance has it
    """

    scheduler: Any
    noises: Sequence[ImageNoise]
    index: int
    steps: int
    timestep: Tensor
    latents: Tensor
    sides: Sequence[str] = ()
    unguided: Tensor | None = None


def _unchanged(module: Any, at: Moment, others: int, sides: int) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class Guidance:
    """How the model's outputs at one evaluation are combined.

    sides     the conditionings to compare, in the order of the batch, perturbed ones last
    combine   (output of each side, float32 [B, C, h, w]; the moment) -> the combined output, [B, C, h, w]
    changed   (denoiser, moment, number of unperturbed sides, number of sides) -> context manager of an evaluation,
              which perturbs the denoiser for the rows of the perturbed sides
    """

    sides: tuple[str, ...]
    combine: Callable[[Outputs, Moment], Tensor]
    changed: Callable[[Any, Moment, int, int], AbstractContextManager[Any]] = _unchanged

    def around(self, module: Any, at: Moment) -> AbstractContextManager[Any]:
        """The context manager of an evaluation of `module`."""
        others = sum(not side.startswith(PERTURBED) for side in self.sides)
        return self.changed(module, at, others, len(self.sides))


UNGUIDED = Guidance((POSITIVE,), lambda outputs, at: outputs[POSITIVE])


def at_any_scale(scale: float) -> Guidance:
    """Classifier-free guidance n + scale (p - n), also at scales up to 1."""

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        negative, positive = outputs[NEGATIVE], outputs[POSITIVE]
        return negative + scale * (positive - negative)

    return Guidance((NEGATIVE, POSITIVE), combine)


def classic(scale: float, negative_scale: float | None = None) -> Guidance:
    """Guidance of Ho and Salimans 2022 (arXiv:2207.12598): n + scale (p - n); off at scales up to 1.

    negative_scale   e + scale (p - e) - negative_scale (n - e) with e of an empty prompt, as in sd-scripts' generator
    """
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
    """Guidance towards several prompts at once (Liu et al. 2022, arXiv:2206.01714): n + sum of weight (p - n) instead
    of p; without a negative prompt, their weighted mean."""
    parts_of = {side: parts_of_side(side, len(weights)) for side in base.sides if side in (POSITIVE, PERTURBED)}
    sides = [each for side in base.sides for each in parts_of.get(side, (side,))]

    def weighted_mean(outputs: Outputs, parts: Sequence[str]) -> Tensor:
        negative = outputs.get(NEGATIVE)
        origin = outputs[parts[0]] * 0 if negative is None else negative
        summed = sum((weight * (outputs[part] - origin) for part, weight in zip(parts, weights, strict=True)), origin)
        return summed if negative is not None else summed / sum(weights)

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        means = {side: weighted_mean(outputs, parts) for side, parts in parts_of.items()}
        return base.combine({**outputs, **means}, at)

    return replace(base, sides=tuple(sides), combine=combine)


def parts_of_side(side: str, count: int) -> tuple[str, ...]:
    """The sides of `count` prompts that replace one side."""
    return tuple(f"{side} {number}" for number in range(count))


def with_rescale(base: Guidance, phi: float) -> Guidance:
    """Guidance rescale of Lin et al. 2023 (arXiv:2305.08891, section 3.4). phi: 0 is off"""
    if not phi or base is UNGUIDED:
        return base
    return replace(base, combine=lambda outputs, at: rescaled(base.combine(outputs, at), outputs[POSITIVE], phi))


def rescaled(guided: Tensor, positive: Tensor, phi: float) -> Tensor:
    """The guided output [B, C, h, w], its standard deviation per image moved by `phi` towards the positive output's."""
    axes = tuple(range(1, guided.ndim))
    factor = positive.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (phi * factor + 1 - phi)
