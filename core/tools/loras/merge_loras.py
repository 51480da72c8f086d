"""Merges LoRAs into one by concatenation, SVD or averaging; of any kind whose change does not depend on the base model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.formats.lora.metadata import version_metadata
from core.formats.lora.names import group_by_module
from core.formats.model_spec import model_spec_of
from core.formats.tensors.lazy import loaded
from core.formats.tensors.spill import Spill
from core.networks.adapter_file import LoraFile, open_lora, save_lora
from core.networks.kinds import kind_named, kind_of_keys
from core.networks.kinds.lora import MODULE, network_sizes, sizes_as_metadata
from core.record.context import JobContext, Outcome
from core.record.file_titles import title_of_file
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, collected, raise_if_errors
from core.record.run_folder import safe_name
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.model import traits_of
from core.settings.tools.loras import MergeLorasSettings
from core.tools.loras import sums as lora_sums
from core.tools.loras.building import change_of, lora_tensors, precision_of, read_layer, shape_of_weight
from core.tools.loras.headers import (
    SPILLED,
    bias_norm_of,
    bytes_of,
    has_large_kernel,
    item_bytes,
    left_out_lines,
    outline_without_base,
    refuse_device,
    weight_shape,
    with_kernel,
)
from core.tools.loras.layers import Layer
from core.tools.loras.sums import Term, shuffled
from core.tools.loras.svd import CLAMP, Product, decompose, retained_by
from core.tools.merges import (
    DESCRIBED,
    LoraInput,
    agreed_texts,
    as_recipe,
    left_out_texts,
    lora_inputs,
    merge_record,
    texts_of,
)
from core.tools.output import output_file, output_problems

GROUP = "merge_loras"
USUAL_RANK = 4  # sd-scripts' new_rank
# Metadata of a merge where all files state the same: checkpoints of one run do.
AGREED = ("modelspec.resolution", "ss_resolution", "ss_dataset_dirs", "ss_tag_frequency")


@dataclass(frozen=True)
class Plan:
    """The merge. `family`: of the LoRAs, None if unknown."""

    loras: Sequence[LoraInput]
    target: Path
    family: str | None
    method: str

    def __str__(self) -> str:
        return f"merge {count(len(self.loras), 'LoRA')} by {self.method} into {display_path(self.target)}"


def plan(settings: MergeLorasSettings, workspace: Workspace) -> Plan:
    """Plan the merge by the headers. Raises ProblemsError with all problems."""
    problems, where = list[Problem](), f"{GROUP}.models"
    collected(problems, refuse_device, settings.device, f"{GROUP}.device")
    loras = lora_inputs(settings.models, settings.ratios, settings.lbws, workspace, GROUP, problems)
    family = next((each.family for each in loras if each.family is not None), None)
    for each in loras:
        problems += each.family_problems(family, where) if family is not None else []
    files = [collected(problems, outline_without_base, each.path, where) for each in loras]
    raise_if_errors(problems)
    known = [file for file in files if file is not None]
    problems += _mismatch_problems(settings, known, [each.path for each in loras])
    raise_if_errors(problems)
    target = output_file(settings.output, _naming_path(loras, workspace), "_merged")
    shapes = {name: weight_shape(layer) for file in known for name, layer in group_by_module(file.tensors).items()}
    ranks = sum(_highest_rank(file) for file in known)
    rank = settings.new_rank or ranks if settings.method == "svd" else ranks
    width = item_bytes(known[0], settings.save_precision) + SPILLED
    size = bytes_of([each for each in shapes.values() if each is not None], rank, rank, width)
    raise_if_errors(output_problems(target, [each.path for each in loras], size, f"{GROUP}.output"))
    return Plan(loras, target, family, settings.method)


def _naming_path(loras: Sequence[LoraInput], workspace: Workspace) -> Path:
    """Return the path that names the result: the first LoRA's; for a run's checkpoint one in models/loras, named after all runs."""
    first = loras[0].path
    if not first.is_relative_to(workspace.runs):
        return first
    titles = dict.fromkeys(title_of_file(each.path, workspace.runs).partition(",")[0] for each in loras)
    return workspace.models / "loras" / f"{safe_name('_'.join(titles))}{first.suffix}"


def _highest_rank(file: LoraFile) -> int:
    """Return the highest rank of a layer in the file."""
    layers = group_by_module(file.tensors).values()
    return max((kind.size(layer).rank for layer in layers if (kind := kind_of_keys(layer)) is not None), default=1)


def _mismatch_problems(settings: MergeLorasSettings, files: Sequence[LoraFile], paths: Sequence[Path]) -> list[Problem]:
    """Return the first problem of layers whose shapes or ranks the method cannot add."""
    where, known, lora = f"{GROUP}.models", dict[str, Any](), kind_named("lora")
    for file, path in zip(files, paths, strict=True):
        for name, layer in group_by_module(file.tensors).items():
            rank = lora.size(layer).rank if lora.holds(layer) else None
            if rank is None and settings.method != "svd":
                what = f"{path.name} has layers of other network kinds, such as {name}, which only SVD can merge"
                return [Problem(what, where, "choose the method svd", code="merge.needs-svd")]
            source = with_kernel(name, weight_shape(layer) or ())
            shape = tuple(side for side in source if side != 1)
            known_shape, known_rank, other_path = known.setdefault(name, (shape, rank, path))
            if known_shape != shape:
                what = f"{path.name} and {other_path.name} change other weights: {name} is {list(shape)} and {list(known_shape)}"
                return [Problem(what, where, "merge LoRAs of one family", code="merge.other-shape")]
            if settings.method == "plain" and known_rank != rank:
                what = f"{path.name} and {other_path.name} have other ranks at {name}: {rank} and {known_rank}"
                return [Problem(what, where, "choose the method concat or svd", code="merge.other-rank")]
        for key, value in bias_norm_of(file).items():
            numbers, other_path = known.setdefault(key, (value.numel(), path))
            if numbers != value.numel():
                what = f"{path.name} and {other_path.name} change other weights: {key} has {value.numel()} and {numbers} numbers"
                return [Problem(what, where, "merge LoRAs of one family", code="merge.other-shape")]
    return []


def do(settings: MergeLorasSettings, plan: Plan, context: JobContext) -> Outcome:
    """Merge the LoRAs layer by layer, and write the new file."""
    tensors, first_sizes, retained, files = dict[str, Any](), list[tuple[int, float]](), list[float](), list[LoraFile]()
    with ExitStack() as opened, torch.no_grad():
        for source in plan.loras:
            context.stage(f"reading {source.path.name}")
            files.append(opened.enter_context(open_lora(source.path)))
        spill = opened.enter_context(Spill(plan.target))
        total = len({name for lora in files for name in group_by_module(lora.tensors)})
        merged = _merge_function(settings, plan, files, context, retained)
        for name, shape, terms in _layers(plan, files, context):
            context.check()
            context.stage("merging", len(first_sizes), total)
            first_sizes.append((terms[0].rank if terms[0].factors is not None else 0, terms[0].alpha))
            up, down, alpha = merged(terms, shape)
            if settings.shuffle:
                up, down = shuffled(up, down, settings.seed, name)
            tensors |= spill.put(lora_tensors(name, up, down, alpha, shape))
        sd_scripts = settings.compatibility == "sd-scripts"
        dtype = (
            torch.float32
            if sd_scripts and not settings.save_precision
            else precision_of(files[0], settings.save_precision)
        )
        metadata = _metadata(settings, plan, files, first_sizes, tensors, context)
        save_lora(plan.target, _with_bias_norm(tensors, plan, files), metadata, dtype)
    names = ", ".join(source.path.name for source in plan.loras)
    lines = [f"{count(total, 'layer')} merged of {names}", f"rank {metadata['ss_network_dim']}"]
    if retained:
        lines.append(f"kept norm: {sum(retained) / len(retained):.1%} on average, {min(retained):.1%} at least")
    lines += [line for lora in files for line in left_out_lines(lora, lora.bundled)]
    texts = [lora.metadata for lora in files]
    if sd_scripts:
        stated = [name for name in DESCRIBED if any(texts_of(each)[name] for each in texts)]
        lines += left_out_texts("as by sd-scripts", stated)
    elif not settings.no_metadata:
        lines += agreed_texts(texts)[1]
    facts = {"file": str(plan.target), "layers": total, "kept": min(retained, default=1.0)}
    return Outcome(lines=[*lines, f"Saved: {display_path(plan.target)}"], facts=facts)


def _layers(
    plan: Plan, files: Sequence[LoraFile], context: JobContext
) -> Iterator[tuple[str, tuple[int, ...], list[Term]]]:
    """Yield (name, shape of the weight, a term for each file that has the layer), reading layer by layer."""
    sources = [(lora, group_by_module(lora.tensors), source) for lora, source in zip(files, plan.loras, strict=True)]
    for name in dict.fromkeys(name for _, modules, _ in sources for name in modules):
        layers = [
            (read_layer(lora, name, modules[name], context.cancel), source)
            for lora, modules, source in sources
            if name in modules
        ]
        yield name, shape_of_weight(layers[0][0]), [_term(layer, source) for layer, source in layers]


def _term(layer: Layer, source: LoraInput) -> Term:
    """Return the term of a LoRA's layer in the sum."""
    change, _ = change_of(layer)
    weight = source.block_weight(layer.name)
    if isinstance(change, Product):
        return Term(source.ratio, weight, layer.adapter.alpha, change)
    return Term(source.ratio, weight, 1.0, None, change)


