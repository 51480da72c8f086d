"""Finds and checks a generation's ControlNets, LLLites, upscalers and refiners by their headers. Imports no torch."""

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
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
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
    """The ControlNets, LLLites and control images shared by a job's stages.

    lease   (entry of `controls.nets`, number of earlier uses of the same file) -> context with the ControlNet or LLLite
    hint    (entry, (width, height), initial image of the stage) -> its control image, RGB uint8 [H, W, 3]; cached
    """

    lease: Callable[[ControlUse, int], AbstractContextManager[ControlNet | LLLite]]
    hint: Callable[[ControlUse, tuple[int, int], Canvas | None], ndarray]


@dataclass(frozen=True)
class ControlFile:
    """The file or diffusers folder of a ControlNet or LLLite."""

    path: Path
    is_lllite: bool

    @property
    def parameter_count(self) -> int:
        """The number of parameters, from the header."""
        if self.is_lllite:
            return sum(prod(entry.shape) for entry in read_header(self.path)[0].values())
        return sum(prod(shape) for shape in open_control_net(self.path).shapes.values())


def net_of_image(name: str, digest: str, workspace: Workspace) -> tuple[Path, bool]:
    """Find the ControlNet that an image's metadata names; return (its file, whether it is the one used for the image).

    If no file of this name has the hash `digest`, any ControlNet in the lists with this hash is used, and otherwise the file
    of this name with False. Raises ProblemsError if there is neither.

    digest   A1111's first hash of the file; "" and that of files under 1 MiB identify no file, so that the name decides
    """
    path = None
    with suppress(ProblemsError):
        path = find("controlnet", name, workspace)
    if digest in ("", LEGACY_OF_SMALL) or (path is not None and _is_net_hash(path, digest)):
        return path or find("controlnet", name, workspace), True
    listed = (file for _, file in Scan(workspace).control(*CODES))
    by_hash = next((file for file in listed if _is_net_hash(file, digest)), None)
    return (by_hash, True) if by_hash is not None else (path or find("controlnet", name, workspace), False)


def _is_net_hash(path: Path, digest: str) -> bool:
    """Return whether a file has A1111's first hash `digest`; False for folders and unreadable files."""
    with suppress(OSError, ProblemsError):  # a folder, which has none, or a file that cannot be read
        return legacy_hash(path) == digest
    return False


def control_file(path: Path, family: str | None, model: Path | None) -> ControlFile:
    """Detect and check a ControlNet or LLLite. Raises ProblemsError for other files.
    family, model: of the base model; if both are known, also raises ProblemsError if the file does not fit it"""
    file = ControlFile(path, identify(path).kind == LLLITE)
    if model and family:
        check = lllite_file.file_problems if file.is_lllite else controlnet_file.file_problems
        if problems := check(path, unet_shapes(model, family), family):
            raise ProblemsError([replace(problem, where=NETS) for problem in problems])
    return file


# -- upscalers


def upscaler_kind(path: Path, where: str = UPSCALER) -> str:
    """Return what an upscaler file upscales: "images" (spandrel) or "latents" (sd-scripts). Raises ProblemsError for others."""
    return kind_of_upscaler(identify(path), path, where)


def kind_of_upscaler(kind: ModelKind, path: Path, where: str = UPSCALER) -> str:
    """Return "images" or "latents", as `upscaler_kind`, for a file that is already detected. Raises ProblemsError for others.
    where: setting that names the file"""
    if kind.kind in ("upscaler", "latent_upscaler") and kind.offered:
        return "images" if kind.kind == "upscaler" else "latents"
    what = f"{path.name} is not a supported upscaler but: {kind} ({kind.evidence})"
    fix = "choose a file of ESRGAN, SwinIR, DAT or another upscaler of images, or a latent upscaler of sd-scripts"
    raise ProblemsError.one(what, where, fix, "upscaler.unknown-kind")


def check_upscaler(kind: ModelKind, path: Path, family: str) -> None:
    """Raise ProblemsError if a detected file is no upscaler, or a latent upscaler for another latent space than the family's."""
    if kind_of_upscaler(kind, path) == "latents" and traits_of(family).latent_scale != SD_SCALE:
        what, fix = "The latent upscaler was trained for SD 1.x and 2.x", "choose an image upscaler, or none"
        raise ProblemsError.one(what, UPSCALER, fix, "upscaler.other-family")


def networks_of(store: ModelStore, workspace: Workspace, device: str) -> Leased:
    """Return a function that leases the network of an upscaler file from the store, by its name in the settings."""

    def lease(name: str) -> AbstractContextManager[Any]:
        from core.generation.model.upscaling_networks import load_network

        path = find("upscaler", name, workspace)
        load = partial(load_network, path, upscaler_kind(path), device)
        key = (fingerprint(path), device)
        return store.lease("upscaler", key, load, name=path.name, size=path.stat().st_size, device=device)

    return lease


# -- refiners


def find_refiner(name: str, workspace: Workspace, base: str | None) -> Path:
    """Find and check a refiner's file or folder. Raises ProblemsError if it is missing, incomplete or no refiner, or the base model is not
    SDXL.
    base: family of the base model; None: unknown"""
    path = model_path(name, workspace, REFINER_FILE)
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
    """Raise ProblemsError if a detected file or folder is not a refiner. `find_refiner` also checks that it is complete."""
    if not is_refiner(kind):
        what = f"{path.name} is not a refiner but: {kind} ({kind.evidence})"
        fix = "choose the refiner of SDXL, or empty the field"
        raise ProblemsError.one(what, REFINER_FILE, fix, "refiner.not-a-refiner")


def is_refiner(kind: ModelKind) -> bool:
    """Return whether a detected file or folder is a refiner of SDXL."""
    return (kind.kind, kind.family, kind.variant) == ("checkpoint", REFINER, None)
