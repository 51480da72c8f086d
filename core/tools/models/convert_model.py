"""Converts full models between single files and diffusers folders, and to other precisions."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.families.layout import Layout
from core.families.layouts import layout_of
from core.families.locate import GENERATED, STAGES, check_family, model_path, vae_problems
from core.families.part_shapes import known_tensors, mismatch_problems
from core.families.trained_size import trained_size
from core.formats.model_spec import model_spec_of
from core.formats.models.checkpoint import SIZES_KEY, Checkpoint, Part, open_checkpoint, open_vae
from core.formats.models.conversion import Conversion, convert
from core.formats.models.extra import EMA, extra_file, metadata_of, with_ema
from core.formats.models.part_kinds import part_title
from core.formats.models.whole_model import ENDINGS, Form, ModelFacts, States, form_of
from core.formats.tensors.entry import ITEM_BYTES
from core.formats.tensors.header import read_header, sniff
from core.formats.tensors.writer import HEADER_BYTES_PER_TENSOR, NO_HASH, WEIGHTS_HASH, type_named
from core.record import heap
from core.record.context import JobContext, Outcome
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError, at_setting, collected, errors, problems_at, raise_if_errors
from core.record.units import count, size_text
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.tools.convert_model import ConvertModelSettings
from core.tools.files import model_file
from core.tools.models.inspect import total_bytes
from core.tools.output import FILE_ENDINGS, PRECISION_BYTES, output_file, output_problems, progress

COUNTERS = ("epoch", "global_step")
FOLDERS = ("diffusers", "diffusers_safetensors")


@dataclass(frozen=True)
class Plan:
    """The conversion of a model.

    conversion   without its dtype, which is `precision` (None: unchanged)
    size         bytes of the result
    advice       problems to warn of
    """

    conversion: Conversion
    precision: str | None
    size: int
    advice: list[Problem]

    def __str__(self) -> str:
        return f"write {display_path(self.conversion.target)}, {size_text(self.size)}"


def do(settings: ConvertModelSettings, plan: Plan, context: JobContext) -> Outcome:
    """Write the converted model."""
    return run(plan, context)


def output_form(output: str | None, path: Path) -> Form:
    """Return the format by the extension of `output`, else the format of the model `path`."""
    if output and not os.path.isdir(resolve_path(output)):  # also of a name that no disk can hold
        for form in ("safetensors", "ckpt"):
            if output.lower().endswith(ENDINGS[form]):
                return form
    return form_of(path)


# ---- planning


@heap.without_gc()
def plan(
    settings: ConvertModelSettings,
    workspace: Workspace,
    group: str = "convert_model",
    ending: str = "_converted",
    vae_optional: bool = False,
) -> Plan:
    """Plan the conversion by the headers. Raises ProblemsError with all problems.

    group          of the settings that problems name
    ending         appended to the name of the default output
    vae_optional   allow a model without a VAE; otherwise only with `no_vae`
    """
    path = model_file(settings.file, workspace, f"{group}.file")
    with problems_at(f"{group}.file"):
        source, layout = open_model(path, settings.family, settings.text_projection == "kohya")
    if vae_optional and "vae" not in source.parts:
        settings = settings.model_copy(update={"no_vae": True})
    parts, problems = chosen_parts(settings, source, layout, workspace, f"{group}.vae")
    file_errors = [each for each in errors(problems) if each.where != f"{group}.vae"]
    problems = [*at_setting(f"{group}.file", file_errors), *(each for each in problems if each not in file_errors)]
    form: Form = settings.save_model_as
    target = output_file(settings.output, path, ending, (ENDINGS[form],) if ENDINGS[form] else ())
    size = _size(settings, source, parts)
    inputs = [path, *(part.source for part in parts.values())]
    where = f"{group}.output"
    problems += misnamed_problems(target, form, where) or output_problems(target, inputs, size, where)
    raise_if_errors(problems)
    facts, advice = _facts(settings, source, layout, target)
    advice += [problem for problem in problems if problem.level != "error"]
    conversion = Conversion(
        source,
        target,
        parts,
        layout.family,
        form,
        layout.published,
        facts,
        ema=settings.ema == "keep",
        kohya_projection=settings.text_projection == "kohya",
        variant=settings.variant or "" if form in FOLDERS else "",
    )
    return Plan(conversion, settings.save_precision, size, advice)


def open_model(path: Path, family_setting: str = "auto", kohya_projection: bool = False) -> tuple[Checkpoint, Layout]:
    """Open a model and return (checkpoint, layout of its family). Raises ProblemsError for a damaged model, and as `check_family`.

    family_setting     family that the settings state, or "auto"
    kohya_projection   see `open_checkpoint`
    """
    guess = family_setting if family_setting != "auto" else "sd1"
    source = open_checkpoint(path, guess, kohya_projection=kohya_projection)
    if source.kind.family in STAGES and family_setting == "auto":
        family_setting = str(source.kind.family)
    return source, layout_of(check_family(source.kind, path, family_setting, GENERATED))


def chosen_parts(
    settings: ConvertModelSettings, source: Checkpoint, layout: Layout, workspace: Workspace, where: str
) -> tuple[dict[str, Part], list[Problem]]:
    """Return (parts to write by name, problems). `where`: the setting of the VAE, for problems."""
    available, problems = dict(source.parts), list[Problem]()
    if settings.vae and not settings.no_vae:
        try:
            available["vae"] = open_vae(model_path(settings.vae, workspace, where))
            problems += vae_problems(available["vae"], layout.family, where)
        except ProblemsError as error:
            problems += at_setting(where, error.problems)
    names = [name for name in layout.published.parts if name != "vae" or not settings.no_vae]
    if missing := [part_title(name) for name in names if name not in available]:
        what = f"The model has no {' and no '.join(missing)}"
        fix = "choose a full model"
        if missing == ["VAE"]:
            fix = "choose a VAE, or turn on Leave out the VAE"
        problems.append(Problem(what, display_path(source.path), fix, code="model.missing-part"))
    parts = {}
    for name in names:
        if name in available:
            try:
                parts[name], part_problems = known_tensors(layout, available[name])
                part_problems = part_problems or _unknown_tensor_advice(available[name], parts[name])
            except ProblemsError as error:
                part_problems = error.problems
            problems += part_problems if available[name] is source.parts.get(name) else at_setting(where, part_problems)
    if settings.ema == "use" and "unet" in parts:
        parts["unet"] = collected(problems, with_ema, parts["unet"], source, layout.family) or parts["unet"]
    if not any(problem.level == "error" for problem in problems):
        problems += mismatch_problems(layout, parts.values(), source.path)
    return parts, problems


def _unknown_tensor_advice(part: Part, known: Part) -> list[Problem]:
    """Return advice on a folder's unknown tensors, which are left out (a single file's are kept)."""
    names = sorted(part.locations.keys() - known.locations.keys())
    if part.config is None or not names:
        return []
    what = f"The {part_title(part.name)} has {count(len(names), 'unknown tensor')}, which are left out: {names[0]}"
    return [Problem(what, str(part.source), "nothing, if images are as before", "advice", code="convert.left-out")]


def misnamed_problems(target: Path, form: str, where: str) -> list[Problem]:
    """Return the problem of an output name that has the extension of another format."""
    named = target if form in FOLDERS else target.parent
    if named.suffix.lower() not in FILE_ENDINGS or named.is_dir():
        return []
    what = f"The output is named as a {named.suffix} file, but the format is {_form_title(form)}"
    return [Problem(what, where, "choose the format that fits, or another name", code="convert.output-format")]


def _form_title(form: str) -> str:
    """Return the format's name for messages."""
    return "a folder" if form in FOLDERS else ENDINGS[form]