def _merge_function(
    settings: MergeLorasSettings, plan: Plan, files: Sequence[LoraFile], context: JobContext, retained: list[float]
) -> Callable[[Sequence[Term], tuple[int, ...]], tuple[Tensor, Tensor, float]]:
    """Return the method's function (terms, shape of the weight) -> (up, down, alpha).
    retained: SVD appends the share of the norm that it keeps of each layer"""
    sd_scripts = settings.compatibility == "sd-scripts"
    if settings.method != "svd":
        methods = {
            ("concat", False): lora_sums.concatenated,
            ("concat", True): lora_sums.concatenated_as_sd_scripts,
            ("plain", False): lora_sums.averaged,
            ("plain", True): lora_sums.averaged_as_sd_scripts,
        }
        merged = methods[settings.method, sd_scripts]
        return lambda terms, shape: merged(terms)
    rank = settings.new_rank or (USUAL_RANK if sd_scripts else _highest_factor_rank(plan, files, context))
    quantile = settings.clamp_quantile or (CLAMP if sd_scripts else None)

    def by_svd(terms: Sequence[Term], shape: tuple[int, ...]) -> tuple[Tensor, Tensor, float]:
        """Return (up, down, alpha) of the best approximation of the sum, and append the retained norm."""
        layer_rank = (settings.new_conv_rank or rank) if has_large_kernel(shape) else rank
        change = lora_sums.total_change(terms)
        parts = decompose(change, settings.device, settings.compatibility, layer_rank)
        layer_rank = min(layer_rank, len(parts.s))
        up, down = parts.cut(layer_rank, quantile)
        retained.append(retained_by(change, up, down) if quantile else parts.retained(layer_rank))
        return up, down, float(layer_rank)

    return by_svd


