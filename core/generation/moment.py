"""Where a stage of a generation is, as hooks and guidance see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from core.generation.noise import ImageNoise


@dataclass
class Moment:
    """Where a stage is. Hooks may change `latents`.

    noises    of the images         index, steps   of the evaluation, and how many there are
    timestep  of this evaluation    latents        [B, C, h, w], float32
    """

    sampler: Any
    noises: Sequence[ImageNoise]
    index: int
    steps: int
    timestep: Tensor
    latents: Tensor
