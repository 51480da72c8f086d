"""CLIP and VGG guidance during sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from core.diffusion.samplers import model_input, root_alpha_bar
from core.families.loading import load_part
from core.families.offload import temporarily_on
from core.families.prompt_weights import WINDOW_END
from core.families.tokenizer import load_tokenizer
from core.formats.tensors.reading import TensorFile
from core.generation.effects.perceptual.checks import (
    CLIP_KIND,
    CONVOLUTIONS,
    clip_name,
    clip_part,
    vgg_name,
    vgg_shapes,
)
from core.generation.plan.hooks import HookInputs
from core.generation.plan.initial import GUIDE, opened
from core.generation.prompt.runs import prompt_runs, weighted_parts
from core.generation.sample.canvas import is_finite
from core.generation.sample.guidance import Moment
from core.generation.sample.loop import Ask, Hook
from core.record.problems import ProblemsError
from core.record.workspace import resolve_path

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_ALPHA_BAR = 1e-4  # lowest alpha_bar of a guided step: the estimated image is divided by its root


def hook_of(inputs: HookInputs) -> Hook | None:
    """Return the hook if a scale of CLIP or VGG guidance is set, else None."""
    return Perceptual(inputs) if inputs.job.perceptual.used else None


class Perceptual(Hook):
    """Corrects the guided output by the gradients of CLIP and VGG distances with respect to the latents, times their scales.

    The distances are measured on the image decoded from the U-Net's output for the prompt alone, without ControlNets.
    """

    def __init__(self, inputs: HookInputs):
        self._inputs = inputs
        self._measures: list[list[tuple[float, Measure]]] = []  # of each image

    @contextmanager
    def around(self) -> Iterator[None]:
        """Context with the CLIP and VGG models leased, the VAE on the device, and gradient checkpointing on."""
        parts = self._inputs.components
        with ExitStack() as stack:
            stack.enter_context(temporarily_on([parts.vae], parts.device))
            for part in (parts.denoiser, parts.vae):
                stack.enter_context(_checkpointed(part))
            self._measures = self._scaled_distances(stack)
            try:
                yield
            finally:
                self._measures = []

    def _scaled_distances(self, stack: ExitStack) -> list[list[tuple[float, Measure]]]:
        """Return [(scale, distance function)] for each image. The CLIP and VGG models are leased until the stack ends."""
        inputs, settings = self._inputs, self._inputs.job.perceptual
        device, lend = inputs.components.device, inputs.lend
        assert lend is not None, "what has CLIP or VGG guidance lends their models"
        shared: list[tuple[float, Measure]] = []
        if settings.uses_clip:
            clip = Clip(stack.enter_context(lend(clip_name(inputs.job), partial(Clip.load, device=device))))
        if settings.compares_images:
            image = opened(resolve_path(settings.guide_image or ""), GUIDE)
            if settings.clip_image_guidance_scale:
                shared.append((settings.clip_image_guidance_scale, clip.to_image(image)))
            if settings.vgg16_guidance_scale:
                vgg = Vgg16(stack.enter_context(lend(vgg_name(inputs.job), partial(Vgg16.load, device=device))))
                distance = vgg.to_image(image, settings.vgg16_guidance_layer, inputs.stage.size)
                shared.append((settings.vgg16_guidance_scale, distance))
        if not settings.clip_guidance_scale:
            return [shared] * len(inputs.prompts)
        weighted = inputs.job.generate.prompt_weights
        texts = [settings.clip_prompt or _clip_text(prompt, weighted) for prompt in inputs.prompts]
        return [[(settings.clip_guidance_scale, clip.to_text(text)), *shared] for text in texts]

    def corrected(self, at: Moment, output: Tensor, ask: Ask) -> Tensor:
        """Return the guided output corrected by the scaled gradients; with the sampler LMS the latents are changed instead."""
        a = root_alpha_bar(at.scheduler, at.timestep)
        if a**2 < MIN_ALPHA_BAR:
            return output
        s, velocity = (1 - a**2) ** 0.5, at.scheduler.config["prediction_type"] == "v_prediction"
        lms = self._inputs.job.generate.sampler == "lms"
        noisy = model_input(at.scheduler, at.latents, at.timestep)
        change = s * self.gradient(noisy, a, ask, velocity, 1.0 if lms else s)
        if not lms:
            return output + (change / a if velocity else change)
        # As in sd-scripts, the latents move by sigma ** 2 times the gradient, and their noise is unchanged.
        moved = -change * s / a
        at.latents = at.latents + moved
        return output - s * moved if velocity else output

    def gradient(self, noisy: Tensor, a: float, ask: Ask, velocity: bool, share: float) -> Tensor:
        """Return the gradient of the scaled distances with respect to the model's input, [B, C, h, w].

        Raises ProblemsError for NaN values.

        noisy      the model's input
        a          root of alpha_bar
        ask        (model's input) -> its output for the prompt alone
        velocity   True if the model predicts v, False for epsilon
        share      the latents to decode are share * (clean latents) + (1 - share) * noisy
        """
        s = (1 - a**2) ** 0.5
        with torch.enable_grad():
            inputs = noisy.detach().requires_grad_()
            output = ask(inputs).to(inputs.dtype)
            clean = a * inputs - s * output if velocity else (inputs - s * output) / a
            decoded = share * clean + (1 - share) * inputs
        of_decoded = [self._gradient(latents, number) for number, latents in enumerate(decoded.detach().split(1))]
        gradient = _backward(decoded, inputs, torch.cat(of_decoded))
        if not is_finite(gradient):
            what, where = "The gradient of CLIP or VGG guidance contains NaN values", "memory.mixed_precision"
            fix = "set mixed precision and VAE precision to bf16 or fp32"
            raise ProblemsError.one(what, where, fix, "perceptual.nan")
        return gradient

    def _gradient(self, latents: Tensor, number: int) -> Tensor:
        """Return the gradient of the scaled distances of image `number` with respect to its latents [1, C, h, w]."""
        parts, family = self._inputs.components, self._inputs.family
        with torch.enable_grad():
            inputs = latents.requires_grad_()
            pixels = (family.decode_latents(parts.vae, inputs) / 2 + 0.5).clamp(0, 1)
            leaf = pixels.detach().requires_grad_()
            loss = torch.stack([scale * measure(leaf) for scale, measure in self._measures[number]]).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return _backward(pixels, inputs, gradient)


def _backward(outputs: Tensor, inputs: Tensor, output_gradient: Tensor) -> Tensor:
    """Return the gradient with respect to `inputs`. output_gradient: the gradient with respect to `outputs`

    Scaled by a power of 2 to about 1 during the backward pass, so that 16 bits neither underflow nor overflow.
    """
    largest = output_gradient.abs().max()
    power = torch.where((largest > 0) & largest.isfinite(), largest.log2().floor().exp2(), torch.ones_like(largest))
    (gradient,) = torch.autograd.grad(outputs, inputs, output_gradient / power)
    return gradient * power


def _clip_text(prompt: str, weighted: bool) -> str:
    """Return a prompt as text for CLIP, without AND weights and, if `weighted`, without prompt weights and BREAK."""
    parts = [part for part, _ in weighted_parts(prompt)]
    if weighted:
        parts = ["".join(" " if run == WINDOW_END else run for run, _ in prompt_runs(part)) for part in parts]
    return " ".join(parts)


@contextmanager
def _checkpointed(part: Any) -> Iterator[None]:
    """Context with gradient checkpointing in a U-Net or VAE, if it supports it."""
    if not hasattr(part, "enable_gradient_checkpointing"):
        yield
        return
    part.enable_gradient_checkpointing()
    try:
        yield
    finally:
        part.disable_gradient_checkpointing()


# Mean and deviation of RGB in 0..1
CLIP_MEAN_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VGG_MEAN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
POOLS = (4, 9, 16, 23, 30)
MIN_SIDE = 32  # pixels, of a side of VGG16's input: it halves them five times
TOKENS = 77
Measure = Callable[[Tensor], Tensor]  # an image [1, 3, H, W] in 0..1 -> its distance, one number


def spherical(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean over rows of 2 arcsin(|u - v| / 2) ** 2 for unit vectors u in `first` and v in `second`, [N, C] each.

    The squared spherical distance: 0 for equal vectors, 4.93 for opposite ones; clamped so that its gradient is finite there.
    """
    square = (first - second).square().sum(dim=-1).clamp(1e-12, 4 - 1e-6)
    return (2 * (square.sqrt() / 2).arcsin().square()).mean()


def _model_input(pixels: Tensor, size: tuple[int, int], mean_std: tuple[tuple[float, ...], ...]) -> Tensor:
    """Resize `pixels` [N, 3, H, W] in 0..1 to `size` (height, width) and normalize them.
    mean_std: (mean, standard deviation) of R, G and B in 0..1"""
    if tuple(pixels.shape[-2:]) != size:
        pixels = interpolate(pixels, size=size, mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(each).to(pixels)[:, None, None] for each in mean_std)
    return (pixels - mean) / deviation


def _pixels(image: Image, size: tuple[int, int], like: Tensor) -> Tensor:
    """Return a guide image resized to `size` (height, width), [1, 3, H, W] in 0..1. like: tensor with the dtype and device to use"""
    import numpy as np
    from PIL import Image as pillow

    small = np.array(image.resize(size[::-1], pillow.Resampling.NEAREST), dtype=np.float32)
    return (torch.from_numpy(small).permute(2, 0, 1)[None] / 255).to(like)


@dataclass(frozen=True)
class Clip:
    """A CLIP model of transformers in fp32, measuring distances of images."""

    model: Any

    @classmethod
    def load(cls, folder: Path, device: str) -> nn.Module:
        """Load a CLIP model of transformers in fp32. folder: with config.json and weights"""
        part = clip_part(folder)
        model: nn.Module = load_part(part, part.config or {}, CLIP_KIND, "CLIP", device)
        return model

    @property
    def _weight(self) -> Tensor:
        """A weight of the model, for its dtype and device."""
        weight: Tensor = self.model.visual_projection.weight
        return weight

    def _image(self, pixels: Tensor) -> Tensor:
        """Return unit CLIP embeddings [N, C] of images [N, 3, H, W] in 0..1."""
        side = self.model.config.vision_config.image_size
        inputs = _model_input(pixels, (side, side), CLIP_MEAN_STD)
        return normalize(self.model.get_image_features(inputs).pooler_output, dim=-1)

    def to_text(self, text: str) -> Measure:
        """Return a function: image -> its spherical distance to a text. CLIP reads the first 75 tokens of the text."""
        ids = load_tokenizer()(text, truncation=True, max_length=TOKENS)["input_ids"]
        with torch.no_grad():
            features = self.model.get_text_features(torch.tensor([ids], device=self._weight.device))
        target = normalize(features.pooler_output, dim=-1)
        return lambda pixels: spherical(self._image(pixels), target)

    def to_image(self, image: Image) -> Measure:
        """Return a function: image -> its spherical distance to `image`."""
        side = self.model.config.vision_config.image_size
        with torch.no_grad():
            target = self._image(_pixels(image, (side, side), self._weight))
        return lambda pixels: spherical(self._image(pixels), target)


@dataclass(frozen=True)
class Vgg16:
    """The feature layers of torchvision's VGG16 in fp32, measuring distances of images."""

    layers: nn.Sequential

    @classmethod
    def load(cls, file: Path, device: str) -> nn.Module:
        """Load the feature layers of VGG16, frozen, in fp32."""
        shapes = vgg_shapes(file)

        def layer(number: int) -> nn.Module:
            if number in CONVOLUTIONS:
                outputs, inputs, *_ = shapes[f"features.{number}.weight"]
                return nn.Conv2d(inputs, outputs, 3, padding=1)
            return nn.MaxPool2d(2) if number in POOLS else nn.ReLU()

        with torch.device("meta"):
            features = nn.Sequential(*map(layer, range(POOLS[-1] + 1)))
        with TensorFile(file) as handle:
            state = {name: handle.read(f"features.{name}", torch.float32).to(device) for name in features.state_dict()}
        features.load_state_dict(state, assign=True)
        return features.eval().requires_grad_(False)

    def to_image(self, image: Image, layer: int, size: tuple[int, int]) -> Measure:
        """Return a function: image -> mean squared difference of a layer's outputs from those for `image`.

        layer   index in VGG16's features
        size    (width, height) of the generated images; both images are compared at a quarter of it
        """
        net, like = self.layers[: layer + 1], next(self.layers.parameters())
        small = max(size[1] // 4, MIN_SIDE), max(size[0] // 4, MIN_SIDE)
        with torch.no_grad():
            target = net(_model_input(_pixels(image, small, like), small, VGG_MEAN_STD))
        return lambda pixels: (net(_model_input(pixels, small, VGG_MEAN_STD)) - target).square().mean()
