"""Extracts a LoRA from the difference of two checkpoints, read layer by layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.families.trained_size import trained_size
from core.formats.detect import FAMILY_NAMES
from core.formats.hashes import HashMemo, model_hashes
from core.formats.lora.metadata import version_metadata
from core.formats.lora.names import module_of_layer
from core.formats.model_spec import model_spec_of
from core.formats.models.checkpoint import Checkpoint, TensorLocation, open_checkpoint
from core.formats.models.extra import metadata_of
from core.formats.models.overflow import largest, not_finite_names
from core.formats.tensors.lazy import OpenFiles
from core.formats.tensors.spill import Spill
from core.formats.tensors.writer import type_named
from core.networks.adapter_file import save_lora, with_convolutions
from core.networks.kinds.lora import MODULE, network_sizes
from core.networks.layer_list import layers_of
from core.record.context import JobContext, Outcome
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, ProblemsError, collected, problems_at, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.model import traits_of
from core.settings.tools.loras import ExtractLoraSettings
from core.tools.files import model_file
from core.tools.loras.building import lora_tensors
from core.tools.loras.headers import SPILLED, bytes_of, has_large_kernel, refuse_device
from core.tools.loras.svd import CLAMP, decompose, retained_by
from core.tools.merges import agreed_texts
from core.tools.output import PRECISION_BYTES, output_file, output_problems

GROUP = "extract_lora"


@dataclass(frozen=True)
class _Layer:
    """A layer of both models.

    name              as in kohya's files
    shape             of its weight in the LoRA
    original, tuned   the weight's location in both models
    left_out          whether it is a convolution of a resnet that the LoRA leaves out, as no conv rank is set
    """

    name: str
    shape: tuple[int, ...]
    original: TensorLocation
    tuned: TensorLocation
    left_out: bool = False


@dataclass(frozen=True)
class Plan:
    """Both models, the layers to extract, those left out, and the file to write."""

    original: Checkpoint
    tuned: Checkpoint
    family: str
    layers: Sequence[_Layer]
    left_out: Sequence[_Layer]
    target: Path

    def __str__(self) -> str:
        layers = f"{count(len(self.layers), 'layer')} of {FAMILY_NAMES[self.family]}"
        return f"extract {layers} into {display_path(self.target)}"


def plan(settings: ExtractLoraSettings, workspace: Workspace) -> Plan:
    """Plan the extraction by the headers. Raises ProblemsError with all problems."""
    problems: list[Problem] = []
    for name in ("device", "load_original_model_to", "load_tuned_model_to"):
        collected(problems, refuse_device, getattr(settings, name), f"{GROUP}.{name}")
    models = [collected(problems, _open_checkpoint, settings, name, workspace) for name in ("model_org", "model_tuned")]
    original, tuned = models
    raise_if_errors(problems)
    assert original is not None and tuned is not None
    family, tuned_family = original.kind.family, tuned.kind.family
    if family != tuned_family or family is None:
        names = [FAMILY_NAMES.get(each or "", "of unknown family") for each in (family, tuned_family)]
        what = f"The original is {names[0]}, the tuned model {names[1]}"
        raise ProblemsError.one(what, f"{GROUP}.model_tuned", "choose two models of one family", "tools.other-family")
    if original.path.samefile(tuned.path):
        raise _no_difference("The original and the tuned model are the same file")
    all_layers = list(_layers(settings, original, tuned, family))
    layers, left_out = ([layer for layer in all_layers if layer.left_out == each] for each in (False, True))
    target = output_file(settings.output, tuned.path, "_lora")
    width = PRECISION_BYTES[settings.save_precision or "fp32"] + SPILLED
    size = bytes_of([layer.shape for layer in layers], settings.dim, settings.conv_dim or 0, width)
    raise_if_errors(output_problems(target, [original.path, tuned.path], size, f"{GROUP}.output"))
    return Plan(original, tuned, family, layers, left_out, target)


def _no_difference(what: str) -> ProblemsError:
    """Return the error that there is nothing to extract. what: the reason, as a clause"""
    fix = "choose the base as the original and its fine-tuned model as tuned"
    return ProblemsError.one(what, f"{GROUP}.model_tuned", fix, "extract.no-difference")


def _open_checkpoint(settings: ExtractLoraSettings, name: str, workspace: Workspace) -> Checkpoint:
    """Open the model that the setting `name` names. Raises ProblemsError unless it is a checkpoint."""
    path = model_file(getattr(settings, name), workspace, f"{GROUP}.{name}")
    with problems_at(f"{GROUP}.{name}"):
        checkpoint = open_checkpoint(path)
    if checkpoint.kind.kind != "checkpoint" or "unet" not in checkpoint.parts:
        what = f"{display_path(path)} is not a checkpoint but: {checkpoint.kind}"
        raise ProblemsError.one(what, f"{GROUP}.{name}", "choose a checkpoint", "merge.not-a-checkpoint")
    return checkpoint


def _layers(
    settings: ExtractLoraSettings, original: Checkpoint, tuned: Checkpoint, family_name: str
) -> Iterator[_Layer]:
    """Yield the layers that a LoRA changes, in their usual order. Raises ProblemsError if the models differ in layers or sizes."""
    where, layers = f"{GROUP}.model_tuned", dict[str, Any]()
    for model in (original, tuned):
        layers |= {each.layer.name: each.layer for each in layers_of(family_name, model.parts)}
    for layer in layers.values():
        if layer.outer:
            continue
        left_out = layer.residual and settings.conv_dim is None
        part, path = module_of_layer(layer.name) or ("", "")
        key = f"{path}.weight"
        before, after = (
            model.parts[part].locations.get(key) if part in model.parts else None for model in (original, tuned)
        )
        if before is None or after is None:
            if left_out:
                continue
            what = f"One of the models has no {part}.{key}"
            raise ProblemsError.one(what, where, "choose two models of one family", "extract.other-layers")
        shapes = [[side for side in location.entry.shape if side != 1] for location in (before, after)]
        if shapes[0] != shapes[1]:
            if left_out:
                continue
            what = f"The models differ in the size of {part}.{key}"
            raise ProblemsError.one(what, where, "choose two models of one size", "extract.other-shape")
        yield _Layer(layer.name, before.entry.shape, before, after, left_out)


def do(settings: ExtractLoraSettings, plan: Plan, context: JobContext) -> Outcome:
    """Decompose each layer's difference and write the LoRA. Raises ProblemsError if the models do not differ, and for NaN and infinite
    weights."""
    quantile = settings.clamp_quantile or (CLAMP if settings.compatibility == "sd-scripts" else None)
    tensors, retained, squares = dict[str, Any](), list[float](), list[float]()
    with OpenFiles() as files, Spill(plan.target) as spill, torch.no_grad():
        layers, text_squares = _chosen_layers(settings, plan, files, context)
        for layer in layers:
            context.check()
            context.stage("extracting", len(retained), len(layers))
            rank = settings.conv_dim if has_large_kernel(layer.shape) and settings.conv_dim else settings.dim
            change = _difference(settings, layer, files).flatten(1)
            parts = decompose(change, settings.device, settings.compatibility, rank)
            rank = min(rank, len(parts.s))
            up, down = parts.cut(rank, quantile)
            retained.append(retained_by(change, up, down) if quantile else parts.retained(rank))
            squares.append(_square(change))
            tensors |= spill.put(lora_tensors(layer.name, up, down, rank, layer.shape))
        left_out = []
        for number, layer in enumerate(plan.left_out):
            context.check()
            context.stage("comparing resnets", number, len(plan.left_out))
            left_out.append(_square(_difference(settings, layer, files)))
        others = _others_changed(settings, plan, files)
        changed = sum(map(bool, left_out))
        note = f"left out: {count(changed, 'layer')} of resnets with a difference; set Conv rank" if changed else ""
        if not any(squares):
            what = "The models differ in no weight that the LoRA would change"
            raise _no_difference(": ".join(filter(None, (what, _left_out_text(settings) * any(text_squares), note))))
        metadata = _metadata(settings, plan, context)
        if traits_of(plan.family).convolutions_in_loras:
            tensors = with_convolutions(tensors)  # as sd-scripts has them
        save_lora(plan.target, tensors, metadata, type_named(settings.save_precision or "fp32"))
    lines = [f"{count(len(layers), 'layer')} extracted"]
    retained_square = sum(share**2 * square for share, square in zip(retained, squares, strict=True))
    whole_square = sum(squares) + sum(left_out) + sum(text_squares)
    if any(text_squares):
        share = (sum(text_squares) / whole_square) ** 0.5
        lines += [f"{_left_out_text(settings)}; they have {share:.1%} of the norm of the difference"]
    lines += [note] if note else []
    if others:
        lines.append(
            f"left out: {count(others, 'bias, norm or outer layer', 'biases, norms and outer layers')} with a difference"
        )
    whole = (retained_square / whole_square) ** 0.5
    lines.append(
        f"kept norm of the difference: {whole:.1%} of the whole; of the extracted layers "
        f"{sum(retained) / len(retained):.1%} on average, {min(retained):.1%} at least"
    )
    facts = {"file": str(plan.target), "layers": len(layers), "kept": min(retained)}
    return Outcome(lines=[*lines, f"Saved: {display_path(plan.target)}"], facts=facts)


def _left_out_text(settings: ExtractLoraSettings) -> str:
    """Return the text on text encoders that are left out, with the setting that extracts them."""
    return f"text encoders left out: no weight differs by more than {settings.min_diff:g} (Min difference; 0 extracts them)"


def _chosen_layers(
    settings: ExtractLoraSettings, plan: Plan, files: OpenFiles, context: JobContext
) -> tuple[Sequence[_Layer], list[float]]:
    """Return (layers to extract, squared norms of those left out): the text encoders are left out if no weight of theirs differs by
    more than `min_diff`."""
    text = [layer for layer in plan.layers if layer.name.startswith("lora_te")]
    squares = []
    for number, layer in enumerate(text):
        context.check()
        context.stage("comparing text encoders", number, len(text))
        change = _difference(settings, layer, files)
        if float(change.abs().max()) > settings.min_diff:
            return plan.layers, []
        squares.append(_square(change))
    return [layer for layer in plan.layers if not layer.name.startswith("lora_te")], squares


def _others_changed(settings: ExtractLoraSettings, plan: Plan, files: OpenFiles) -> int:
    """Return the number of tensors of the U-Net and the text encoders that differ and that no LoRA changes: biases, norms, outer layers."""
    modules = {module_of_layer(layer.name) for layer in (*plan.layers, *plan.left_out)}
    pairs = [
        (before, after)
        for part in plan.original.parts.keys() & plan.tuned.parts.keys() - {"vae"}
        for key, before in plan.original.parts[part].locations.items()
        if (after := plan.tuned.parts[part].locations.get(key)) is not None
        and (part, key.removesuffix(".weight")) not in modules
    ]
    return sum(not torch.equal(*(_read(each, files, settings.load_precision) for each in pair)) for pair in pairs)


def _difference(settings: ExtractLoraSettings, layer: _Layer, files: OpenFiles) -> Tensor:
    """Return tuned - original, float32, in the layer's shape. Raises ProblemsError for NaN and infinite weights."""
    original = _read(layer.original, files, settings.load_precision).to(settings.load_original_model_to)
    tuned = _read(layer.tuned, files, settings.load_precision).to(settings.load_tuned_model_to)
    difference = (tuned.to(original.device) - original).view(layer.shape)
    if not_finite_names({layer.name: largest(difference)}):
        location = layer.original if not_finite_names({layer.name: largest(original)}) else layer.tuned
        what, fix = f"{location.name} has NaN or infinite values", "download this model again"
        raise ProblemsError.one(what, display_path(location.file), fix, "weights.not-finite")
    return difference


