"""`Layout`: the facts about a family's parts by which the shared loader works."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.families.compiling import BLOCKS
from core.families.token_count import VOCABULARY
from core.families.tokenizer import tokenizer_folder
from core.families.vocabulary import read_vocabulary
from core.formats.models.checkpoint import Part
from core.formats.models.diffusers_folder import Published
from core.formats.models.part_kinds import PartKind
from core.formats.models.text_keys import layer_index


def sd_misfits(configs: Mapping[str, Mapping[str, Any]], path: Path) -> list[str]:
    """Return reasons why the parts of a Stable Diffusion model do not work together, as clauses; [] if they do.

    configs   {part: config} of all parts
    path      of the model, whose tokenizer can have added tokens
    Raises ProblemsError for a damaged tokenizer.
    """
    size = len(read_vocabulary(tokenizer_folder(path)))
    unet, vae = configs["unet"], configs["vae"]
    texts = [config for name, config in configs.items() if name.startswith("text_encoder")]
    widths = sum(config["hidden_size"] for config in texts)
    channels = [unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)]
    misfits = {  # reason -> whether it applies
        f"its U-Net takes text embeddings of width {unet['cross_attention_dim']}, its text encoders output {widths}": (
            unet["cross_attention_dim"] != widths
        ),
        f"its U-Net and VAE have latents of {channels} channels, not 4": (
            channels not in ([4, 4, 4], [9, 4, 4])  # 9: inpainting models, which nothing trains
        ),
        "its VAE does not use 3 channels and a downscaling of 8": (
            (vae.get("in_channels", 3), vae.get("out_channels", 3), len(vae["block_out_channels"])) != (3, 3, 4)
        ),
        f"its tokenizer has {size:,} tokens, more than its text encoder": (
            min(config.get("vocab_size", 49408) for config in texts) < size
        ),
        "its text encoder takes fewer than 77 tokens": (
            min(config.get("max_position_embeddings", 77) for config in texts) < 77
        ),
    }
    return [reason for reason, applies in misfits.items() if applies]


@dataclass(frozen=True)
class Layout:
    """The parts of a family.

    family           name of the family in core.families
    configs          folder with the published config of every part, since single files have none
    denoiser, text_encoders    names of these parts, as in a diffusers folder
    tokenizers       for each text encoder: (model folder or None) -> its tokenizer
    vae_overflows    whether the published VAE exceeds the range of fp16
    blocks           class names of the denoiser's blocks that torch.compile compiles
    latent_pixels    image pixels per latent, along a side
    resolution       training resolution (side in pixels) of models whose config has no `sample_size`
    misfits          ({part: config}, path) -> reasons why complete parts do not work together
    find_prediction  (U-Net) -> "epsilon" or "v", for files that do not state it; None: always epsilon
    """

    family: str
    configs: Path
    text_encoders: tuple[str, ...]
    tokenizers: tuple[Callable[[Path | None], Any], ...]
    vae_overflows: bool = False
    find_prediction: Callable[[Any], str] | None = None
    denoiser: str = "unet"
    blocks: tuple[str, ...] = BLOCKS
    latent_pixels: int = 8
    resolution: int = 512
    misfits: Callable[[Mapping[str, Mapping[str, Any]], Path], list[str]] = sd_misfits

    @property
    def published(self) -> Published:
        """The family's published configs and vocabulary."""
        return Published(self.configs, VOCABULARY, self.denoiser)

    @property
    def has_both_predictions(self) -> bool:
        """Whether the published models predict epsilon at 512 px and v at 768, which their files do not state."""
        return self.find_prediction is not None

    def config(self, part: str) -> dict[str, Any]:
        """Return the published config of a part, named by its folder ("unet", "text_encoder")."""
        return self.published.config(part)

    def kind(self, part: str) -> PartKind:
        """Return the kind of a part by its published config. part: its folder's name ("unet", "text_encoder")"""
        return self.published.kind(part)

    def used(self, part: Part) -> Part:
        """Return the part without a text encoder's layers beyond its config: single files of SD 2 have 24, of which 23 are used."""
        if part.name not in self.text_encoders or part.config is not None:
            return part
        count = part.full_config(self.config(part.name)).get("num_hidden_layers", math.inf)
        locations = {name: location for name, location in part.locations.items() if layer_index(name) < count}
        return replace(part, locations=locations)
