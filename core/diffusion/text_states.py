"""What a denoiser reads besides noisy latents: texts, and everything else of an image in one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


MASK = "_mask"  # "context_mask" says which places of "context" are tokens


@dataclass(frozen=True)
class TextStates:
    """Texts as text encoders leave them: named tensors, whose first axis is the text.

    context   [B, T, C], read by cross-attention: T = 77, or more for long texts; C = 768, 1024 or 2048 in SD 1, 2, XL
    pooled    [B, P], one vector a text: SDXL's 1280; None where the family has none
    more      what else a family reads, by its own names: further sequences [B, T, C], vectors, ids. "NAME_mask", bool [B, T],
              marks the tokens of a sequence "NAME" that may be shorter in other texts, which are then filled with zeros
    """

    context: Tensor
    pooled: Tensor | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them by name, as `of` takes them."""
        pooled = {} if self.pooled is None else {"pooled": self.pooled}
        return {"context": self.context, **pooled, **self.more}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TextStates:
        more = {name: tensor for name, tensor in tensors.items() if name not in ("context", "pooled")}
        return cls(tensors["context"], tensors.get("pooled"), more)

    def each(self, change: Callable[[Tensor], Tensor]) -> TextStates:
        """The same change to all tensors: a move to a device, a row, more rows."""
        return TextStates.of({name: change(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser is given besides noisy latents and timesteps: one record from training, validation, samples and
    generation alike, of which a family reads what it knows. A new kind of it is a field here, and no signature changes.

    texts     of B texts
    sizes     float32 [B, 6] in pixels: original height and width, cropped off at the top and the left, height and width of
              what is shown (Podell et al. 2023, arXiv:2307.01952, section 2.2); None for families that read none
    guidance  float32 [B], the scale that a model distilled with guidance reads: 1 in training; None for families that read none
    control   control images, float32 [B, 3, H, W] in 0..1, for a model next to the denoiser; None for methods that read none
    added     what such a model makes for the denoiser, by the name of the denoiser's argument
    """

    texts: TextStates
    sizes: Tensor | None = None
    guidance: Tensor | None = None
    control: Tensor | None = None
    added: Mapping[str, Any] = field(default_factory=dict)


def stack_texts(texts: Sequence[TextStates]) -> TextStates:
    """One batch of texts that have no batch axis, [T, C] and [P]."""
    import torch

    return _together(texts, torch.stack, 0)


def join_texts(texts: Sequence[TextStates]) -> TextStates:
    """One batch of several batches."""
    import torch

    return _together(texts, torch.cat, 1)


def _together(texts: Sequence[TextStates], put: Callable[[list[Tensor]], Tensor], axis: int) -> TextStates:
    """axis: along which a sequence's tokens lie"""
    every = [text.tensors for text in texts]
    assert all(tensors.keys() == every[0].keys() for tensors in every), "texts of two families"
    masked = {name for name in every[0] if name.removesuffix(MASK) + MASK in every[0]}
    return TextStates.of(
        {
            name: put(_filled(of_texts, axis) if name in masked else of_texts)
            for name in every[0]
            if (of_texts := [tensors[name] for tensors in every])
        }
    )


def _filled(sequences: list[Tensor], axis: int) -> list[Tensor]:
    """Sequences, or their masks, with zeros up to the length of the longest."""
    longest = max(sequence.shape[axis] for sequence in sequences)
    found = []
    for sequence in sequences:
        whole = sequence.new_zeros((*sequence.shape[:axis], longest, *sequence.shape[axis + 1 :]))
        whole.narrow(axis, 0, sequence.shape[axis]).copy_(sequence)
        found.append(whole)
    return found
