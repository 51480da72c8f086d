"""ControlNet and LLLite files of a generation: found, and checked against the model by their headers. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from core.control import controlnet_file, lllite_file
from core.control.controlnet_file import open_control_net
from core.control.kinds import CODES, LLLITE
from core.control.shapes import unet_shapes
from core.formats.detect import identify
from core.formats.hashes import LEGACY_OF_SMALL, legacy_hash
from core.formats.tensors.header import read_header
from core.generation.model.library import find, list_control
from core.record.problems import ProblemsError
from core.record.workspace import Workspace

if TYPE_CHECKING:
    from numpy import ndarray

    from core.control.controlnet import ControlNet
    from core.control.lllite import LLLite
    from core.generation.sample.canvas import Canvas
    from core.settings.generation.controls import ControlUse

NETS = "controls.nets"


@dataclass(frozen=True)
class Nets:
    """What a job's stages share.

    lease   (use, how often its file is in use already) -> context manager of its ControlNet or LLLite
    hint    (use, size, initial image of the stage) -> its control image, RGB uint8 [H, W, 3]; each is made once
    """

    lease: Callable[[ControlUse, int], AbstractContextManager[ControlNet | LLLite]]
    hint: Callable[[ControlUse, tuple[int, int], Canvas | None], ndarray]


@dataclass(frozen=True)
class ControlFile:
    """A ControlNet or LLLite of a generation."""

    path: Path
    is_lllite: bool

    @property
    def numbers(self) -> int:
        """How many numbers it has, by its header."""
        if self.is_lllite:
            return sum(prod(entry.shape) for entry in read_header(self.path)[0].values())
        return sum(prod(shape) for shape in open_control_net(self.path).shapes.values())


def net_of_image(name: str, digest: str, workspace: Workspace) -> tuple[Path, bool]:
    """(the file of a ControlNet that an image names, whether it may be the one it was made with).

    Where the file of that name is missing or has another hash, it is another one of models/ or of a run with this hash.
    digest   A1111's first hash; "" and that of files under 1 MiB identify no file
    Raises ProblemsError if there is neither.
    """
    path = None
    with suppress(ProblemsError):
        path = find("controlnet", name, workspace)
    if digest in ("", LEGACY_OF_SMALL) or (path is not None and _has_hash(path, digest)):
        return path or find("controlnet", name, workspace), True
    listed = (file for kind in CODES for _, file in list_control(workspace, kind))
    other = next((file for file in listed if _has_hash(file, digest)), None)
    return (other, True) if other is not None else (path or find("controlnet", name, workspace), False)


def _has_hash(path: Path, digest: str) -> bool:
    with suppress(OSError, ProblemsError):  # a folder, which has none, or a file that cannot be read
        return legacy_hash(path) == digest
    return False


def control_file(path: Path, family: str | None, model: Path | None) -> ControlFile:
    """Raises ProblemsError for a file that is neither a ControlNet nor an LLLite, or, where the model is known, not for it."""
    found = ControlFile(path, identify(path).kind == LLLITE)
    if model and family:
        check = lllite_file.file_problems if found.is_lllite else controlnet_file.file_problems
        if problems := check(path, unet_shapes(model, family), family):
            raise ProblemsError([replace(problem, where=NETS) for problem in problems])
    return found
