"""The losses of images with the weights as they are: what training, validation and samples have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.diffusion.noise import Noises, draw_noises
from core.diffusion.text_states import Conditioning, TextStates
from core.families import family
from core.families.components import Components
from core.record.queued import queued
from core.settings.job import TrainJob

if TYPE_CHECKING:
    from torch import Tensor

    from core.diffusion.objective import Objective
    from core.families.precision import Precision
    from core.methods import Method
    from core.training.loop.batch import Batch
    from core.training.loop.prior import ModelPrior
    from core.training.loop.sources import Latents, Text

Predict = Callable[["Tensor", "Tensor"], "Tensor"]


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

    def __post_init__(self) -> None:
        self._family = family(self.components.family)

    @property
    def encoding_seconds(self) -> float:
        """Spent so far, between the computations of the steps, on encoding images and captions once."""
        return self.latents.encoding_seconds + self.text.seconds

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, given: Conditioning) -> Tensor:
        with self.precision.autocast(self.device):
            given = self.method.conditioned(given, noisy_latents, timesteps)
            return self._family.predict(self.components, noisy_latents, timesteps, given)

    def losses(self, batch: Batch, timesteps: Sequence[float], *, with_prior: bool = False) -> Tensor:
        """Losses [B] of a batch's images at these timesteps with the weights as they are.

        with_prior  adds the prior's losses, which only training has
        """
        import torch

        job, latents = self.job, batch.latents
        noises = draw_noises(job.noise, latents, batch.addresses)
        self.method.set_strength(batch.strength)
        given = self._given(batch)
        text = given.texts

        def predict(noisy: Tensor, at: Tensor, shown: TextStates = text) -> Tensor:
            return self.predict(noisy, at, replace(given, texts=shown))

        def base_predict(noisy: Tensor, at: Tensor, shown: TextStates = text) -> Tensor:
            with self.method.untrained():
                return predict(noisy, at, shown)

        preserved, at = batch.preserved, queued(torch.tensor(list(timesteps)), self.device)

        def loss_of(predict: Predict, **more: Any) -> Tensor:
            return training_loss(self.objective, predict, latents, noises, at, **more)

        losses_B = loss_of(
            predict,
            sample_weights=self._moved(batch.weights(job.dataset)),
            masks=self._moved(batch.masks),
            preserved=(base_predict, queued(torch.tensor(preserved), self.device)) if any(preserved) else None,
        )
        if not with_prior or self.prior is None:
            return losses_B
        return losses_B + self.prior.losses(batch, predict, base_predict, self.text.states, loss_of)

    def effect(self, batch: Batch, timesteps: Sequence[float]) -> Tensor:
        """How far what trains moves the prediction of each image, [B]: |with - without| / |without|."""
        import torch

        x0, _, shown = self.objective.mixed(batch.latents, draw_noises(self.job.noise, batch.latents, batch.addresses))
        at, given = queued(torch.tensor(list(timesteps)), self.device), self._given(batch)
        noisy = self.objective.noised(x0, shown, at)
        own = self.predict(noisy, at, given).float()
        with self.method.untrained():
            base = self.predict(noisy, at, given).float()
        return (own - base).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)

    def _given(self, batch: Batch) -> Conditioning:
        """What the model reads of a batch's images, on the device."""
        import torch

        sizes = self._moved(batch.sizes(self.job.dataset.crop_conditioning) if self._family.reads_sizes else None)
        guidance = torch.ones(len(batch.latents), device=self.device) if self._family.reads_guidance else None
        return Conditioning(self.text.states(batch.captions), sizes, guidance, self._moved(batch.control))

    def _moved(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else queued(tensor, self.device)

    @contextmanager
    def without_chance(self) -> Iterator[None]:
        """No dropout of any module inside."""
        parts = [self.components.denoiser, *self.components.text_encoders]
        modules = [module for part in parts for module in part.modules() if module.training]
        for module in modules:
            module.training = False
        try:
            yield
        finally:
            for module in modules:
                module.training = True


def training_loss(
    objective: Objective,
    predict: Predict,
    latents: Tensor,
    noises: Noises,
    timesteps: Tensor,
    *,
    sample_weights: Tensor | None = None,
    masks: Tensor | None = None,
    preserved: tuple[Predict, Tensor] | None = None,
) -> Tensor:
    """Loss per image, float32 [B]; the run's loss is their mean. No randomness here.

    predict          (noisy latents [B, C, H, W] float32, timesteps [B]) -> the model's output, [B, C, H, W]
    latents          x0, scaled by the VAE's factor, [B, C, H, W]
    timesteps        [B], whole numbers or float32, 0 to 1000
    sample_weights   [B]: 1, or the weight of regularization images
    masks            [B, 1, h, w], or [B, h, w] as sd-scripts keeps its alpha masks, in 0..1: what counts of each image;
                     another size is averaged to the latents'
    preserved        differential output preservation: `predict` of the model without what trains, and bool [B], the
                     images whose target it gives

    ValueError for tensors of other forms, which torch would broadcast silently.
    """
    import torch

    _refuse_other_forms(latents, noises.noise, timesteps, sample_weights, masks, objective.fractions)
    x0, noise, shown = objective.mixed(latents, noises)
    noisy = objective.noised(x0, shown, timesteps)
    target = objective.target(x0, noise, timesteps)

    def formed(predict: Predict) -> Tensor:
        return objective.form(predict(noisy, timesteps).float(), noisy, timesteps)

    if preserved is not None:
        base_predict, rows_B = preserved
        with torch.no_grad():  # what the base model predicts is the target of the rows that are to stay as they are
            target = torch.where(rows_B.view(-1, 1, 1, 1), formed(base_predict), target)
    predicted = formed(predict)
    loss_BCHW = objective.loss(predicted, target, timesteps)
    if masks is None:
        loss_B = loss_BCHW.mean(dim=(1, 2, 3))
    else:
        loss_B = masked_mean(loss_BCHW, masks if masks.dim() == 4 else masks.unsqueeze(1), objective.mask_mean)
    if sample_weights is not None:
        loss_B = loss_B * sample_weights.float()
    return loss_B * objective.weight(timesteps)


def masked_mean(loss_BCHW: Tensor, masks: Tensor, over: str = "area") -> Tensor:
    """Mean over the masked area of each image, [B]; an image whose mask is empty gives 0.

    masks  [B, 1, h, w] in 0..1; another size than the loss's is averaged to it
    over   "area": dividing by the mask's own area keeps a small mask from meaning a small loss and so a small learning
           rate. "image": the mean over the whole image, as in sd-scripts
    """
    from torch.nn.functional import interpolate

    masks = masks.float()
    if masks.shape[-2:] != loss_BCHW.shape[-2:]:
        masks = interpolate(masks, size=loss_BCHW.shape[-2:], mode="area")
    if over == "image":
        return (loss_BCHW * masks).mean(dim=(1, 2, 3))
    covered_B = masks.expand_as(loss_BCHW).sum(dim=(1, 2, 3))
    return (loss_BCHW * masks).sum(dim=(1, 2, 3)) / covered_B.clamp_min(1e-6)


def _refuse_other_forms(
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    sample_weights: Tensor | None,
    masks: Tensor | None,
    fractions: bool,
) -> None:
    """By form and type alone: nothing is read back from the device."""
    count = len(latents)
    if latents.dim() != 4 or noise.shape != latents.shape:
        raise ValueError(f"latents {_form(latents)} and noise {_form(noise)}: both are [B, C, H, W]")
    types = ("torch.int64", "torch.int32", *(("torch.float32",) if fractions else ()))
    if timesteps.shape != (count,) or str(timesteps.dtype) not in types:
        raise ValueError(f"timesteps {_form(timesteps)} of {timesteps.dtype}: one of {types[0]} for each, [{count}]")
    if sample_weights is not None and sample_weights.shape != (count,):
        raise ValueError(f"sample_weights {_form(sample_weights)}: one for each image, [{count}]")
    if masks is not None and tuple(masks.shape[:-2]) not in ((count, 1), (count,)):
        raise ValueError(f"masks {_form(masks)}: [{count}, 1, h, w] or [{count}, h, w]")


def _form(tensor: Tensor) -> str:
    return str(list(tensor.shape))
