"""Merges checkpoints file to file: each tensor is read from every model, mixed in fp32 and written, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.dataset.sources.image_info import listed
from core.families.trained_size import trained_size
from core.formats.detect import FAMILY_NAMES, ModelKind, identify
from core.formats.hashes import HashMemo, model_hashes
from core.formats.model_spec import architecture, implementation
from core.formats.models import sd_keys
from core.formats.models.checkpoint import SIZES_KEY, TensorLocation
from core.formats.models.conversion import Conversion, as_single_file
from core.formats.models.extra import POSITIONS, positions
from core.formats.models.overflow import largest, not_finite, not_finite_names, overflowing
from core.formats.models.text_keys import full_name
from core.formats.models.whole_model import ModelFacts
from core.formats.tensors.header import read_header
from core.formats.tensors.lazy import LazyTensor, OpenFiles, in_memory, in_pieces
from core.formats.tensors.writer import PRECISIONS, file_bytes, write_safetensors
from core.networks.block_weights import LISTS, SLOTS, WITHOUT_BASE, block_weights, slot_of_key
from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError, collected, problems_at, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.blocks import has_nine_blocks
from core.settings.tools.convert_model import ConvertModelSettings
from core.settings.tools.merge_models import MergeModelsSettings
from core.tools.files import model_file
from core.tools.merges import agreed_texts, merge_record, ratios_of
from core.tools.models.convert_model import chosen_parts, open_model
from core.tools.output import output_file, output_problems, progress

GROUP = "merge_models"
SHOWN_KEYS = 5
FIRST_LAYER = f"{sd_keys.UNET_PREFIX}input_blocks.0.0.weight"  # of an inpainting model with 5 further input channels

_Share = tuple[float, Path, LazyTensor]  # how much of which file's tensor


@dataclass(frozen=True)
class MergeModel:
    """A checkpoint to merge, by its headers. `tensors`: lazy, by the keys of single files."""

    path: Path
    kind: ModelKind
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]

    @property
    def floats(self) -> dict[str, LazyTensor]:
        """The floating point tensors by key."""
        return {key: tensor for key, tensor in self.tensors.items() if tensor.is_float}


@dataclass(frozen=True)
class Plan:
    """The merge.

    models    in order; their lazy tensors are read from `files`
    weights   (key) -> a factor for each model
    mixed     keys to merge
    skipped   {message: keys that are not merged}
    """

    models: Sequence[MergeModel]
    target: Path
    weights: Callable[[str], Sequence[float]]
    mixed: Sequence[str]
    skipped: Mapping[str, Sequence[str]]
    files: OpenFiles

    def __str__(self) -> str:
        return f"merge {count(len(self.models), 'model')} into {display_path(self.target)}"


def do(settings: MergeModelsSettings, plan: Plan, context: JobContext) -> Outcome:
    """Merge the models and write the file with metadata on its inputs."""
    memo = HashMemo.of(context.workspace)
    with plan.files:
        metadata = _metadata(settings, plan, memo, context)
        tensors = _merged(plan, PRECISIONS.get(settings.saving_precision or ""))
        atomic.remove_leftovers(plan.target.parent)  # they may be filling the disk
        wrote = progress(context, plan.target, sum(tensor.byte_count for tensor in tensors.values()))
        with atomic.open_atomic(plan.target) as temporary:
            write_safetensors(temporary, tensors, metadata, context.cancel, wrote)
            plan.files.close()  # before the file is put in place: Windows cannot replace an open one
    lines = [f"{count(len(plan.mixed), 'tensor')} merged of {', '.join(model.path.name for model in plan.models)}"]
    for reason, keys in plan.skipped.items():
        lines.append(f"{reason}: {listed(keys, len(keys) if settings.show_skipped else SHOWN_KEYS)}")
    lines += agreed_texts([model.metadata for model in plan.models])[1]
    lines.append(f"Saved: {display_path(plan.target)}")
    skipped = {reason: len(keys) for reason, keys in plan.skipped.items()}
    return Outcome(lines=lines, facts={"file": str(plan.target), "merged": len(plan.mixed), "skipped": skipped})


# -- planning: all checks, by the headers


def plan(settings: MergeModelsSettings, workspace: Workspace) -> Plan:
    """Plan the merge by the headers. Raises ProblemsError with all problems."""
    problems, files = list[Problem](), OpenFiles()  # which opens none before a tensor is read
    models = _open_models(settings, workspace, files, problems)
    if not problems:
        problems += _mismatch_problems(models)
    weights = _weights(settings, models, problems)
    raise_if_errors(problems)
    assert weights is not None
    first = models[0]
    target = output_file(settings.output, first.path, "_merged")
    paths = [model.path for model in models]
    size = file_bytes(
        {key: tensor.cast(PRECISIONS.get(settings.saving_precision or "")) for key, tensor in first.tensors.items()}
    )
    raise_if_errors(output_problems(target, paths, size, f"{GROUP}.output"))
    floats = [model.floats for model in models]
    skipped: dict[str, list[str]] = {}
    for model, tensors in zip(models[1:], floats[1:], strict=True):
        if lacking := sorted(floats[0].keys() - tensors.keys()):
            skipped[f"not in {model.path.name}, so taken from the first model"] = lacking
        if more := sorted(tensors.keys() - floats[0].keys()):
            skipped[f"only in {model.path.name}, so left out"] = more
    return Plan(models, target, weights, _mixed_keys(settings, floats), skipped, files)


def _mixed_keys(settings: MergeModelsSettings, floats: Sequence[Mapping[str, LazyTensor]]) -> list[str]:
    """Return the keys of the first model to merge: those that another model has; for add_difference, that both others have.
    floats: floating point tensors of each model. With sd-scripts' compatibility keys that only the first model has are merged too"""
    enough = all if settings.method == "add_difference" else any
    sd_scripts = settings.compatibility == "sd-scripts"  # also what the first model has alone
    return [
        key
        for key in floats[0]
        if (not settings.unet_only or key.startswith(sd_keys.UNET_PREFIX))
        and (sd_scripts or enough(key in tensors for tensors in floats[1:]))
    ]


