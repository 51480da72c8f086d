"""The parts of the base model as a run needs them: each loaded when it is first needed, in its dtype, with the switches of
the memory group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.families.attention import checkpoint_text_encoder, checkpoint_unet, set_attention
from core.families.components import Components
from core.families.precision import vae_type
from core.methods.full import TEXT_PARTS, trained_parts
from core.networks.files import merge_files
from core.networks.fp8 import to_fp8

if TYPE_CHECKING:
    import torch

    from core.training.building.inputs import Inputs


class Models:
    """Holds what is loaded between its uses."""

    def __init__(self, inputs: Inputs):
        self._inputs, self._job, self._device = inputs, inputs.job, inputs.context.device
        self._vae: Any = None
        self._text: Components | None = None
        self._trained: Components | None = None

    # -- the VAE

    def vae(self) -> Any:
        """Of all that encode, and of samples."""
        if self._vae is None and self._trained is not None:
            self._vae = self._trained.vae  # that samples loaded
        if self._vae is None:
            inputs = self._inputs
            inputs.context.stage("loading the VAE")
            self._vae = inputs.family.load(
                inputs.model, parts=("vae",), vae=inputs.vae, vae_dtype=vae_type(self._job.memory), device=self._device
            ).vae
        if self._trained is not None:
            self._trained.vae = self._vae
        return self._vae

    def put_vae_away(self) -> None:
        """The device is for what trains; samples need the VAE again."""
        if self._vae is None:
            return
        kept = self._vae.to("cpu") if self._inputs.prompts else None
        if self._trained is None:  # `load` hands it over
            self._vae = kept
        else:
            self._trained.vae, self._vae = kept, None

    # -- text encoders

    def encoders(self) -> Components:
        """Those that train, once `load` has loaded them; else frozen ones."""
        if self._text is None:
            self._inputs.context.stage("loading the text encoder")
            self._text = self._load(
                ("text_encoders", "tokenizers"), self._inputs.precision.compute, device=self._device
            )
            merge_files(self._text, self._inputs.files.merged)
            self._save_memory(self._text)
        return self._text

    def let_encoders_go(self) -> None:
        self._text = None

    # -- what trains

    def load(self) -> Components:
        """The U-Net, and the text encoders when they train."""
        self._inputs.context.stage("loading the model")
        trains_text = self._inputs.method.trains_text
        loaded = self._load_trained(("denoiser", "text_encoders", "tokenizers") if trains_text else ("denoiser",))
        loaded.vae, self._trained = self._vae, loaded
        merge_files(loaded, self._inputs.files.merged)
        if trains_text:
            self._text = loaded
        self._save_memory(loaded)
        if self.narrows_beside:
            for module in (loaded.denoiser, *loaded.text_encoders):
                module.to(self._device)
        return loaded

    def untrained(self) -> Any:
        """A second denoiser as it is before the training."""
        denoiser = self._load(("denoiser",), self._inputs.precision.compute, device=self._device).denoiser
        set_attention(denoiser, self._job.memory.attention)
        if self._device.startswith("cpu"):
            from core.networks.frozen import install

            install(denoiser)
        return denoiser

    def _load(self, parts: tuple[str, ...], dtype: torch.dtype, device: str) -> Components:
        return self._inputs.family.load(
            self._inputs.model,
            parts=parts,
            dtype=dtype,
            device=device,
            kohya_projection=self._job.model.kohya_projection,
        )

    def _load_trained(self, parts: tuple[str, ...]) -> Components:
        """Parts of the model: the trained ones in their own dtype, the others in the compute dtype."""
        inputs, job = self._inputs, self._job
        compute, trainable = inputs.precision.compute, inputs.precision.trainable
        in_parts = job.sharding.shares_weights and job.sharding.zero3_init_flag
        device = "cpu" if in_parts or self.narrows_beside else self._device
        if compute == trainable:
            return self._load(parts, compute, device)
        names = inputs.family.layout.text_encoders
        # Token embeddings train with encoders in their own dtype, fp32 by default: their gradients are small.
        found = trained_parts(job, len(names)) if job.method.traits.base_trains else set(names)
        loaded = self._load(("denoiser",), trainable if "unet" in found else compute, device)
        if len(parts) > 1:
            texts = self._load(parts[1:], trainable if found & set(TEXT_PARTS) else compute, device)
            loaded.text_encoders, loaded.tokenizers = texts.text_encoders, texts.tokenizers
            for name, encoder in zip(names, loaded.text_encoders, strict=True):
                if name not in found:
                    encoder.to(compute)
        return loaded

    @property
    def narrows_beside(self) -> bool:
        """Whether what trains next to a U-Net in fp8 is loaded in RAM first: on a GPU it would briefly need the
        space of 16 bits."""
        memory = self._job.memory
        narrow = memory.narrow_unet and not self._job.method.traits.base_trains
        return narrow and not memory.lowram and not self._job.sharding.active

    @property
    def narrow_text(self) -> bool:
        """Whether text encoders are in fp8. Training tokens needs higher precision: their gradients are small."""
        return self._job.memory.fp8_base and self._job.method.traits.uses_network

    def _save_memory(self, loaded: Components) -> None:
        """The switches of the memory group, on the parts that are loaded."""
        memory, unet = self._job.memory, loaded.denoiser
        if unet is not None:
            set_attention(unet, memory.attention)
            if memory.narrow_unet:
                to_fp8(unet)
        if self.narrow_text:
            for encoder in loaded.text_encoders:
                to_fp8(encoder)
        if memory.gradient_checkpointing and unet is not None:
            checkpoint_unet(unet, memory.checkpoint_blocks)
            for encoder in loaded.text_encoders:
                checkpoint_text_encoder(encoder)
