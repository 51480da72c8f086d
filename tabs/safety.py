"""Which files the page may touch.

On this machine alone, a person may point at any folder: the page can do no more than they can. As soon as the page is
shared or listens on the network, only the project's own folders are open. Every handler that takes a path from the
browser asks here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.record.allowed import lies_in
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace, resolve_path
from core.settings.concepts import own_settings
from core.settings.job import TrainJob


@dataclass(frozen=True)
class Roots:
    """The folders that are open. `local` opens all others as well."""

    workspace: Workspace
    local: bool = True

    @property
    def folders(self) -> list[Path]:
        space = self.workspace
        return [path.resolve() for path in (space.outputs, space.models, space.presets)]

    def holds(self, path: str | os.PathLike) -> bool:
        """Whether the page may read this path. Links are followed first, so none leads outside."""
        return lies_in(path, None if self.local else self.folders)

    def check(self, text: str | os.PathLike, where: str = "path") -> Path:
        """The path that `text` names (relative ones against the project), or a ProblemsError when it is not open."""
        try:
            path = resolve_path(str(text).strip())
            path.resolve()
        except (OSError, ValueError, RuntimeError):
            raise ProblemsError.one(
                f"'{text}' is not a path", where, "write a folder or file of this machine"
            ) from None
        if not self.holds(path):
            shown = ", ".join(_short(folder) for folder in self.folders)
            raise ProblemsError.one(
                f"'{text}' is not open to a shared page",
                where,
                f"use a path inside {shown}, or open the page on the machine itself",
            )
        return path


def read_paths(job: TrainJob) -> list[tuple[str, str]]:
    """(path, setting) of everything that reading the pictures opens: a shared page refuses those that are not open."""
    found = []
    for source in job.dataset.all_sources():
        found.append((source.folder, "dataset.folder"))
        found += [(source.metadata_file, "metadata_file")] if source.metadata_file else []
        masks = own_settings(source).get("conditioning_data_dir") or job.dataset.conditioning_data_dir
        found += [(masks, "conditioning_data_dir")] if masks else []
    return found


def _short(folder: Path) -> str:
    return folder.relative_to(PROJECT).as_posix() if folder.is_relative_to(PROJECT) else folder.name
