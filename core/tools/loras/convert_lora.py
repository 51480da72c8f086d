"""Converts LoRA files, one or a folder, to another program's key names or to a network type that every program reads."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.families.locate import model_path
from core.formats.detect import identify
from core.formats.models.checkpoint import Checkpoint, open_checkpoint
from core.formats.tensors.entry import ITEM_BYTES
from core.formats.tensors.lazy import OpenFiles
from core.formats.tensors.spill import Spill
from core.formats.tensors.writer import type_named
from core.networks.adapter_file import (
    LoraFile,
    load_lora,
    lora_outline,
    open_lora,
    peft_layers,
    save_diffusers,
    save_lora,
    to_kohya,
)
from core.networks.misread import misread_problems
from core.record.context import JobContext, Outcome
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError, problems_at, raise_if_errors
from core.record.regular import impossible_path
from core.record.run_about import others_run_problem
from core.record.units import count, first_of, size_text
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.readers import PROGRAMS
from core.settings.tools.model_files import ConvertLoraSettings
from core.tools.files import file_of, files_below
from core.tools.loras.building import precision_of
from core.tools.loras.headers import check_base_model
from core.tools.loras.plain import MODEL, is_plain, plain_bytes, to_plain
from core.tools.output import PRECISION_BYTES, output_file, output_problems

FILE, OUTPUT = "convert_lora.file", "convert_lora.output"
SUFFIXES = {".safetensors", ".ckpt", ".pt", ".bin"}
LAYOUTS = {"kohya": "kohya", "diffusers": "peft"}  # the layout of files that have these names already
SHOWN_LINES = 20


@dataclass
class Plan:
    """The conversion.

    names      title of the key naming scheme
    base       the base model, None if it is not needed
    files      (LoRA, its copy)
    left_out   a line for each other file of the folder
    size       of all copies in bytes
    """

    names: str
    base: Checkpoint | None = None
    files: list[tuple[Path, Path]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    size: int = 0

    def __str__(self) -> str:
        converted = f"convert {count(len(self.files), 'LoRA')} to {self.names}, {size_text(self.size)}"
        return converted + (f"; {count(len(self.left_out), 'other file')} left out" if self.left_out else "")


def do(settings: ConvertLoraSettings, plan: Plan, context: JobContext) -> Outcome:
    """Write a copy of each LoRA. Files of a folder that cannot be converted are skipped and reported."""
    left_out, written = list(plan.left_out), []
    for number, (source, target) in enumerate(plan.files, 1):
        context.check()
        context.stage(f"converting {source.name}", number, len(plan.files))
        try:
            left_out += _convert(source, target, plan.base, settings, context)
            written.append(target)
        except ProblemsError as error:
            if len(plan.files) == 1:
                raise
            left_out.append(f"left out {display_path(source)}: {error.problems[0].what}")
    lines = [f"Saved: {display_path(target)}" for target in written]
    for listing in (lines, left_out):
        if len(listing) > SHOWN_LINES:
            listing[SHOWN_LINES:] = [f"and {len(listing) - SHOWN_LINES} more"]
    facts = {"file": str(written[0])} if written else {}
    return Outcome(lines=[*lines, *left_out], facts=facts | {"files": [str(target) for target in written]})


def plan(settings: ConvertLoraSettings, workspace: Workspace) -> Plan:
    """Plan the conversion by the files' headers. Raises ProblemsError with all problems."""
    source = file_of(settings.file, workspace, FILE)
    plan = Plan(settings.label("names"), _base_model(settings, workspace))
    if source.is_dir():
        _plan_folder(plan, source, settings, workspace)
    else:
        _plan_file(plan, source, settings, workspace)
    targets = Counter(target for _, target in plan.files)
    twice = [
        f"Two LoRAs of the folder would become {display_path(each)}" for each, times in targets.items() if times > 1
    ]
    problems = [Problem(what, FILE, "rename one of them", code="tools.output-twice") for what in twice]
    inputs = [each for each, _ in plan.files]
    for _, target in plan.files:
        problems += output_problems(target, inputs if len(inputs) == 1 else (), plan.size, OUTPUT)
    raise_if_errors(problems)
    return plan


def _base_model(settings: ConvertLoraSettings, workspace: Workspace) -> Checkpoint | None:
    """Open the base model of the settings; None if there is none or if the network type stays. Raises ProblemsError if it is missing or
    damaged."""
    if not settings.base_model or settings.network_type == "unchanged":
        return None

    path = model_path(settings.base_model, workspace, MODEL)
    with problems_at(MODEL):
        return open_checkpoint(path)


def _plan_file(plan: Plan, source: Path, settings: ConvertLoraSettings, workspace: Workspace) -> None:
    """Add one LoRA to the plan. Raises ProblemsError if the conversion would not change it."""
    with problems_at(FILE):
        unchanged = _is_unchanged(source, settings)
    if unchanged:
        what, fix = f"{display_path(source)} is as it would be converted", "choose other names, a type or a precision"
        raise ProblemsError.one(what, FILE, fix, "tools.nothing-to-convert")
    plan.size = _bytes_of(source, plan.base, settings, workspace)
    plan.files = [(source, output_file(settings.output, source.with_name(_name(source, settings)), ""))]


