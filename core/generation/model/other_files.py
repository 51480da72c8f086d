"""Models besides the base model (ControlNets, LLLites, upscalers, refiners): found, and checked by their headers.
Without torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.control import controlnet_file, lllite_file
from core.control.controlnet_file import open_control_net
from core.control.kinds import CODES, LLLITE
from core.control.shapes import unet_shapes
from core.families.locate import REFINER, model_path
from core.formats.detect import FAMILY_NAMES, ModelKind, identify
from core.formats.hashes import LEGACY_OF_SMALL, legacy_hash
from core.formats.models.checkpoint import open_checkpoint
from core.formats.models.part_kinds import part_title
from core.formats.tensors.header import read_header
from core.generation.model.library import Scan, find
from core.generation.model.store import ModelStore, fingerprint
from core.record.problems import Problem, ProblemsError, collected
from core.record.workspace import Workspace
from core.settings.job import GenerateJob
from core.settings.model import SD_SCALE, traits_of

if TYPE_CHECKING:
    from numpy import ndarray

    from core.control.controlnet import ControlNet
    from core.control.lllite import LLLite
    from core.generation.sample.canvas import Canvas
    from core.settings.generation.controls import ControlUse

NETS, UPSCALER = "controls.nets", "hires.highres_fix_upscaler_file"
REFINER_FILE = "refiner.refiner_checkpoint"
REFINER_PARTS = ("unet", "text_encoder_2")  # parts of a refiner
Leased = Callable[[str], AbstractContextManager[Any]]  # name of an upscaler file -> a context with its network


# -- ControlNets


@dataclass(frozen=True)
class Nets:
    """Shared by a job's stages.

    lease   (use, how often its file is in use already) -> context manager of its ControlNet or LLLite
    hint    (use, size, initial image of the stage) -> its control image, RGB uint8 [H, W, 3]; cached
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
        """Its number of parameters, by its header."""
        if self.is_lllite:
            return sum(prod(entry.shape) for entry in read_header(self.path)[0].values())
        return sum(prod(shape) for shape in open_control_net(self.path).shapes.values())


def net_of_image(name: str, digest: str, workspace: Workspace) -> tuple[Path, bool]:
    """(file of a ControlNet that an image's metadata names, whether it can be the one that the image was made with).

    If the file of that name is missing or has another hash, it is a file of models/ or of a run with this hash.
    digest   A1111's first hash; "" and that of files under 1 MiB identify no file
    Raises ProblemsError if there is neither.
    """
    path = None
    with suppress(ProblemsError):
        path = find("controlnet", name, workspace)
    if digest in ("", LEGACY_OF_SMALL) or (path is not None and _has_hash(path, digest)):
        return path or find("controlnet", name, workspace), True
    listed = (file for _, file in Scan(workspace).control(*CODES))
    by_hash = next((file for file in listed if _has_hash(file, digest)), None)
    return (by_hash, True) if by_hash is not None else (path or find("controlnet", name, workspace), False)


def _has_hash(path: Path, digest: str) -> bool:
    with suppress(OSError, ProblemsError):  # a folder, which has none, or a file that cannot be read
        return legacy_hash(path) == digest
    return False


def control_file(path: Path, family: str | None, model: Path | None) -> ControlFile:
    """The ControlNet or LLLite in a file. Raises ProblemsError for anything else, and if it does not fit a model that is known."""
    file = ControlFile(path, identify(path).kind == LLLITE)
    if model and family:
        check = lllite_file.file_problems if file.is_lllite else controlnet_file.file_problems
        if problems := check(path, unet_shapes(model, family), family):
            raise ProblemsError([replace(problem, where=NETS) for problem in problems])
    return file


# -- upscalers


def upscaler_kind(path: Path, where: str = UPSCALER) -> str:
    """What an upscaler file upscales: "images" (ESRGAN's family) or "latents" (sd-scripts' upscaler). Raises ProblemsError."""
    return kind_of_upscaler(identify(path), path, where)


def kind_of_upscaler(kind: ModelKind, path: Path, where: str = UPSCALER) -> str:
    """What the file upscales, "images" or "latents". Raises ProblemsError for another kind. where: the setting that names it"""
    if kind.kind in ("upscaler", "latent_upscaler") and kind.offered:
        return "images" if kind.kind == "upscaler" else "latents"
    what = f"{path.name} is not a supported upscaler but: {kind} ({kind.evidence})"
    fix = "choose an ESRGAN or Real-ESRGAN file (RRDBNet), or a latent upscaler of sd-scripts"
    raise ProblemsError.one(what, where, fix, "upscaler.unknown-kind")


def upscaler_problems(job: GenerateJob, family: str, workspace: Workspace) -> list[Problem]:
    """Problems of the job's upscaler file. family: of the model"""
    hires, problems = job.hires, list[Problem]()
    if hires.highres_fix_upscaler_file and hires.highres_fix_scale is not None:
        path = collected(problems, find, "upscaler", hires.highres_fix_upscaler_file, workspace)
        if path is not None:
            collected(problems, lambda: check_upscaler(identify(path), path, family))
    return problems


def check_upscaler(kind: ModelKind, path: Path, family: str) -> None:
    """Raise ProblemsError unless a detected file upscales images of this family."""
    if kind_of_upscaler(kind, path) == "latents" and traits_of(family).latent_scale != SD_SCALE:
        what, fix = "The latent upscaler was trained for SD 1.x and 2.x", "choose an image upscaler, or none"
        raise ProblemsError.one(what, UPSCALER, fix, "upscaler.other-family")


def networks_of(store: ModelStore, workspace: Workspace, device: str) -> Leased:
    """A function that leases the network of an upscaler file from the store."""

    def lease(name: str) -> AbstractContextManager[Any]:
        from core.generation.model.upscaling_networks import load_network

        path = find("upscaler", name, workspace)
        load = partial(load_network, path, upscaler_kind(path), device)
        key = (fingerprint(path), device)
        return store.lease("upscaler", key, load, name=path.name, size=path.stat().st_size, device=device)

    return lease


# -- refiners


def find_refiner(name: str, workspace: Workspace, base: str | None) -> Path:
    """The file or folder of a refiner. base: the family of the model whose images it finishes; None: unknown. Raises ProblemsError."""
    try:
        path = model_path(name, workspace, REFINER_FILE)
    except ProblemsError as error:
        raise ProblemsError([replace(each, where=REFINER_FILE) for each in error.problems]) from error
    check_refiner(identify(path), path)
    if base not in (None, "sdxl"):
        what = f"The refiner finishes the latents of SDXL; the base model is {FAMILY_NAMES[base]}"
        fix = "choose an SDXL base model, or empty the field"
        raise ProblemsError.one(what, REFINER_FILE, fix, "refiner.other-base")
    missing = [part_title(part) for part in REFINER_PARTS if part not in open_checkpoint(path, REFINER).parts]
    if missing:
        what = f"The refiner {path.name} has no {' and no '.join(missing)}"
        raise ProblemsError.one(what, REFINER_FILE, "choose a complete file", "model.missing-part")
    return path


def check_refiner(kind: ModelKind, path: Path) -> None:
    """Raise ProblemsError unless a detected file or folder is a refiner. `find_refiner` checks that it is complete."""
    if not is_refiner(kind):
        what = f"{path.name} is not a refiner but: {kind} ({kind.evidence})"
        fix = "choose the refiner of SDXL, or empty the field"
        raise ProblemsError.one(what, REFINER_FILE, fix, "refiner.not-a-refiner")


def is_refiner(kind: ModelKind) -> bool:
    return (kind.kind, kind.family, kind.variant) == ("checkpoint", REFINER, None)
