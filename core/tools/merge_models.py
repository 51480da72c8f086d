"""Checkpoints merged file to file: every tensor is read from each model, mixed in fp32 and written, one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from core.formats.detect import FAMILY_NAMES, ModelKind, identify
from core.formats.hashes import HashMemo, legacy_hash, model_hashes
from core.formats.model_spec import architecture, implementation
from core.formats.models import sd_keys
from core.formats.models.checkpoint import SIZES_KEY, Place
from core.formats.models.overflow import beyond, largest, no_numbers, not_finite
from core.formats.tensors.entry import ITEM_BYTES, TensorEntry
from core.formats.tensors.header import read_header
from core.formats.tensors.lazy import LazyTensor, OpenFiles
from core.formats.tensors.writer import HEADER_BYTES_PER_TENSOR, type_named, write_safetensors
from core.networks.block_weights import LISTS, SLOTS, block_weights
from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, at_setting, collected, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace, display_path
from core.settings.blocks import numbers
from core.settings.tools.merge_models import MergeModelsSettings
from core.tools.files import file_of
from core.tools.written import output_file, output_problems

if TYPE_CHECKING:
    import torch

GROUP = "merge_models"
SHOWN_KEYS = 5
UNET_BLOCK = re.compile(rf"{re.escape(sd_keys.UNET_PREFIX)}(input_blocks|middle_block|output_blocks|\w+)\.(\d*)")
MID, FIRST_OUT = SLOTS.index("MID"), SLOTS.index("OUT00")
LAST_OUT = {"sdxl": SLOTS.index("OUT08")}  # SDXL has nine output blocks, others twelve


_Share = tuple[float, Path, LazyTensor]  # how much of which file's tensor


@dataclass(frozen=True)
class _Model:
    """A checkpoint's header. entries: by the keys of current files."""

    path: Path
    kind: ModelKind
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    @property
    def floats(self) -> dict[str, TensorEntry]:
        return {key: entry for key, entry in self.entries.items() if entry.dtype.startswith(("F", "BF"))}


@dataclass(frozen=True)
class _Plan:
    """models: in order     weights: key -> one factor per model, whose sum is that of the ratios"""

    models: Sequence[_Model]
    target: Path
    weights: Callable[[str], Sequence[float]]
    tensors: int
    skipped: Mapping[str, Sequence[str]]  # what is wrong with them -> keys


def check_merge_models(asked: MergeModelsSettings, workspace: Workspace) -> str:
    plan = _planned(asked, workspace)
    return f"merge {count(len(plan.models), 'model')} into {display_path(plan.target)}"


def merge_models(asked: MergeModelsSettings, context: JobContext) -> Outcome:
    """Merge, and write the file with a record of what it is made of."""
    plan = _planned(asked, context.workspace)
    memo = HashMemo(context.workspace.private / "hashes.json")
    metadata = _metadata(asked, plan, memo, context)
    with OpenFiles() as files:
        tensors = _merged(asked, plan, files, context)
        with atomic.open_atomic(plan.target) as temporary:
            write_safetensors(temporary, tensors, metadata, context.cancel)
    lines = [f"{count(plan.tensors, 'tensor')} merged of {', '.join(model.path.name for model in plan.models)}"]
    for words, keys in plan.skipped.items():
        shown = keys if asked.show_skipped else keys[:SHOWN_KEYS]
        more = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
        lines.append(f"{words}: {', '.join(shown)}{more}")
    lines.append(f"Saved: {display_path(plan.target)}")
    skipped = {words: len(keys) for words, keys in plan.skipped.items()}
    return Outcome(lines=lines, facts={"file": str(plan.target), "merged": plan.tensors, "skipped": skipped})


# -- planned: all that can be wrong, from headers