def _highest_factor_rank(plan: Plan, files: Sequence[LoraFile], context: JobContext) -> int:
    """Return the highest rank of the layers with two factors, 16 if there are none. Reads all layers once."""
    layers = (terms for _, _, terms in _layers(plan, files, context))
    return max((term.rank for terms in layers for term in terms if term.factors is not None), default=16)


def _with_bias_norm(tensors: Mapping[str, Any], plan: Plan, files: Sequence[LoraFile]) -> dict[str, Any]:
    """Return the tensors with the summed changes of biases and norm layers."""
    summed = dict(tensors)
    for lora, source in zip(files, plan.loras, strict=True):
        for key, value in bias_norm_of(lora).items():
            change = loaded(value).float() * source.strength(key.partition(".")[0])
            summed[key] = summed[key] + change.view_as(summed[key]) if key in summed else change
    return summed


def _metadata(
    settings: MergeLorasSettings,
    plan: Plan,
    files: Sequence[LoraFile],
    first_sizes: Sequence[tuple[int, float]],
    tensors: Mapping[str, Tensor],
    context: JobContext,
) -> dict[str, str]:
    """Return the metadata of the new file. `first_sizes`: (rank, alpha) of each layer in the first file with it."""
    stated = next((file.metadata for file in files if "ss_base_model_version" in file.metadata), {})
    metadata = version_metadata(plan.family)
    metadata |= {key: stated[key] for key in ("ss_v2", "ss_base_model_version") if stated.get(key)}
    sd_scripts = settings.compatibility == "sd-scripts"
    metadata |= _sizes_of_sd_scripts(settings, first_sizes) if sd_scripts else sizes_as_metadata(tensors)
    if settings.no_metadata:
        return metadata
    return metadata | _record(settings, plan, [file.metadata for file in files], context)


def _record(
    settings: MergeLorasSettings, plan: Plan, before: Sequence[Mapping[str, str]], context: JobContext
) -> dict[str, str]:
    """Return modelspec and merge metadata, and the values of AGREED and texts that all files share. `before`: each file's metadata."""
    prediction = before[0].get("modelspec.prediction_type") or traits_of(plan.family).prediction
    side = traits_of(plan.family).resolution
    spec = model_spec_of({}, plan.family, prediction, "lora", plan.target.stem, side) if plan.family else {}
    inputs, loras = as_recipe(plan.loras, context)
    recipe = {"method": settings.method, "compatibility": settings.compatibility, "loras": loras}
    stated = {} if settings.compatibility == "sd-scripts" else before[0]
    agreed = {
        key: stated[key] for key in AGREED if stated.get(key) and all(each.get(key) == stated[key] for each in before)
    }
    agreed |= agreed_texts(before)[0] if stated else {}
    return spec | agreed | merge_record(inputs, recipe)


def _sizes_of_sd_scripts(settings: MergeLorasSettings, first_sizes: Sequence[tuple[int, float]]) -> dict[str, str]:
    """Return ranks and alphas as sd-scripts records them.

    merge_lora records those of the first file with each layer, svd_merge_lora the requested rank.
    """
    if settings.method == "svd":
        rank = settings.new_rank or USUAL_RANK
        conv = settings.new_conv_rank or rank
        args = f'{{"conv_dim": {conv}, "conv_alpha": {conv}}}'
        return network_sizes(MODULE, {rank}, {rank}) | {"ss_network_args": args}
    return network_sizes(MODULE, {rank for rank, _ in first_sizes}, {alpha for _, alpha in first_sizes})
