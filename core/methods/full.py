"""DreamBooth and fine-tuning: trains the U-Net and, if set, the text encoders.

Both are one method. DreamBooth differs by its dataset, a subject's images with regularization images of its class,
and trains the text encoder by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from core.families import family
from core.families.components import Components
from core.families.saving import modules_of, save_model
from core.formats.models.sd_keys import unet_to_ldm
from core.formats.models.whole_model import ENDINGS, Form, ModelFacts, form_of
from core.formats.tensors.writer import type_named
from core.methods import Method
from core.networks.block_weights import block_of
from core.optimization.groups import Trainable
from core.record.problems import Problem
from core.settings.blocks import COUNTS, numbers
from core.settings.model import traits_of
from core.settings.optimization.rates import has_frozen_blocks, trains_text

if TYPE_CHECKING:
    from core.settings.job import TrainJob

TEXT_PARTS = ("text_encoder", "text_encoder_2")


def trained_parts(job: TrainJob, text_encoders: int = 2) -> set[str]:
    """Return the names of the trained parts: those that the settings train at a learning rate other than 0."""
    rates = dict(zip(TEXT_PARTS[:text_encoders], job.optimizer.text_rates, strict=False))
    parts = {name for name, rate in rates.items() if rate != 0 and trains_text(job)}
    if job.optimizer.unet_rate != 0 or job.method.block_lr:
        parts.add("unet")
    return parts


class FullMethod(Method):
    """Trains the model itself, all of it or some blocks, and saves the whole model.

    source  the model that training starts from; "source" in save_model_as takes its format
    vae     replaces the model's own VAE in saved models; None keeps it
    """

    def __init__(self, job: TrainJob, source: Path, vae: Path | None = None):
        super().__init__()
        self._job, self._settings, self._vae = job, job.method, vae
        parts = trained_parts(job)
        self.trains_text = any(name in parts for name in TEXT_PARTS)
        self.trains_unet = "unet" in parts
        save_as = job.saving.save_model_as
        self._form: Form = form_of(source) if save_as == "source" else cast("Form", save_as)
        self.extension = ENDINGS[self._form]
        self.steady_gradients = job.method.stop_text_encoder_training is None
        self.needs_untrained = self.trains_unet
        self._untrained_unet: Any = None
        self._components: Components | None = None
        self._trainable: dict[str, Any] = {}  # part's name -> module
        self._unet: Any = None
        self._weights: dict[str, nn.Parameter] = {}  # all trained weights, by names such as "unet.conv_in.weight"
        self._stopped = False

    # -- trained weights

    def build(self, components: Components) -> list[Trainable]:
        """Make the trained parts of the loaded model trainable, in place; return their weights with their learning rates."""
        self._components, self._unet = components, components.denoiser
        modules = modules_of(components, family(components.family).layout)
        names = trained_parts(self._job, len(components.text_encoders))
        self._trainable = {name: module for name, module in modules.items() if name in names}
        for name, module in self._trainable.items():
            module.requires_grad_(True)
            if traits_of(components.family).penultimate and name == "text_encoder":
                _freeze_unread(module)
        trainables = list(self._trainables(components.family))
        trained = {id(weight) for trainable in trainables if trainable.rate != 0 for weight in trainable.parameters}
        self._weights = {
            f"{part}.{name}": weight
            for part, module in self._trainable.items()
            for name, weight in module.named_parameters()
            if id(weight) in trained
        }
        if self._job.optimizer.clips_as_kohya and has_frozen_blocks(self._job):
            self.clipped = [weight for trainable in trainables for weight in trainable.parameters]
        return trainables

    def _trainables(self, family_name: str) -> Iterator[Trainable]:
        """Yield the weights of each trained part, U-Net blocks apart if `block_lr` is set."""
        for part, module in self._trainable.items():
            if part == "unet" and self._settings.block_lr:
                yield from block_trainables(module, numbers(self._settings.block_lr), family_name)
            else:
                yield Trainable(part, [weight for weight in module.parameters() if weight.requires_grad])

    # -- a state

    def state_dict(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self._weights.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(tensors[name])

    # -- moments of a run

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """A context in which passes use the untrained U-Net: the loaded one if it is frozen, else the second one."""
        assert self._components is not None
        assert self._untrained_unet is not None or not self.trains_unet, "the setup loads it where it is needed"
        self._components.denoiser = self._untrained_unet or self._unet
        try:
            yield
        finally:
            self._components.denoiser = self._unet

    def hold_untrained(self, unet: Any) -> None:
        self._untrained_unet = unet

    def before_micro_batch(self, step: int, number: int, images: Sequence[object]) -> None:
        """Freeze the text encoders from the configured step on."""
        stop = self._settings.stop_text_encoder_training
        if stop is None or step < stop or self._stopped:
            return
        for name in TEXT_PARTS:
            if name in self._trainable:
                self._trainable[name].requires_grad_(False)
        self._stopped = True

    # -- the file

    def write(
        self, path: Path, metadata: dict[str, str], precision: str, *, epoch: int = 0, step: int = 0
    ) -> list[Problem]:
        """Write the full model: trained parts from memory, the others copied from the base model.
        epoch, step: number of epochs and steps done; a .ckpt adds them to those of the base model"""
        assert self._components is not None
        noise, prediction = self._job.noise, self._job.model.prediction
        return save_model(
            self._components,
            path,
            list(self._trainable),
            form=self._form,
            vae=self._vae,
            dtype=type_named(precision),
            kohya_projection=self._job.model.kohya_projection,
            facts=ModelFacts(
                metadata=metadata,
                prediction=self._components.prediction if prediction == "auto" else prediction,
                zero_terminal_snr=noise.zero_terminal_snr or self._components.zero_terminal_snr,
                epoch=epoch,
                step=step,
            ),
        )

    def release(self) -> None:
        self._components = self._unet = self._untrained_unet = None
        self._trainable, self._weights = {}, {}


# -- blocks


def block_trainables(unet: nn.Module, rates: Sequence[float], family_name: str) -> Iterator[Trainable]:
    """Yield the weights of each U-Net block with the block's learning rate. rates: for each block; 0 freezes it"""
    assert len(rates) == COUNTS[family_name], "the rules count them"
    blocks: dict[int, list[nn.Parameter]] = {}
    for name, weight in unet.named_parameters():
        blocks.setdefault(block_of_weight(name, family_name), []).append(weight)
    for block, weights in sorted(blocks.items()):
        yield Trainable("unet", weights, name=f"unet_block{block}", rate=rates[block])


def block_of_weight(name: str, family_name: str) -> int:
    """Return the number of the U-Net block of a parameter: `down_blocks.1.attentions.0.proj_in.weight` -> 5 for SDXL, whose blocks are
    numbered as in the original (LDM) U-Net."""
    original = traits_of(family_name).original_names
    path = unet_to_ldm(name, "sdxl") if original else name
    if not original and path.startswith(("conv_norm_out.", "conv_out.")):
        return COUNTS[family_name] - 1
    return block_of(f"lora_unet_{path}".replace(".", "_"))


def _freeze_unread(encoder: Any) -> None:
    """Freeze what follows the penultimate layer of SDXL's first text encoder: only that layer's output is read, so the rest gets no
    gradient."""
    model = getattr(encoder, "text_model", encoder)
    model.encoder.layers[-1].requires_grad_(False)
    model.final_layer_norm.requires_grad_(False)
