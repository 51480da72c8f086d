"""Reduces the rank of LoRAs: keeps each layer's largest singular values, up to a rank or chosen by a dynamic method."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.formats.lora.names import group_by_module
from core.formats.tensors.spill import Spill
from core.networks.adapter_file import LoraFile, open_lora, save_lora
from core.networks.kinds.lora import sizes_as_metadata
from core.record.context import JobContext, Outcome
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, collected, raise_if_errors
from core.record.units import size_text
from core.record.workspace import Workspace, display_path
from core.settings.tools.loras import ResizeLoraSettings
from core.tools.charts import table
from core.tools.files import lora_of
from core.tools.loras.building import change_of, each_layer, lora_tensors, precision_of, shape_of_weight
from core.tools.loras.headers import (
    SPILLED,
    bias_norm_of,
    bytes_of,
    has_large_kernel,
    inherited_metadata,
    item_bytes,
    left_out_lines,
    outline_without_base,
    refuse_device,
    weight_shape,
)
from core.tools.loras.svd import decompose, retained_of_all
from core.tools.output import output_file, output_problems
from core.tools.plans import FilePlan

GROUP = "resize_lora"
NOTHING = 1e-6  # a largest singular value up to this is a layer without a change
SHARE_METHODS = ("sv_fro", "sv_cumulative")
NEEDS_ALL = ("sv_cumulative",)  # of the singular values: the others need the largest ones and the Frobenius norm only


@dataclass(frozen=True)
class Resized:
    """A resized layer.

    kind, old, norm   network kind, rank and norm of the change before
    new               new rank
    retained          share of the norm that the new rank retains
    """

    name: str
    kind: str
    old: int
    new: int
    retained: float
    norm: float


def plan(settings: ResizeLoraSettings, workspace: Workspace) -> FilePlan:
    """Check the settings, the LoRA and the output, and return the plan. Raises ProblemsError with all problems."""
    problems = _method_problems(settings)
    collected(problems, refuse_device, settings.device, f"{GROUP}.device")
    path = collected(problems, lora_of, settings.file, workspace, f"{GROUP}.file")
    lora = collected(problems, outline_without_base, path, f"{GROUP}.file") if path is not None else None
    raise_if_errors(problems)
    assert path is not None and lora is not None
    target = output_file(
        settings.output, path, f"_rank{settings.new_rank}" if not settings.dynamic_method else "_resized"
    )
    shapes = [shape for layer in group_by_module(lora.tensors).values() if (shape := weight_shape(layer)) is not None]
    width = item_bytes(lora, settings.save_precision) + SPILLED
    size = bytes_of(shapes, settings.new_rank, settings.new_conv_rank or settings.new_rank, width)
    raise_if_errors(output_problems(target, [path], size, f"{GROUP}.output"))
    return FilePlan(f"resize {display_path(path)} into {display_path(target)}", path, target)


def _method_problems(settings: ResizeLoraSettings) -> list[Problem]:
    """Return the problem of a missing or invalid parameter of the dynamic method."""
    where, method, parameter = f"{GROUP}.dynamic_param", settings.dynamic_method, settings.dynamic_param
    if method is not None and parameter is None:
        fix = "enter for example 0.9" if method in SHARE_METHODS else "enter for example 5"
        return [Problem("The dynamic method has no parameter", where, fix, code="resize.no-parameter")]
    if method in SHARE_METHODS and parameter is not None and parameter > 1:
        what = f"The share to keep is {parameter:g}"
        return [Problem(what, where, "use a number from 0 to 1", code="resize.bad-parameter")]
    if method == "sv_ratio" and parameter is not None and parameter < 1:
        return [Problem(f"The ratio is {parameter:g}", where, "use 1 or more", code="resize.bad-parameter")]
    return []


def do(settings: ResizeLoraSettings, plan: FilePlan, context: JobContext) -> Outcome:
    """Resize the LoRA layer by layer, and write the new file."""
    path, target = plan.path, plan.target
    tensors, resized = dict[str, Any](), list[Resized]()
    context.stage(f"reading {path.name}")
    with torch.no_grad(), open_lora(path) as lora, Spill(target) as spill:
        total = len(group_by_module(lora.tensors))
        for layer in each_layer(lora, context.cancel):
            context.check()
            context.stage("resizing", len(resized), total)
            (change, scale), shape = change_of(layer), shape_of_weight(layer)
            max_rank = _max_rank(settings, shape)
            needed = None if settings.dynamic_method in NEEDS_ALL else max_rank
            parts = decompose(change, settings.device, settings.compatibility, needed)
            rank = _rank(parts.s, max_rank, settings, parts.squares)
            tensors |= spill.put(lora_tensors(layer.name, *parts.cut(rank), scale * rank, shape))
            resized.append(Resized(layer.name, layer.kind, layer.rank, rank, parts.retained(rank), parts.norm * scale))
        metadata = _metadata(settings, lora, tensors)
        tensors |= {**bias_norm_of(lora), **lora.bundled}
        precision = settings.save_precision or ("fp32" if settings.compatibility == "sd-scripts" else None)
        save_lora(target, tensors, metadata, precision_of(lora, precision))
    outcome = _outcome(path, target, sorted(resized, key=lambda each: each.retained))
    return replace(outcome, lines=[*outcome.lines, *left_out_lines(lora)])


def _max_rank(settings: ResizeLoraSettings, shape: tuple[int, ...]) -> int:
    """Return the highest rank of a layer with a weight of this shape. With sd-scripts' compatibility, 1x1 convolutions count as
    convolutions."""
    conv = len(shape) > 2 if settings.compatibility == "sd-scripts" else has_large_kernel(shape)
    return (settings.new_conv_rank or settings.new_rank) if conv else settings.new_rank


def _rank(values: Tensor, max_rank: int, settings: ResizeLoraSettings, squares: float | None = None) -> int:
    """Return the new rank by the singular values [k], descending. `squares`: see `needed_rank`."""
    if float(values[0]) <= NOTHING:
        return 1
    if settings.dynamic_method is None or settings.dynamic_param is None:
        return min(max_rank, len(values))
    needed = needed_rank(values, settings.dynamic_method, settings.dynamic_param, squares)
    if settings.compatibility == "sd-scripts":  # which keeps one value more
        needed = min(max(needed, 1), len(values) - 1) + 1
    return min(max(needed, 1), max_rank, len(values))


def needed_rank(values: Tensor, method: str, parameter: float, squares: float | None = None) -> int:
    """Return the rank by one of sd-scripts' dynamic methods.

    sv_ratio        number of values larger than the first / parameter
    sv_cumulative   the fewest values whose share of the sum is at least the parameter
    sv_fro          the fewest values whose share of the Frobenius norm is at least the parameter
    values          singular values [k], descending
    squares         sum of squares of all values if `values` has only the largest; a result of k + 1 then means that more are needed
    """
    if method == "sv_ratio":
        return int((values > values[0] / parameter).sum())
    if method == "sv_fro":
        squared, share = values.square(), parameter**2
        return int((squared.cumsum(0) / (squared.sum() if squares is None else squares) < share).sum()) + 1
    return int((values.cumsum(0) / values.sum() < parameter).sum()) + 1


def _metadata(settings: ResizeLoraSettings, lora: LoraFile, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return the file's metadata with the new sizes and sd-scripts' comment."""
    metadata = lora.metadata
    sizes = sizes_as_metadata(tensors, metadata.get("ss_network_args", ""))
    old, new = metadata.get("ss_network_dim", "unknown"), sizes["ss_network_dim"]
    comment = metadata.get("ss_training_comment", "")
    summary = f"dimension is resized from {old} to {new}"
    if settings.dynamic_method:
        summary = f"Dynamic resize with {settings.dynamic_method}: {settings.dynamic_param} from {old}"
    return inherited_metadata(lora) | sizes | {"ss_training_comment": f"{summary}; {comment}"}