def _size(settings: ConvertModelSettings, source: Checkpoint, parts: dict[str, Part]) -> int:
    """Return an upper estimate of the result's size in bytes."""
    item = PRECISION_BYTES.get(settings.save_precision or "")
    size = sum(part.weight_bytes(item) for part in parts.values())
    extra = extra_file(source.path)
    if extra is not None:
        read = {location.name for part in source.parts.values() for location in part.locations.values()}
        for name, entry in read_header(extra)[0].items():
            if (extra != source.path or name not in read) and (settings.ema == "keep" or not name.startswith(EMA)):
                size += (entry.stop - entry.start) // ITEM_BYTES[entry.dtype] * max(item or 0, ITEM_BYTES[entry.dtype])
    return size + HEADER_BYTES_PER_TENSOR * sum(len(part.locations) for part in parts.values())


def _facts(
    settings: ConvertModelSettings, source: Checkpoint, layout: Layout, target: Path
) -> tuple[ModelFacts, list[Problem]]:
    """Return (metadata, prediction type and zero terminal SNR of the result; advice)."""
    to_folder, from_file = settings.save_model_as in FOLDERS, source.path.is_file()
    prediction = source.kind.prediction if settings.prediction == "auto" else settings.prediction
    advice = []
    if to_folder and from_file and prediction is None and layout.has_both_predictions:
        what = "The file does not say whether the model predicts epsilon or v; the folder's scheduler says v"
        fix = "for a model of 512 px choose the prediction type epsilon"
        advice.append(Problem(what, "convert_model.prediction", fix, "advice", code="convert.unknown-prediction"))
    # A file keeps its marks; those of a folder come from its scheduler, unless the file it was converted from had none.
    marks = settings.prediction != "auto" or to_folder or (not from_file and extra_file(source.path) is None)
    return ModelFacts(
        metadata=_metadata(settings, source, layout, prediction, target, "folder" if to_folder else "model"),
        prediction=prediction if marks else None,
        zero_terminal_snr=source.kind.zero_terminal_snr and (to_folder or marks),
    ), advice


