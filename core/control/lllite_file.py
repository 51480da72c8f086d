"""ControlNet-LLLite files: tensors `lllite_unet_<layer>.<module>`, whose shapes tell the sizes; ComfyUI and A1111 read the same."""

from __future__ import annotations

from pathlib import Path

from core.control.files import fill
from core.control.kinds import check_lllite
from core.control.lllite import FAMILIES, LLLite, Place, empty
from core.formats.detect import FAMILY_NAMES, identify
from core.formats.models.overflow import shown
from core.formats.tensors.header import read_header
from core.record.problems import Problem, ProblemsError
from core.record.workspace import display_path

SIZES = (".conditioning1.0.weight", ".down.0.weight")


def sizes_of(path: Path, family: str = "") -> tuple[int, int]:
    """(cond_emb_dim, network_dim) of a file; ProblemsError if it is no LLLite, or of another family."""
    check_lllite(identify(path), path, family)
    entries, _ = read_header(path)
    halves = {entry.side(0) for name, entry in entries.items() if name.endswith(SIZES[0])}
    hidden = {entry.side(0) for name, entry in entries.items() if name.endswith(SIZES[1])}
    if len(halves) != 1 or len(hidden) != 1 or 0 in halves | hidden:
        what = f"{path.name} has modules of several sizes"
        raise ProblemsError.one(what, display_path(path), "download or copy it again", "lllite.other-tensors")
    return 2 * halves.pop(), hidden.pop()


def fitting(path: Path, places: list[Place], family: str) -> LLLite:
    """The modules of a file without numbers; ProblemsError if it does not fit these layers."""
    if family not in FAMILIES:
        what = f"ControlNet-LLLite is for SD 1.x and SDXL; the model is {FAMILY_NAMES.get(family, family)}"
        raise ProblemsError.one(what, display_path(path), "choose a ControlNet", "lllite.family")
    emb, hidden = sizes_of(path, family)
    net = empty(places, emb, hidden)
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    entries, _ = read_header(path)
    wrong = sorted(
        name
        for name in wanted.keys() | entries.keys()
        if name not in entries or name not in wanted or tuple(entries[name].shape) != wanted[name]
    )
    if wrong:
        what = f"{path.name} was made for another model: {len(wrong)} tensors differ, such as {shown(wrong)}"
        fix = f"choose an LLLite for {FAMILY_NAMES[family]}"
        raise ProblemsError.one(what, display_path(path), fix, "lllite.other-tensors")
    return net


def file_problems(path: Path, places: list[Place], family: str) -> list[Problem]:
    """What `load_lllite` would refuse, from the header."""
    try:
        fitting(path, places, family)
    except ProblemsError as error:
        return error.problems
    return []


def load_lllite(path: Path, places: list[Place], family: str) -> LLLite:
    """The LLLite of a file, in fp32 on the CPU, not attached. Raises ProblemsError for one that does not fit."""
    net = fitting(path, places, family).to_empty(device="cpu")
    fill(net, path, {name: name for name in net.state_dict()}, lambda name, value: value)
    return net
