"""Forward passes and losses with the model's present weights, for training, validation and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.diffusion.noise import Noises, draw_noises
from core.diffusion.text_states import Conditioning, TextStates
from core.families import family
from core.families.components import Components
from core.record.lazy_torch import Tensor, torch
from core.record.queued import queued
from core.settings.job import TrainJob
from core.settings.rules.noise import preserves_unmasked

if TYPE_CHECKING:
    from core.diffusion.objective import Objective
    from core.families.precision import Precision
    from core.methods import Method
    from core.training.loop.batch import Batch
    from core.training.loop.prior import ModelPrior
    from core.training.loop.sources import Latents, Text

Predict = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass
class Passes:
    """The model with its inputs and objective. prior: prior preservation, a further loss term of training images"""

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
        """Seconds spent so far within steps on encoding images and captions for the caches."""
        return self.latents.encoding_seconds + self.text.seconds

    @property
    def encodes_each_step(self) -> bool:
        """Whether images are encoded at each step that uses them."""
        return self.latents.encodes_each_step

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the model's output, [B, C, h, w], for noisy latents [B, C, h, w] at timesteps [B]."""
        with self.precision.autocast(self.device):
            conditioning = self.method.conditioned(conditioning, noisy_latents, timesteps)
            return self._family.predict(self.components, noisy_latents, timesteps, conditioning)

    def losses(self, batch: Batch, timesteps: Sequence[float], *, with_prior: bool = False) -> Tensor:
        """Return the losses [B] of a batch.
        timesteps: one for each image with_prior: as in training: add the prior terms, and ignore some masks at random
        (`unmasked_probability`)"""
        job, latents = self.job, batch.latents
        noises = draw_noises(job.noise, latents, batch.addresses)
        self.method.set_strength(batch.strength)
        conditioning = self._conditioning(batch)

        def predict(noisy: Tensor, at: Tensor, texts: TextStates = conditioning.texts) -> Tensor:
            return self.predict(noisy, at, replace(conditioning, texts=texts))

        def base_predict(noisy: Tensor, at: Tensor, texts: TextStates = conditioning.texts) -> Tensor:
            with self.method.untrained():
                return predict(noisy, at, texts)

        def untrained_predict(noisy: Tensor, at: Tensor) -> Tensor:
            trains_text = job.method.traits.uses_network and self.method.trains_text
            with self.method.untrained():
                return predict(noisy, at, self.text.states(batch.captions) if trains_text else conditioning.texts)

        preserved, at = batch.preserved, queued(torch.tensor(list(timesteps)), self.device)
        unmasked_weight = job.noise.masked_prior_preservation_weight if with_prior and preserves_unmasked(job) else 0.0

        def loss_of(predict: Predict, **options: Any) -> Tensor:
            return training_loss(self.objective, predict, latents, noises, at, **options)

        losses_B = loss_of(
            predict,
            sample_weights=self._on_device(batch.weights(job.dataset)),
            masks=self._on_device(batch.loss_masks(job.noise, training=with_prior)),
            unmasked_prior=(untrained_predict, unmasked_weight) if unmasked_weight else None,
            preserved=(base_predict, queued(torch.tensor(preserved), self.device)) if any(preserved) else None,
        )
        if not with_prior or self.prior is None:
            return losses_B
        return losses_B + self.prior.losses(batch, predict, base_predict, self.text.states, loss_of)

    def effect(self, batch: Batch, timesteps: Sequence[float]) -> Tensor:
        """Return the relative change of each prediction by the trained weights, [B]: |trained - base| / |base|."""
        noises = draw_noises(self.job.noise, batch.latents, batch.addresses)
        x0, _, input_noise = self.objective.mixed(batch.latents, noises)
        at, conditioning = queued(torch.tensor(list(timesteps)), self.device), self._conditioning(batch)
        noisy = self.objective.noised(x0, input_noise, at)
        trained = self.predict(noisy, at, conditioning).float()
        with self.method.untrained():
            base = self.predict(noisy, at, conditioning).float()
        return (trained - base).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)

    def _conditioning(self, batch: Batch) -> Conditioning:
        """Return the text states, size conditioning, guidance and control images of a batch, on the device."""
        sizes = self._on_device(batch.sizes(self.job.dataset.crop_conditioning) if self._family.reads_sizes else None)
        guidance = torch.ones(len(batch.latents), device=self.device) if self._family.reads_guidance else None
        return Conditioning(self.text.states(batch.captions), sizes, guidance, self._on_device(batch.control))

    def _on_device(self, tensor: Tensor | None) -> Tensor | None:
        """Move a tensor to the device without waiting; return None for None."""
        return None if tensor is None else queued(tensor, self.device)

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """A context without dropout in any module of the model."""
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
    unmasked_prior: tuple[Predict, float] | None = None,
) -> Tensor:
    """Return the loss of each image, float32 [B]; the loss of a step is their mean. Uses no random numbers.

    predict          (noisy latents [B, C, H, W] float32, timesteps [B]) -> the model's output, [B, C, H, W]
    latents          x0, scaled by the VAE's factor, [B, C, H, W]
    timesteps        [B], integers or float32, 0 to 1000
    sample_weights   [B]: 1, or the weight of regularization images
    masks            weights of the loss in 0..1: [B, 1, h, w], or [B, h, w] as sd-scripts' alpha masks; another size is
                     averaged to the latents' size
    preserved        differential output preservation: (`predict` of the base model; bool [B], the images whose target is the base
                     model's prediction)
    unmasked_prior   (`predict` of the base model; weight of the loss that keeps the base model's prediction outside of masks)

    Raises ValueError for tensors of other shapes, which torch would broadcast silently.
    """
    _require_shapes(latents, noises.noise, timesteps, sample_weights, masks, objective.fractions)
    x0, noise, input_noise = objective.mixed(latents, noises)
    noisy = objective.noised(x0, input_noise, timesteps)
    target = objective.target(x0, noise, timesteps)

    def formed_prediction(predict: Predict) -> Tensor:
        return objective.form(predict(noisy, timesteps).float(), noisy, timesteps)

    if preserved is not None:
        base_predict, rows_B = preserved
        with torch.no_grad():
            target = torch.where(rows_B.view(-1, 1, 1, 1), formed_prediction(base_predict), target)
    if masks is not None and unmasked_prior is not None:
        with torch.no_grad():
            base = formed_prediction(unmasked_prior[0])
    predicted = formed_prediction(predict)
    loss_BCHW = objective.loss(predicted, target, timesteps)
    if masks is None:
        loss_B = loss_BCHW.mean(dim=(1, 2, 3))
    else:
        masks = masks if masks.dim() == 4 else masks.unsqueeze(1)
        loss_B = masked_mean(loss_BCHW, masks, objective.mask_mean)
        if unmasked_prior is not None:
            prior_BCHW = objective.loss(predicted, base, timesteps)
            loss_B = loss_B + unmasked_prior[1] * masked_mean(prior_BCHW, 1 - masks, objective.mask_mean)
    if sample_weights is not None:
        loss_B = loss_B * sample_weights.float()
    return loss_B * objective.weight(timesteps)


