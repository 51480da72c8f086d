"""Upscaling networks: RRDBNet (ESRGAN, Real-ESRGAN, BSRGAN) for images, and sd-scripts' upscaler for latents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.formats.models.overflow import SHOWN, not_finite
from core.formats.tensors.header import read_header
from core.formats.tensors.reading import TensorFile
from core.generation.sample.canvas import fitted, pixels_of
from core.record.problems import ProblemsError
from core.record.units import first_of
from core.record.workspace import display_path

if TYPE_CHECKING:
    from PIL.Image import Image

TILE, MARGIN = 256, 16  # pixels of the input per tile, and of the overlap around it
TENSORS_OF_A_BLOCK = 30
# Keys of older ESRGAN files -> those of Real-ESRGAN.
OLDER = (
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"^model\.1\.sub\.\d+\.(weight|bias)", r"conv_body.\1"),
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.conv(\d)\.", r"body.\1.rdb\2.conv\3."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^upconv(\d)\.", r"conv_up\1."),
    (r"^HRconv\.", "conv_hr."),
)
OLDER_TAIL = re.compile(
    r"^model\.(\d+)\.(?!sub\.)"
)  # the convolutions around the blocks; one of every three doubles the size


def load_network(path: Path, kind: str, device: str) -> Any:
    """Load an upscaling network in float32. Raises ProblemsError for an unsupported architecture, and for NaN and infinite weights.
    kind: "images" or "latents" (`other_files.upscaler_kind`)"""
    with TensorFile(path) as file:
        names = _names(file.entries)
        network = _empty_network({new: file.entries[name].shape for new, name in names.items()}, kind, path)
        state = {new: file.read(name, torch.float32) for new, name in names.items()}
    if damaged := not_finite(state):
        what = f"{path.name} contains NaN or infinite values, which make black images: {first_of(damaged, SHOWN)}"
        raise ProblemsError.one(what, display_path(path), "use another file; this one is damaged", "weights.not-finite")
    network.to_empty(device="cpu").load_state_dict(state)
    return network.to(device).eval().requires_grad_(False)


def check_network(path: Path, kind: str) -> None:
    """Raise ProblemsError for an unsupported architecture, by the file's header. kind: as in `load_network`"""
    entries, _ = read_header(path)
    _empty_network({new: entries[name].shape for new, name in _names(entries).items()}, kind, path)


def _names(entries: Iterable[str]) -> dict[str, str]:
    """Return {name as in Real-ESRGAN: key} of a file's averaged weights, or of the only ones."""
    averaged = any(name.startswith("params_ema.") for name in entries)
    start = "params_ema." if averaged else "params."
    keys = {name.removeprefix(start): name for name in entries if not averaged or name.startswith(start)}
    last = max((int(found[1]) for name in keys if (found := OLDER_TAIL.match(name))), default=0)
    return {_renamed(name, last): key for name, key in keys.items()}


def _empty_network(shapes: Mapping[str, Sequence[int]], kind: str, path: Path) -> Any:
    """Return a network on the meta device whose tensors have exactly these names and shapes. Raises ProblemsError for others.

    kind   "images" or "latents"
    path   the file, for the message
    """
    try:
        with torch.device("meta"):
            network = LatentUpscaler() if kind == "latents" else RRDBNet.of(shapes)
    except (ArithmeticError, LookupError, RuntimeError, ValueError):
        network = None
    if network is None or _comparable_shapes(
        {name: t.shape for name, t in network.state_dict().items()}
    ) != _comparable_shapes(shapes):
        what, fix = f"{path.name} has an unsupported architecture", "choose an RRDBNet for color images"
        raise ProblemsError.one(what, display_path(path), fix, "upscaler.other-build")
    return network


