"""ControlNet and LLLite files of a generation: found, and checked against the model by their headers. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from core.formats.detect import identify
from core.formats.tensors.header import read_header
from core.generation.library import find_file, list_control, list_lllite
from core.record.problems import ProblemsError
from core.record.workspace import Workspace

if TYPE_CHECKING:
    from numpy import ndarray

    from core.control.controlnet import ControlNet
    from core.control.lllite import LLLite
    from core.generation.initial import Canvas
    from core.settings.generation.controls import ControlUse

NETS = "controls.nets"
LLLITE = "controlnet_lllite"


@dataclass(frozen=True)
class Nets:
    """What a job's stages share.

    lease   (use, how often its file is in use already) -> context manager of its ControlNet or LLLite
    hint    (use, size, initial image of the stage) -> its control image, RGB uint8 [H, W, 3]; each is made once
    """

    lease: Callable[[ControlUse, int], AbstractContextManager[ControlNet | LLLite]]
    hint: Callable[[ControlUse, tuple[int, int], Canvas | None], ndarray]


def find_control_net(name: str, workspace: Workspace) -> Path:
    """The file or folder of a ControlNet's name: a path, or one of models/ or of a run. Raises ProblemsError."""
    path = find_file(name, workspace)
    if path is not None:
        return path
    wanted = name.strip().casefold()
    for label, found in (*list_control(workspace), *list_lllite(workspace)):
        if wanted in {each.casefold() for each in (label, label.rpartition("/")[2], found.name, found.stem)}:
            return found
    what, fix = f"The ControlNet '{name}' does not exist", "put it into models/controlnet, or write its path"
    raise ProblemsError.one(what, NETS, fix, "controls.not-found")


def check_control_net(path: Path, family: str, model: Path) -> None:
    """Raises ProblemsError for a file that is neither a ControlNet nor an LLLite for this model."""
    from core.control import controlnet_file, lllite_file
    from core.control.lllite import places_of
    from core.families import family as family_named

    kind = family_named(family)
    unet = kind.make_empty(kind.denoiser, kind.parts(model)[kind.denoiser].config_after(kind.layout.config("unet")))
    found = identify(path)
    if found.kind == LLLITE:
        problems = lllite_file.file_problems(path, places_of(unet, family), family)
    else:
        problems = controlnet_file.file_problems(path, unet.config, family)
    if problems:
        raise ProblemsError([replace(problem, where=NETS) for problem in problems])


def numbers_of(path: Path) -> int:
    """How many numbers a ControlNet or LLLite has, by its header."""
    from core.control.controlnet_file import open_control_net

    if identify(path).kind == LLLITE:
        return sum(prod(entry.shape) for entry in read_header(path)[0].values())
    return sum(prod(shape) for shape in open_control_net(path).shapes.values())
