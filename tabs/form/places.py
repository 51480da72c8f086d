"""What the model and folder fields offer: models that lie under models/, image folders that are near at hand."""

from __future__ import annotations

import os
import threading
from functools import cache
from itertools import islice
from pathlib import Path

from core.dataset.sources.files import is_image_name
from core.formats.detect import FAMILY_NAMES
from core.generation.library import list_models, list_vaes
from core.generation.model_index import facts_of_file
from core.record.workspace import PROJECT, Workspace, display_path, real_path

STARTER = PROJECT / "models" / "starter"
STARTER_WORDS = "starter (SD 1.x, 128 px)"
MOST = 200
SOON = 0.12  # seconds that an answer waits for a look


Choices = list[tuple[str, str]]  # (words, value)


class Look:
    """What the lists of models and VAEs offer, looked for in a thread: thousands of new files take longer than an answer may."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace
        self._models: Choices = []
        self._vaes: Choices = []
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def found(self) -> tuple[Choices, Choices]:
        """Models and VAEs, as they are if that is soon known, else as they were at the last look."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._read, name="model lists", daemon=True)
                self._thread.start()
            thread = self._thread
        thread.join(SOON)
        return self._models, self._vaes

    def _read(self) -> None:
        found = [(STARTER_WORDS, display_path(STARTER))] if (STARTER / "model_index.json").is_file() else []
        others = (item for item in list_models(self._workspace) if real_path(item[1]) != STARTER.resolve())
        self._models = found + [_badged(*item) for item in islice(others, MOST)]
        self._vaes = [_badged(*item) for item in islice(list_vaes(self._workspace), MOST)]


def _badged(label: str, path: Path) -> tuple[str, str]:
    """A file with its family, where its header tells that."""
    family = FAMILY_NAMES.get(facts_of_file(path).family or "", "")
    return (f"{label} ({family})" if family else label), display_path(path)


@cache
def _look(workspace: Workspace) -> Look:
    return Look(workspace)


def model_choices(workspace: Workspace) -> Choices:
    """(words, value) for each base model: the starter, then folders and checkpoints under models/ and of runs."""
    return _look(workspace).found()[0]


def vae_choices(workspace: Workspace) -> Choices:
    """(words, value) for each VAE under models/."""
    return _look(workspace).found()[1]


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
