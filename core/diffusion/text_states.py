"""What a denoiser reads besides noisy latents: texts, and everything else of an image in one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class TextStates(NamedTuple):
    """Texts as text encoders leave them.

    context   [B, T, C], read by cross-attention: T = 77, or more for long texts; C = 768, 1024 or 2048 in SD 1, 2, XL
    pooled    [B, P], one vector a text: SDXL's 1280; None where the family has none
    """

    context: Tensor
    pooled: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> TextStates:
        """The same change to both tensors: a move to a device, a row, more rows."""
        return TextStates(change(self.context), None if self.pooled is None else change(self.pooled))


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser is given besides noisy latents and timesteps: one record from training, validation, samples and
    generation alike, of which a family reads what it knows. A new kind of it is a field here, and no signature changes.

    texts   of B texts
    sizes   float32 [B, 6] in pixels: original height and width, cropped off at the top and the left, height and width of what
            is shown (Podell et al. 2023, arXiv:2307.01952, section 2.2); None for families that read none
    control  control images, float32 [B, 3, H, W] in 0..1, for a model beside the denoiser; None for methods that read none
    added   what such a model makes for the denoiser, by the name of the denoiser's argument
    """

    texts: TextStates
    sizes: Tensor | None = None
    control: Tensor | None = None
    added: Mapping[str, Any] = field(default_factory=dict)


def stack_texts(texts: Sequence[TextStates]) -> TextStates:
    """One batch of texts that have no batch axis, [T, C] and [P]."""
    import torch

    return _together(texts, torch.stack)


def join_texts(texts: Sequence[TextStates]) -> TextStates:
    """One batch of several batches."""
    import torch

    return _together(texts, torch.cat)


def _together(texts: Sequence[TextStates], put: Callable[[list[Tensor]], Tensor]) -> TextStates:
    pooled = [text.pooled for text in texts if text.pooled is not None]
    assert len(pooled) in (0, len(texts)), "texts of two families"
    return TextStates(put([text.context for text in texts]), put(pooled) if pooled else None)
