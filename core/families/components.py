"""A loaded model of any family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS = ("denoiser", "vae", "text_encoders", "tokenizers")


@dataclass
class Components:
    """The loaded parts of a model; parts that were not loaded are None or empty.

    denoiser       the part that predicts the noise: a U-Net for SD 1.x, 2.x and SDXL
    text_encoders  with one tokenizer each, in the order of their states in the context
    prediction     "epsilon" or "v"
    zero_terminal_snr   whether the model's file is marked as trained with zero terminal SNR
    vae_config     of the VAE in use, loaded or not; has the scaling factor of latents (Family.model_latents)
    device         that the model computes on; offloaded parts are elsewhere (core.families.offload)
    source         the file or folder that the model was loaded from; None for a model built in memory
    hashes         {part: SHA-256 of its stored weights}; empty unless load() was given a memo
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
        """`source`, for a model that was loaded from a file or folder; asserted."""
        assert self.source is not None
        return self.source