def _outcome(source: Path, target: Path, resized: list[Resized]) -> Outcome:
    """Return the outcome. `resized`: ascending by retained norm."""
    shares, ranks = [each.retained for each in resized], [each.new for each in resized]
    whole = retained_of_all((each.retained, each.norm) for each in resized)
    rows = [[each.name, each.retained, each.kind, each.old, each.new] for each in resized]
    rank_range = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    sizes = [path.stat().st_size for path in (source, target)]
    lines = [
        f"{len(resized)} layers, now of rank {rank_range}",
        f"kept norm: {whole:.1%} of the whole, {shares[0]:.1%} of the weakest layer ({resized[0].name})",
        *_conversion_lines({each.kind for each in resized} - {"LoRA"}, larger=sizes[1] > sizes[0]),
        *([] if any(each.norm for each in resized) else ["This LoRA changes nothing: all its layers are untrained"]),
        f"Saved: {display_path(target)}, {size_text(sizes[1])}; before {size_text(sizes[0])}",
    ]
    charts = [table("Layers by kept norm", ["Layer", "Kept norm", "Before", "Rank before", "New rank"], rows)]
    facts: dict[str, Any] = {"file": str(target), "ranks": {each.name: each.new for each in resized}, "shown": charts}
    facts |= {"kept": {each.name: each.retained for each in resized}, "kept_norm": whole}
    return Outcome(lines=lines, facts=facts)


def _conversion_lines(others: set[str], larger: bool) -> list[str]:
    """Return [a line on layers of other kinds that became LoRAs]; [] if there are none.

    others   titles of these kinds
    larger   whether the file grew
    """
    if not others:
        return []
    growth = ", and the file is larger than before" if larger else ""
    return [f"{', '.join(sorted(others))} became a LoRA: its rank before is none of a LoRA{growth}"]
