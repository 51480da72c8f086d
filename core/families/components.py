"""A loaded model, of any family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS = ("denoiser", "vae", "text_encoders", "tokenizers")


@dataclass
class Components:
    """The parts that were asked for; the others are None or empty.

    denoiser       what predicts the noise: a U-Net for SD 1.x, 2.x and SDXL
    text_encoders  with one tokenizer each, in the order of their states in the context
    prediction     "epsilon" or "v"
    zero_terminal_snr   whether its file says that it was trained on the schedule that ends in pure noise
    vae_config     of the VAE in use, loaded or not: its numbers turn its latents into the model's (Family.model_latents)
    device         that it computes on: parts may rest elsewhere (core.families.offload)
    source         the file or folder it came from
    hashes         part -> SHA-256 of its weights as stored, filled when load() got a memo to remember them in
    """

    denoiser: Any = None
    vae: Any = None
    text_encoders: Sequence[Any] = ()
    tokenizers: list[Any] = field(default_factory=list)
    prediction: str = "epsilon"
    zero_terminal_snr: bool = False
    vae_config: Mapping[str, Any] = field(default_factory=dict)
    family: str = "sd1"
    device: str = "cpu"
    source: Path | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> Path:
        """Its file or folder; for a model that was loaded from one."""
        assert self.source is not None
        return self.source
