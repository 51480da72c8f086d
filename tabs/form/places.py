"""What the model and folder fields offer: models that lie under models/, image folders that are near at hand."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from core.dataset.sources.files import is_image_name
from core.generation.library import list_models, list_vaes
from core.record.workspace import PROJECT, Workspace, display_path, real_path

STARTER = PROJECT / "models" / "starter"
STARTER_WORDS = "starter (SD 1.x, 128 px)"
MOST = 200


def model_choices(workspace: Workspace) -> list[tuple[str, str]]:
    """(words, value) for each base model: the starter, then folders and checkpoints under models/ and of runs."""
    found = [(STARTER_WORDS, display_path(STARTER))] if (STARTER / "model_index.json").is_file() else []
    others = (item for item in list_models(workspace) if real_path(item[1]) != STARTER.resolve())
    return found + [(label, display_path(path)) for label, path in islice(others, MOST)]


def vae_choices(workspace: Workspace) -> list[tuple[str, str]]:
    """(words, value) for each VAE under models/."""
    return [(label, display_path(path)) for label, path in islice(list_vaes(workspace), MOST)]


def image_folders(workspace: Workspace) -> list[tuple[str, str]]:
    """(words, value): the starter's images, then the sets under outputs/datasets, newest first."""
    found: list[tuple[str, str]] = []
    starter = STARTER / "images"
    if starter.is_dir():
        found.append((f"starter images ({_count(starter)})", display_path(starter)))
    if workspace.datasets.is_dir():
        newest = sorted(
            (path for path in workspace.datasets.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime
        )
        found += [(path.name, display_path(path)) for path in newest[:MOST] if not path.name.startswith(".")]
    return found


def _count(folder: Path) -> int:
    return sum(is_image_name(entry.name) for entry in islice(os.scandir(folder), 5000))