def _metadata(
    settings: ConvertModelSettings, source: Checkpoint, layout: Layout, prediction: str | None, target: Path, kind: Any
) -> dict[str, str]:
    """Return the metadata of the result; {} with `no_metadata`. kind: "folder" or "model", see `model_spec_of`"""
    if settings.no_metadata:
        return {}
    before = metadata_of(source)
    if source.path.is_file() and sniff(source.path) != "safetensors":
        before = {name: before[name] for name in COUNTERS if name in before}
    dropped = (SIZES_KEY, "format", WEIGHTS_HASH, "sshs_legacy_hash")
    before = {name: value for name, value in before.items() if name not in dropped}
    if settings.text_projection == "kohya" and layout.family == "sdxl" and source.path.is_dir() != (kind == "folder"):
        before["atelier_text_projection"] = "kohya"
    title, side = target.stem if kind == "model" else target.name, _resolution(source, layout, prediction)
    metadata = model_spec_of(before, layout.family, prediction, kind, title, side)
    return metadata | ({WEIGHTS_HASH: NO_HASH} if settings.weights_hash and kind == "model" else {})


def _resolution(source: Checkpoint, layout: Layout, prediction: str | None) -> int:
    """Return the resolution the model was trained for, in pixels; of an SD 2.x file by its prediction type."""
    if layout.has_both_predictions and source.path.is_file() and prediction is not None:
        return 768 if prediction == "v" else 512
    return trained_size(source.path, layout.family)[0]


# ---- writing


@heap.without_gc()
def run(plan: Plan, context: JobContext, change: Callable[[States], States] | None = None) -> Outcome:
    """Write the converted model. `change`: function from the parts' lazy tensors to those to write; None: unchanged."""
    conversion = replace(plan.conversion, dtype=dtype_of(plan.precision))
    wrote = progress(context, conversion.target, plan.size)
    return saved_outcome(conversion.target, plan.advice + convert(conversion, change, context.cancel, wrote), context)


def saved_outcome(target: Path, advice: list[Problem], context: JobContext) -> Outcome:
    """Return the outcome of a tool that wrote one model, and log its advice as warnings."""
    for problem in advice:
        context.warn(problem)
    lines = [f"Saved: {display_path(target)}, {size_text(total_bytes(target))}", *map(str, advice)]
    return Outcome(lines=lines, facts={"file": str(target), "advice": [each.code for each in advice]})


def dtype_of(precision: str | None) -> torch.dtype | None:
    """Return the torch dtype of "fp32", "fp16" or "bf16"; None for None."""
    return type_named(precision) if precision else None