def _open_models(
    settings: MergeModelsSettings, workspace: Workspace, files: OpenFiles, problems: list[Problem]
) -> list[MergeModel]:
    """Open the models, in order, leaving out those with problems. Adds problems, also of their number and the multiplier."""
    where, models = f"{GROUP}.models", list[MergeModel]()
    wanted = {"add_difference": (3, 3, "three models, A, B and C"), "sigmoid": (2, 2, "two models")}
    min_models, max_models, expected = wanted.get(settings.method, (2, 99, "two models or more"))
    if not min_models <= len(settings.models) <= max_models:
        what = f"{count(len(settings.models), 'model')} given"
        problems.append(Problem(what, where, f"give {expected}, one per line", code="merge.model-count"))
    if settings.method == "sigmoid" and not 0 <= settings.multiplier <= 1:
        what = f"The multiplier of a sigmoid is {settings.multiplier:g}"
        problems.append(Problem(what, f"{GROUP}.multiplier", "use 0 to 1", code="merge.bad-multiplier"))
    for name in settings.models:
        model = collected(
            problems, lambda name=name: _open_model(model_file(name, workspace, where), files, workspace, where)
        )
        models += [model] if model is not None else []
    return models


def _open_model(path: Path, files: OpenFiles, workspace: Workspace, where: str) -> MergeModel:
    """Open a file or folder of a checkpoint. `where`: the setting, for problems. Raises ProblemsError for anything else."""
    with problems_at(where):
        kind = identify(path)
        if kind.kind == "checkpoint":
            tensors, metadata = _from_folder(path, files, workspace) if path.is_dir() else _from_file(path, kind, files)
            return MergeModel(path, kind, tensors, metadata)
    what = f"{display_path(path)} is not a checkpoint but: {kind}"
    raise ProblemsError.one(what, where, "choose checkpoints", "merge.not-a-checkpoint")


def _from_file(path: Path, kind: ModelKind, files: OpenFiles) -> tuple[dict[str, LazyTensor], Mapping[str, str]]:
    """Return (lazy tensors by key, metadata) of a single file; position_ids as integers, which a mix of floats would not be."""
    entries, metadata = read_header(path)
    prefix = sd_keys.CLIP_PREFIXES.get(kind.family or "", "\0")
    lazy = {
        _current_name(name, prefix): files.lazy(TensorLocation(path, name, entry)) for name, entry in entries.items()
    }
    for name in [name for name in entries if name.endswith(POSITIONS)]:
        lazy |= positions(name, entries[name].shape, kind.family or "")
    return lazy, metadata


def _current_name(name: str, clip: str) -> str:
    """Return the current name of a text encoder's tensor: old files lack `text_model.`. `clip`: prefix of the text encoder."""
    return clip + full_name(name.removeprefix(clip)) if name.startswith(clip) else name


def _from_folder(path: Path, files: OpenFiles, workspace: Workspace) -> tuple[dict[str, LazyTensor], Mapping[str, str]]:
    """Return (lazy tensors by single file key, metadata) of a diffusers folder. Raises ProblemsError for a damaged or incomplete one."""
    source, layout = open_model(path)
    parts, problems = chosen_parts(ConvertModelSettings(), source, layout, workspace, "")
    raise_if_errors(problems)
    facts = ModelFacts(prediction=source.kind.prediction, zero_terminal_snr=source.kind.zero_terminal_snr)
    return as_single_file(Conversion(source, path, parts, layout.family, "safetensors", layout.published, facts), files)


