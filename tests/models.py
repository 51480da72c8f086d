"""Models made of random numbers, for tests: no weights are shipped or fetched for them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from core.bench.random_model import WEIGHT_FILES, random_state, shipped_config, write_folder, write_part, write_rest
from core.formats import sd_keys

TINY = {
    "unet": {
        "block_out_channels": [32, 32, 64, 64],
        "attention_head_dim": 2,
        "cross_attention_dim": 32,
        "sample_size": 16,
    },
    "vae": {"block_out_channels": [32, 32, 32, 32], "sample_size": 128},
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "projection_dim": 32,
    },
}


def tiny_sd1(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A diffusers folder of SD 1's topology with tiny widths (about 2 M numbers, 8 MB in fp32). Loads in no time."""
    configs = {name: {**shipped_config(name), **change} for name, change in TINY.items()}
    return write_folder(Path(folder), configs, dtype, seed)


def random_sd15(
    folder: Path | None = None, file: Path | None = None, dtype: torch.dtype = torch.float16, seed: int = 0
) -> tuple[Path | None, Path | None]:
    """The same random weights of exactly SD 1.5's architecture as a diffusers folder and as one file (2.1 GB each)."""
    tensors = {}
    for name in WEIGHT_FILES:
        state = random_state(name, shipped_config(name), dtype, seed)
        if folder is not None:
            write_part(Path(folder), name, shipped_config(name), state)
        if file is not None:
            tensors.update(single_file_tensor(name, key, value) for key, value in state.items())
    if folder is not None:
        write_rest(Path(folder))
    if file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file, metadata={"format": "pt"})
    return folder, file


def random_sd15_folder(folder: Path, dtype: torch.dtype = torch.float16, seed: int = 0) -> Path:
    """A diffusers folder with exactly SD 1.5's architecture (2.1 GB in fp16)."""
    random_sd15(folder, None, dtype, seed)
    return Path(folder)


def random_sd15_file(path: Path, dtype: torch.dtype = torch.float16, seed: int = 0) -> Path:
    """The weights of `random_sd15_folder` with the same seed, as one file with single-file names."""
    random_sd15(None, path, dtype, seed)
    return Path(path)


def single_file_tensor(part: str, key: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A tensor's name and shape in a single file; the VAE's attention is 1x1 convolutions there."""
    if part == "unet":
        return sd_keys.UNET_PREFIX + sd_keys.unet_to_ldm(key), value
    if part == "text_encoder":
        return sd_keys.CLIP_PREFIXES["sd1"] + sd_keys.clip_to_ldm(key), value
    name = sd_keys.vae_to_ldm(key)
    if ".attn_1." in name and value.ndim == 2:
        value = value[:, :, None, None]
    return sd_keys.VAE_PREFIX + name, value
