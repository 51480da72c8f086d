"""Check that a detected file is a ControlNet or a ControlNet-LLLite for a model family. Imports no torch."""

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


def check_control(detected: ModelKind, path: Path, kinds: Sequence[str], family: str = "") -> None:
    """Raise ProblemsError unless a detected file is of one of `kinds`, a supported variant, and for `family` ("" for any).
    kinds: CONTROLNET, LLLITE or both, the usual one first"""
    kind = detected.kind if detected.kind in kinds else kinds[0]
    name, where = KIND_NAMES[kind], display_path(path)
    if detected.kind != kind:
        what = f"{path.name} is not a {name} but: {detected} ({detected.evidence})"
        raise ProblemsError.one(what, where, f"choose a {name} file", CODES[kind][0])
    if detected.variant in UNUSED:
        what = f"{path.name} is a {UNUSED[detected.variant]} file, which is not supported"
        fix = "choose a ControlNet of one kind of control image, such as Canny or depth"
        raise ProblemsError.one(what, where, fix, "control.unsupported-variant")
    if family and detected.family not in (None, family):
        title = FAMILY_NAMES.get(family, family)
        what = f"{path.name} is a {name} for {FAMILY_NAMES[detected.family]}; the model is {title}"
        raise ProblemsError.one(what, where, f"choose a {name} for {title}", CODES[kind][1])
