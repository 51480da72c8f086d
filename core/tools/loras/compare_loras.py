"""Compares two LoRAs layer by layer: cosine similarity of their weight changes, and norm of the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.formats.detect import FAMILY_NAMES, identify
from core.networks.adapter_file import load_finite
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.tools.weights import CompareLorasSettings
from core.tools.charts import table
from core.tools.files import lora_of
from core.tools.loras.headers import check_base_model, check_measurable, model_of
from core.tools.loras.layers import Layer, layer_maps, mean, open_layers, root_of_squares
from core.tools.loras.plots import check_png, save_png

GROUP = "compare_loras"
MOST_ROWS = 20


@dataclass(frozen=True)
class Plan:
    """The two LoRAs."""

    first: Path
    second: Path

    def __str__(self) -> str:
        return f"compare {display_path(self.first)} with {display_path(self.second)}"


def plan(settings: CompareLorasSettings, workspace: Workspace) -> Plan:
    """Return the plan. Raises ProblemsError for LoRAs of different families, a base model that is missing or does not fit, and a PNG that
    cannot be written."""
    first, second = _files(settings, workspace)
    check_base_model(settings.base_model, first, workspace, f"{GROUP}.base_model")
    for lora in (first, second):
        check_measurable(settings.base_model, lora, f"{GROUP}.base_model")
    check_png(settings.png, f"{GROUP}.png")
    return Plan(first, second)


def _files(settings: CompareLorasSettings, workspace: Workspace) -> tuple[Path, Path]:
    """Return the paths of both LoRAs. Raises ProblemsError, also for LoRAs of different families."""
    problems: list[Problem] = []
    first = collected(problems, lora_of, settings.file, workspace, f"{GROUP}.file")
    second = collected(problems, lora_of, settings.other, workspace, f"{GROUP}.other")
    raise_if_errors(problems)
    assert first is not None and second is not None
    families = [identify(path).family for path in (first, second)]
    if None not in families and families[0] != families[1]:
        names = [FAMILY_NAMES[str(each)] for each in families]
        what = f"The first LoRA is for {names[0]}, the second for {names[1]}"
        raise ProblemsError.one(what, f"{GROUP}.other", f"choose one for {names[0]}", "tools.other-family")
    return first, second


def do(settings: CompareLorasSettings, plan: Plan, context: JobContext) -> Outcome:
    """Compare the changes A and B of each common layer: cosine <A, B> / (|A| |B|), difference |A - B|. Raises ProblemsError for NaN or
    infinite weights, and without a common layer."""
    files = (plan.first, plan.second)
    model = model_of(settings.base_model, plan.first, context)
    first, second = (
        {layer.name: layer for layer in open_layers(load_finite(path), model, context.cancel)[0]} for path in files
    )
    common = [name for name in first if name in second]
    if not common:
        what, fix = "These LoRAs change no layer in common", "compare LoRAs of one family"
        raise ProblemsError.one(what, f"{GROUP}.other", fix, "tools.no-common-layers")
    pairs = {}
    for number, name in enumerate(common):
        context.check()
        context.stage("comparing layers", number, len(common))
        pairs[name] = _compare(first[name], second[name])
    cosines = {name: each["cosine"] for name, each in pairs.items() if each["cosine"] is not None}
    differences = {name: each["difference"] for name, each in pairs.items()}
    totals = {key: root_of_squares([each[key] for each in pairs.values()]) for key in ("first", "second", "difference")}
    product = sum(each["product"] for each in pairs.values())
    cosine = product / (totals["first"] * totals["second"]) if totals["first"] * totals["second"] else None
    charts = layer_maps("Cosine", cosines, mean, span=(-1.0, 1.0))
    charts += layer_maps("Norm of the difference", differences, root_of_squares)
    charts.append(_table(pairs))
    alone = [(len(first) - len(common), files[0].name), (len(second) - len(common), files[1].name)]
    overall = "none: one has no effect" if cosine is None else f"{cosine:.4f}"
    lines = [
        f"cosine {overall} in {count(len(common), 'common layer')} (1: the same direction, 0: unrelated, -1: opposite)",
        f"norms {totals['first']:.4g} and {totals['second']:.4g}; norm of the difference {totals['difference']:.4g}",
        *(f"{count(layers, 'layer')} only in {name}" for layers, name in alone if layers),
        *save_png(charts, settings.png),
    ]
    return Outcome(lines=lines, facts={"cosine": cosine, **totals, "layers": pairs, "shown": charts})


def _compare(first_layer: Layer, second_layer: Layer) -> dict[str, Any]:
    """Return {cosine, difference, first, second: norms of both changes, product} of a layer in two LoRAs.

    `cosine` is None if a change is 0. Raises ProblemsError for different sizes.
    """
    a, b = first_layer.change().flatten().double(), second_layer.change().flatten().double()
    if a.numel() != b.numel():
        fix = "compare LoRAs of one family"
        raise ProblemsError.one(
            f"{first_layer.name} has another size in the two LoRAs", f"{GROUP}.other", fix, "tools.other-size"
        )
    first, second, product = float(a.norm()), float(b.norm()), float(a @ b)
    cosine = max(-1.0, min(1.0, product / (first * second))) if first and second else None
    difference = float((a - b).norm())
    return {"cosine": cosine, "difference": difference, "first": first, "second": second, "product": product}


def _table(compared: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the table of the layers that differ most. `compared`: {layer: result of `_compare`}."""
    order = sorted(compared, key=lambda name: -compared[name]["difference"])[:MOST_ROWS]
    keys = ("cosine", "difference", "first", "second")
    rows = [
        [name, *(compared[name][key] for key in keys)] for name in order if math.isfinite(compared[name]["difference"])
    ]
    return table("Layers that differ most", ["Layer", "Cosine", "Difference", "First", "Second"], rows)
