"""Converts networks of any kind to a plain LoRA or a full difference, which every program reads.

A change that depends on the base model's weights is computed with them, layer by layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from math import prod
from typing import TYPE_CHECKING, Any

from core.dataset.sources.image_info import listed
from core.formats.lora.names import BIAS, group_by_module, layer_name, module_of_layer
from core.formats.lora.recognition import POINTWISE
from core.formats.models.checkpoint import Checkpoint, TensorLocation
from core.formats.tensors.lazy import OpenFiles, loaded
from core.formats.tensors.outline import StoredTensor
from core.formats.tensors.spill import Spill
from core.networks.adapter_file import PROJECTION, LoraFile
from core.networks.kinds import kind_of_keys
from core.networks.kinds.lora import sizes_as_metadata
from core.record.context import JobContext
from core.record.lazy_torch import Tensor, torch
from core.record.problems import ProblemsError
from core.record.workspace import display_path
from core.settings.model import traits_of
from core.settings.tools.model_files import ConvertLoraSettings
from core.tools.loras.building import lora_tensors
from core.tools.loras.headers import SHOWN, bytes_of, has_large_kernel, inherited_metadata, item_bytes, with_kernel
from core.tools.loras.layers import Layer, target_with
from core.tools.loras.svd import decompose, retained_of_all

if TYPE_CHECKING:
    from core.networks.adapter import Adapter

MODEL, FULL = "convert_lora.base_model", "diff"
ENOUGH = 0.95  # of the change's norm; below it the tool says how to retain more
SIZES = ("ss_network_module", "ss_network_dim", "ss_network_alpha")


def is_plain(lora: LoraFile, network_type: str) -> bool:
    """Return whether all layers are of this network type (the name of a kind)."""
    layers = group_by_module(lora.tensors).items()
    kinds = [kind_of_keys(layer, name) for name, layer in layers]
    return all(kind is not None and kind.name == network_type for kind in kinds)


def layer_shapes(lora: LoraFile, base: Checkpoint | None) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return ({layer's name in the file: shape of its weight}, layers that the base model lacks). `lora` may be an outline.

    Raises ProblemsError if a base model is needed but None, and if it does not fit.
    """
    shapes, dependent, unmatched = dict[str, tuple[int, ...]](), dict[str, str](), list[str]()
    for name, tensors in group_by_module(lora.tensors).items():
        kind, location = kind_of_keys(tensors, name), _location(base, name)
        shape = kind.weight_shape(tensors) if kind is not None else None
        if location is not None:
            if shape is not None and prod(shape) != prod(location.entry.shape):
                raise _size_error(lora, name)
            shapes[name] = location.entry.shape
        elif shape is not None:
            shapes[name] = _whole_shape(name, shape, lora.family)
        elif base is None:
            dependent.setdefault(kind.title if kind is not None else "an unknown kind", name)
        else:
            unmatched.append(name)
    path = display_path(lora.path) if lora.path else "The LoRA"
    if dependent:
        what = f"The change of {' and '.join(dependent)} in {path} depends on the base model"
        raise ProblemsError.one(what, MODEL, "choose the model that it was trained on", "tools.needs-base-model")
    if not shapes:
        what, fix = f"{path} matches no layer of this model", "choose the model that it was trained on"
        raise ProblemsError.one(what, MODEL, fix, "lora.no-matching-layers")
    return shapes, unmatched


def plain_bytes(lora: LoraFile, base: Checkpoint | None, settings: ConvertLoraSettings) -> int:
    """Return the approximate size of the converted file in bytes. `lora` may be an outline."""
    shapes, width = layer_shapes(lora, base)[0].values(), item_bytes(lora, settings.save_precision)
    if settings.network_type == "full":
        return sum(map(prod, shapes)) * width
    return bytes_of(shapes, settings.new_rank, settings.new_conv_rank or settings.new_rank, width)


def _location(base: Checkpoint | None, name: str) -> TensorLocation | None:
    """Return the location of a layer's weight in the base model; None if there is none."""
    part, path = module_of_layer(name) or ("", "")
    model_part = base.parts.get(part) if base is not None else None
    return model_part.locations.get(f"{path}.weight") if model_part is not None else None


def _whole_shape(name: str, shape: tuple[int, ...], family: str | None) -> tuple[int, ...]:
    """Return the shape of the model's weight by the layer's name and family, since the file may have flattened it."""
    flat = with_kernel(name, shape)
    projection = PROJECTION.match(f"{name}.") is not None
    if projection and family is not None and traits_of(family).linear_projections:
        return flat[:2]
    return (*flat, 1, 1) if len(flat) == 2 and (projection or POINTWISE.search(name)) else flat


def _size_error(lora: LoraFile, name: str) -> ProblemsError:
    """Return the error that a layer has another size in the base model."""
    what = f"The LoRA {lora.path.name if lora.path else ''} does not fit this model: {name} has another size"
    return ProblemsError.one(what, MODEL, "choose the model that it was trained on", "lora.other-size")


