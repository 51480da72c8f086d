"""What the model and folder fields offer: models that lie under models/, image folders that are near at hand."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from core.dataset.sources.files import is_image_name, is_label
from core.record.workspace import Workspace, display_path
from tabs.form.model_lists import STARTER, Listed, model_lists, with_starter

MOST = 200
SOON = 0.12  # seconds that an answer waits for a look

Choices = list[tuple[str, str]]  # (words, value)


def model_choices(workspace: Workspace) -> Choices:
    """(words, value) for each base model: the starter, then folders and checkpoints under models/ and of runs."""
    return [(each.words, each.value) for each in with_starter(_found("checkpoint", workspace))[: MOST + 1]]


def vae_choices(workspace: Workspace) -> Choices:
    """(words, value) for each VAE under models/."""
    return [(each.words, each.value) for each in _found("vae", workspace)[:MOST]]


def _found(kind: str, workspace: Workspace) -> list[Listed]:
    """As they are if that is soon known, else as they were at the last look."""
    lists = model_lists(workspace)
    lists.look(SOON)
    return lists.of([kind])


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
    return sum(is_image_name(entry.name) and not is_label(entry.name) for entry in islice(os.scandir(folder), 5000))
