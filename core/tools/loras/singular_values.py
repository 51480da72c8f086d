"""Computes the singular values of a LoRA's changes, and the share of each layer's norm that each rank retains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from core.networks.adapter_file import load_finite
from core.record.context import JobContext, Outcome
from core.record.lazy_torch import Tensor, torch
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.tools.weights import SingularValuesSettings
from core.tools.charts import curves, table
from core.tools.files import lora_of
from core.tools.loras.headers import check_base_model, check_measurable, model_of
from core.tools.loras.layers import Layer, layer_maps, open_layers
from core.tools.loras.plots import check_png, save_png
from core.tools.plans import FilePlan

GROUP = "singular_values"
USUAL_RANKS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
NOTHING = 1e-6  # of the largest singular value: rounding
MOST_ROWS = 20


def plan(settings: SingularValuesSettings, workspace: Workspace) -> FilePlan:
    """Return the plan. Raises ProblemsError for a file that is no LoRA, a base model that is missing or does not fit, and a PNG that cannot
    be written."""
    path = lora_of(settings.file, workspace, f"{GROUP}.file")
    check_base_model(settings.base_model, path, workspace, f"{GROUP}.base_model")
    check_measurable(settings.base_model, path, f"{GROUP}.base_model")
    check_png(settings.png, f"{GROUP}.png")
    return FilePlan(f"compute the singular values of {display_path(path)}", path)


def do(settings: SingularValuesSettings, plan: FilePlan, context: JobContext) -> Outcome:
    """Compute the retained norm by rank k, sqrt(sum of the first k squares / sum of all), for each layer and for all together.

    If all layers are untrained, the outcome only says that. Otherwise the charts are also saved as PNG if `png` is set.
    """
    model = model_of(settings.base_model, plan.path, context)
    layers, unread = open_layers(load_finite(plan.path), model, context.cancel)
    values = {}
    for number, layer in enumerate(layers):
        context.check()
        context.stage("computing singular values", number, len(layers))
        singular = values_of(layer)
        if len(singular) and float(singular[0]) > 0:
            values[layer.name] = singular
    if not values:
        return Outcome(lines=["This LoRA changes nothing: all its layers are untrained"], facts={"shown": []})
    retained = {name: retained_together({name: each}, len(each)) for name, each in values.items()}
    needed = {name: rank_that_keeps(each, settings.keep) for name, each in retained.items()}
    longest = max(len(each) for each in values.values())
    recommended = usual_rank(_quantile(sorted(needed.values()), 0.9))
    whole = retained_together(values, longest)
    charts = [
        _retained_curves(retained, whole, longest),
        _value_curves(values, longest),
        *layer_maps(f"Rank that keeps {settings.keep:.0%}", {k: float(v) for k, v in needed.items()}, max),
        _largest_ranks(layers, needed),
    ]
    share = whole[min(recommended, longest) - 1]
    lines = [
        f"rank {recommended} keeps {settings.keep:.0%} of the norm of nine layers in ten, and {share:.1%} of the whole",
        f"each layer: {min(needed.values())} to {max(needed.values())}; for all of them rank {max(needed.values())}",
        "kept norm by rank: " + ", ".join(f"{r}: {whole[r - 1]:.1%}" for r in USUAL_RANKS if r <= longest),
        *([f"{count(len(unread), 'layer')} not measured without the base model"] if unread else []),
        *save_png(charts, settings.png),
    ]
    facts = {"recommended_rank": recommended, "needed": needed, "kept": [round(float(each), 6) for each in whole]}
    return Outcome(lines=lines, facts=facts | {"shown": charts})


def values_of(layer: Layer) -> Tensor:
    """Return the singular values of a layer's change, descending, float64, without those that are rounding errors.

    For a LoRA, computed from the r x r matrix between the QR factors of up and down.
    """
    factors = layer.factors()
    if factors is None:
        singular = torch.linalg.svdvals(layer.change().flatten(1).double())
    else:
        up, down = (each.double() for each in factors)
        singular = torch.linalg.svdvals(torch.linalg.qr(up).R @ torch.linalg.qr(down.T).R.T)
    return singular[singular > NOTHING * singular[0]] if len(singular) else singular


def retained_together(values: Mapping[str, Tensor], longest: int) -> list[float]:
    """Return the share of the norm of these layers that remains if each keeps k singular values, for k from 1 to `longest`.
    values: {layer: its singular values, descending}"""
    squares = torch.zeros(longest, dtype=torch.float64)
    for each in values.values():
        squares[: len(each)] += each.square().cpu()
    return [float(each) for each in (squares.cumsum(0) / squares.sum()).sqrt()]


def rank_that_keeps(retained: list[float], keep: float) -> int:
    """Return the lowest rank that retains at least the share `keep`; the full rank if none does. `retained`: by rank, from 1."""
    return next((rank for rank, share in enumerate(retained, 1) if share >= keep - 1e-9), len(retained))


def usual_rank(rank: int) -> int:
    """Return the smallest of USUAL_RANKS that is at least `rank`; `rank` itself above the largest."""
    return next((each for each in USUAL_RANKS if each >= rank), rank)


def _quantile(ordered: list[Any], share: float) -> Any:
    """Return the element of an ascending list at a quantile from 0 to 1."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _retained_curves(retained: dict[str, list[float]], whole: list[float], longest: int) -> dict[str, Any]:
    """Return the plot of the retained norm by rank: all layers together, median and weakest layers."""
    by_rank = [sorted(each[min(rank, len(each)) - 1] for each in retained.values()) for rank in range(1, longest + 1)]
    lines = {
        "all layers together": whole,
        "median layer": [_quantile(each, 0.5) for each in by_rank],
        "weakest layer in ten": [_quantile(each, 0.1) for each in by_rank],
    }
    return curves("Kept norm by rank", "rank", "kept norm", range(1, longest + 1), lines)


def _value_curves(values: dict[str, Tensor], longest: int) -> dict[str, Any]:
    """Return the plot of the singular values relative to each layer's first."""
    shares = [(each / each[0]).tolist() for each in values.values()]
    by_index = [sorted(each[n] for each in shares if len(each) > n) for n in range(longest)]
    lines = {
        "median layer": [_quantile(each, 0.5) for each in by_index],
        "flattest layer in ten": [_quantile(each, 0.9) for each in by_index],
        "steepest layer in ten": [_quantile(each, 0.1) for each in by_index],
    }
    return curves("Singular values, of the first", "number", "share", range(1, longest + 1), lines, log=True)


def _largest_ranks(layers: list[Layer], needed: dict[str, int]) -> dict[str, Any]:
    """Return the table of the layers that need the highest rank."""
    ranks = {layer.name: layer.rank for layer in layers}
    order = sorted(needed, key=lambda name: -needed[name])[:MOST_ROWS]
    rows = [[name, ranks[name], needed[name]] for name in order]
    return table("Layers that need the highest rank", ["Layer", "Rank", "Needed"], rows)
