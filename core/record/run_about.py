"""A run's title and note from the user, and the login that started it, in about.json. The folder's name does not change."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError, write_errors
from core.record.run_folder import RunFolder
from core.record.stamps import cached_until_changed
from core.record.workspace import CURRENT_WORKSPACE, Workspace, display_path, lies_below, real_path

FILE = "about.json"
MOST_TITLE, MOST_NOTE = 80, 2000
MAX_BYTES = 32_000
FIX = "repair the file, or delete it and enter title and note again"


@dataclass(frozen=True)
class RunAbout:
    """Title and note of a run. title: "" for the run's initial title; person: login that started the run, where people have a page each."""

    title: str = ""
    note: str = ""
    person: str = ""


def read_about(folder: RunFolder) -> RunAbout:
    """Read about.json of a run; empty values if it is missing. Raises ProblemsError if it is damaged."""
    return _read(folder.path / FILE)


@cached_until_changed(2000, missing=RunAbout())  # lists of runs ask for hundreds every few seconds
def _read(path: Path) -> RunAbout:
    """Read about.json; texts are cleaned and cut to their limits. Raises ProblemsError if it is damaged."""
    content = read_json_object(path, FIX, max_bytes=MAX_BYTES)
    return RunAbout(
        _clean(content.get("title", ""), MOST_TITLE),
        _clean(content.get("note", ""), MOST_NOTE, multiline=True),
        _clean(content.get("person", ""), MOST_TITLE),
    )


def write_about(folder: RunFolder, *, title: str | None = None, note: str | None = None) -> RunAbout:
    """Change the title, the note or both (None keeps the old one) and return the result. Raises ProblemsError if a text is too long or
    about.json cannot be written; a damaged about.json is not overwritten."""
    before = read_about(folder)
    texts = (("title", title, MOST_TITLE), ("note", note, MOST_NOTE))
    changes = {name: checked_text(name, text, most) for name, text, most in texts if text is not None}
    about = RunAbout(**(asdict(before) | changes))
    if about.title == initial_title(folder):
        about = replace(about, title="")
    return _write(folder, about, " and ".join(changes))


def write_person(folder: RunFolder, person: str) -> None:
    """Store the login that started a run."""
    _write(folder, replace(read_about(folder), person=person), "name")


def others_run_problem(path: str | os.PathLike, where: str, workspace: Workspace | None = None) -> Problem | None:
    """Return the problem of writing to a path inside another person's run, which only the owner may; None if it is allowed.

    where      setting with the path, for the problem
    workspace  None: the workspace of the current job or request
    """
    space = workspace or CURRENT_WORKSPACE.get()
    if space is None or not space.person or not lies_below(path, [space.runs]):
        return None
    run, person = real_path(path).parts[len(real_path(space.runs).parts) :][:1], ""
    with suppress(ProblemsError):
        person = read_about(RunFolder(space.runs / run[0])).person if run else ""
    if person == space.person:
        return None
    what = f"{display_path(path)} is in a run of {person or 'the owner'}, so nothing can be saved there"
    fix = f"choose a folder of your own, such as {display_path(space.personal)}"
    return Problem(what, where, fix, code="runs.not-yours")


def _write(folder: RunFolder, about: RunAbout, what: str) -> RunAbout:
    """Write about.json and return `about`. Raises ProblemsError if that fails, with `what` in the message: the changed texts, such as
    "title"."""
    content = {name: text for name, text in asdict(about).items() if text or name != "person"}
    with write_errors(f"The {what} cannot be saved", str(folder.path)):
        atomic.write_json(folder.path / FILE, content)
    return about


def title_of(folder: RunFolder) -> str:
    """Return the user's title of a run, else its initial title."""
    try:
        return read_about(folder).title or initial_title(folder)
    except ProblemsError:  # reported where the run is open
        return initial_title(folder)


def initial_title(folder: RunFolder) -> str:
    """Return the title that a run was started with: its folder's name after the time stamp."""
    return folder.name.split("_", 1)[-1]


def checked_text(name: str, text: str, limit: int, code: str = "run.text-too-long") -> str:
    """Return the cleaned text. Raises ProblemsError if it has more than `limit` characters. name: "title", "note" or "name"."""
    clean = _clean(text, len(text), multiline=name == "note")
    if len(clean) > limit:
        what = f"The {name} has {len(clean):,} characters; the limit is {limit:,}"
        raise ProblemsError.one(what, name, "shorten it", code)
    return clean


def _clean(text: object, limit: int, multiline: bool = False) -> str:
    """Return `text` without control characters and bidirectional marks, cut to `limit` characters, on one line unless `multiline`; "" if it
    is not a string."""
    if not isinstance(text, str):
        return ""
    cleaned = "".join(
        character for character in text.replace("\r\n", "\n") if character.isprintable() or character in "\n\t"
    )
    return (cleaned.replace("\t", " ").strip() if multiline else " ".join(cleaned.split()))[:limit]
