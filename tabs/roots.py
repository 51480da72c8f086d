"""Which files the page may read and write.

A page that only this machine can reach may use any folder, as its user can. A page that is shared or listens on the network may
use the project's folders only. Every handler checks paths from the browser here; the paths in a job are checked again when it
enters the engine (core/settings/named.py).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel

from core.record.allowed import lies_in
from core.record.problems import Problem, ProblemsError
from core.record.run_about import others_run_problem
from core.record.workspace import Workspace, pasted_path, resolve_path
from core.settings.named import Limits, admit, closed_path_problem, limit_problems


@dataclass(frozen=True)
class Roots:
    """The folders that the page may use. local: whether it may use any folder; keys: whether guests' jobs may use the owner's keys."""

    workspace: Workspace
    local: bool = True
    keys: bool = False

    @cached_property
    def limits(self) -> Limits | None:
        """Limits for paths in jobs; None for a local page."""
        return None if self.local else Limits.of(self.workspace, self.keys)

    @property
    def folders(self) -> Sequence[Path]:
        """Folders of the workspace, to which a shared page is limited."""
        return Limits.of(self.workspace).folders

    def holds(self, path: str | os.PathLike) -> bool:
        """Whether the page may read this path, links followed: it is in an allowed folder and not in another person's personal folder."""
        return lies_in(path, None if self.local else self.folders) and not self.workspace.is_other_persons(path)

    def check(self, text: str | os.PathLike, where: str = "path") -> Path:
        """Return the path that `text` names, relative to the project. Raises ProblemsError if it is invalid or the page may not read it.
        where: setting or field, for the problem"""
        try:
            path = resolve_path(pasted_path(text) if isinstance(text, str) else text)
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
            raise ProblemsError([closed_path_problem(str(text), where, self.limits)])
        return path

    def check_written(self, text: str | os.PathLike, where: str = "path") -> Path:
        """`check` for a path to write to: the engine's private folder and the runs of other people are refused too."""
        path = self.check(text, where)
        if problem := others_run_problem(path, where, self.workspace):
            raise ProblemsError([problem])
        if self.limits is not None and not self.limits.allows(str(path)):
            raise ProblemsError([closed_path_problem(str(text), where, self.limits)])
        return path

    def refused(self, job: BaseModel) -> list[Problem]:
        """Return a problem for each path or name in a job that this page may not use."""
        return limit_problems(job, self.limits) if self.limits is not None else []

    def admit(self, job: BaseModel) -> None:
        """Raise ProblemsError if a job names something that this page may not use."""
        admit(job, self.limits)
