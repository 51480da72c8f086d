"""The layers of a LoRA file of any registered kind with their weight changes, for tools that measure and compare."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.families.targets import Target
from core.formats.lora.names import BIAS, group_by_module, layer_name, module_path
from core.formats.tensors.lazy import loaded
from core.formats.tensors.outline import StoredTensor
from core.networks.adapter import Adapter, as_weight
from core.networks.adapter_file import LoraFile
from core.networks.block_weights import SLOTS, slot_of
from core.networks.files import targets_of
from core.networks.kinds import kind_of_keys
from core.record.cancel import CancelToken
from core.record.lazy_torch import Tensor, nn, torch
from core.record.problems import ProblemsError
from core.record.workspace import display_path
from core.tools.charts import heat_map
from core.tools.loras.headers import weight_shape

if TYPE_CHECKING:
    from core.families.components import Components

OTHER = "other"
# The part of a layer's name before its position in the block.
IN_BLOCK = re.compile(
    r".*(?:transformer_blocks|attentions|resnets|layers|resblocks)\.\d+\.|.*(?=(?:down|up)samplers\.)"
)
TEXT_LAYER = re.compile(r"\b(?:layers|resblocks)\.(\d+)\.")
PARTS = {"unet": "U-Net", "text_encoder": "Text encoder", "text_encoder_2": "Second text encoder"}


@dataclass(frozen=True)
class Layer:
    """A layer of a LoRA file. `kind`: title of its network kind."""

    name: str
    kind: str
    adapter: Adapter

    @property
    def rank(self) -> int:
        """The rank of the adapter."""
        return self.adapter.rank

    def change(self) -> Tensor:
        """Return the change of the weight, float32, in its shape; kernels may be flattened without a base model."""
        try:
            return self.adapter.delta()
        except TypeError:  # it turns or scales the weight
            weight = as_weight(self.adapter.module.weight).float()
            return self.adapter.merged(weight) - weight

    def norm(self) -> float:
        """Return the Frobenius norm of the change, for a LoRA from its factors, which is faster."""
        plain = self.adapter.factors() is not None
        return float(self.adapter.norm() if plain else self.change().norm())

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return (up [out, r] times the scale, down [r, in * kh * kw]); None for a kind without factors."""
        factors = self.adapter.factors()
        if factors is None:
            return None
        up, down = factors
        return up * (self.adapter.alpha / self.adapter.rank), down


def open_layers(lora: LoraFile, model: Components | None, cancel: CancelToken) -> tuple[list[Layer], list[str]]:
    """Return (layers sorted by name, names of layers that need the base model). Raises ProblemsError for a file without layers."""
    modules = group_by_module(lora.tensors)
    with torch.no_grad():
        layers = sorted(layers_of(modules, model, cancel), key=lambda layer: layer.name)
    if not layers:
        path = lora.path or Path()
        kinds = sorted({kind.title for name, tensors in modules.items() if (kind := kind_of_keys(tensors, name))})
        what = f"{path.name} ({', '.join(kinds) or 'of an unknown type'}) has no layer that can be measured "
        what += "with this model" if model else "without its base model"
        fix = "choose the base model that it was trained on"
        raise ProblemsError.one(what, display_path(path), fix, "tools.no-layers")
    known = {layer.name for layer in layers}
    return layers, [name for name in modules if name not in known]


def layers_of(
    modules: Mapping[str, Mapping[str, Tensor | StoredTensor]], model: Components | None, cancel: CancelToken
) -> Iterator[Layer]:
    """Yield the layers whose change can be computed, with or without a base model. Stored tensors are read layer by layer.
    modules: {layer's name: {key: tensor}}"""
    targets = {} if model is None else {target.name: target for target in targets_of(model)}
    for file_name, stored in modules.items():
        cancel.check()
        tensors = {key: loaded(each) for key, each in stored.items()}
        kind, name = kind_of_keys(tensors, file_name), layer_name(file_name)
        if kind is None or kind.flaw(name, tensors):
            continue
        target = targets.get(name)
        if target is None and model is None and not kind.needs_base_weight:
            target = _stand_in(name, tensors)
        adapter = kind.from_tensors(target, tensors) if target is not None else None
        if adapter is not None and (model is not None or _has_delta(adapter)):
            yield Layer(file_name, kind.title, adapter)