def _mismatch_problems(models: Sequence[MergeModel]) -> list[Problem]:
    """Return problems of models with different families, prediction types or tensor shapes."""
    where, first, problems = f"{GROUP}.models", models[0], list[Problem]()
    for model in models[1:]:
        first_kind, kind = first.kind, model.kind
        names = f"{model.path.name} is {kind}, {first.path.name} is {first_kind}"
        of_inpainting = (first_kind.variant, kind.variant) == ("inpainting", None)
        if first_kind.family != kind.family or (first_kind.variant != kind.variant and not of_inpainting):
            fix = f"merge models of one family, such as {FAMILY_NAMES.get(first_kind.family or '', 'SD 1.x')}"
            if first_kind.family == kind.family and kind.variant == "inpainting":
                fix = "give the inpainting model first; it keeps its input channels for the mask"
            problems.append(Problem(names, where, fix, code="merge.other-family"))
            continue
        if None not in (first_kind.prediction, kind.prediction) and first_kind.prediction != kind.prediction:
            what = f"{model.path.name} predicts {kind.prediction}, {first.path.name} {first_kind.prediction}"
            fix = "merge models of one prediction type"
            problems.append(Problem(what, where, fix, code="merge.other-prediction"))
        common = first.floats.keys() & model.floats.keys()
        differing = [key for key in sorted(common) if first.tensors[key].shape != model.tensors[key].shape]
        differing = [key for key in differing if not (of_inpainting and key == FIRST_LAYER)]
        if differing:
            key = differing[0]
            shapes = f"{list(model.tensors[key].shape)} and {list(first.tensors[key].shape)}"
            what = f"{model.path.name} and {first.path.name} differ in the shape of {key}: {shapes}"
            fix = "merge models of the same size"
            problems.append(Problem(what, where, fix, code="merge.other-shape"))
    return problems


# -- the weights of the models


def _weights(
    settings: MergeModelsSettings, models: Sequence[MergeModel], problems: list[Problem]
) -> Callable[[str], Sequence[float]] | None:
    """Return the function from a key to a factor for each model; None if there are problems."""
    family = models[0].kind.family if models else None
    ratios = _ratios(settings, problems)
    blocks = _blocks(settings, family, problems)
    if problems:
        return None

    def factor(key: str) -> float:
        """Return the multiplier of a key."""
        multiplier = blocks[slot_of_key(key, family)] if blocks is not None else settings.even_multiplier
        return multiplier * multiplier * (3 - 2 * multiplier) if settings.method == "sigmoid" else multiplier

    def weights(key: str) -> Sequence[float]:
        """Return a factor for each model."""
        if settings.method == "add_difference":
            return 1.0, factor(key), -factor(key)
        if settings.method == "weighted_sum" and blocks is None:
            return ratios
        return 1 - factor(key), factor(key)

    return weights


def _ratios(settings: MergeModelsSettings, problems: list[Problem]) -> list[float]:
    """Return the ratios of the weighted sum, equal by default; normalized to a sum of 1 except with sd-scripts' compatibility."""
    models, where = max(2, len(settings.models)), f"{GROUP}.ratios"
    text = settings.ratios if settings.method == "weighted_sum" else ""
    ratios = ratios_of(text, len(settings.models), "model", where, problems)
    if ratios is None:
        return [1 / models] * models
    if settings.compatibility == "sd-scripts":
        return ratios
    if abs(sum(ratios)) < 1e-6:
        what, fix = "The ratios add up to 0", "use ratios whose sum is 1, or the method add difference"
        problems.append(Problem(what, where, fix, code="merge.bad-ratios"))
    return [ratio / (sum(ratios) or 1) for ratio in ratios]


def _blocks(settings: MergeModelsSettings, family: str | None, problems: list[Problem]) -> tuple[float, ...] | None:
    """Return the multiplier of each slot of SLOTS; None without block weights. Lists without BASE use the plain multiplier for it."""
    text, where = settings.block_weights.strip(), f"{GROUP}.block_weights"
    if not text:
        return None
    if settings.method != "add_difference" and len(settings.models) != 2:
        what, fix = "Block weights are for two models, or for add difference", "leave them empty, or give two models"
        problems.append(Problem(what, where, fix, code="merge.block-weights"))
        return None
    base, sdxl = settings.even_multiplier, has_nine_blocks(family)
    if text.count(",") + 1 == len(WITHOUT_BASE[sdxl]):
        text = f"{base}, {text}"
    named = LISTS.get(text.count(",") + 1, SLOTS)  # presets are for all
    try:
        weights = block_weights(text, sdxl)
        return tuple(value if slot in named else base for slot, value in zip(SLOTS, weights, strict=True))
    except ValueError as error:
        fix = f"write {'12, 19, 20' if sdxl else '17, 25'} or 26 numbers, or a preset"
        problems.append(Problem(str(error), where, fix, code="merge.block-weights"))
        return None


