"""A micro-batch: images of one size with their views, latents, masks, control images and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.dataset.images.views import View, size_conditioning
from core.record import draws
from core.record.lazy_torch import Tensor, torch

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed
    from core.diffusion.noise import Address
    from core.settings.dataset.dataset import DatasetSettings
    from core.settings.noise import NoiseSettings

Item = tuple["Placed", int]  # an image in its bucket, and the number of its repeat


@dataclass(frozen=True)
class Batch:
    """A micro-batch: images of one size in one forward pass. Latents, mask and control image of an image share its crop and flip.

    items       the images and the numbers of their repeats
    views       crop, flip and colors of each image
    addresses   of the noise of each image
    captions    text of each image, to be encoded
    latents     scaled by the VAE's factor, float32 [B, C, h, w], on the device
    masks       weights of the loss, [B, 1, h, w] in 0..1; None if no image has a mask
    control     control images, float32 [B, 3, H, W] in 0..1; None for methods without

    Masks and control images are on the CPU, so that building a batch waits for no transfer.
    """

    items: Sequence[Item]
    views: Sequence[View]
    addresses: Sequence[Address]
    captions: Sequence[str]
    latents: Tensor
    masks: Tensor | None = None
    control: Tensor | None = None

    @property
    def strength(self) -> float:
        """Multiplier of the trained network; images of a batch have the same (`Concept.batch_group`)."""
        return self.items[0][0].concept.images.network_multiplier

    @property
    def preserved(self) -> list[bool]:
        """Whether each image's target is the base model's prediction (differential output preservation), [B]."""
        return [placed.concept.source.diff_output_preservation for placed, _ in self.items]

    def sizes(self, crop_conditioning: str) -> Tensor:
        """Return SDXL's size conditioning, float32 [B, 6] in pixels: original height and width, top and left of the crop, target height and
        width.
        crop_conditioning: the setting of this name"""
        conditioning = [
            size_conditioning(placed, view, crop_conditioning)
            for (placed, _), view in zip(self.items, self.views, strict=True)
        ]
        rows = [[number for width_height in sizes for number in width_height[::-1]] for sizes in conditioning]
        return torch.tensor(rows, dtype=torch.float32)

    def loss_masks(self, settings: NoiseSettings, *, training: bool) -> Tensor | None:
        """Return `masks` with unmasked areas at `unmasked_weight` at least; in training 1 everywhere for the images that
        `unmasked_probability` selects. None without masks."""
        if self.masks is None:
            return None
        masks, chance = self.masks.clamp_min(settings.unmasked_weight), settings.unmasked_probability
        if not training or not chance:
            return masks
        unmasked = [
            draws.uniform(seed, "unmasked", epoch, *key, repeat) < chance for seed, epoch, key, repeat in self.addresses
        ]
        return masks.masked_fill(torch.tensor(unmasked).view(-1, 1, 1, 1), 1.0)

    def weights(self, settings: DatasetSettings) -> Tensor | None:
        """Return the loss weights of the images, [B]; None if all are 1."""
        weights = [placed.loss_weight(settings) for placed, _ in self.items]
        return None if all(weight == 1 for weight in weights) else torch.tensor(weights)