def masked_mean(loss_BCHW: Tensor, masks: Tensor, over: str = "area") -> Tensor:
    """Return the mean loss of each image under its mask, [B]; 0 for an empty mask.

    masks  [B, 1, h, w] in 0..1; another size is averaged to the loss's size
    over   "area": divide by the area of the mask, so that a small mask does not mean a small loss. "image": mean over the
           whole image, as in sd-scripts
    """
    from torch.nn.functional import interpolate

    masks = masks.float()
    if masks.shape[-2:] != loss_BCHW.shape[-2:]:
        masks = interpolate(masks, size=loss_BCHW.shape[-2:], mode="area")
    if over == "image":
        return (loss_BCHW * masks).mean(dim=(1, 2, 3))
    covered_B = masks.expand_as(loss_BCHW).sum(dim=(1, 2, 3))
    return (loss_BCHW * masks).sum(dim=(1, 2, 3)) / covered_B.clamp_min(1e-6)


def _require_shapes(
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    sample_weights: Tensor | None,
    masks: Tensor | None,
    fractions: bool,
) -> None:
    """Raise ValueError if shapes or dtypes are not those that `training_loss` documents. Values are not read, so there is no sync.
    fractions: whether float32 timesteps are allowed"""
    count = len(latents)
    if latents.dim() != 4 or noise.shape != latents.shape:
        raise ValueError(f"latents {_shape(latents)} and noise {_shape(noise)}: both are [B, C, H, W]")
    types = ("torch.int64", "torch.int32", *(("torch.float32",) if fractions else ()))
    if timesteps.shape != (count,) or str(timesteps.dtype) not in types:
        raise ValueError(f"timesteps {_shape(timesteps)} of {timesteps.dtype}: one of {types[0]} for each, [{count}]")
    if sample_weights is not None and sample_weights.shape != (count,):
        raise ValueError(f"sample_weights {_shape(sample_weights)}: one for each image, [{count}]")
    if masks is not None and tuple(masks.shape[:-2]) not in ((count, 1), (count,)):
        raise ValueError(f"masks {_shape(masks)}: [{count}, 1, h, w] or [{count}, h, w]")


def _shape(tensor: Tensor) -> str:
    """Return a tensor's shape as text, for messages."""
    return str(list(tensor.shape))
