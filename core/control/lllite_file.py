"""ControlNet-LLLite files with tensors `lllite_unet_<layer>.<module>`, as ComfyUI and A1111 read them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from core.control.files import fill
from core.control.kinds import LLLITE, check_control
from core.control.shapes import LLLiteTarget, Shapes, check_shapes, lllite_shapes
from core.formats.detect import FAMILY_NAMES, identify
from core.formats.tensors.header import read_header
from core.record.problems import Problem, ProblemsError
from core.record.workspace import display_path

if TYPE_CHECKING:
    from core.control.lllite import LLLite

FAMILIES = ("sd1", "sdxl")
OTHER = "an LLLite", "lllite.other-tensors"
SIZES = (".conditioning1.0.weight", ".down.0.weight")


def sizes_of(path: Path, family: str = "") -> tuple[int, int]:
    """Return (cond_emb_dim, network_dim) of an LLLite file, from its header.

    Raises ProblemsError for other files and, unless `family` is "", for other families.
    """
    check_control(identify(path), path, (LLLITE,), family)
    entries, _ = read_header(path)
    half_embeddings = {entry.side(0) for name, entry in entries.items() if name.endswith(SIZES[0])}
    hidden = {entry.side(0) for name, entry in entries.items() if name.endswith(SIZES[1])}
    if len(half_embeddings) != 1 or len(hidden) != 1 or 0 in half_embeddings | hidden:
        what = f"{path.name} has modules of several sizes"
        raise ProblemsError.one(what, display_path(path), "download or copy it again", "lllite.other-tensors")
    return 2 * half_embeddings.pop(), hidden.pop()


def file_problems(path: Path, unet: Shapes, family: str) -> list[Problem]:
    """Return the problems of using a file as an LLLite for a model, found by its header; [] if it fits.

    unet     tensor shapes of the model's U-Net, by diffusers' names
    family   of the model
    """
    try:
        if family not in FAMILIES:
            what = f"ControlNet-LLLite is for SD 1.x and SDXL; the model is {FAMILY_NAMES.get(family, family)}"
            raise ProblemsError.one(what, display_path(path), "choose a ControlNet", "lllite.family")
        _check_tensors(path, lllite_shapes(unet, family, *sizes_of(path, family)), family)
    except ProblemsError as error:
        return error.problems
    return []


def _check_tensors(path: Path, expected: Shapes, family: str) -> None:
    """Raise ProblemsError unless the file's tensors have the expected names and shapes."""
    shapes = {name: tuple(entry.shape) for name, entry in read_header(path)[0].items()}
    check_shapes(path, shapes, expected, OTHER, family)


def load_lllite(path: Path, targets: list[LLLiteTarget], family: str) -> LLLite:
    """Load an LLLite file in fp32 on the CPU, not yet attached.

    targets   the U-Net's layers, see `lllite_targets`
    Raises ProblemsError if the file does not fit the U-Net or has NaN or infinite values.
    """
    from core.control.lllite import empty

    net = empty(targets, *sizes_of(path, family))
    _check_tensors(path, {name: tuple(value.shape) for name, value in net.state_dict().items()}, family)
    net.to_empty(device="cpu")
    fill(net, path, {name: (path, name) for name in net.state_dict()}, lambda name, value: value)
    return net
