"""What a family is made of: the facts that the shared loader needs of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Layout:
    """The parts of a family.

    family           its name in core.families                 vae_scale      0.18215 or 0.13025
    configs          folder with the published configuration of every part: single files hold none
    denoiser, text_encoders    names of these parts, as in a diffusers folder
    tokenizers       model folder or None -> the tokenizer of each text encoder
    vae_overflows    whether the published VAE gives numbers beyond fp16's range
    find_prediction  finds by a U-Net whether it predicts "epsilon" or "v", where the file does not; None: epsilon
    """

    family: str
    configs: Path
    text_encoders: tuple[str, ...]
    tokenizers: tuple[Callable[[Path | None], Any], ...]
    vae_scale: float = 0.18215
    vae_overflows: bool = False
    find_prediction: Callable[[Any], str] | None = None
    denoiser: str = "unet"

    def config(self, part: str) -> dict[str, Any]:
        """The published configuration of a part."""
        return json.loads((self.configs / part / "config.json").read_text(encoding="utf-8"))
