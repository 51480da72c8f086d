"""CLIP and VGG guidance at the steps of a generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from core.diffusion.samplers import config_of, model_input, root_alpha_bar
from core.families.offload import visiting
from core.families.word_weights import WINDOW_END
from core.generation.effects.perceptual.checks import clip_name, vgg_name
from core.generation.effects.perceptual.models import Clip, Measure, Vgg16
from core.generation.plan.hooks import Making
from core.generation.plan.initial import GUIDE, opened
from core.generation.prompt.runs import prompt_runs, weighted_parts
from core.generation.sample.decoding import is_finite
from core.generation.sample.guidance import Moment
from core.generation.sample.loop import Ask, Hook
from core.record.problems import ProblemsError
from core.record.workspace import resolve_path

LEAST = 1e-4  # alpha_bar from which on a step is guided: what the model says of the image is divided by its root


def hook_of(making: Making) -> Hook | None:
    """If a guidance scale is set."""
    return Perceptual(making) if making.job.perceptual.used else None


class Perceptual(Hook):
    """Corrects the guided output by the gradient of the distances, each times its scale, by the latents.

    It is that of the U-Net's output for the prompt alone, without ControlNets, and of the image decoded from it.
    """

    def __init__(self, making: Making):
        self._making = making
        self._measures: list[list[tuple[float, Measure]]] = []  # of each image

    @contextmanager
    def around(self) -> Iterator[None]:
        parts = self._making.components
        with ExitStack() as stack:
            stack.enter_context(visiting([parts.vae], parts.device))
            for part in (parts.denoiser, parts.vae):
                stack.enter_context(_checkpointed(part))
            self._measures = self._measured(stack)
            try:
                yield
            finally:
                self._measures = []

    def _measured(self, stack: ExitStack) -> list[list[tuple[float, Measure]]]:
        """The distances of each image with their scales; the models are lent until the stack ends."""
        making, asked = self._making, self._making.job.perceptual
        device, lend = making.components.device, making.lend
        assert lend is not None, "what has CLIP or VGG guidance lends their models"
        shared: list[tuple[float, Measure]] = []
        if asked.uses_clip:
            clip = Clip(stack.enter_context(lend(clip_name(making.job), partial(Clip.load, device=device))))
        if asked.compares_images:
            image = opened(resolve_path(asked.guide_image or ""), GUIDE)
            if asked.clip_image_guidance_scale:
                shared.append((asked.clip_image_guidance_scale, clip.to_image(image)))
            if asked.vgg16_guidance_scale:
                vgg = Vgg16(stack.enter_context(lend(vgg_name(making.job), partial(Vgg16.load, device=device))))
                distance = vgg.to_image(image, asked.vgg16_guidance_layer, making.stage.size)
                shared.append((asked.vgg16_guidance_scale, distance))
        if not asked.clip_guidance_scale:
            return [shared] * len(making.prompts)
        texts = [asked.clip_prompt or _plain(each, making.job.generate.prompt_weights) for each in making.prompts]
        return [[(asked.clip_guidance_scale, clip.to_text(text)), *shared] for text in texts]

    def corrected(self, at: Moment, output: Tensor, ask: Ask) -> Tensor:
        root = root_alpha_bar(at.sampler, at.timestep)
        if root**2 < LEAST:
            return output
        spread, velocity = (1 - root**2) ** 0.5, config_of(at.sampler)["prediction_type"] == "v_prediction"
        lms = self._making.job.generate.sampler == "lms"
        noisy = model_input(at.sampler, at.latents, at.timestep)
        change = spread * self.gradient(noisy, root, ask, velocity, 1.0 if lms else spread)
        if not lms:
            return output + (change / root if velocity else change)
        # As sd-scripts has it, the latents move by sigma ** 2 times the gradient, and the noise in them stays what it was.
        moved = -change * spread / root
        at.latents = at.latents + moved
        return output - spread * moved if velocity else output

    def gradient(self, noisy: Tensor, root: float, ask: Ask, velocity: bool, share: float) -> Tensor:
        """Of the distances, by the latents as the model is shown them: [B, C, h, w]. Raises ProblemsError for NaN values.

        root    of alpha_bar        share   of the clean latents in what is decoded; the rest is `noisy`
        """
        spread = (1 - root**2) ** 0.5
        with torch.enable_grad():
            given = noisy.detach().requires_grad_()
            output = ask(given).to(given.dtype)
            clean = root * given - spread * output if velocity else (given - spread * output) / root
            shown = share * clean + (1 - share) * given
        pull = torch.cat([self._pull(one, number) for number, one in enumerate(shown.detach().split(1))])
        found = _pulled(shown, given, pull)
        if not is_finite(found):
            what, where = "The gradient of CLIP or VGG guidance contains NaN values", "memory.mixed_precision"
            fix = "set mixed precision and VAE precision to bf16 or fp32"
            raise ProblemsError.one(what, where, fix, "perceptual.nan")
        return found

    def _pull(self, latents: Tensor, number: int) -> Tensor:
        """The gradient of one image's distances by the latents that are decoded, [1, C, h, w]."""
        parts, family = self._making.components, self._making.family
        with torch.enable_grad():
            given = latents.requires_grad_()
            pixels = (family.decode_latents(parts.vae, given) / 2 + 0.5).clamp(0, 1)
            seen = pixels.detach().requires_grad_()
            loss = torch.stack([scale * measure(seen) for scale, measure in self._measures[number]]).sum()
        (pull,) = torch.autograd.grad(loss, seen)
        return _pulled(pixels, given, pull)


def _pulled(made: Tensor, given: Tensor, pull: Tensor) -> Tensor:
    """The gradient by `given` of what has the gradient `pull` by `made`; brought to about 1 on its way, so that it is neither
    lost nor too large in 16 bits."""
    largest = pull.abs().max()
    power = torch.where((largest > 0) & largest.isfinite(), largest.log2().floor().exp2(), torch.ones_like(largest))
    (found,) = torch.autograd.grad(made, given, pull / power)
    return found * power


def _plain(prompt: str, weighted: bool) -> str:
    """What CLIP reads of a prompt: without weights, AND and BREAK."""
    parts = [part for part, _ in weighted_parts(prompt)]
    if weighted:
        parts = ["".join(" " if run == WINDOW_END else run for run, _ in prompt_runs(part)) for part in parts]
    return " ".join(parts)


@contextmanager
def _checkpointed(part: Any) -> Iterator[None]:
    """Inside, passes with gradients keep the inputs of blocks alone and compute the blocks twice; others are as before."""
    if not hasattr(part, "enable_gradient_checkpointing"):
        yield
        return
    part.enable_gradient_checkpointing()
    try:
        yield
    finally:
        part.disable_gradient_checkpointing()
