"""What one pass is shown, from the view of its images to their loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.dataset.images.views import View, size_conditioning

if TYPE_CHECKING:
    from torch import Tensor

    from core.dataset.buckets.batches import Placed
    from core.diffusion.noise import Address
    from core.settings.dataset.dataset import DatasetSettings

Item = tuple["Placed", int]  # an image at its bucket, and which of its repeats


@dataclass(frozen=True)
class Batch:
    """Images of one size in one pass; everything of an image is of one view, so it is cut and flipped alike.

    items, views   the images, and how each is cropped, flipped and colored
    addresses      of all noise, one for each image
    captions       as they are encoded
    latents        scaled by the VAE's factor, float32 [B, C, h, w], on the device
    masks          [B, 1, h, w] in 0..1, what of each image counts; None where all of each does
    control        control images, float32 [B, 3, H, W] in 0..1; None for methods that read none

    Masks and control images stay on the CPU: who moves them need not wait.
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
        """Of a network that trains: one for all images (`Concept.batch_group`)."""
        return self.items[0][0].concept.images.network_multiplier

    @property
    def preserved(self) -> list[bool]:
        """Whose target is what the base model predicts."""
        return [placed.concept.source.diff_output_preservation for placed, _ in self.items]

    def sizes(self, crop_conditioning: str) -> Tensor:
        """SDXL's size conditioning, float32 [B, 6] in pixels: original height and width, what was cropped off at the top and
        the left, height and width of what is shown."""
        import torch

        shown = [
            size_conditioning(placed, view, crop_conditioning)
            for (placed, _), view in zip(self.items, self.views, strict=True)
        ]
        rows = [[number for width_height in sizes for number in width_height[::-1]] for sizes in shown]
        return torch.tensor(rows, dtype=torch.float32)

    def weights(self, settings: DatasetSettings) -> Tensor | None:
        """What each image's loss counts, [B]; None where all count 1."""
        import torch

        weights = [placed.loss_weight(settings) for placed, _ in self.items]
        return None if all(weight == 1 for weight in weights) else torch.tensor(weights)
