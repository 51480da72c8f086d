"""The parts of the base model, each loaded when it is first needed, with its dtype and the memory settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.families.attention import checkpoint_text_encoder, checkpoint_unet, set_attention
from core.families.components import Components
from core.families.precision import vae_type
from core.methods.full import TEXT_PARTS, trained_parts
from core.networks.files import merge_files
from core.networks.fp8 import to_fp8
from core.record.lazy_torch import torch
from core.training.memory.plan import is_fp8

if TYPE_CHECKING:
    from core.training.building.inputs import Inputs


class Models:
    """Loads and holds the VAE, the text encoders and the trained model of a run."""

    def __init__(self, inputs: Inputs):
        self._inputs, self._job, self._device = inputs, inputs.job, inputs.context.device
        self._vae: Any = None
        self._text: Components | None = None
        self._trained: Components | None = None

    # -- the VAE

    def vae(self) -> Any:
        """Return the VAE that encodes images and decodes samples; loaded at first use."""
        if self._vae is None and self._trained is not None:
            self._vae = self._trained.vae  # loaded by samples
        if self._vae is None:
            inputs = self._inputs
            inputs.context.stage("loading the VAE")
            self._vae = inputs.family.load(
                inputs.model, parts=("vae",), vae=inputs.vae, vae_dtype=vae_type(self._job.memory), device=self._device
            ).vae
        if self._trained is not None:
            self._trained.vae = self._vae
        return self._vae

    def offload_vae(self) -> None:
        """Free the VAE's memory on the device: move it to the CPU if samples need it again, else release it."""
        if self._vae is None:
            return
        vae = self._vae.to("cpu") if self._inputs.prompts else None
        if self._trained is None:  # `load` passes it on
            self._vae = vae
        else:
            self._trained.vae, self._vae = vae, None

    # -- text encoders

    def encoders(self) -> Components:
        """Return the text encoders and tokenizers: trained ones after `load`, else frozen ones, loaded at first use."""
        if self._text is None:
            self._inputs.context.stage("loading the text encoder")
            self._text = self._load(
                ("text_encoders", "tokenizers"), self._inputs.precision.compute, device=self._device
            )
            merge_files(self._text, self._inputs.files.merged)
            self._apply_memory_settings(self._text)
        return self._text

    def release_encoders(self) -> None:
        """Release the text encoders; `encoders` would load them again."""
        self._text = None

    # -- the trained model

    def load(self) -> Components:
        """Load the U-Net, and the text encoders if they train, merge the LoRAs of the settings, and return the parts."""
        self._inputs.context.stage("loading the model")
        trains_text = self._inputs.method.trains_text
        loaded = self._load_trained(("denoiser", "text_encoders", "tokenizers") if trains_text else ("denoiser",))
        loaded.vae, self._trained = self._vae, loaded
        merge_files(loaded, self._inputs.files.merged)
        if trains_text:
            self._text = loaded
        self._apply_memory_settings(loaded)
        if self.casts_on_cpu:
            for module in (loaded.denoiser, *loaded.text_encoders):
                module.to(self._device)
        return loaded

    def load_untrained(self) -> Any:
        """Load and return a second denoiser with the weights of the base model."""
        denoiser = self._load(("denoiser",), self._inputs.precision.compute, device=self._device).denoiser
        set_attention(denoiser, self._job.memory.attention)
        if self._device.startswith("cpu"):
            from core.networks.frozen import install

            install(denoiser)
        return denoiser

    def _load(self, parts: tuple[str, ...], dtype: torch.dtype, device: str) -> Components:
        """Load parts of the base model (names as in `core.families.components.PARTS`) in this dtype to this device."""
        return self._inputs.family.load(
            self._inputs.model,
            parts=parts,
            dtype=dtype,
            device=device,
            kohya_projection=self._job.model.kohya_projection,
        )

    def _load_trained(self, parts: tuple[str, ...]) -> Components:
        """Load parts of the model and return them: trained parts in the dtype of trained weights, frozen ones in the compute dtype."""
        inputs, job = self._inputs, self._job
        compute, trainable = inputs.precision.compute, inputs.precision.trainable
        in_parts = job.sharding.shares_weights and job.sharding.zero3_init_flag
        device = "cpu" if in_parts or self.casts_on_cpu else self._device
        if compute == trainable:
            return self._load(parts, compute, device)
        names = inputs.family.layout.text_encoders
        # Encoders of trained token embeddings are in the trained dtype, fp32 by default: their gradients are small.
        trained = trained_parts(job, len(names)) if job.method.traits.base_trains else set(names)
        loaded = self._load(("denoiser",), trainable if "unet" in trained else compute, device)
        if len(parts) > 1:
            texts = self._load(parts[1:], trainable if trained & set(TEXT_PARTS) else compute, device)
            loaded.text_encoders, loaded.tokenizers = texts.text_encoders, texts.tokenizers
            for name, encoder in zip(names, loaded.text_encoders, strict=True):
                if name not in trained:
                    encoder.to(compute)
        return loaded

    @property
    def casts_on_cpu(self) -> bool:
        """Whether the model is loaded to RAM and cast to fp8 there: on the GPU it would briefly take 2 bytes a weight."""
        memory = self._job.memory
        fp8 = memory.narrow_unet and not self._job.method.traits.base_trains
        return fp8 and not memory.lowram and not self._job.sharding.active

    @property
    def fp8_text(self) -> bool:
        """Whether frozen text encoders are in fp8: with `fp8_base`, for training a network."""
        return is_fp8(self._job, is_denoiser=False)

    def _apply_memory_settings(self, loaded: Components) -> None:
        """Apply attention, fp8 and gradient checkpointing to the loaded parts."""
        memory, unet = self._job.memory, loaded.denoiser
        if unet is not None:
            set_attention(unet, memory.attention)
            if memory.narrow_unet:
                to_fp8(unet)
        if self.fp8_text:
            for encoder in loaded.text_encoders:
                to_fp8(encoder)
        if memory.gradient_checkpointing and unet is not None:
            checkpoint_unet(unet, memory.checkpoint_blocks)
            for encoder in loaded.text_encoders:
                checkpoint_text_encoder(encoder)
