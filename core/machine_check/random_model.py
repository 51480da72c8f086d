"""Models with published architectures and random weights, as none are shipped: for the check, the benchmark and tests."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from core.families import family
from core.families.part_shapes import make_empty
from core.formats.models.diffusers_folder import write_part, write_rest
from core.formats.tensors.lazy import in_memory
from core.record import atomic
from core.record.lazy_torch import torch

PERIOD = 1_000_003  # prime: the rows of no layer repeat


def random_state(name: str, config: dict[str, Any], dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a random state dict for the model part `name` with the diffusers `config`: activations keep their scale through the model.

    Weights have unit gain, biases are small, norms near 1. All tensors are cut from one pattern of random numbers: drawing a
    billion numbers would take most of a minute.
    """
    pattern = torch.randn(PERIOD, generator=torch.Generator().manual_seed(seed)).repeat(2)
    state, offset = {}, 0
    for key, value in make_empty(name, config).state_dict().items():
        count = prod(value.shape)
        scale, shift = _std_and_mean(key, count, value.shape)
        values = pattern[offset % PERIOD :][: min(count, PERIOD)]
        tile = (values * scale + shift).to(dtype)
        state[key] = tile.repeat(-(-count // len(tile)))[:count].clone().reshape(value.shape)
        offset += count
    return state


def _std_and_mean(key: str, count: int, shape: torch.Size) -> tuple[float, float]:
    """Return (standard deviation, mean) of the random values of the tensor `key`. `count`: its number of elements."""
    if key.endswith("bias"):
        return 0.02, 0.0
    if "norm" in key.split(".")[-2]:
        return 0.05, 1.0
    if "embedding" in key and "time" not in key:
        return 0.02, 0.0
    return (count / shape[0]) ** -0.5, 0.0


def make_model(folder: Path, family_name: str = "sd1") -> Path:
    """Write a diffusers folder with the exact architecture of `family_name` into `folder`, unless it exists; return its path.

    Sizes in fp16: SD 1.5 2.1 GB, SD 2.1 2.6 GB, SDXL 6.9 GB.
    """
    model, published = folder / f"{family_name}_random", family(family_name).layout.published
    if (model / "model_index.json").is_file():
        return model
    atomic.remove_folder(model)  # left half-written by a killed process
    for name in published.parts:
        config, kind = published.config(name), published.kind(name)
        state = {key: in_memory(tensor) for key, tensor in random_state(name, config, torch.float16).items()}
        write_part(model / name, kind.stem, kind.in_folder(config, state), config, pickled=False, metadata={})
    write_rest(model, published, None, None, False)
    return model
