"""Whether a file is a ControlNet or a ControlNet-LLLite for a model family, by what was detected of it. Without torch."""

from __future__ import annotations

from pathlib import Path

from core.formats.detect import FAMILY_NAMES, ModelKind
from core.record.problems import ProblemsError
from core.record.workspace import display_path

UNUSED = {"union": "ControlNet Union", "Control-LoRA": "Control-LoRA"}  # variants that are recognized and not supported


def check_control_net(kind: ModelKind, path: Path, family: str = "") -> None:
    """ProblemsError for a file that is no ControlNet, of a kind that is not supported, or of another family than this one."""
    if kind.kind != "controlnet":
        what = f"{path.name} is not a ControlNet but: {kind} ({kind.evidence})"
        raise ProblemsError.one(what, display_path(path), "choose a ControlNet file", "control.not-a-controlnet")
    if kind.variant in UNUSED:
        what = f"{path.name} is a {UNUSED[kind.variant]} file, which is not supported"
        fix = "choose a ControlNet of one kind of control image, such as Canny or depth"
        raise ProblemsError.one(what, display_path(path), fix, "control.unsupported-variant")
    if family and kind.family not in (None, family):
        title = FAMILY_NAMES.get(family, family)
        what = f"{path.name} is a ControlNet for {FAMILY_NAMES[kind.family or family]}; the model is {title}"
        raise ProblemsError.one(what, display_path(path), f"choose a ControlNet for {title}", "control.other-family")


def check_lllite(found: ModelKind, path: Path, family: str = "") -> None:
    """ProblemsError for a file that is no LLLite, or of another family than this one."""
    where = display_path(path)
    if found.kind != "controlnet_lllite":
        what = f"{path.name} is not a ControlNet-LLLite but: {found} ({found.evidence})"
        raise ProblemsError.one(what, where, "choose a ControlNet-LLLite file", "lllite.not-an-lllite")
    if family and found.family not in (None, family):
        what = f"{path.name} is for {FAMILY_NAMES[found.family]}; the model is {FAMILY_NAMES.get(family, family)}"
        fix = f"choose an LLLite for {FAMILY_NAMES.get(family, family)}"
        raise ProblemsError.one(what, where, fix, "lllite.other-family")