def _planned(asked: MergeModelsSettings, workspace: Workspace) -> _Plan:
    problems: list[Problem] = []
    models = _opened(asked, workspace, problems)
    if not problems:
        problems += _misfits(models)
    weights = _weights(asked, models, problems)
    raise_if_errors(problems)
    assert weights is not None
    first = models[0]
    target = output_file(asked.output, first.path, "_merged")
    paths = [model.path for model in models]
    item = ITEM_BYTES[asked.saving_precision.upper().replace("FP", "F")] if asked.saving_precision else 0
    size = sum(
        prod(entry.shape) * (item or ITEM_BYTES[entry.dtype]) + HEADER_BYTES_PER_TENSOR
        for entry in first.entries.values()
    )
    raise_if_errors(output_problems(target, paths, size, f"{GROUP}.output"))
    floats = [model.floats for model in models]
    skipped: dict[str, list[str]] = {}
    for model, own in zip(models[1:], floats[1:], strict=True):
        if lacking := sorted(floats[0].keys() - own.keys()):
            skipped[f"not in {model.path.name}, so taken from the first model"] = lacking
        if more := sorted(own.keys() - floats[0].keys()):
            skipped[f"only in {model.path.name}, so left out"] = more
    return _Plan(models, target, weights, len(floats[0]), skipped)


def _opened(asked: MergeModelsSettings, workspace: Workspace, problems: list[Problem]) -> list[_Model]:
    where, models = f"{GROUP}.models", list[_Model]()
    wanted = {"add_difference": (3, 3, "three models, A, B and C"), "sigmoid": (2, 2, "two models")}
    least, most, words = wanted.get(asked.method, (2, 99, "two models or more"))
    if not least <= len(asked.models) <= most:
        what = f"{count(len(asked.models), 'model')} given"
        problems.append(Problem(what, where, f"give {words}, one per line", code="merge.model-count"))
    if asked.method == "sigmoid" and not 0 <= asked.multiplier <= 1:
        what = f"The multiplier of a sigmoid is {asked.multiplier:g}"
        problems.append(Problem(what, f"{GROUP}.multiplier", "use 0 to 1", code="merge.bad-multiplier"))
    for name in asked.models:
        model = collected(problems, lambda name=name: _model(file_of(name, workspace, where), where))
        models += [model] if model is not None else []
    return models


def _model(path: Path, where: str) -> _Model:
    try:
        kind, (entries, metadata) = identify(path), ({}, {}) if path.is_dir() else read_header(path)
    except ProblemsError as error:
        raise ProblemsError(at_setting(where, error.problems)) from None
    if kind.kind != "checkpoint" or path.is_dir():
        what = f"{display_path(path)} is not a checkpoint in a single file but: {kind}"
        fix = "convert the folder to a single file first" if path.is_dir() else "choose checkpoints"
        raise ProblemsError.one(what, where, fix, "merge.not-a-checkpoint")
    prefix = sd_keys.CLIP_PREFIXES.get(kind.family or "", "\0")
    renamed = {_current(name, prefix): entry for name, entry in entries.items()}
    return _Model(path, kind, renamed, metadata)


def _current(name: str, clip: str) -> str:
    """Text encoders of old files lack the level text_model."""
    return clip + sd_keys.clip_to_ldm(name.removeprefix(clip)) if name.startswith(clip) else name


def _misfits(models: Sequence[_Model]) -> list[Problem]:
    """Models of other families, predictions or sizes cannot be mixed."""
    where, first, found = f"{GROUP}.models", models[0], list[Problem]()
    for model in models[1:]:
        one, other = first.kind, model.kind
        names = f"{model.path.name} is {other}, {first.path.name} is {one}"
        if (one.family, one.variant) != (other.family, other.variant):
            fix = f"merge models of one family, such as {FAMILY_NAMES.get(one.family or '', 'SD 1.x')}"
            found.append(Problem(names, where, fix, code="merge.other-family"))
            continue
        if None not in (one.prediction, other.prediction) and one.prediction != other.prediction:
            what = f"{model.path.name} predicts {other.prediction}, {first.path.name} {one.prediction}"
            fix = "merge models of one prediction type"
            found.append(Problem(what, where, fix, code="merge.other-prediction"))
        common = first.floats.keys() & model.floats.keys()
        differing = [key for key in sorted(common) if first.entries[key].shape != model.entries[key].shape]
        if differing:
            key = differing[0]
            shapes = f"{list(model.entries[key].shape)} and {list(first.entries[key].shape)}"
            what = f"{model.path.name} and {first.path.name} differ in the shape of {key}: {shapes}"
            fix = "merge models of the same size"
            found.append(Problem(what, where, fix, code="merge.other-shape"))
    return found


