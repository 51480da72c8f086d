"""Shared code of the tools that write LoRAs: reads a file's layers and builds the tensors of a new file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from core.formats.lora.names import ALPHA, DOWN, UP, group_by_module
from core.formats.tensors.entry import TORCH_NAMES
from core.formats.tensors.outline import StoredTensor
from core.formats.tensors.writer import type_named
from core.networks.adapter import as_weight
from core.networks.adapter_file import LoraFile
from core.record.cancel import CancelToken
from core.record.lazy_torch import Tensor, torch
from core.record.problems import ProblemsError
from core.record.workspace import display_path
from core.tools.loras.headers import usual_type, with_kernel
from core.tools.loras.layers import Layer, layers_of
from core.tools.loras.svd import Product


def each_layer(lora: LoraFile, cancel: CancelToken) -> Iterator[Layer]:
    """Yield the layers of an open file, read one by one. Raises ProblemsError for a layer that needs the base model."""
    for name, tensors in group_by_module(lora.tensors).items():
        yield read_layer(lora, name, tensors, cancel)


def read_layer(lora: LoraFile, name: str, tensors: Mapping[str, Tensor | StoredTensor], cancel: CancelToken) -> Layer:
    """Read one layer from its tensors. Raises ProblemsError if it needs the base model."""
    layer = next(layers_of({name: tensors}, None, cancel), None)
    if layer is None:
        path = display_path(lora.path) if lora.path else "The LoRA"
        what = f"{path} has layers that cannot be read without the base model, such as {name}"
        fix = "make it a LoRA with the tool Convert LoRAs and its base model"
        raise ProblemsError.one(what, path, fix, "tools.needs-base-model")
    return layer


def change_of(layer: Layer) -> tuple[Product | Tensor, float]:
    """Return (weight change without its scale, scale).

    For a LoRA its two matrices and alpha / rank; for other kinds the change [out, in * kh * kw] and 1.0.
    """
    factors = layer.adapter.factors()
    if factors is not None:
        return Product(*factors), layer.adapter.alpha / layer.adapter.rank
    return layer.change().flatten(1), 1.0


def shape_of_weight(layer: Layer) -> tuple[int, ...]:
    """Return the shape of the weight that a layer changes, with its kernel."""
    return with_kernel(layer.name, tuple(as_weight(layer.adapter.module.weight).shape))


def lora_tensors(name: str, up: Tensor, down: Tensor, alpha: float, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return kohya's tensors of a layer named `name` from up [out, r] and down [r, in * kh * kw]. `shape`: of the layer's weight."""
    kernel = (1,) * len(shape[2:])
    return {
        f"{name}.{UP}": up.reshape(*up.shape, *kernel).contiguous(),
        f"{name}.{DOWN}": down.reshape(len(down), *shape[1:]).contiguous(),
        f"{name}.{ALPHA}": torch.tensor(float(alpha)),
    }


def precision_of(lora: LoraFile, precision: str | None) -> torch.dtype:
    """Return the dtype named `precision`; without one the file's `usual_type`."""
    if precision:
        return type_named(precision)
    dtype = usual_type(lora)
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, TORCH_NAMES[dtype])
