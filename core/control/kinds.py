"""Whether a file is a ControlNet or a ControlNet-LLLite for a model family, by what was detected of it. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.formats.detect import FAMILY_NAMES, KIND_NAMES, ModelKind
from core.record.problems import ProblemsError
from core.record.workspace import display_path

CONTROLNET, LLLITE = "controlnet", "controlnet_lllite"
CODES = {  # of a file of another kind, and of another family
    CONTROLNET: ("control.not-a-controlnet", "control.other-family"),
    LLLITE: ("lllite.not-an-lllite", "lllite.other-family"),
}
UNUSED = {"union": "ControlNet Union", "Control-LoRA": "Control-LoRA"}  # variants that are recognized and not supported


def check_control(found: ModelKind, path: Path, holds: Sequence[str], family: str = "") -> None:
    """ProblemsError for a file of another kind than those of `holds`, of one that is not supported, or of another family than
    this one."""
    kind = found.kind if found.kind in holds else holds[0]
    name, where = KIND_NAMES[kind], display_path(path)
    if found.kind != kind:
        what = f"{path.name} is not a {name} but: {found} ({found.evidence})"
        raise ProblemsError.one(what, where, f"choose a {name} file", CODES[kind][0])
    if found.variant in UNUSED:
        what = f"{path.name} is a {UNUSED[found.variant]} file, which is not supported"
        fix = "choose a ControlNet of one kind of control image, such as Canny or depth"
        raise ProblemsError.one(what, where, fix, "control.unsupported-variant")
    if family and found.family not in (None, family):
        title = FAMILY_NAMES.get(family, family)
        what = f"{path.name} is a {name} for {FAMILY_NAMES[found.family]}; the model is {title}"
        raise ProblemsError.one(what, where, f"choose a {name} for {title}", CODES[kind][1])
