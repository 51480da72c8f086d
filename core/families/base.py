"""`Family`: what training and generation need of a model family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.diffusion.text_states import TextStates
from core.families import loading
from core.families.clip import count_tokens, tokenize
from core.families.components import Components
from core.families.layout import Layout
from core.families.part_shapes import make_empty
from core.families.targets import Target, norm_targets, outer_targets
from core.families.vae import decode_latents, encode_image_latents, model_latents
from core.formats.models.checkpoint import Part, open_checkpoint
from core.record.problems import Problem
from core.settings.model import FAMILIES


@dataclass(eq=False)
class Family:
    """One family of models.

    layout            its parts, and how files hold them
    encode_captions   (components, captions, ...) -> the states that `predict` reads
    encode_ids        the same of token ids
    predict           (components, noisy latents [B, C, h, w], timesteps [B], Conditioning) -> [B, C, h, w]
    lora_targets      (part, conv=) -> the layers that a network may change, with their names in files
    reads_sizes       whether `predict` reads the sizes of images
    size_numbers      how many numbers those are
    reads_guidance    whether `predict` reads the guidance scale instead of a second pass for the negative prompt, as models do
                      that were distilled so
    latent_channels   C of its latents
    tokenize, count_tokens            (components, captions ...); all tokenizers of a model count alike
    encode_image_latents              (VAE, pixels [B, 3, H, W] in -1..1) -> mean and log variance of its own latents
    model_latents                     (the VAE's config, its own latents) -> latents as the model is shown them
    input_blocks                      (U-Net) -> its input blocks as Deep Shrink counts them; None: it has none
    decode_latents                    (VAE, latents of the model) -> pixels
    """

    layout: Layout
    encode_captions: Callable[..., TextStates]
    encode_ids: Callable[..., TextStates]
    predict: Callable[..., Tensor]
    lora_targets: Callable[..., Iterator[Target]]
    reads_sizes: bool = False
    size_numbers: int = 6
    reads_guidance: bool = False
    latent_channels: int = 4
    tokenize: Callable[..., Any] = tokenize
    count_tokens: Callable[..., int] = count_tokens
    encode_image_latents: Callable[[Any, Tensor], tuple[Tensor, Tensor]] = encode_image_latents
    model_latents: Callable[[Mapping[str, Any], Tensor], Tensor] = model_latents
    decode_latents: Callable[[Any, Tensor], Tensor] = decode_latents
    input_blocks: Callable[[Any], list[nn.Module]] | None = None

    @property
    def name(self) -> str:
        return self.layout.family

    @property
    def latent_pixels(self) -> int:
        return self.layout.latent_pixels

    def layers(self, part: nn.Module, *, norms: bool = False) -> Iterator[Target]:
        """The layers of a part that a network can have, 3x3 convolutions and those outside of a U-Net's blocks too. norms: and the
        norm layers in its blocks"""
        yield from self.lora_targets(part, conv=True)
        yield from outer_targets(part)
        if norms:
            yield from norm_targets(part, self.name)

    @property
    def objective(self) -> str:
        """How its models were trained (core/diffusion/objectives.py): declared with its traits, which need no torch."""
        return FAMILIES[self.name].objective

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of an image of (width, height) pixels."""
        return self.latent_channels, size[1] // self.latent_pixels, size[0] // self.latent_pixels

    @property
    def denoiser(self) -> str:
        """The name of the part that predicts the noise: "unet"."""
        return self.layout.denoiser

    def load(self, path: Path | str, **how: Any) -> Components:
        """Parts of a model, frozen: see core.families.loading.load."""
        return loading.load(self.layout, path, **how)

    def digest(self, path: Path | str, part: str, **how: Any) -> str:
        """SHA-256 of a part's weights as stored, for the keys of caches: see core.families.loading.digest."""
        return loading.digest(self.layout, path, part, **how)

    def weight_bytes(self, path: Path | str, item_bytes: int | None = None) -> dict[str, int]:
        """Bytes of each part's weights as stored, or with `item_bytes` for each number."""
        return loading.weight_bytes(self.layout, path, item_bytes)

    def problems(self, path: Path, vae: Path | None = None) -> list[Problem]:
        """What `load` would refuse, from headers and configs alone."""
        return loading.fit_problems(self.layout, path, vae)

    def parts(self, path: Path) -> dict[str, Part]:
        """What lies in a file or folder, by part."""
        return dict(open_checkpoint(path, self.name).parts)

    def activation_bytes(self, pixels: int, batch: int) -> int | None:
        """Activation memory of a step, where the family knows it; None: it is counted on the U-Net."""
        return None

    def make_empty(self, name: str, config: Mapping[str, Any] | None = None) -> nn.Module:
        """A part without memory (on the meta device), of the published size unless a config says another."""
        part: nn.Module = make_empty(name, dict(config or self.layout.config(name)))
        return part