def _square(change: Tensor) -> float:
    """Return the squared Frobenius norm of a change."""
    return float(change.double().square().sum())


def _read(location: TensorLocation, files: OpenFiles, precision: str | None) -> torch.Tensor:
    """Read a weight in `precision` (None: as stored), as float32."""
    lazy = files.lazy(location)
    return lazy.cast(type_named(precision) if precision else None).read().to(torch.float32)


def _metadata(settings: ExtractLoraSettings, plan: Plan, context: JobContext) -> dict[str, str]:
    """Return sd-scripts' metadata, with the original as the base model, and the texts of the tuned model."""
    prediction = plan.tuned.kind.prediction
    metadata = {
        **version_metadata(plan.family, prediction),
        **network_sizes(MODULE, {settings.dim}, {float(settings.dim)}),
    }
    if settings.conv_dim:
        args = {"conv_dim": str(settings.conv_dim), "conv_alpha": str(float(settings.conv_dim))}
        metadata["ss_network_args"] = json.dumps(args)
    if settings.no_metadata:
        return metadata
    memo = HashMemo.of(context.workspace)
    for model in (plan.original, plan.tuned):
        context.stage(f"hashing {model.path.name}")
        hashes = model_hashes(model.path, memo, context.cancel)
        if model is plan.original:
            metadata |= {"ss_sd_model_name": model.path.name}
            metadata |= dict(zip(("ss_sd_model_hash", "ss_new_sd_model_hash"), hashes, strict=True))
        else:
            metadata["ss_training_comment"] = f"extracted from {model.path.name}, {hashes[1]}"
    side = trained_size(plan.original.path, plan.family)[0]
    texts, _ = agreed_texts([metadata_of(plan.tuned)])
    return metadata | model_spec_of(texts, plan.family, prediction, "lora", plan.target.stem, side)
