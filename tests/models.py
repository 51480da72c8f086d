"""Models made of random numbers, for tests: no weights are shipped or fetched for them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from core.families import family
from core.families.components import Components
from core.families.layout import Layout
from core.families.token_count import VOCABULARY
from core.formats.models import sd_keys
from core.formats.models.text_keys import full_name
from core.machine_check.random_model import random_state
from core.networks.adapter_file import save_lora

WEIGHT_FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
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
# SDXL: six transformer layers less, and vectors of 32 and 48 in place of 768 and 1280.
TINY_SDXL = {
    "unet": {
        "block_out_channels": [32, 32, 64],
        "attention_head_dim": 2,
        "cross_attention_dim": 80,
        "projection_class_embeddings_input_dim": 6 * 256 + 48,
        "sample_size": 16,
        "transformer_layers_per_block": [1, 1, 2],
    },
    "vae": TINY["vae"],
    "text_encoder": TINY["text_encoder"],
    "text_encoder_2": {**TINY["text_encoder"], "hidden_size": 48, "intermediate_size": 96, "projection_dim": 48},
}
TINY_REFINER = {
    "unet": {
        **TINY["unet"],
        "cross_attention_dim": 48,
        "projection_class_embeddings_input_dim": 5 * 256 + 48,
        "transformer_layers_per_block": 1,
    },
    "vae": TINY["vae"],
    "text_encoder_2": TINY_SDXL["text_encoder_2"],
}
SD15_NUMBERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}  # as published
LORA_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2_v", "sdxl": "sdxl_base_v1-0"}
TINY_OF = {"sd1": TINY, "sd2": TINY, "sdxl": TINY_SDXL, "sdxl_refiner": TINY_REFINER}


def shipped_config(name: str, family_name: str = "sd1") -> dict[str, Any]:
    """The published configuration of a part."""
    return family(family_name).layout.config(name)


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


def tiny_configs(family_name: str) -> dict[str, dict[str, Any]]:
    """The published configurations with tiny widths."""
    return {name: {**shipped_config(name, family_name), **change} for name, change in TINY_OF[family_name].items()}


def tiny_folder(family_name: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A diffusers folder of a family's topology with tiny widths (about 2 M numbers, 8 MB in fp32)."""
    for name, state in _tiny_states(family_name, dtype, seed).items():
        write_part(Path(folder), name, tiny_configs(family_name)[name], state)
    write_rest(Path(folder), family_name)
    return Path(folder)


@cache
def _tiny_states(family_name: str, dtype: torch.dtype, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    return {name: random_state(name, config, dtype, seed) for name, config in tiny_configs(family_name).items()}


def inpainting_configs(family_name: str) -> dict[str, dict[str, Any]]:
    """Those of inpainting models, whose U-Net reads nine channels."""
    configs = tiny_configs(family_name)
    return configs | {"unet": {**configs["unet"], "in_channels": 9}}


def tiny_inpainting_folder(family_name: str, folder: Path) -> Path:
    """A folder like `tiny_folder`'s of an inpainting model."""
    return write_folder(Path(folder), inpainting_configs(family_name), torch.float32, 0, family_name)


def tiny_lora(components: Components, path: Path, conv: bool = False) -> Path:
    """A LoRA of random numbers on every layer of a model that can be hooked, strong enough to be seen."""
    kind, draw, tensors = family(components.family), torch.Generator().manual_seed(0), {}
    for part in (*components.text_encoders, components.denoiser):
        for target in kind.lora_targets(part, conv=conv):
            weight = target.module.weight
            tensors[f"{target.name}.lora_down.weight"] = torch.randn(4, *weight.shape[1:], generator=draw) * 0.3
            ones = [1] * (weight.ndim - 2)
            tensors[f"{target.name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, *ones, generator=draw) * 0.1
            tensors[f"{target.name}.alpha"] = torch.tensor(2.0)
    return save_lora(path, tensors, {"ss_base_model_version": LORA_VERSIONS[components.family]})


def tiny_file(
    family_name: str,
    path: Path,
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """The weights of `tiny_folder` with the same seed in one file with single-file names."""
    tensors = single_file(_tiny_states(family_name, dtype, seed), family_name)
    save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    return Path(path)


def tiny_layout(family_name: str, folder: Path) -> Layout:
    """The family's layout with the tiny sizes as its published ones, so that single files of them can be read."""
    for name, config in tiny_configs(family_name).items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return replace(family(family_name).layout, configs=folder)


def tiny_sd1(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A diffusers folder of SD 1's topology with tiny widths. Loads in no time."""
    return tiny_folder("sd1", folder, dtype, seed)


def random_sd15(
    folder: Path | None = None, file: Path | None = None, dtype: torch.dtype = torch.float16, seed: int = 0
) -> tuple[Path | None, Path | None]:
    """The same random weights of exactly SD 1.5's architecture as a diffusers folder and as one file (2.1 GB each)."""
    tensors = {}
    for name in ("unet", "vae", "text_encoder"):
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


def single_file(states: dict[str, dict[str, torch.Tensor]], family_name: str) -> dict[str, torch.Tensor]:
    """A model's parts under single-file names; OpenCLIP's q, k and v in one tensor, its projection transposed."""
    tensors, thirds = {}, {}
    open_clip = sd_keys.OPEN_CLIP_PARTS.get(family_name)
    for part, state in states.items():
        for key, value in state.items():
            if part != open_clip:
                name, value = single_file_tensor(part, key, value, family_name)
                tensors[name] = value
                continue
            name, third = sd_keys.open_clip_to_ldm(key)
            name = sd_keys.OPEN_CLIP_PREFIXES[family_name] + name
            if third is not None:
                thirds.setdefault(name, {})[third] = value
            else:
                tensors[name] = value.T.contiguous() if name.endswith("text_projection") else value
    tensors |= {name: torch.cat([found[number] for number in range(3)]) for name, found in thirds.items()}
    if family_name == "sd2":  # the file has one layer more than is read, and what only OpenCLIP's own use needs
        prefix = sd_keys.OPEN_CLIP_PREFIXES["sd2"]
        last = f"{prefix}transformer.resblocks.{max(int(name.split('.')[4]) for name in thirds)}."
        number = int(last.split(".")[4]) + 1
        again = {name: value for name, value in tensors.items() if name.startswith(last)}
        tensors |= {name.replace(last, f"{prefix}transformer.resblocks.{number}."): -v for name, v in again.items()}
        tensors |= {f"{prefix}text_projection": torch.ones(4, 4), f"{prefix}logit_scale": torch.ones(())}
    return tensors


def single_file_tensor(part: str, key: str, value: torch.Tensor, family_name: str = "sd1") -> tuple[str, torch.Tensor]:
    """A tensor's name and shape in a single file; the VAE's attention is 1x1 convolutions there."""
    if part == "unet":
        return sd_keys.UNET_PREFIX + sd_keys.unet_to_ldm(key, family_name), value
    if part == "text_encoder":
        return sd_keys.CLIP_PREFIXES[family_name] + full_name(key), value
    name = sd_keys.vae_to_ldm(key)
    if ".attn_1." in name and value.ndim == 2:
        value = value[:, :, None, None]
    return sd_keys.VAE_PREFIX + name, value
