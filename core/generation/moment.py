"""The state of a stage at one evaluation, as hooks and guidance see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from core.generation.noise import ImageNoise


@dataclass
class Moment:
    """The state of a stage at one evaluation of the model. Hooks may change `latents`.

    noises    of the images         index, steps   number of the evaluation from 0, and of how many
    timestep  of this evaluation    latents        [B, C, h, w], float32
    sides     that the model is asked for at once, B rows each
    """

    sampler: Any
    noises: Sequence[ImageNoise]
    index: int
    steps: int
    timestep: Tensor
    latents: Tensor
    sides: Sequence[str] = ()
