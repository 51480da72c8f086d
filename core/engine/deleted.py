"""Deleted runs: folders in the trash of the outputs folder. They can be restored until it is emptied."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from core.engine.queue import check_may_change
from core.engine.run_summary import about_of
from core.record import atomic
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace

NAME = re.compile(r"(\d{8}-\d{6}_.+)-(\d{9,11})", re.DOTALL)


@dataclass(frozen=True)
class DeletedRun:
    """A run in the trash.

    name     of its folder in the trash
    run      its name before
    time     of its deletion, in seconds since 1970
    person   the login that started it
    """

    name: str
    run: str
    time: int
    person: str = ""


def name_in_trash(run: str, now: float) -> str:
    """Return the folder name for a run deleted at time `now`, in seconds since 1970."""
    return f"{run}-{int(now)}"


def deleted_runs(workspace: Workspace) -> list[DeletedRun]:
    """Return the runs in the trash, the last deleted first."""
    if not workspace.trash.is_dir():
        return []
    named = ((path, NAME.fullmatch(path.name)) for path in workspace.trash.iterdir() if RunFolder(path).exists)
    runs = [
        DeletedRun(path.name, match[1], int(match[2]), about_of(RunFolder(path))[0].person)
        for path, match in named
        if match
    ]
    return sorted(runs, key=lambda each: (each.time, each.run), reverse=True)


def no_such_run(name: str, workspace: Workspace) -> ProblemsError:
    """Return the error for the name of a run that does not exist or was deleted."""
    what, fix = "There is no such run", "choose one from the list of runs, or write the name of its folder"
    trashed = (NAME.fullmatch(path.name) for path in workspace.trash.glob("*"))
    if name in {match[1] for match in trashed if match}:
        what, fix = "This run was deleted", "restore it on Tools, under Space on the disk, or choose another"
    return ProblemsError.one(what, name, fix, "runs.no-such-run")


def restore_run(name: str, workspace: Workspace, people: Collection[str] = ()) -> str:
    """Move a run out of the trash and return its name. Raises ProblemsError if it is gone, a run of its name exists, or the user of
    the current request may not change it.

    name     of its folder in the trash
    people   logins with a page each
    """
    deleted = next((each for each in deleted_runs(workspace) if each.name == name), None)
    if deleted is None:
        what, fix = "The run is no longer in the trash", "check the list of runs"
        raise ProblemsError.one(what, name, fix, "runs.not-in-trash")
    check_may_change(deleted.run, deleted.person, people)
    target: Path = workspace.runs / deleted.run
    if target.exists():
        what, fix = "There is a run of this name", "rename its folder in outputs/runs first"
        raise ProblemsError.one(what, deleted.run, fix, "runs.name-taken")
    try:
        atomic.make_folders(workspace.runs)
        atomic.replace(workspace.trash / name, target)
    except OSError as error:
        what = f"The run cannot be moved ({error.strerror or error}); nothing was changed"
        raise ProblemsError.one(what, deleted.run, "close programs that use its files", "runs.not-restored") from None
    return deleted.run
