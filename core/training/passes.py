"""The losses of images with the weights as they are: what training, validation and samples have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.dataset.views import draw_view, size_conditioning
from core.diffusion.noise import Address, draw_noises
from core.families import family
from core.record.queued import queued
from core.training.step import Predict, training_loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from core.dataset.batches import Batch
    from core.diffusion.objective import Objective
    from core.diffusion.text_states import TextStates
    from core.families.components import Components
    from core.families.precision import Precision
    from core.methods import Method
    from core.settings.job import TrainJob
    from core.training.prior import ModelPrior
    from core.training.sources import Latents, Text


@dataclass
class Passes:
    """The model, and what it is shown. prior: a term that is added for each image that trains."""

    job: TrainJob
    device: str
    precision: Precision
    components: Components
    method: Method
    latents: Latents
    text: Text
    objective: Objective
    prior: ModelPrior | None = None

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, text: TextStates, sizes: Tensor | None) -> Tensor:
        with self.precision.autocast(self.device):
            return family(self.components.family).predict(self.components, noisy_latents, timesteps, text, sizes)

    def losses(
        self,
        epoch: int,
        batch: Batch,
        addresses: Sequence[Address],
        timesteps: Sequence[int],
        captions: Sequence[str],
        prior: ModelPrior | None = None,
    ) -> Tensor:
        """Losses [B] of a batch's images at these timesteps with the weights as they are.

        epoch       of the random latents and of the image's augmentation
        addresses   of all noise, one for each image
        """
        import torch

        noise_settings = self.job.noise
        latents, masks = self.latents.batch(epoch, batch.items)
        if noise_settings.halves_latents(self.job.method.changes):
            latents = scaled_in(self.precision.compute, latents, self.latents.scale)
        noises = draw_noises(noise_settings, latents, addresses)
        strength = batch.items[0][0].concept.images.network_multiplier  # one for the batch: see Concept.batch_group
        self.method.set_strength(strength)
        text = self.text.states(captions)
        sizes = self._sizes(epoch, batch, addresses[0][0])

        def predict(noisy: Tensor, at: Tensor, shown: TextStates = text) -> Tensor:
            return self.predict(noisy, at, shown, sizes)

        def base_predict(noisy: Tensor, at: Tensor, shown: TextStates = text) -> Tensor:
            with self.method.untrained():
                return self.predict(noisy, at, shown, sizes)

        preserved = [each.concept.source.diff_output_preservation for each, _ in batch.items]
        at = queued(torch.tensor(list(timesteps)), self.device)

        def loss_of(predict: Predict, **more: Any) -> Tensor:
            return training_loss(self.objective, predict, latents, noises, at, **more)

        losses_B = loss_of(
            predict,
            sample_weights=self._weights(batch),
            masks=None if masks is None else queued(masks, self.device),
            preserved=(base_predict, queued(torch.tensor(preserved), self.device)) if any(preserved) else None,
        )
        if prior is None:
            return losses_B
        return losses_B + prior.losses(batch, predict, base_predict, self.text.states, loss_of)

    def _sizes(self, epoch: int, batch: Batch, seed: int) -> Tensor | None:
        """SDXL's size conditioning of each image: original height and width, what was cropped off at the top and the left,
        height and width of what is shown; float32 [B, 6] in pixels on the device. None for families that read none."""
        import torch

        if not family(self.components.family).reads_sizes:
            return None
        rows = []
        for placed, repeat in batch.items:
            view = draw_view(placed, seed, epoch, repeat)
            shown = size_conditioning(placed, view, self.job.dataset.crop_conditioning)
            rows.append([number for width_height in shown for number in width_height[::-1]])
        return queued(torch.tensor(rows, dtype=torch.float32), self.device)

    def _weights(self, batch: Batch) -> Tensor | None:
        """What each image's loss counts, [B] on the device; None where all count 1."""
        import torch

        weights = [placed.loss_weight(self.job.dataset) for placed, _ in batch.items]
        if all(weight == 1 for weight in weights):
            return None
        return queued(torch.tensor(weights), self.device)

    @contextmanager
    def without_chance(self) -> Iterator[None]:
        """No dropout of any module inside."""
        parts = [self.components.unet, *self.components.text_encoders]
        modules = [module for part in parts for module in part.modules() if module.training]
        for module in modules:
            module.training = False
        try:
            yield
        finally:
            for module in modules:
                module.training = True


def scaled_in(dtype: torch.dtype, latents: Tensor, scale: float) -> Tensor:
    """Latents that were scaled in float32, as if they had been cast before that."""
    return (latents / scale).to(dtype) * scale