def _plan_folder(plan: Plan, folder: Path, settings: ConvertLoraSettings, workspace: Workspace) -> None:
    """Add all LoRAs of a folder to the plan; other files get a line in `plan.left_out`. Raises ProblemsError if there are none."""
    output_folder = resolve_path(settings.output) if settings.output else folder
    if output_folder.suffix.lower() in SUFFIXES or os.path.isfile(output_folder):
        what, fix = f"'{settings.output}' is not a folder, and there are several LoRAs", "name a folder"
        raise ProblemsError.one(what, OUTPUT, fix, "tools.output-not-a-folder")
    if (problem := impossible_path(output_folder, OUTPUT) or others_run_problem(output_folder, OUTPUT)) is not None:
        raise ProblemsError([problem])
    for file in files_below(folder, SUFFIXES):
        relative = file.relative_to(folder)
        try:
            if identify(file).kind != "lora":
                plan.left_out.append(f"left out {relative}: it is not a LoRA")
            elif _is_unchanged(file, settings):
                plan.left_out.append(f"left out {relative}: it is as it would be converted")
            else:
                plan.size += _bytes_of(file, plan.base, settings, workspace)
                plan.files.append((file, (output_folder / relative).with_name(_name(file, settings))))
        except ProblemsError as error:
            plan.left_out.append(f"left out {relative}: {error.problems[0].what}")
    if not plan.files:
        what = f"The folder {display_path(folder)} has no LoRA to convert"
        more = f": {first_of(plan.left_out, 5, '; ')}" if plan.left_out else ""
        raise ProblemsError.one(what + more, FILE, "choose a LoRA or another folder", "tools.no-loras")


def _is_unchanged(file: Path, settings: ConvertLoraSettings) -> bool:
    """Return whether the file already has the names and network type, and no precision is set."""
    if settings.save_precision is not None or identify(file).layout != LAYOUTS.get(settings.names):
        return False
    return settings.network_type == "unchanged" or is_plain(lora_outline(file), settings.network_type)


def _name(file: Path, settings: ConvertLoraSettings) -> str:
    """Return the copy's file name: fox.safetensors -> fox_diffusers.safetensors, and that -> fox_kohya.safetensors.

    A changed network type or precision is appended: fox_lora, fox_bf16.
    """
    stem, names = file.stem, settings.names.partition("_")[0]
    if identify(file).layout != LAYOUTS.get(settings.names):
        stem = f"{stem.removesuffix('_kohya').removesuffix('_diffusers')}_{names}"
    added = [settings.network_type if settings.network_type != "unchanged" else None, settings.save_precision]
    return "_".join([stem, *filter(None, added)]) + ".safetensors"


def _bytes_of(file: Path, base: Checkpoint | None, settings: ConvertLoraSettings, workspace: Workspace) -> int:
    """Return the approximate size of a file's copy in bytes. Raises ProblemsError if its header shows that it cannot be converted."""
    with problems_at(FILE):
        lora = lora_outline(file)
    if settings.names != "kohya":
        _refuse_losses(lora, settings)
    if settings.network_type != "unchanged":
        check_base_model(settings.base_model, file, workspace, MODEL)
        return plain_bytes(lora, base, settings)
    with problems_at(FILE):
        if settings.names != "kohya":
            list(peft_layers(lora))
    precision = settings.save_precision or ("fp32" if settings.names == "diffusers_folded" else None)
    item = PRECISION_BYTES[precision] if precision else 0
    return sum(each.numel() * (item or ITEM_BYTES[str(each.dtype)]) for each in lora.tensors.values())


def _refuse_losses(lora: LoraFile, settings: ConvertLoraSettings) -> None:
    """Raise ProblemsError for layers that would be lost under diffusers' names."""
    if settings.network_type == "full":
        what, fix = "diffusers and PEFT have no names for a full difference", "choose the type LoRA, or kohya's names"
        raise ProblemsError.one(what, "convert_lora.network_type", fix, "lora.no-diffusers-names")
    norms = len(lora.bias_norm_in_use)
    if norms and not settings.drop_norms:
        what = f"diffusers has no names for {count(norms, 'tensor')} of trained norm layers and biases, which would be lost"
        fix = "keep kohya's names, or turn convert_lora.drop_norms on"
        raise ProblemsError.one(what, "convert_lora.names", fix, "lora.norms-lost")


def _convert(
    source: Path, target: Path, base: Checkpoint | None, settings: ConvertLoraSettings, context: JobContext
) -> list[str]:
    """Convert one file and write the copy. Returns lines for the result, such as what was left out. Raises ProblemsError if it cannot be
    converted."""
    if settings.network_type == "unchanged":
        dtype = type_named(settings.save_precision) if settings.save_precision else None
        return _save(source, target, load_lora(source), settings, dtype)
    with torch.no_grad(), open_lora(source) as lora, OpenFiles() as files, Spill(target) as spill:
        plain, lines = to_plain(lora, base, settings, context, files, spill)
        dtype = precision_of(lora, settings.save_precision)
        return [f"{source.name}: {line}" for line in lines] + _save(source, target, plain, settings, dtype)


def _save(
    source: Path, target: Path, lora: LoraFile, settings: ConvertLoraSettings, dtype: torch.dtype | None
) -> list[str]:
    """Write a LoRA with the key names of the settings. Returns lines for the result."""
    lines, written = list[str](), dict[str, Any]()
    if settings.names == "kohya":
        save_lora(target, *to_kohya(lora), dtype)
        lines, written = [problem.what for problem in misread_problems(lora, PROGRAMS)], lora.bias_norm_in_use
    else:
        save_diffusers(target, lora, dtype, fold_alpha=settings.names == "diffusers_folded")
    lost = [name for name, key in zip(lora.left_out, lora.bias_norm, strict=True) if key not in written]  # in one order
    if lost:
        lines.append(f"left out {count(len(lost), 'tensor')} that these names have no place for: {first_of(lost, 3)}")
    return [f"{source.name}: {line}" for line in lines]
