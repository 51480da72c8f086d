"""What the model and folder fields offer: models that lie under models/, picture folders that are near at hand."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from core.dataset.files import is_picture_name
from core.record.workspace import PROJECT, Workspace, display_path

MODEL_ENDINGS = (".safetensors", ".ckpt")
SMALLEST_MODEL = 50_000_000  # bytes; smaller files under models/ are LoRAs, VAEs or embeddings
STARTER = PROJECT / "models" / "starter"
MOST = 200


def model_choices(workspace: Workspace) -> list[tuple[str, str]]:
    """(words, value) for each base model: diffusers folders and large single files under models/."""
    found: list[tuple[str, str]] = []
    if (STARTER / "model_index.json").is_file():
        found.append(("starter (SD 1.x, 128 px)", display_path(STARTER)))
    for path in sorted(_below(workspace.models, 3), key=lambda path: path.as_posix().casefold()):
        if path.name == "model_index.json" and path.parent.resolve() != STARTER.resolve():
            found.append((path.parent.relative_to(workspace.models).as_posix(), display_path(path.parent)))
        elif path.suffix.lower() in MODEL_ENDINGS and not _in_a_diffusers_folder(path) and path.stat().st_size >= SMALLEST_MODEL:
            found.append((path.relative_to(workspace.models).as_posix(), display_path(path)))
    return found[:MOST]


def _in_a_diffusers_folder(path: Path) -> bool:
    return any((parent / "model_index.json").is_file() for parent in (path.parent, path.parent.parent))


def _below(folder: Path, depth: int) -> list[Path]:
    """Files below a folder, so many levels down; links and unreadable folders do not stop it."""
    files: list[Path] = []
    try:
        entries = list(islice(os.scandir(folder), 2000))
    except OSError:
        return files
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files += _below(Path(entry.path), depth - 1) if depth > 1 else []
        elif entry.is_file():
            files.append(Path(entry.path))
    return files


def picture_folders(workspace: Workspace) -> list[tuple[str, str]]:
    """(words, value): the starter's pictures, uploaded sets, and folders beside them that hold pictures."""
    found: list[tuple[str, str]] = []
    starter = STARTER / "pictures"
    if starter.is_dir():
        found.append((f"starter pictures ({_count(starter)})", display_path(starter)))
    if workspace.datasets.is_dir():
        newest = sorted((path for path in workspace.datasets.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime)
        found += [(path.name, display_path(path)) for path in newest[:MOST] if not path.name.startswith(".")]
    return found


def _count(folder: Path) -> int:
    return sum(is_picture_name(entry.name) for entry in islice(os.scandir(folder), 5000))