def _comparable_shapes(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes as tuples, without batch normalization's counters, which older files lack."""
    return {name: tuple(shape) for name, shape in shapes.items() if not name.endswith(".num_batches_tracked")}


def _renamed(name: str, last: int) -> str:
    """Rename a key of older ESRGAN files to that of Real-ESRGAN. last: number of the file's last convolution"""
    numbered = {0: "conv_first.", last - 2: "conv_hr.", last: "conv_last."}
    for old, new in OLDER:
        name = re.sub(old, new, name)
    return OLDER_TAIL.sub(lambda found: numbered.get(number := int(found[1]), f"conv_up{number // 3}."), name)


# -- images


class DenseBlock(nn.Module):
    """Residual dense block: five convolutions, each of which reads the input and all earlier outputs.

    width    channels of input and output
    growth   channels of each earlier output
    """

    def __init__(self, width: int, growth: int):
        super().__init__()
        for number in range(1, 6):
            inward = width + (number - 1) * growth
            self.add_module(f"conv{number}", nn.Conv2d(inward, growth if number < 5 else width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> the same shape."""
        features = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            features = torch.cat([features, functional.leaky_relu(conv(features), 0.2)], dim=1)
        return x + 0.2 * self.conv5(features)


class Block(nn.Module):
    """Residual in residual dense block (RRDB) of three dense blocks."""

    def __init__(self, width: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, H, W] -> the same shape."""
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """ESRGAN's network (Wang et al. 2018, arXiv:1809.00219) for RGB images, with a scale of 2 ** doublings / folds.

    width      channels of the hidden maps
    blocks     number of RRDB blocks
    growth     channels added by each convolution of a dense block
    folds      factor of a pixel unshuffle before it (Real-ESRGAN): 1, or 2 for a scale of 2
    doublings  of the size after the blocks: 2; 0, 1, 3 or 4 for a scale of 1, 2, 8 or 16
    """

    def __init__(self, width: int = 64, blocks: int = 23, growth: int = 32, folds: int = 1, doublings: int = 2):
        super().__init__()
        self.folds, self.scale = folds, 2**doublings // folds
        self.conv_first = nn.Conv2d(3 * folds**2, width, 3, padding=1)
        self.body = nn.Sequential(*(Block(width, growth) for _ in range(blocks)))
        self.conv_body, self.conv_hr = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.ups = [f"conv_up{number}" for number in range(1, doublings + 1)]
        for name in self.ups:
            self.add_module(name, nn.Conv2d(width, width, 3, padding=1))
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> RRDBNet:
        """Create an uninitialized network with the layer sizes in `shapes`. Raises LookupError or ArithmeticError for other architectures.
        shapes: {key in a state dict: shape}"""
        width, inward = shapes["conv_first.weight"][:2]
        growth = shapes["body.0.rdb1.conv1.weight"][0]
        blocks = sum(name.startswith("body.") for name in shapes) // TENSORS_OF_A_BLOCK
        shapes[f"body.{blocks - 1}.rdb3.conv5.bias"]
        doublings = sum(name.startswith("conv_up") and name.endswith(".weight") for name in shapes)
        folds = round((inward / 3) ** 0.5)
        if 2**doublings % folds:
            raise LookupError(folds)
        return cls(width, blocks, growth, folds, doublings)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..1 -> [B, 3, scale H, scale W]."""
        if self.folds > 1:
            x = functional.pixel_unshuffle(x, self.folds)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for name in self.ups:
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = functional.leaky_relu(self.get_submodule(name)(x), 0.2)
        images: Tensor = self.conv_last(functional.leaky_relu(self.conv_hr(x), 0.2))
        return images

    def images(self, images: Sequence[Image], size: tuple[int, int]) -> list[Image]:
        """Upscale images and resize them to `size` (width, height)."""
        return [fitted(self._enlarged(image), size, "resize") for image in images]

    @torch.no_grad()
    def _enlarged(self, image: Image) -> Image:
        """Upscale an image by the network's scale, in tiles."""
        from PIL import Image as pillow

        pixels = (pixels_of(image) / 2 + 0.5).to(self.conv_first.weight.device)
        tile = TILE * 4 // max(4, self.scale)  # an output of the same size
        pixels = (tiled(self, pixels, self.scale, tile, MARGIN, self.folds)[0].clamp(0, 1) * 255).round().byte()
        return pillow.fromarray(pixels.permute(1, 2, 0).cpu().numpy())

    def latents(self, latents: Tensor, scaling: float) -> Tensor:
        """Return the latents unchanged, since this network upscales images."""
        return latents


def tiled(network: Any, pixels: Tensor, scale: int, tile: int, margin: int, multiple: int = 1) -> Tensor:
    """Apply an upscaling network to overlapping tiles, [B, C, H, W] -> [B, C, scale H, scale W], so that memory stays constant.

    tile, margin   side of a tile, and overlap on each side, in input pixels
    multiple       sides of tiles are multiples of this number of pixels; the input is padded accordingly
    """
    height, width = pixels.shape[-2:]
    padded = functional.pad(pixels, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    output = padded.new_empty(*padded.shape[:2], padded.shape[2] * scale, padded.shape[3] * scale)
    for top in range(0, padded.shape[2], tile):
        for left in range(0, padded.shape[3], tile):
            above, before = min(margin, top), min(margin, left)
            part = padded[..., top - above : top + tile + margin, left - before : left + tile + margin]
            up = network(part)[..., above * scale : (above + tile) * scale, before * scale : (before + tile) * scale]
            output[..., top * scale : top * scale + up.shape[2], left * scale : left * scale + up.shape[3]] = up
    return output[..., : height * scale, : width * scale]


def upscaling_bytes(size: tuple[int, int]) -> int:
    """Return the peak memory in bytes of ESRGAN's usual network for an image of `size` (width, height).

    Counts, in fp32, the weights, three maps of 64 channels of the largest tile, and the images.
    """
    weights, part = 16_697_987, prod(4 * min(side, TILE + 2 * MARGIN) for side in size)
    return 4 * (weights + 3 * 64 * part + (2 + 4**2) * 3 * prod(size))


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