# -- merging


def _merged(plan: Plan, dtype: str | None) -> dict[str, LazyTensor]:
    """Return {key: lazy tensor} of the merge: the first model's, with those of `plan.mixed` merged when they are read."""
    first, floats = plan.models[0], [model.floats for model in plan.models]
    merged = {key: tensor.cast(dtype) for key, tensor in first.tensors.items()}
    for key in plan.mixed:
        holders = [model if key in tensors else first for model, tensors in zip(plan.models, floats, strict=True)]
        parts = [
            (weight, each.path, each.tensors[key]) for weight, each in zip(plan.weights(key), holders, strict=True)
        ]
        merged[key] = in_pieces(merged[key].dtype, merged[key].shape, partial(_mixed, key, parts))
        channels = min(part.shape[1:2] for _, _, part in parts)
        if channels != merged[key].shape[1:2]:
            merged[key] = replace(merged[key], fetch=partial(_mixed_inputs, key, parts, *channels), cut=None)
    return merged


def _mixed_inputs(key: str, parts: Sequence[_Share], channels: int, dtype: torch.dtype) -> torch.Tensor:
    """Return an inpainting model's first layer: the first input channels mixed, which all models have, the rest from the first model.
    parts: as in `_mixed`"""
    read = [part.fetch(torch.float32) for _, _, part in parts]
    narrow = [(*share[:2], in_memory(tensor[:, :channels])) for share, tensor in zip(parts, read, strict=True)]
    shape = (read[0].shape[0], channels, *read[0].shape[2:])
    mixed = in_pieces(dtype, shape, partial(_mixed, key, narrow)).read()
    return torch.cat([mixed, read[0][:, channels:].to(dtype)], 1)


def _mixed(key: str, parts: Sequence[_Share], dtype: torch.dtype, numbers: int) -> Iterator[torch.Tensor]:
    """Yield the weighted sum in pieces of about `numbers` elements, computed in fp32 and cast to `dtype`.
    parts: (weight, file, tensor) of each model. Raises ProblemsError for NaN, infinity and values too large for the dtype"""
    for pieces in zip(*(part.pieces(torch.float32, numbers) for _, _, part in parts), strict=True):
        mixed = pieces[0].mul_(parts[0][0])
        for (weight, _, _), piece in zip(parts[1:], pieces[1:], strict=True):
            mixed.add_(piece, alpha=weight)
        yield _checked(key, parts, mixed, dtype)


def _checked(key: str, parts: Sequence[_Share], mixed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return `mixed` in `dtype`. Raises ProblemsError for NaN, infinity and values too large for the dtype."""
    sizes = {key: largest(mixed)}
    if not_finite_names(sizes):
        damaged = [path for _, path, part in parts if not_finite({key: part.read()})]
        what, fix = f"{key} has NaN or infinite values", "download this model again; check_weights lists all damage"
        where = ", ".join(dict.fromkeys(map(display_path, damaged))) or f"{GROUP}.ratios"
        raise ProblemsError.one(what, where, fix, "weights.not-finite")
    if overflowing(sizes, dtype):
        what, fix = f"Values of {key} are too large for the precision of the file", "save as bf16 or fp32"
        raise ProblemsError.one(what, f"{GROUP}.saving_precision", fix, "merge.overflow")
    return mixed.to(dtype)


def _metadata(settings: MergeModelsSettings, plan: Plan, memo: HashMemo, context: JobContext) -> dict[str, str]:
    """Return modelspec and merge metadata, with the texts that are equal in all models."""
    first, inputs = plan.models[0], list[tuple[Path, str]]()
    for number, model in enumerate(plan.models):
        context.stage(f"hashing {model.path.name}", number, len(plan.models))
        inputs.append((model.path, model_hashes(model.path, memo, context.cancel)[1]))
    chosen = ("method", "ratios", "multiplier", "block_weights", "unet_only")
    recipe = {name: getattr(settings, name) for name in chosen} | {"models": [sha256 for _, sha256 in inputs]}
    family, prediction = first.kind.family or "", first.kind.prediction
    sizes = {key: first.metadata[key] for key in (SIZES_KEY,) if key in first.metadata}
    spec = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture(family, prediction or "epsilon"),
        "modelspec.implementation": implementation(family, "model"),
        "modelspec.title": plan.target.stem,
        "modelspec.resolution": "{}x{}".format(*trained_size(first.path, family or "auto")),
    }
    if prediction is not None:
        spec["modelspec.prediction_type"] = prediction
    return sizes | agreed_texts([model.metadata for model in plan.models])[0] | spec | merge_record(inputs, recipe)
