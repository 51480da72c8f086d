"""What the tools that make LoRAs share: the changes of a file's layers, the tensors and metadata of the new one, its writing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from core.formats.lora.names import group_by_module
from core.formats.tensors.writer import type_named
from core.networks.adapter import as_weight
from core.networks.adapter_file import PEFT_METADATA, LoraFile, load_finite, load_lora
from core.networks.kinds import kind_of_keys
from core.networks.kinds.lora_adapter import LoraAdapter
from core.networks.kinds.lora_layer import ALPHA, DOWN, UP
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError
from core.record.units import count
from core.record.workspace import display_path
from core.tools.lora_layers import Layer, layers_of, weight_shape
from core.tools.svd import Product

SHOWN = 3
CONVOLUTION = re.compile(
    r"resnets_\d+_conv[12]$|samplers_\d+_conv$|in_layers_2$|out_layers_3$|blocks_\d+_\d+_(op|conv)$"
)


def refuse_device(device: str, where: str) -> None:
    """Raises ProblemsError where the GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ProblemsError.one("No CUDA GPU is found", where, "choose the CPU", "tools.no-gpu")


def without_weights(path: Path, where: str) -> LoraFile:
    """A LoRA by its header, whose layers' changes are all known without a base model. Raises ProblemsError for others."""
    lora = load_lora(path, shapes=True)
    unknown: dict[str, list[str]] = {}
    for name, tensors in group_by_module(lora.tensors).items():
        kind = kind_of_keys(tensors)
        if kind is None or kind.needs_base_weight or weight_shape(tensors) is None:
            unknown.setdefault(kind.title if kind is not None else "an unknown kind", []).append(name)
    if unknown:
        title, names = next(iter(unknown.items()))
        what = f"{path.name} has layers of {title}, whose change depends on the base model: {', '.join(names[:SHOWN])}"
        fix = "merge it into a checkpoint, then extract a LoRA from that"
        raise ProblemsError([Problem(what, where, fix, code="tools.needs-base-model")])
    return lora


def layers_by_name(path: Path, cancel: CancelToken) -> tuple[LoraFile, dict[str, Layer]]:
    """A file and its layers. Raises ProblemsError for NaN and infinite weights, by their key."""
    lora = load_finite(path)
    modules = group_by_module(lora.tensors)
    found = {layer.name: layer for layer in layers_of(modules, None, cancel)}
    if unread := [name for name in modules if name not in found]:
        what = f"{path.name} has layers that cannot be read without the base model: {', '.join(unread[:SHOWN])}"
        fix = "merge it into a checkpoint, then extract a LoRA from that"
        raise ProblemsError.one(what, display_path(path), fix, "tools.needs-base-model")
    return lora, found


def about_biases(tensors: Mapping[str, Tensor]) -> list[str]:
    """The line on changes of biases, which a LoRA has no place for."""
    found = [name for name in tensors if name.endswith(".diff_b")]
    return [f"changes of {count(len(found), 'bias', 'biases')} left out: a LoRA has none"] if found else []


def change_of(layer: Layer) -> tuple[Product | Tensor, float]:
    """(the change without its scale, the scale): of a LoRA its two matrices and alpha / rank, of other kinds the change
    [out, in * kh * kw] and 1."""
    adapter = layer.adapter
    if isinstance(adapter, LoraAdapter):
        up, down = adapter.up.detach().float(), adapter.down.detach().float()
        return Product(up.flatten(1), down.flatten(1)), adapter.scale
    return layer.change().flatten(1), 1.0


def shape_of_weight(layer: Layer) -> tuple[int, ...]:
    return with_kernel(layer.name, tuple(as_weight(layer.adapter.module.weight).shape))


def with_kernel(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a layer's weight; LyCORIS' products hold the kernels of 3x3 convolutions flattened, so the name tells them."""
    flat = len(shape) == 2 and shape[1] % 9 == 0 and CONVOLUTION.search(name)
    return (shape[0], shape[1] // 9, 3, 3) if flat else shape


def lora_tensors(name: str, up: Tensor, down: Tensor, alpha: float, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """up [out, r] and down [r, in * kh * kw] as kohya's tensors of a layer whose weight has this shape."""
    kernel = (1,) * len(shape[2:])
    return {
        f"{name}.{UP}": up.reshape(*up.shape, *kernel).contiguous(),
        f"{name}.{DOWN}": down.reshape(len(down), *shape[1:]).contiguous(),
        f"{name}.{ALPHA}": torch.tensor(float(alpha)),
    }


def has_large_kernel(shape: tuple[int, ...]) -> bool:
    return any(side != 1 for side in shape[2:])


def kept_metadata(lora: LoraFile) -> dict[str, str]:
    """A file's metadata without what describes its old tensors and names."""
    gone = (PEFT_METADATA, "format", "ss_network_args", "sshs_model_hash", "sshs_legacy_hash")
    return {key: value for key, value in lora.metadata.items() if key not in gone}


def precision_of(lora: LoraFile, asked: str | None) -> torch.dtype:
    """The dtype that is asked for, else that of the file's matrices."""
    if asked:
        return type_named(asked)
    own = [tensor.dtype for key, tensor in lora.tensors.items() if tensor.ndim > 1 and tensor.is_floating_point()]
    return max(own, key=own.count) if own else torch.float32


def bytes_of(shapes: Iterable[tuple[int, ...]], rank: int, conv_rank: int, dtype: torch.dtype) -> int:
    """About what a LoRA file of these layers takes."""
    numbers = 0
    for shape in shapes:
        into = shape[1] * (shape[2] * shape[3] if len(shape) > 2 else 1)
        numbers += (shape[0] + into) * min(conv_rank if has_large_kernel(shape) else rank, shape[0], into)
    return numbers * dtype.itemsize
