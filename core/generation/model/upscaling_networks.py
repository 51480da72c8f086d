"""Upscaling networks: those of spandrel's architectures for images, and sd-scripts' upscaler for latents."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image as pillow
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from core.families.counting import LiveBytes
from core.formats.detect import identify
from core.formats.models.overflow import SHOWN, not_finite
from core.formats.other_files import unwrapped
from core.formats.tensors.reading import TensorFile
from core.generation.sample.canvas import fitted, pixels_of
from core.record.memory import is_out_of_memory
from core.record.problems import ProblemsError
from core.record.units import first_of
from core.record.workspace import display_path

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_TILE, SMALLEST_TILE, MARGIN = 256, 32, 16  # pixels of the input per tile, and of the overlap around it
UNMEASURED_TILE = 64
TRIAL = 32, 32  # (width, height) of an image that a network upscales when it is loaded
TILE_BYTES = 5 << 28  # that a network may need for a tile, besides its weights
LIBRARY_FACTOR = 1.8  # of its tensors, with what libraries copy; measured on a CPU: ESRGAN 1.5, SwinIR and DAT 1.8
LEFT_OUT = ("LaMa", "RestoreFormer")  # they fill masks and restore faces, and import torchvision


def load_network(path: Path, kind: str, device: str) -> Any:
    """Load an upscaling network in float32. Raises ProblemsError for an unsupported architecture, a network that fails to upscale a small
    image, and for NaN and infinite weights.
    kind: "images" or "latents" (`other_files.upscaler_kind`)"""
    with TensorFile(path) as file:
        state = {name: file.read(key, torch.float32) for name, key in unwrapped(file.entries).items()}
    if damaged := not_finite(state):
        what = f"{path.name} contains NaN or infinite values, which make black images: {first_of(damaged, SHOWN)}"
        raise ProblemsError.one(what, display_path(path), "use another file; this one is damaged", "weights.not-finite")
    try:
        network = LatentUpscaler.of(state) if kind == "latents" else ImageUpscaler(_described(state, path))
        network = network.to(device).eval().requires_grad_(False)
        network.images([pillow.new("RGB", TRIAL)], TRIAL)
    except Exception as error:  # of any type: spandrel reads sizes from names and shapes without checking them
        if isinstance(error, ImportError | ProblemsError) or is_out_of_memory(error):
            raise
        detected = identify(path)
        what = f"{path.name} has an unsupported architecture or unfitting weights; it looks like: {detected} ({detected.evidence})"
        raise ProblemsError.one(
            what, display_path(path), "choose another upscaler file", "upscaler.other-build"
        ) from error
    return network


# -- images


def architectures() -> Any:
    """Return spandrel's registry without LEFT_OUT, whose modules it would import by name."""
    for name in LEFT_OUT:
        left_out: Any = ModuleType(name)
        left_out.id, left_out.detect = name, lambda state: False
        setattr(left_out, f"{name}Arch", lambda left_out=left_out: left_out)
        sys.modules.setdefault(f"spandrel.architectures.{name}", left_out)
    from spandrel import MAIN_REGISTRY

    return MAIN_REGISTRY


def _described(state: Mapping[str, Tensor], path: Path) -> Any:
    """Return spandrel's descriptor of a network with these weights, for RGB images. Raises an exception of any type for unsupported ones.
    path: the file, for the message"""
    registry = architectures()
    with _AtMost(2 * sum(tensor.numel() for tensor in state.values())):  # some layers replace others
        descriptor = registry.load(dict(state))
    channels = descriptor.input_channels, descriptor.output_channels
    if channels != (3, 3):
        what = f"{path.name} turns {channels[0]} channels into {channels[1]}, but images have 3 (RGB)"
        raise ProblemsError.one(what, display_path(path), "choose an upscaler of RGB images", "upscaler.other-build")
    return descriptor