# -- how much of each model


def _weights(
    asked: MergeModelsSettings, models: Sequence[_Model], problems: list[Problem]
) -> Callable[[str], Sequence[float]] | None:
    """Key -> the factor of each model there."""
    family = models[0].kind.family if models else None
    ratios = _ratios(asked, problems)
    blocks = _blocks(asked, family, ratios, problems)
    if problems:
        return None

    def factor(key: str) -> float:
        """The multiplier at a key."""
        plain = asked.multiplier if asked.method != "weighted_sum" else ratios[1]
        given = blocks[slot_of_key(key, family)] if blocks is not None else plain
        return given * given * (3 - 2 * given) if asked.method == "sigmoid" else given

    def weights(key: str) -> Sequence[float]:
        if asked.method == "add_difference":
            return 1.0, factor(key), -factor(key)
        if asked.method == "weighted_sum" and blocks is None:
            return ratios
        return 1 - factor(key), factor(key)

    return weights


def _ratios(asked: MergeModelsSettings, problems: list[Problem]) -> list[float]:
    """Of the weighted sum, scaled to a sum of 1 but with sd-scripts' compatibility."""
    models = max(2, len(asked.models))
    equal = [1 / models] * models
    if asked.method != "weighted_sum" or not asked.ratios.strip():
        return equal
    where = f"{GROUP}.ratios"
    try:
        given = numbers(asked.ratios)
    except ValueError:
        what, fix = f"'{asked.ratios[:40]}' is no list of numbers", "write for example 0.7, 0.3"
        problems.append(Problem(what, where, fix, code="merge.bad-ratios"))
        return equal
    if len(given) != len(asked.models):
        what = f"There are {count(len(given), 'ratio')} for {count(len(asked.models), 'model')}"
        problems.append(Problem(what, where, "give one number per model", code="merge.bad-ratios"))
        return equal
    if asked.compatibility == "sd-scripts":
        return given
    if abs(sum(given)) < 1e-6:
        what, fix = "The ratios add up to 0", "use ratios whose sum is 1, or the method add difference"
        problems.append(Problem(what, where, fix, code="merge.bad-ratios"))
        return equal
    return [ratio / sum(given) for ratio in given]


def _blocks(
    asked: MergeModelsSettings, family: str | None, ratios: Sequence[float], problems: list[Problem]
) -> tuple[float, ...] | None:
    """The multiplier of each slot of SLOTS; None where all are the same. Lists without BASE take the plain one for it."""
    text, where = asked.block_weights.strip(), f"{GROUP}.block_weights"
    if not text:
        return None
    if asked.method != "add_difference" and len(asked.models) != 2:
        what, fix = "Block weights are for two models, or for add difference", "leave them empty, or give two models"
        problems.append(Problem(what, where, fix, code="merge.block-weights"))
        return None
    base = asked.multiplier if asked.method != "weighted_sum" else ratios[1]
    sdxl = family == "sdxl"
    if text.count(",") + 1 == (19 if sdxl else 25):
        text = f"{base}, {text}"
    named = LISTS.get(text.count(",") + 1, SLOTS)  # presets are for all
    try:
        given = block_weights(text, sdxl)
        return tuple(value if slot in named else base for slot, value in zip(SLOTS, given, strict=True))
    except ValueError as error:
        fix = "write 26, 25, 20, 19, 17 or 12 numbers, or a preset"
        problems.append(Problem(str(error), where, fix, code="merge.block-weights"))
        return None


def slot_of_key(key: str, family: str | None) -> int:
    """The place in SLOTS of a checkpoint's key: BASE for all outside the U-Net. As in the MBW extension the embeddings of time
    and size count as IN00, the last convolution as the last output block."""
    found = UNET_BLOCK.match(key)
    if found is None:
        return 0
    side, number = found[1], int(found[2] or 0)
    if side == "input_blocks":
        return 1 + min(number, 11)
    if side == "middle_block":
        return MID
    if side == "output_blocks":
        return FIRST_OUT + min(number, 11)
    return LAST_OUT.get(family or "", len(SLOTS) - 1) if side == "out" else 1


