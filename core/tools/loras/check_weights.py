"""Checks the weights of a file: NaN, infinite, far too large or untrained ones, and norms by layer and block."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.dataset.sources.image_info import listed
from core.formats.detect import identify
from core.formats.models import sd_keys
from core.formats.models.overflow import largest
from core.formats.tensors.reading import TensorFile
from core.networks.adapter_file import load_lora
from core.networks.block_weights import SLOTS, slot_of_key
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError, at_setting
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.model import traits_of
from core.settings.tools.weights import CheckWeightsSettings
from core.tools.charts import table
from core.tools.files import single_file_of
from core.tools.loras.headers import check_base_model, model_of
from core.tools.loras.layers import (
    OTHER,
    PARTS,
    cell_of,
    columns_of,
    heat_maps,
    layer_maps,
    map_cell,
    mean,
    open_layers,
    root_of_squares,
)
from core.tools.loras.plots import check_png, save_png
from core.tools.models.inspect import FAR_TOO_LARGE, damaged_lines, inspect_lora
from core.tools.plans import FilePlan

FIELD = "check_weights.file"
MOST_ROWS = 20
SHOWN_NAMES = 8
UNDAMAGED = "no NaN, infinite or very large values"


def plan(settings: CheckWeightsSettings, workspace: Workspace) -> FilePlan:
    """Return the plan. Raises ProblemsError if the file is no model, the base model does not fit it, or the PNG cannot be written."""
    path = single_file_of(settings.file, workspace, FIELD)
    try:
        identify(path)
    except ProblemsError as error:
        problems = at_setting(FIELD, error.problems)
        if error.codes == ["model.unknown-file"]:
            problems = [replace(problems[0], fix="choose a .safetensors, .ckpt, .pt or .bin file")]
        raise ProblemsError(problems) from None
    check_base_model(settings.base_model, path, workspace, "check_weights.base_model")
    check_png(settings.png, "check_weights.png")
    return FilePlan(f"check the weights of {display_path(path)}", path)


def do(settings: CheckWeightsSettings, plan: FilePlan, context: JobContext) -> Outcome:
    """Check a LoRA by layer, or any other model file by tensor; save the charts as PNG if `png` is set."""
    path = plan.path
    context.stage(f"reading {path.name}")
    is_lora = identify(path).kind == "lora"
    lines, facts = _check_lora(path, settings, context) if is_lora else _check_model(path, context)
    lines += save_png(facts["shown"], settings.png)
    return Outcome(lines=lines, facts=facts)


# -- LoRAs


def _check_lora(path: Path, settings: CheckWeightsSettings, context: JobContext) -> tuple[list[str], dict[str, Any]]:
    """Return (lines, facts) of the outcome for a LoRA.

    facts   {"norms": {layer: norm of its change}, "norm": of all together, "damaged": names of tensors, "untrained": names of layers,
            "unread": layers that need the base model, "shown": charts}
    """
    health = inspect_lora(path, context.cancel)
    if any(name.endswith("alpha") for name in health["not_finite"]):  # no layer can be read with it
        return _unmeasured(health)
    try:
        layers, unread = open_layers(load_lora(path), model_of(settings.base_model, path, context), context.cancel)
    except ProblemsError as error:
        if settings.base_model or error.codes != ["tools.no-layers"]:
            raise
        return _unmeasured(health, [f"norms are not shown: {error.problems[0].what}"])
    norms, damaged = {}, set(health["not_finite"]) | set(health["too_large"])
    for number, layer in enumerate(layers):
        context.check()
        context.stage("computing norms", number, len(layers))
        norms[layer.name] = layer.norm()
    total_norm = root_of_squares([norm for norm in norms.values() if math.isfinite(norm)])
    untrained = set(health["untrained"])
    notes = {cell_of(name): "untrained" for name in untrained}
    notes |= {cell_of(layer.name): "damaged" for layer in layers if not math.isfinite(norms[layer.name])}
    finite = {name: norm for name, norm in norms.items() if math.isfinite(norm)}
    charts = layer_maps("Norm of the change", finite, root_of_squares, notes=notes)
    order = sorted(layers, key=lambda layer: -norms[layer.name] if math.isfinite(norms[layer.name]) else -math.inf)
    rows = [[each.name, each.kind, each.rank, norms[each.name]] for each in order[:MOST_ROWS]]
    charts.append(table(f"Layers with the largest change, of {len(layers)}", ["Layer", "Kind", "Rank", "Norm"], rows))
    lines = damaged_lines(health, SHOWN_NAMES) or [UNDAMAGED]
    if untrained:
        lines.append(f"no effect (untrained): {listed(sorted(untrained), SHOWN_NAMES)}")
    lines.append(
        f"norm of the whole change: {total_norm:.4g} in {count(len(layers), 'layer')}; largest weight {health['largest']:.4g}"
    )
    lines += [f"not measured without the base model: {listed(unread, SHOWN_NAMES)}"] if unread else []
    lines += _block_norm_lines(finite)
    facts = {
        "norms": finite,
        "norm": total_norm,
        "damaged": sorted(damaged),
        "untrained": sorted(untrained),
        "unread": unread,
    }
    return lines, facts | {"shown": charts}


def _unmeasured(health: dict[str, Any], lines: Sequence[str] = ()) -> tuple[list[str], dict[str, Any]]:
    """Return (lines, facts as of `_check_lora`) of the outcome if no layer's change can be computed.

    health   result of `inspect_lora`
    lines    further lines
    """
    facts = {"norms": {}, "norm": 0.0, "damaged": sorted(health["not_finite"] + health["too_large"])}
    facts |= {"untrained": sorted(health["untrained"]), "unread": [], "shown": []}
    return [*(damaged_lines(health, SHOWN_NAMES) or [UNDAMAGED]), *lines], facts


def _block_norm_lines(norms: dict[str, float]) -> list[str]:
    """Return a line with the norm of each text encoder and U-Net block; [] without layers. `norms`: by layer."""
    squares: defaultdict[str, float] = defaultdict(float)
    for name, norm in norms.items():
        part, _, column = cell_of(name)
        squares[column if part == PARTS["unet"] else part] += norm * norm
    blocks = columns_of(PARTS["unet"], set(squares))
    encoders = [part for part in PARTS.values() if part in squares]
    each = [f"{name} {math.sqrt(squares[name]):.3g}" for name in (*encoders, *blocks)]
    return [f"norm by block: {', '.join(each)}"] if each else []


# -- other model files


def _check_model(path: Path, context: JobContext) -> tuple[list[str], dict[str, Any]]:
    """Return (lines, facts) of the outcome for any model file but a LoRA.
    facts: {"damaged", "zero": names of tensors, "largest": largest absolute value, "shown": charts}"""
    kind = identify(path)
    not_finite, too_large, zero, peaks, cells, weights = [], [], [], {}, [], 0
    with TensorFile(path) as file:
        for number, (name, entry) in enumerate(file.entries.items()):
            context.check()
            context.stage("reading weights", number, len(file.entries))
            value = file.read(name)
            if not value.is_floating_point() or not value.numel():
                continue
            weights += value.numel()
            peaks[name] = largest(value)
            if not math.isfinite(peaks[name]):
                not_finite.append(name)
                continue
            too_large += [name] if peaks[name] > FAR_TOO_LARGE else []
            zero += [name] if peaks[name] == 0 else []
            cell = _cell_in_model(name, kind.family)
            if cell is not None and len(entry.shape) > 1:
                cells.append((cell, float(value.float().square().mean().sqrt())))
    charts = heat_maps("Root mean square of the weights", cells, mean)
    finite = {name: peak for name, peak in peaks.items() if math.isfinite(peak)}
    order = sorted(finite, key=lambda name: -finite[name])
    charts.append(table("Largest values", ["Tensor", "Largest"], [[name, finite[name]] for name in order[:MOST_ROWS]]))
    lines = damaged_lines({"not_finite": not_finite, "too_large": too_large}, SHOWN_NAMES) or [UNDAMAGED]
    lines += [f"all zero: {listed(zero, SHOWN_NAMES)}"] if zero else []
    lines.append(
        f"{kind}: {weights:,} numbers in {count(len(peaks), 'tensor')}; the largest is {max(finite.values(), default=0):.4g}"
    )
    damaged = sorted({*not_finite, *too_large})
    return lines, {"damaged": damaged, "zero": zero, "largest": max(finite.values(), default=0.0), "shown": charts}


def _cell_in_model(name: str, family: str | None) -> tuple[str, str, str] | None:
    """Return the heat map cell (part, row, column) of a weight; None for the VAE, biases and other tensors."""
    if not name.endswith("weight"):
        return None
    if name.startswith(sd_keys.UNET_PREFIX):
        path = sd_keys.unet_to_diffusers(name.removeprefix(sd_keys.UNET_PREFIX), family or "sd1")
        return map_cell("unet", path.removesuffix(".weight"), SLOTS[slot_of_key(name, family)])
    for part, prefixes in (("text_encoder", sd_keys.CLIP_PREFIXES), ("text_encoder_2", sd_keys.OPEN_CLIP_PREFIXES)):
        prefix = prefixes.get(family or "", "\0")
        if name.startswith(prefix):
            part_name = part if traits_of(family).two_encoders else "text_encoder"
            cell = map_cell(part_name, name.removeprefix(prefix).removesuffix(".weight"), "")
            return cell if cell[2] != OTHER else None
    return None
