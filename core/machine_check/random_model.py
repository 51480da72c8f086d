"""Models of random weights with the published architectures, since none are shipped: for the check, the benchmark and tests."""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from core.families import family
from core.families.part_shapes import make_empty
from core.families.token_count import VOCABULARY
from core.formats.models.text_keys import full_name

PERIOD = 1_000_003  # prime: the rows of no layer repeat
WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


def shipped_config(name: str, family_name: str = "sd1") -> dict[str, Any]:
    """The published configuration of a part."""
    return family(family_name).layout.config(name)


def random_state(name: str, config: dict[str, Any], dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of unit gain, small biases, norms about 1: activations keep their size through the model.

    All are cut from one pattern of random numbers: generating a billion of them would take most of a minute. Each tensor
    uses no more of it than it has elements: a small model has a thousand tensors.
    """
    pattern = torch.randn(PERIOD, generator=torch.Generator().manual_seed(seed)).repeat(2)
    state, place = {}, 0
    for key, value in make_empty(name, config).state_dict().items():
        count = prod(value.shape)
        scale, shift = _spread(key, count, value.shape)
        cut = pattern[place % PERIOD :][: min(count, PERIOD)]
        tile = (cut * scale + shift).to(dtype)
        state[key] = tile.repeat(-(-count // len(tile)))[:count].clone().reshape(value.shape)
        place += count
    return state


def _spread(key: str, count: int, shape: torch.Size) -> tuple[float, float]:
    """(standard deviation, mean) of a tensor's random values. count: its number of elements"""
    if key.endswith("bias"):
        return 0.02, 0.0
    if "norm" in key.split(".")[-2]:
        return 0.05, 1.0
    if "embedding" in key and "time" not in key:
        return 0.02, 0.0
    return (count / shape[0]) ** -0.5, 0.0


def write_folder(
    folder: Path, configs: dict[str, dict[str, Any]], dtype: torch.dtype, seed: int = 0, family_name: str = "sd1"
) -> Path:
    """Write a diffusers folder with random weights. configs: {part's folder: its config}"""
    for name, config in configs.items():
        write_part(folder, name, config, random_state(name, config, dtype, seed))
    write_rest(folder, family_name)
    return folder


def write_part(folder: Path, name: str, config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if name.startswith("text_encoder"):
        state = {full_name(key): value for key, value in state.items()}
    save_file(state, folder / name / WEIGHT_FILES[name], metadata={"format": "pt"})


def write_rest(folder: Path, family_name: str = "sd1") -> None:
    """Write scheduler, tokenizers and model_index.json of the family."""
    configs = family(family_name).layout.configs
    for inside in (configs / "scheduler", *configs.glob("tokenizer*")):
        shutil.copytree(inside, folder / inside.name, dirs_exist_ok=True)
        if inside.name.startswith("tokenizer"):
            shutil.copy(VOCABULARY, folder / inside.name / VOCABULARY.name)
    shutil.copy(configs / "model_index.json", folder / "model_index.json")


def write_real_size(folder: Path, family_name: str = "sd1") -> Path:
    """A diffusers folder with exactly the architecture of SD 1.5 (2.1 GB in fp16), SD 2.1 (2.6) or SDXL (6.9)."""
    layout = family(family_name).layout
    parts = ("unet", "vae", *layout.text_encoders)
    configs = {name: shipped_config(name, family_name) for name in parts}
    return write_folder(folder, configs, torch.float16, 0, family_name)
