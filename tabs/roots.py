"""Which files the page may touch.

On this machine alone, a person may point at any folder: the page can do no more than they can. As soon as the page is
shared or listens on the network, only the project's own folders are open. Every handler that takes a path from the
browser asks here; what a job names is asked once more where it enters the engine (core/settings/named.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel

from core.record.allowed import lies_in
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace, resolve_path
from core.settings.named import Limits, admit, not_open, refused


@dataclass(frozen=True)
class Roots:
    """The folders that are open. `local` opens all others as well; `keys`: others' jobs may use the owner's keys."""

    workspace: Workspace
    local: bool = True
    keys: bool = False

    @cached_property
    def limits(self) -> Limits | None:
        """What jobs may name; None on the machine itself."""
        return None if self.local else Limits.of(self.workspace, self.keys)

    @property
    def folders(self) -> Sequence[Path]:
        return Limits.of(self.workspace).folders

    def holds(self, path: str | os.PathLike) -> bool:
        """Whether the page may read this path. Links are followed first, so none leads outside."""
        return lies_in(path, None if self.local else self.folders)

    def check(self, text: str | os.PathLike, where: str = "path") -> Path:
        """The path that `text` names (relative ones against the project), or a ProblemsError when it is not open."""
        try:
            path = resolve_path(str(text).strip())
            path.resolve() if self.local else None
            path.is_file()  # raises for a name that is too long
        except (OSError, ValueError, RuntimeError):
            raise ProblemsError.one(
                f"'{str(text)[:200]}' is not a path",
                where,
                "write a folder or file of this machine",
                code="path.invalid",
            ) from None
        if self.limits is not None and not self.holds(path):
            raise ProblemsError([not_open(str(text), where, self.limits)])
        return path

    def check_written(self, text: str | os.PathLike, where: str = "path") -> Path:
        """The same for what is written to, as for paths that a job names: the engine's own folder is closed as well."""
        path = self.check(text, where)
        if self.limits is not None and not self.limits.opens(str(path)):
            raise ProblemsError([not_open(str(text), where, self.limits)])
        return path

    def refused(self, job: BaseModel) -> list[Problem]:
        """What this page may not name in a job."""
        return refused(job, self.limits) if self.limits is not None else []

    def admit(self, job: BaseModel) -> None:
        """Raise ProblemsError with what this page may not name in a job."""
        admit(job, self.limits)
