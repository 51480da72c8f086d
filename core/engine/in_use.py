"""Which jobs read the checkpoints of a run, whose files must not be moved meanwhile."""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from core.engine.queue import QueueEntry, may_change
from core.generation.grids.folder import GridFolder
from core.record.problems import ProblemsError
from core.record.units import listed
from core.record.workspace import Workspace
from core.settings.presets.files import to_values


def require_unused(run: str, entries: Iterable[QueueEntry], workspace: Workspace) -> None:
    """Raise ProblemsError if a running job trains the run or reads its checkpoints: an assessment, a grid, a generation, a tool.

    Other trainings are not considered: they read checkpoints only at their start.
    """
    for entry in (entry for entry in entries if entry.state == "running"):
        texts = _texts(entry, workspace) if entry.task != "train" else ()
        if entry.run == run or any(_names_run(run, setting, text) for setting, text in texts):
            what, fix = f"'{entry.title}' is using the files of this run", "wait until it has ended, or cancel it"
            raise ProblemsError.one(what, run, fix, "run.in-use")


def waiting_jobs_sentence(
    runs: Collection[str], entries: Iterable[QueueEntry], workspace: Workspace, people: Collection[str]
) -> str:
    """Return a sentence that lists the waiting jobs that use one of `runs` (names); "" if there are none.
    people: logins with a page each, who see only the owner of another person's job, not its title"""
    jobs = [
        f"'{entry.title}'" if may_change(entry.guest, people) else f"a job of {entry.guest or 'the owner'}"
        for entry in entries
        if entry.state == "waiting"
        and (entry.run in runs or any({*re.split(r"[\\/=]", text)} & {*runs} for _, text in _texts(entry, workspace)))
    ]
    return f"Waiting jobs that need its files would fail: {listed([*dict.fromkeys(jobs)])}." if jobs else ""


def _names_run(run: str, setting: str, text: str) -> bool:
    """Whether the value `text` of `setting` names the run or a file of its checkpoints."""
    return (setting == "run" and text == run) or f"{run}/checkpoints" in text.replace("\\", "/")


def _texts(entry: QueueEntry, workspace: Workspace) -> Iterator[tuple[str, str]]:
    """Yield (setting, text) for each text in a job's settings; for a resumed grid also in the settings stored with the grid."""
    yield from _texts_in(entry.job)
    if folder := entry.job.get("grid", {}).get("folder"):
        for person in {"", entry.person or entry.guest}:
            with suppress(ProblemsError):
                guests_workspace = replace(workspace, person=person)
                yield from _texts_in(to_values(GridFolder.named(str(folder), guests_workspace).job()))


def _texts_in(value: Any, setting: str = "") -> Iterator[tuple[str, str]]:
    """Yield (setting, text) for each text in nested values: the setting is the key of the innermost dict."""
    if isinstance(value, str):
        yield setting, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts_in(each, name)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts_in(each, setting)
