"""What the tools that make LoRAs share: the changes of a file's layers, the tensors and metadata of the new one, its writing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from core.formats.lora.names import ALPHA, DOWN, UP, group_by_module
from core.formats.tensors.writer import type_named
from core.networks.adapter import as_weight
from core.networks.adapter_file import LoraFile, load_finite
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import display_path
from core.tools.loras.headers import SHOWN, with_kernel
from core.tools.loras.layers import Layer, layers_of
from core.tools.loras.svd import Product


def layers_by_name(path: Path, cancel: CancelToken) -> tuple[LoraFile, dict[str, Layer]]:
    """A file and its layers. Raises ProblemsError for NaN and infinite weights, by their key."""
    lora = load_finite(path)
    modules = group_by_module(lora.tensors)
    found = {layer.name: layer for layer in layers_of(modules, None, cancel)}
    if unread := [name for name in modules if name not in found]:
        what = f"{path.name} has layers that cannot be read without the base model: {', '.join(unread[:SHOWN])}"
        fix = "make it a LoRA with the tool Convert LoRAs and its base model"
        raise ProblemsError.one(what, display_path(path), fix, "tools.needs-base-model")
    return lora, found


def change_of(layer: Layer) -> tuple[Product | Tensor, float]:
    """(the change without its scale, the scale): of a LoRA its two matrices and alpha / rank, of other kinds the change
    [out, in * kh * kw] and 1."""
    factors = layer.adapter.factors()
    if factors is not None:
        return Product(*factors), layer.adapter.alpha / layer.adapter.rank
    return layer.change().flatten(1), 1.0


def shape_of_weight(layer: Layer) -> tuple[int, ...]:
    return with_kernel(layer.name, tuple(as_weight(layer.adapter.module.weight).shape))


def lora_tensors(name: str, up: Tensor, down: Tensor, alpha: float, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """up [out, r] and down [r, in * kh * kw] as kohya's tensors of a layer whose weight has this shape."""
    kernel = (1,) * len(shape[2:])
    return {
        f"{name}.{UP}": up.reshape(*up.shape, *kernel).contiguous(),
        f"{name}.{DOWN}": down.reshape(len(down), *shape[1:]).contiguous(),
        f"{name}.{ALPHA}": torch.tensor(float(alpha)),
    }


def precision_of(lora: LoraFile, precision: str | None) -> torch.dtype:
    """The dtype that is asked for, else that of the file's matrices."""
    if precision:
        return type_named(precision)
    own = [tensor.dtype for key, tensor in lora.tensors.items() if tensor.ndim > 1 and tensor.is_floating_point()]
    return max(own, key=own.count) if own else torch.float32