def _has_delta(adapter: Adapter) -> bool:
    """Return whether the adapter's change does not depend on the weight; other kinds rotate or scale it."""
    return type(adapter).delta is not Adapter.delta


def _stand_in(name: str, tensors: Mapping[str, Tensor]) -> Target | None:
    """Return a target for tensors without a model, with an uninitialized weight of their shape; None if the shape is unknown."""
    shape = weight_shape(tensors)
    return target_with(name, torch.empty(shape), BIAS in tensors) if shape is not None else None


def target_with(name: str, weight: Tensor, bias: bool) -> Target:
    """Return a target outside of a model with this weight, and an uninitialized bias if `bias`."""
    out_features, in_features, *kernel = weight.shape
    shape = (in_features, out_features, tuple(kernel)) if kernel else (in_features, out_features)
    module = (nn.Conv2d if kernel else nn.Linear)(*shape, bias=bias, device="meta")  # skip_init would import sympy
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias:
        module.bias = nn.Parameter(torch.empty(out_features, device=weight.device), requires_grad=False)
    return Target(name, path="", parent=module, attribute="", module=module)


# -- the row and column of a layer in the map of its part


def cell_of(name: str) -> tuple[str, str, str]:
    """Return (part, row, column) of a layer by its name in kohya's files.

    `lora_unet_down_blocks_1_attentions_0_proj_in` -> ("U-Net", "proj_in", "IN04"). Columns of text encoders are their layers.
    """
    part, path = module_path(name) or ("unet", name)
    slot = slot_of(name) if part == "unet" else None
    return map_cell(part, path, SLOTS[slot] if slot else OTHER)


def map_cell(part: str, path: str, column: str) -> tuple[str, str, str]:
    """Return (part, row, column) of a layer by its module path. `column`: the U-Net block; ignored for text encoders."""
    if part != "unet":
        match = TEXT_LAYER.search(path)
        column = match[1] if match else OTHER
    return PARTS[part], IN_BLOCK.sub("", path), column


def columns_of(part: str, columns: set[str]) -> list[str]:
    """Return the columns in the order of the model, "other" last."""
    order = [*SLOTS, OTHER] if part == PARTS["unet"] else [*map(str, range(100)), OTHER]
    return [column for column in order if column in columns]


# -- heat maps: a map for each part of the model, rows by kind of layer, columns by block


MapCell = tuple[str, str, str]  # part, row, column


def root_of_squares(values: Sequence[float]) -> float:
    """Return the root of the sum of squares: the norm of several layers together."""
    return math.sqrt(sum(value * value for value in values))


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def heat_maps(
    title: str,
    numbers: Iterable[tuple[MapCell, float]],
    combine: Callable[[Sequence[float]], float],
    notes: Mapping[MapCell, str] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Return a heat map for each part of the model.

    numbers   (cell, value) of each layer
    combine   (values of one cell) -> the value shown
    options   further arguments of `heat_map`
    """
    cells: dict[str, dict[tuple[str, str], list[float]]] = {}
    for (part, row, column), value in numbers:
        cells.setdefault(part, {}).setdefault((row, column), []).append(value)
    tables = []
    for part, grid in sorted(cells.items(), key=lambda item: (item[0] != "U-Net", item[0])):
        rows = sorted({row for row, _ in grid})
        columns = columns_of(part, {column for _, column in grid})
        values = [[combine(grid[row, column]) if (row, column) in grid else None for column in columns] for row in rows]
        part_notes = {f"{row}|{column}": note for (each, row, column), note in (notes or {}).items() if each == part}
        tables.append(heat_map(f"{title}: {part}", rows, columns, values, notes=part_notes, **options))
    return tables


def layer_maps(title: str, numbers: Mapping[str, float], combine: Any, **options: Any) -> list[dict[str, Any]]:
    """Return `heat_maps` for {name of a LoRA's layer: value}."""
    return heat_maps(title, ((cell_of(name), value) for name, value in numbers.items()), combine, **options)
