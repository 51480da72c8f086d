"""`Family`: the functions of a model family that training and generation call."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.diffusion.text_states import TextStates
from core.families import loading
from core.families.clip import count_tokens
from core.families.components import Components
from core.families.layout import Layout
from core.families.part_shapes import make_empty
from core.families.targets import Target, norm_targets, outer_targets
from core.families.token_weights import tokenize
from core.families.vae import decode_latents, encode_image_latents, model_latents
from core.formats.models.checkpoint import Part, open_checkpoint
from core.record.problems import Problem
from core.settings.model import FAMILIES


@dataclass(eq=False)
class Family:
    """A model family: its layout, and its functions on loaded models.

    layout            its parts and their form in files
    encode_captions   (components, captions, ...) -> text encoder states for `predict`
    encode_ids        (components, token ids [B, n, 77] of each tokenizer, ...) -> the same; None: not supported
    predict           (components, noisy latents [B, C, h, w], timesteps [B], Conditioning) -> prediction [B, C, h, w]
    lora_targets      (part, conv=) -> the layers that a network can train; conv: also in residual and resampling blocks
    reads_sizes       True if `predict` uses size conditioning of `size_numbers` numbers (SDXL: 6)
    reads_guidance    True if `predict` takes the guidance scale as an input, as guidance-distilled models do
    latent_channels   C of the latents
    tokenize          (components, captions, ...) -> token ids for each tokenizer
    count_tokens      (components, caption) -> number of tokens; all tokenizers of a model count the same
    encode_image_latents   (VAE, pixels [B, 3, H, W] in [-1, 1]) -> mean, log variance of the unscaled latents
    model_latents     (the VAE's config, unscaled latents) -> latents scaled for the model
    decode_latents    (VAE, scaled latents) -> pixels
    input_blocks      (U-Net) -> its input blocks as Deep Shrink numbers them; None: not supported
    """

    layout: Layout
    encode_captions: Callable[..., TextStates]
    predict: Callable[..., Tensor]
    lora_targets: Callable[..., Iterator[Target]]
    reads_sizes: bool = False
    size_numbers: int = 6
    reads_guidance: bool = False
    latent_channels: int = 4
    encode_ids: Callable[..., TextStates] | None = None
    tokenize: Callable[..., Any] = tokenize
    count_tokens: Callable[..., int] = count_tokens
    encode_image_latents: Callable[[Any, Tensor], tuple[Tensor, Tensor]] = encode_image_latents
    model_latents: Callable[[Mapping[str, Any], Tensor], Tensor] = model_latents
    decode_latents: Callable[[Any, Tensor], Tensor] = decode_latents
    input_blocks: Callable[[Any], list[nn.Module]] | None = None

    @property
    def name(self) -> str:
        """Name of the family, such as "sdxl"."""
        return self.layout.family

    @property
    def latent_pixels(self) -> int:
        """Image pixels per latent, along a side (8 for Stable Diffusion)."""
        return self.layout.latent_pixels

    def layers(self, part: nn.Module, *, norms: bool = False) -> Iterator[Target]:
        """Yield all layers of a part that a network can train, with 3x3 convolutions and layers outside of a U-Net's blocks.
        norms: also yield the norm layers in the blocks"""
        yield from self.lora_targets(part, conv=True)
        yield from outer_targets(part, self.name)
        if norms:
            yield from norm_targets(part, self.name)

    @property
    def objective(self) -> str:
        """Name of the objective that the family's models were trained with (core/diffusion/objectives.py)."""
        return FAMILIES[self.name].objective

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of an image. `size`: (width, height) in pixels."""
        return self.latent_channels, size[1] // self.latent_pixels, size[0] // self.latent_pixels

    @property
    def denoiser(self) -> str:
        """Name of the part that predicts the noise, such as "unet"."""
        return self.layout.denoiser

    def load(self, path: Path | str, **options: Any) -> Components:
        """Load parts of a model, frozen. Arguments and errors: core.families.loading.load."""
        return loading.load(self.layout, path, **options)

    def digest(self, path: Path | str, part: str, **options: Any) -> str:
        """Return the SHA-256 of a part's stored weights, for cache keys. Arguments and errors: core.families.loading.digest."""
        return loading.digest(self.layout, path, part, **options)

    def weight_bytes(self, path: Path | str, item_bytes: int | None = None) -> dict[str, int]:
        """Return {part: bytes of its weights} as stored, or with `item_bytes` per element (2 for bf16)."""
        return {name: part.weight_bytes(item_bytes) for name, part in self.parts(path).items()}

    def problems(self, path: Path, vae: Path | None = None) -> list[Problem]:
        """Return the problems for which `load` would fail, from headers and configs only."""
        return loading.fit_problems(self.layout, path, vae)

    def parts(self, path: Path | str) -> dict[str, Part]:
        """Return {"unet", "vae", "text_encoder" ...: part} of a model file or folder, from its headers; missing parts are left out. Raises
        ProblemsError for a damaged model."""
        return dict(open_checkpoint(path, self.name).parts)

    def activation_bytes(self, pixels: int, batch: int) -> int | None:
        """Return the bytes of activations in a training step; None: they are counted by running the U-Net on "meta".

        pixels   of an image      batch   number of images
        """
        return None

    def make_empty(self, name: str, config: Mapping[str, Any] | None = None) -> nn.Module:
        """Build a part on the "meta" device, which takes no memory. `config` None: the published one."""
        part: nn.Module = make_empty(name, dict(config or self.layout.config(name)))
        return part