class _AtMost(TorchFunctionMode):
    """Context that raises ValueError before a network gets more weights than `count` numbers, as damaged files may ask for."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty:  # layers allocate their weights by it
            self.count -= prod(args if isinstance(args[0], int) else args[0])
            if self.count < 0:
                raise ValueError("The network has more weights than the file")
        return func(*args, **(kwargs or {}))


class ImageUpscaler(nn.Module):
    """An upscaler of RGB images.
    descriptor: spandrel's, which pads images to the sizes that the network takes"""

    def __init__(self, descriptor: Any):
        super().__init__()
        self.network, self.scale, self.tile = descriptor.model, descriptor.scale, _tile(descriptor)
        self._upscale = descriptor

    def images(self, images: Sequence[Image], size: tuple[int, int]) -> list[Image]:
        """Upscale images and resize them to `size` (width, height)."""
        return [fitted(self._enlarged(image), size, "resize") for image in images]

    @torch.no_grad()
    def _enlarged(self, image: Image) -> Image:
        """Upscale an image by the network's scale, in tiles."""
        device = self._upscale.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # AuraSR adds noise
            pixels = tiled(self._upscale, (pixels_of(image) / 2 + 0.5).to(device), self.scale, self.tile, MARGIN)
        pixels = (pixels[0].clamp(0, 1) * 255).round().byte()
        return pillow.fromarray(pixels.permute(1, 2, 0).cpu().numpy())

    def latents(self, latents: Tensor, scaling: float) -> Tensor:
        """Return the latents unchanged, since this network upscales images."""
        return latents


def _tile(descriptor: Any) -> int:
    """Return the largest tile, in pixels, that a network upscales within TILE_BYTES, by those of a small one, which grow with its area."""
    weights, side = (*descriptor.model.parameters(), *descriptor.model.buffers()), UNMEASURED_TILE + 2 * MARGIN
    with torch.inference_mode():
        empty = deepcopy(descriptor, {id(tensor): tensor.to("meta") for tensor in weights})
        try:
            with LiveBytes((*empty.model.parameters(), *empty.model.buffers())) as live:
                empty(torch.empty(1, 3, side, side, device="meta"))
        except RuntimeError:  # it branches on values, of which there are none
            return UNMEASURED_TILE
    tile = int(side * (TILE_BYTES / LIBRARY_FACTOR / live.peak) ** 0.5) - 2 * MARGIN
    return max(SMALLEST_TILE, min(LARGEST_TILE, tile - tile % SMALLEST_TILE))


def tiled(network: Any, pixels: Tensor, scale: int, tile: int, margin: int) -> Tensor:
    """Apply an upscaling network to overlapping tiles, [B, C, H, W] -> [B, C, scale H, scale W], so that memory stays constant.
    tile, margin: side of a tile, and overlap on each side, in input pixels"""
    height, width = pixels.shape[-2:]
    output = pixels.new_empty(*pixels.shape[:2], height * scale, width * scale)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            above, before = min(margin, top), min(margin, left)
            part = pixels[..., top - above : top + tile + margin, left - before : left + tile + margin]
            up = network(part)[..., above * scale : (above + tile) * scale, before * scale : (before + tile) * scale]
            output[..., top * scale : (top + tile) * scale, left * scale : (left + tile) * scale] = up
    return output


def upscaling_bytes(size: tuple[int, int], weights: int) -> int:
    """Return the peak memory in bytes of upscaling an image of `size` (width, height) by four. weights: bytes of the network's"""
    return weights + TILE_BYTES + 4 * (2 + 4**2) * 3 * prod(size)


# -- latents


class Residual(nn.Module):
    """Residual block of two 3x3 convolutions with batch normalization."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> the same shape."""
        return functional.relu(x + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))))


class LatentUpscaler(nn.Module):
    """sd-scripts' `tools/latent_upscaler.py`: corrects the latents of an image that was enlarged by Lanczos resampling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)
        for number in range(1, 21):
            self.add_module(f"resblock{number}", Residual())
        self.conv2, self.bn2 = nn.Conv2d(128, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv_final = nn.Conv2d(64, 4, 1)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> LatentUpscaler:
        """Create a network with these weights. Raises RuntimeError for other names or shapes."""
        network = cls()
        network.load_state_dict(dict(state))
        return network

    def forward(self, latents: Tensor) -> Tensor:
        """Correct latents [B, 4, h, w], given without the VAE's scaling factor."""
        x = functional.relu(self.bn1(self.conv1(latents)))
        for first in range(1, 21, 4):
            before = x
            for number in range(first, first + 4):
                x = self.get_submodule(f"resblock{number}")(x)
            x = x + before
        x = self.bn3(self.conv3(functional.relu(self.bn2(self.conv2(x)))))
        correction: Tensor = self.conv_final(x)
        return latents + correction

    def images(self, images: Sequence[Image], size: tuple[int, int]) -> list[Image]:
        """Resize images to `size` (width, height) by Lanczos resampling; the network corrects their latents later."""
        return [fitted(image, size, "resize") for image in images]

    @torch.no_grad()
    def latents(self, latents: Tensor, scaling: float) -> Tensor:
        """Correct latents [B, 4, h, w] of enlarged images. scaling: the VAE's scaling factor, which `latents` include"""
        corrected: Tensor = self(latents / scaling)
        return corrected * scaling
