"""Upscaler files: found and identified by their keys before anything is loaded, and leased from the store. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from core.formats.detect import ModelKind, identify
from core.generation.library import find_file
from core.generation.store import ModelStore, fingerprint
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace
from core.settings.job import GenerateJob
from core.settings.model import SD_SCALE, traits_of

FOLDER = "upscalers"  # in the models folder
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
FILE = "hires.highres_fix_upscaler_file"


def find_upscaler(name: str, workspace: Workspace, where: str = FILE) -> Path:
    """The file of an upscaler's name: a path, or a file of models/upscalers, with or without extension. Raises ProblemsError."""
    path = find_file(name, workspace) or find_file(f"models/{FOLDER}/{name}", workspace)
    folder = workspace.models / FOLDER
    if path is None and folder.is_dir():
        path = next((each for each in sorted(folder.iterdir()) if each.stem == name.strip()), None)
    if path is None or not path.is_file():
        fix = f"put it into models/{FOLDER}, or write its path"
        raise ProblemsError.one(f"The upscaler '{name}' does not exist", where, fix, "upscaler.not-found")
    return path


def kind_of(path: Path, where: str = FILE) -> str:
    """What an upscaler file upscales: "images" (ESRGAN's family) or "latents" (sd-scripts' upscaler). Raises ProblemsError."""
    return upscales(identify(path), path, where)


def upscales(found: ModelKind, path: Path, where: str = FILE) -> str:
    """The same of a file that has been identified already."""
    if found.kind in ("upscaler", "latent_upscaler") and found.offered:
        return "images" if found.kind == "upscaler" else "latents"
    what = f"{path.name} is not a supported upscaler but: {found} ({found.evidence})"
    fix = "choose an ESRGAN or Real-ESRGAN file (RRDBNet), or a latent upscaler of sd-scripts"
    raise ProblemsError.one(what, where, fix, "upscaler.unknown-kind")


def file_problems(job: GenerateJob, family: str, workspace: Workspace) -> list[Problem]:
    """Problems of the job's upscaler file. family: of the model"""
    hires = job.hires
    if not hires.highres_fix_upscaler_file or hires.highres_fix_scale is None:
        return []
    try:
        path = find_upscaler(hires.highres_fix_upscaler_file, workspace)
        check_upscaler(identify(path), path, family)
    except ProblemsError as error:
        return error.problems
    return []


def check_upscaler(found: ModelKind, path: Path, family: str) -> None:
    """Raises ProblemsError unless an identified file upscales images of this family."""
    if upscales(found, path) == "latents" and traits_of(family).latent_scale != SD_SCALE:
        what, fix = "The latent upscaler was trained for SD 1.x and 2.x", "choose an image upscaler, or none"
        raise ProblemsError.one(what, FILE, fix, "upscaler.other-family")


Leased = Callable[[str], AbstractContextManager[Any]]  # name of a file -> its network, for a while


def networks_of(store: ModelStore, workspace: Workspace, device: str) -> Leased:
    """A function that leases the network of an upscaler file from the store."""

    def lease(name: str) -> AbstractContextManager[Any]:
        from core.generation.upscaling_networks import load_network

        path = find_upscaler(name, workspace)
        load = partial(load_network, path, kind_of(path), device)
        key = (fingerprint(path), device)
        return store.lease("upscaler", key, load, name=path.name, size=path.stat().st_size, device=device)

    return lease
