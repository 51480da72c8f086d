"""The base model that some LoRA tools need: checks it by its header and loads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.families import family
from core.families.locate import family_of, model_path
from core.formats.detect import FAMILY_NAMES, identify
from core.record.context import JobContext
from core.record.problems import ProblemsError
from core.record.units import with_article
from core.record.workspace import Workspace
from core.tools.loras.headers import kinds_without_shape

if TYPE_CHECKING:
    from core.families.components import Components


def check_base_model(name: str | None, lora: Path, workspace: Workspace, where: str) -> None:
    """Raise ProblemsError for a missing base model, a file that is none, or one of another family than the LoRA's."""
    if not name:
        return
    path = model_path(name, workspace, where)
    try:
        family_name = family_of(path)
    except ProblemsError as error:
        raise ProblemsError([replace(problem, where=where) for problem in error.problems]) from None
    lora_family = identify(lora).family
    if lora_family not in (None, family_name):
        what = f"The model is {FAMILY_NAMES[family_name]}, the LoRA {FAMILY_NAMES[lora_family]}"
        fix = f"choose {with_article(FAMILY_NAMES[lora_family])} model"
        raise ProblemsError.one(what, where, fix, "tools.other-family")


def check_measurable(name: str | None, lora: Path, where: str) -> None:
    """Raise ProblemsError without a base model if every layer of the LoRA needs it (it rotates or scales the weight)."""
    if name:
        return

    kinds, others = kinds_without_shape(lora)
    if kinds and not others:
        what = f"{lora.name} ({', '.join(kinds)}) has no layer that can be measured without its base model"
        raise ProblemsError.one(what, where, "choose the base model that it was trained on", "tools.no-layers")


def model_of(
    name: str | None, lora: Path, context: JobContext, parts: tuple[str, ...] = ("denoiser", "text_encoders")
) -> Components | None:
    """Load the parts of a checked base model, in fp32 on the job's device; None without one."""
    if not name:
        return None
    from core.families.loading import load

    path = model_path(name, context.workspace)
    context.stage(f"loading {path.name}")
    return load(family(family_of(path)).layout, path, parts=parts, device=context.device, cancel=context.cancel)
