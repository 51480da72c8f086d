"""Models made of random numbers, for tests: no weights are shipped or fetched for them."""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

from core.families.sd1.loading import CONFIGS, make_empty
from core.formats import sd_keys

PERIOD = 1_000_003  # prime: the rows of no layer repeat
WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
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
    return _write_folder(Path(folder), configs, dtype, seed)


def random_sd15(
    folder: Path | None = None, file: Path | None = None, dtype: torch.dtype = torch.float16, seed: int = 0
) -> tuple[Path | None, Path | None]:
    """The same random weights of exactly SD 1.5's architecture as a diffusers folder and as one file (2.1 GB each)."""
    tensors = {}
    for name in WEIGHT_FILES:
        state = random_state(name, shipped_config(name), dtype, seed)
        if folder is not None:
            _write_part(Path(folder), name, shipped_config(name), state)
        if file is not None:
            tensors.update(single_file_tensor(name, key, value) for key, value in state.items())
    if folder is not None:
        _write_rest(Path(folder))
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


def shipped_config(name: str) -> dict:
    return json.loads((CONFIGS / name / "config.json").read_text(encoding="utf-8"))


def random_state(name: str, config: dict, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of unit gain, small biases, norms about 1: activations keep their size through the model.

    All are cut from one pattern of random numbers: drawing a billion of them would take most of a minute.
    """
    pattern = torch.randn(PERIOD, generator=torch.Generator().manual_seed(seed))
    state, place = {}, 0
    for key, shape in _shapes(name, config).items():
        count = prod(shape)
        if key.endswith("bias"):
            scale, shift = 0.02, 0.0
        elif "norm" in key.split(".")[-2]:
            scale, shift = 0.05, 1.0
        elif "embedding" in key and "time" not in key:
            scale, shift = 0.02, 0.0
        else:
            scale, shift = (count / shape[0]) ** -0.5, 0.0
        cut = (pattern * scale + shift).to(dtype)
        cut = torch.roll(cut, -(place % PERIOD))
        state[key] = _tiled(cut, count).reshape(shape)
        place += count
    return state


def _tiled(pattern: torch.Tensor, count: int) -> torch.Tensor:
    """The pattern again and again, up to `count` numbers."""
    tiled = torch.empty(count, dtype=pattern.dtype)
    for start in range(0, count, len(pattern)):
        tiled[start : start + len(pattern)] = pattern[: count - start]
    return tiled


def _shapes(name: str, config: dict) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in make_empty(name, config).state_dict().items()}


def _write_folder(folder: Path, configs: dict[str, dict], dtype: torch.dtype, seed: int) -> Path:
    for name, config in configs.items():
        _write_part(folder, name, config, random_state(name, config, dtype, seed))
    _write_rest(folder)
    return folder


def _write_part(folder: Path, name: str, config: dict, state: dict[str, torch.Tensor]) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(state, folder / name / WEIGHT_FILES[name], metadata={"format": "pt"})


def _write_rest(folder: Path) -> None:
    for name in ("scheduler", "tokenizer"):
        shutil.copytree(CONFIGS / name, folder / name, dirs_exist_ok=True)
    shutil.copy(CONFIGS / "model_index.json", folder / "model_index.json")
