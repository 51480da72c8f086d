"""Loads the parts of a model (denoiser, VAE, text encoders) for generation, by the memory settings."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, Literal

from core.families import family
from core.families.attention import set_attention
from core.families.components import Components
from core.families.locate import REFINER
from core.families.offload import offload_permanently
from core.families.precision import choose_precision, use_tf32, use_threads, vae_type
from core.formats.models.checkpoint import open_vae
from core.formats.tensors.header import read_header
from core.generation.model.sources import Sources
from core.generation.model.store import fingerprint
from core.record.lazy_torch import torch
from core.settings.memory import MemorySettings

Offload = Literal["off", "parts", "layers"]


class Parts:
    """A model's parts in its files: their sizes, loading functions and store keys, by the memory settings.

    A key contains the file, precision and memory settings of a part; the store loads the part again if it changes.
    """

    def __init__(self, memory: MemorySettings, sources: Sources, device: str):
        """Open the model's files by their headers and choose precisions. No weights are loaded."""
        self.kind, self.memory, self.device = family(sources.family), memory, device
        self.path, self.separate_vae, self.loras = sources.model, sources.vae, list(sources.loras.values())
        self.controls, self.hook_files = list(sources.controls.values()), list(sources.hook_files.values())
        self.upscalers = list(sources.upscalers.values())
        stored = self.kind.weight_bytes(sources.model)
        precision = choose_precision(memory, device, stored[self.kind.denoiser], trains=False)
        self.dtype, self.vae_dtype = precision.compute, vae_type(memory)
        self.stored = stored[self.kind.denoiser]
        self.opened = self.kind.parts(self.path)
        if self.separate_vae is not None:
            self.opened["vae"] = open_vae(self.separate_vae)
        self.sizes = {name: sum(self._bytes(name).values()) for name in self.opened}
        self.offload: Offload = "off"
        self._file = (fingerprint(self.path), sources.family, str(self.dtype), device)

    @classmethod
    def of_refiners(cls, memory: MemorySettings, sources: Sources, device: str) -> dict[str, Parts]:
        """Return {name in the settings: parts} of a job's refiners, without their VAEs, which are not used."""
        refiners = {}
        for name, path in sources.refiners.items():
            parts = refiners[name] = cls(memory, Sources(path, REFINER, None, {}), device)
            parts.opened.pop("vae", None)
            parts.sizes.pop("vae", None)
        return refiners

    def use_device(self) -> None:
        """Set torch's number of threads and TF32 for the device."""
        use_threads(self.device, self.stored)
        use_tf32(self.memory.allow_tf32)

    def config(self, name: str) -> dict[str, Any]:
        """Return the diffusers config of a part such as "vae", with defaults filled in."""
        return dict(self.opened[name].full_config(self.kind.layout.config(name)))

    @property
    def encoding_size(self) -> int:
        """Bytes on the device while offloaded text encoders compute: the largest tensor of a layer, and all tensors outside of layers."""
        each = [(key, size) for name in self.text_encoder_names for key, size in self._bytes(name).items()]
        layers = [size for key, size in each if any(component.isdigit() for component in key.split("."))]
        return sum(size for _, size in each) - sum(layers) + max(layers, default=0)

    @property
    def lora_size(self) -> int:
        """Bytes of the LoRAs, which compute in fp32 and stay on the device."""
        return sum(map(_fp32_bytes, self.loras))

    @property
    def upscaler_size(self) -> int:
        """Bytes of the largest upscaler, which computes in fp32."""
        return max(map(_fp32_bytes, self.upscalers), default=0)

    @property
    def control_size(self) -> int:
        """Bytes of the ControlNets and LLLites, which have the denoiser's dtype and stay on the device."""
        return sum(net.parameter_count for net in self.controls) * self.dtype.itemsize

    @property
    def hook_size(self) -> int:
        """Bytes of the models of hooks, which stay on the device."""
        return sum(file.bytes for file in self.hook_files)

    def _bytes(self, name: str) -> dict[str, int]:
        """Return {key of a tensor: its bytes in memory} of a part, at its dtype or in fp8."""
        itemsize = (self.vae_dtype if name == "vae" else self.dtype).itemsize
        in_fp8 = {self.kind.denoiser: self.memory.narrow_unet, "vae": False}.get(name, self.memory.fp8_base)
        shapes = {key: location.entry.shape for key, location in self.opened[name].locations.items()}
        return {
            key: prod(shape) * (1 if in_fp8 and len(shape) > 1 and "embedding" not in key else itemsize)
            for key, shape in shapes.items()
        }

    @property
    def text_encoder_names(self) -> list[str]:
        """Names of the text encoders in the model, such as "text_encoder_2"."""
        return [name for name in self.kind.layout.text_encoders if name in self.sizes]

    @property
    def rest_device(self) -> str:
        """Device of the VAE and the text encoders between uses: "cpu" if any weights are offloaded."""
        return self.device if self.offload == "off" else "cpu"

    @property
    def denoiser_key(self) -> Any:
        """Key of the denoiser in the store."""
        memory = self.memory
        return *self._file, memory.attention, memory.narrow_unet, memory.lowram, self.offload == "layers"

    @property
    def vae_key(self) -> Any:
        """Key of the VAE in the store."""
        return fingerprint(self.separate_vae or self.path), self.kind.name, str(self.vae_dtype), self.device

    @property
    def texts_key(self) -> Any:
        """Key of the text encoders in the store."""
        return (*self._file, self.memory.fp8_base)

    def denoiser(self) -> Components:
        """Load the denoiser and the tokenizers, and set attention, fp8, offloading and memory format."""
        from core.networks.fp8 import to_fp8
        from core.networks.frozen import install

        # Converted to fp8 in RAM, as in training: on a GPU it would briefly need the space of 16 bits.
        layers = self.offload == "layers"
        in_ram = layers or (self.memory.narrow_unet and not self.memory.lowram)
        loaded = self._load(("denoiser", "tokenizers"), device="cpu" if in_ram else self.device)
        denoiser = loaded.denoiser
        set_attention(denoiser, self.memory.attention)
        if self.memory.narrow_unet:
            to_fp8(denoiser)
        if layers:
            offload_permanently(denoiser, self.device)
        else:
            denoiser.to(self.device)
            if self.device.startswith("cuda"):
                _to_channels_last(denoiser)
        if self.device.startswith("cpu"):
            install(denoiser)  # as in training, so that both generate the same image
        return loaded

    def vae(self) -> Components:
        """Load the VAE to the device where it rests."""
        loaded = self._load(("vae",), device=self.rest_device, vae=self.separate_vae, vae_dtype=self.vae_dtype)
        if self.device.startswith("cuda"):  # on a CPU samples of a training are decoded in the usual layout
            _to_channels_last(loaded.vae)
        return loaded

    def text_encoders(self) -> Components:
        """Load the text encoders: into RAM if they are fp8, else to the device where they rest."""
        from core.networks.fp8 import to_fp8

        # Converted in RAM too; users move them to where they rest.
        loaded = self._load(("text_encoders",), device="cpu" if self.memory.fp8_base else self.rest_device)
        for encoder in loaded.text_encoders if self.memory.fp8_base else ():
            to_fp8(encoder)
        return loaded

    def _load(self, parts: tuple[str, ...], **options: Any) -> Components:
        """Load parts of the model by the family's loader. options: its other arguments, such as `device`"""
        return self.kind.load(self.path, parts=parts, dtype=self.dtype, **options)


def _to_channels_last(module: Any) -> None:
    """Put weights into channels_last layout, which is faster for convolutions; results differ by rounding only."""
    module.to(memory_format=torch.channels_last)


def _fp32_bytes(path: Path) -> int:
    """Return the bytes of a file's tensors in fp32."""
    return sum(4 * prod(entry.shape) for entry in read_header(path)[0].values())
