"""CLIP and VGG16 as measures of an image, differentiable: how far it is from a text or another image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from core.families.loading import load_part
from core.families.tokenizer import load_tokenizer
from core.formats.tensors.reading import TensorFile
from core.generation.effects.perceptual.checks import CLIP_KIND, CONVOLUTIONS, clip_part, vgg_shapes

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_NUMBERS = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # mean, deviation of RGB in 0..1
VGG_NUMBERS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POOLS = (4, 9, 16, 23, 30)
SMALLEST = 32  # pixels, of a side that VGG16 is shown: it halves them five times
TOKENS = 77

Measure = Callable[[Tensor], Tensor]  # an image [1, 3, H, W] in 0..1 -> its distance, one number


def spherical(one: Tensor, other: Tensor) -> Tensor:
    """The mean over rows of 2 arcsin(|u - v| / 2) ** 2 of unit vectors: 0 for equal ones, 4.93 for opposite ones, where the
    gradient, 0 / 0 there, is 0."""
    square = (one - other).square().sum(dim=-1).clamp(1e-12, 4 - 1e-6)
    return (2 * (square.sqrt() / 2).arcsin().square()).mean()


def _seen(pixels: Tensor, size: tuple[int, int], numbers: tuple[tuple[float, ...], ...]) -> Tensor:
    """An image as a model is shown it: resized to (height, width) and normalized."""
    if tuple(pixels.shape[-2:]) != size:
        pixels = interpolate(pixels, size=size, mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(each).to(pixels)[:, None, None] for each in numbers)
    return (pixels - mean) / deviation


def _pixels(image: Image, size: tuple[int, int], like: Tensor) -> Tensor:
    """A guide image at (height, width), [1, 3, H, W] in 0..1."""
    import numpy as np
    from PIL import Image as pillow

    small = np.array(image.resize(size[::-1], pillow.Resampling.NEAREST), dtype=np.float32)
    return (torch.from_numpy(small).permute(2, 0, 1)[None] / 255).to(like)


@dataclass(frozen=True)
class Clip:
    """A CLIP model of transformers, in fp32."""

    model: Any

    @classmethod
    def load(cls, folder: Path, device: str) -> nn.Module:
        part = clip_part(folder)
        model: nn.Module = load_part(part, part.config or {}, CLIP_KIND, "CLIP", device)
        return model

    @property
    def _like(self) -> Tensor:
        weight: Tensor = self.model.visual_projection.weight
        return weight

    def _image(self, pixels: Tensor) -> Tensor:
        side = self.model.config.vision_config.image_size
        seen = _seen(pixels, (side, side), CLIP_NUMBERS)
        return normalize(self.model.get_image_features(seen).pooler_output, dim=-1)

    def to_text(self, text: str) -> Measure:
        """The distance to a text, of which CLIP reads 75 tokens."""
        ids = load_tokenizer()(text, truncation=True, max_length=TOKENS)["input_ids"]
        with torch.no_grad():
            read = self.model.get_text_features(torch.tensor([ids], device=self._like.device))
        wanted = normalize(read.pooler_output, dim=-1)
        return lambda pixels: spherical(self._image(pixels), wanted)

    def to_image(self, image: Image) -> Measure:
        side = self.model.config.vision_config.image_size
        with torch.no_grad():
            wanted = self._image(_pixels(image, (side, side), self._like))
        return lambda pixels: spherical(self._image(pixels), wanted)


@dataclass(frozen=True)
class Vgg16:
    """VGG16's features by torchvision's numbers, without its classifier, in fp32."""

    layers: nn.Sequential

    @classmethod
    def load(cls, file: Path, device: str) -> nn.Module:
        shapes = vgg_shapes(file)

        def layer(number: int) -> nn.Module:
            if number in CONVOLUTIONS:
                outputs, inputs, *_ = shapes[f"features.{number}.weight"]
                return nn.Conv2d(inputs, outputs, 3, padding=1)
            return nn.MaxPool2d(2) if number in POOLS else nn.ReLU()

        with torch.device("meta"):
            made = nn.Sequential(*map(layer, range(POOLS[-1] + 1)))
        with TensorFile(file) as handle:
            state = {name: handle.read(f"features.{name}", torch.float32).to(device) for name in made.state_dict()}
        made.load_state_dict(state, assign=True)
        return made.eval().requires_grad_(False)

    def to_image(self, image: Image, layer: int, size: tuple[int, int]) -> Measure:
        """The mean squared difference of a layer's output from that of an image. size: (width, height) of the images made"""
        net, like = self.layers[: layer + 1], next(self.layers.parameters())
        small = max(size[1] // 4, SMALLEST), max(size[0] // 4, SMALLEST)
        with torch.no_grad():
            wanted = net(_seen(_pixels(image, small, like), small, VGG_NUMBERS))
        return lambda pixels: (net(_seen(pixels, small, VGG_NUMBERS)) - wanted).square().mean()