def to_plain(
    lora: LoraFile,
    base: Checkpoint | None,
    settings: ConvertLoraSettings,
    context: JobContext,
    files: OpenFiles,
    spill: Spill,
) -> tuple[LoraFile, list[str]]:
    """Return (an open file as plain layers in fp32, lines for the result). Raises ProblemsError as `layer_shapes` does.

    The tensors can be read while lora, files and spill are open. Those of a full difference are computed when read, since together
    they are as large as the model.
    """
    shapes, unmatched = layer_shapes(lora, base)
    modules = group_by_module(lora.tensors)
    tensors, retained, done = dict[str, Any](), dict[str, tuple[float, float]](), count()

    def report_layer() -> None:
        """Report progress, and raise Cancelled after a stop."""
        context.check()
        context.stage("computing the changes", min(next(done), len(shapes)), len(shapes))

    for name, shape in shapes.items():
        adapter = partial(_adapter, lora, name, modules[name], shape, base, files)
        if settings.network_type == "full":
            fetch = partial(_change, adapter, report_layer)
            tensors[f"{layer_name(name)}.{FULL}"] = StoredTensor(shape, "F32", fetch=fetch)
        else:
            report_layer()
            tensors |= spill.put(_low_rank(name, adapter(), shape, settings, retained))
    bias_norm = dict(lora.bias_norm) | {key: each for key, each in lora.tensors.items() if key.endswith(f".{BIAS}")}
    left_out = lora.left_out + tuple(key for key in bias_norm if key not in lora.bias_norm)
    family = lora.family or (base.kind.family if base is not None else None)
    plain = replace(lora, tensors=tensors, metadata=_metadata(lora, tensors, settings), family=family)
    return replace(plain, bias_norm=bias_norm, left_out=left_out), _report_lines(retained, unmatched)


def _adapter(
    lora: LoraFile,
    name: str,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, ...],
    base: Checkpoint | None,
    files: OpenFiles,
) -> Adapter:
    """Return the adapter of one layer, with the base model's weight if its change depends on it. Raises ProblemsError if the layer's
    size differs.

    name      of the layer in the file
    tensors   by the key below it
    shape     of the layer's weight
    """
    kind, location = kind_of_keys(tensors, name), _location(base, name)
    assert kind is not None
    reads = kind.weight_shape(tensors) is None
    weight = files.lazy(location).read().float().view(shape) if reads and location is not None else torch.empty(shape)
    values = {key: loaded(each) for key, each in tensors.items()}
    adapter = kind.from_tensors(target_with(layer_name(name), weight, BIAS in tensors), values)
    if adapter is None:
        raise _size_error(lora, name)
    return adapter


def _change(adapter: Callable[[], Adapter], report_layer: Callable[[], None]) -> Tensor:
    """Return the change of a layer, float32, after calling `report_layer`."""
    report_layer()
    return Layer("", "", adapter()).change()


def _low_rank(
    name: str,
    adapter: Adapter,
    shape: tuple[int, ...],
    settings: ConvertLoraSettings,
    retained: dict[str, tuple[float, float]],
) -> dict[str, Tensor]:
    """Return the tensors of a layer's best approximation of the new rank; a LoRA's layer is unchanged.
    retained: gets (share of the norm, norm) of each approximated layer"""
    factors = adapter.factors()
    if factors is not None:
        return lora_tensors(layer_name(name), *factors, adapter.alpha, shape)
    max_rank = (settings.new_conv_rank or settings.new_rank) if has_large_kernel(shape) else settings.new_rank
    parts = decompose(Layer(name, "", adapter).change().flatten(1), rank=max_rank)
    rank = min(max_rank, len(parts.s))
    retained[name] = parts.retained(rank), parts.norm
    return lora_tensors(layer_name(name), *parts.cut(rank), rank, shape)


def _metadata(lora: LoraFile, tensors: Mapping[str, Tensor], settings: ConvertLoraSettings) -> dict[str, str]:
    """Return the file's metadata with the new sizes and a comment on the conversion."""
    layers = group_by_module(lora.tensors).items()
    titles = sorted({kind.title for name, layer in layers if (kind := kind_of_keys(layer, name)) is not None})
    metadata = {key: value for key, value in inherited_metadata(lora).items() if key not in SIZES}
    origin = f"converted from {' and '.join(titles)}"
    comment = "; ".join(filter(None, (origin, metadata.get("ss_training_comment", ""))))
    full = {"ss_network_args": json.dumps({"algo": "full"})}
    sizes = full if settings.network_type == "full" else sizes_as_metadata(tensors)
    return metadata | sizes | {"ss_training_comment": comment}


def _report_lines(retained: Mapping[str, tuple[float, float]], unmatched: list[str]) -> list[str]:
    """Return lines about the kept norm and layers left out. `retained`: {layer: (share of the norm, norm)}."""
    lines = []
    if unmatched:
        lines.append(f"layers that this model does not have, left out: {listed(unmatched, SHOWN)}")
    if retained:
        whole = retained_of_all(retained.values())
        weakest = min(retained, key=lambda name: retained[name][0])
        lines.append(
            f"kept norm: {whole:.1%} of the whole, {retained[weakest][0]:.1%} of the weakest layer ({weakest})"
        )
        if whole < ENOUGH:
            lines.append("a higher new rank keeps more, a full difference all")
    return lines