# -- merged


def _type(asked: MergeModelsSettings) -> torch.dtype | None:
    return type_named(asked.saving_precision) if asked.saving_precision else None


def _merged(asked: MergeModelsSettings, plan: _Plan, files: OpenFiles, context: JobContext) -> dict[str, LazyTensor]:
    first, floats, dtype = plan.models[0], [model.floats for model in plan.models], _type(asked)
    found, done = {}, [0]
    for key in first.entries:
        own = _lazy(first, key, files).cast(dtype)
        found[key] = own
        if key not in floats[0] or (asked.unet_only and not key.startswith(sd_keys.UNET_PREFIX)):
            continue
        holders = [model if key in known else first for model, known in zip(plan.models, floats, strict=True)]
        parts = [
            (weight, each.path, _lazy(each, key, files))
            for weight, each in zip(plan.weights(key), holders, strict=True)
        ]

        def fetch(dtype: torch.dtype, key: str = key, parts: Sequence[_Share] = parts):
            done[0] += 1
            context.stage("merging", done[0], plan.tensors)
            return _mixed(key, parts, dtype)

        found[key] = replace(own, fetch=fetch)
    return found


def _mixed(key: str, parts: Sequence[_Share], dtype: torch.dtype) -> torch.Tensor:
    """The weighted sum in fp32, cast last. Raises ProblemsError for NaN, inf and what the dtype cannot hold."""
    import torch

    weight, _, first = parts[0]
    mixed = first.fetch(torch.float32).mul_(weight)
    for weight, _, part in parts[1:]:
        mixed.add_(part.fetch(torch.float32), alpha=weight)
    sizes = {key: largest(mixed)}
    if no_numbers(sizes):
        damaged = [path for _, path, part in parts if not_finite({key: part.read()})]
        what, fix = f"{key} has NaN or infinite values", "download this model again; check_weights lists all damage"
        where = ", ".join(dict.fromkeys(map(display_path, damaged))) or f"{GROUP}.ratios"
        raise ProblemsError.one(what, where, fix, "weights.not-finite")
    if beyond(sizes, dtype):
        what, fix = f"Values of {key} are too large for the precision of the file", "save as bf16 or fp32"
        raise ProblemsError.one(what, f"{GROUP}.saving_precision", fix, "merge.overflow")
    return mixed.to(dtype)


def _lazy(model: _Model, key: str, files: OpenFiles) -> LazyTensor:
    return files.lazy(Place(model.path, key, model.entries[key]))


def _metadata(asked: MergeModelsSettings, plan: _Plan, memo: HashMemo, context: JobContext) -> dict[str, str]:
    """modelspec, and the recipe with the hashes of what was merged, as A1111 writes both."""
    first, made_of = plan.models[0], {}
    for number, model in enumerate(plan.models):
        context.stage(f"hashing {model.path.name}", number, len(plan.models))
        sha256 = model_hashes(model.path, memo, context.cancel)[1]
        made_of[sha256] = {"name": model.path.name, "legacy_hash": legacy_hash(model.path)}
    recipe = {
        "type": "atelier",
        "method": asked.method,
        "ratios": asked.ratios,
        "multiplier": asked.multiplier,
        "block_weights": asked.block_weights,
        "unet_only": asked.unet_only,
        "models": list(made_of),
    }
    family, prediction = first.kind.family or "", first.kind.prediction
    kept = {key: first.metadata[key] for key in (SIZES_KEY,) if key in first.metadata}
    spec = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture(family, prediction or "epsilon"),
        "modelspec.implementation": implementation(family, "model"),
        "modelspec.title": plan.target.stem,
        "modelspec.merged_from": ", ".join(model.path.stem for model in plan.models),
    }
    if prediction is not None:
        spec["modelspec.prediction_type"] = prediction
    return kept | spec | {"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(made_of)}
