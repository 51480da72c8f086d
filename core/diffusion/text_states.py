"""The inputs of a denoiser besides noisy latents: text states and all other conditioning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.record.lazy_torch import Tensor, torch

MASK = "_mask"  # "context_mask" marks the tokens in "context"


@dataclass(frozen=True)
class TextStates:
    """The outputs of text encoders: named tensors whose first axis is the text.

    context   [B, T, C], read by cross-attention: T = 77, or more for long texts; C = 768, 1024 or 2048 in SD 1, 2, XL
    pooled    [B, P], one vector per text: SDXL's 1280; None for families without
    more      other inputs of a family, by its own names: further sequences [B, T, C], vectors, ids. "NAME_mask", bool
              [B, T], marks the tokens of a sequence "NAME" that is padded with zeros
    """

    context: Tensor
    pooled: Tensor | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """{name: tensor} of all tensors: "context", "pooled" unless it is None, and those of `more`."""
        pooled = {} if self.pooled is None else {"pooled": self.pooled}
        return {"context": self.context, **pooled, **self.more}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TextStates:
        """Return text states from tensors by name, as `tensors` returns them: "context" is required, "pooled" optional, all others become
        `more`."""
        more = {name: tensor for name, tensor in tensors.items() if name not in ("context", "pooled")}
        return cls(tensors["context"], tensors.get("pooled"), more)

    def each(self, change: Callable[[Tensor], Tensor]) -> TextStates:
        """Return text states with `change` applied to each tensor, such as a move to a device or a selection of rows."""
        return TextStates.of({name: change(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True)
class Conditioning:
    """The inputs of a denoiser besides noisy latents and timesteps, for training, validation, samples and generation. A family reads
    the fields that it knows; a new kind of input is a new field and changes no signature.

    texts     of B texts
    sizes     float32 [B, 6] in pixels: original height and width, top and left of the crop, target height and width
              (Podell et al. 2023, arXiv:2307.01952, section 2.2); None if the family reads none
    guidance  float32 [B], the scale for a guidance-distilled model: 1 in training; None if the family reads none
    control   control images, float32 [B, 3, H, W] in 0..1, for a model next to the denoiser; None if the method reads none
    added     outputs of the model next to the denoiser, by the name of the denoiser's argument
    """

    texts: TextStates
    sizes: Tensor | None = None
    guidance: Tensor | None = None
    control: Tensor | None = None
    added: Mapping[str, Any] = field(default_factory=dict)


def stack_texts(texts: Sequence[TextStates]) -> TextStates:
    """Return texts without a batch axis ([T, C], [P]) as a batch ([B, T, C], [B, P]). Masked sequences are padded to the longest."""
    return _combined(texts, torch.stack, 0)


def join_texts(texts: Sequence[TextStates]) -> TextStates:
    """Concatenate batches of texts. Masked sequences are padded to the longest."""
    return _combined(texts, torch.cat, 1)


def _combined(texts: Sequence[TextStates], combine: Callable[[list[Tensor]], Tensor], axis: int) -> TextStates:
    """Combine the tensors of each name by `combine`. axis: index of a sequence's token axis, along which masked ones are padded"""
    all_tensors = [text.tensors for text in texts]
    names = all_tensors[0].keys()
    assert all(tensors.keys() == names for tensors in all_tensors), "texts of two families"
    combined = {}
    for name in names:
        tensors_of_name = [tensors[name] for tensors in all_tensors]
        padded = name.removesuffix(MASK) + MASK in names  # a sequence with a mask, or the mask
        combined[name] = combine(_padded(tensors_of_name, axis) if padded else tensors_of_name)
    return TextStates.of(combined)


def _padded(sequences: list[Tensor], axis: int) -> list[Tensor]:
    """Return sequences, or their masks, padded with zeros along `axis` to the longest."""
    longest = max(sequence.shape[axis] for sequence in sequences)
    padded = []
    for sequence in sequences:
        zeros = sequence.new_zeros((*sequence.shape[:axis], longest, *sequence.shape[axis + 1 :]))
        zeros.narrow(axis, 0, sequence.shape[axis]).copy_(sequence)
        padded.append(zeros)
    return padded
