"""Choosing a folder inside the page: nothing opens on the server, and only open folders are listed; the folders of images that are
near at hand."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from core.dataset.sources.files import is_folder, is_image_name, is_junk, is_label, printable
from core.record.problems import ProblemsError
from core.record.units import count
from core.record.workspace import PROJECT, Workspace, display_path, resolve_path
from tabs.form.model_lists import STARTER
from tabs.markup import button, esc
from tabs.roots import Roots

MOST_FOLDERS, MOST_SETS = 500, 200
LOOKED_AT = 5000  # entries of one folder; a set of a million files must not hold up the list


@dataclass(frozen=True)
class Listing:
    """A folder and what is directly in it. parent is None where going up would leave the open folders."""

    folder: Path
    parent: Path | None
    folders: list[str]
    images: int
    more: bool
    reason: str = ""


def starts(roots: Roots) -> list[tuple[str, Path]]:
    """Where browsing may begin: (name, folder)."""
    space = roots.workspace
    found = [
        ("Starter images", PROJECT / "models" / "starter" / "images"),
        ("Uploaded sets", space.datasets),
        ("Outputs", space.outputs),
    ]
    if roots.local:
        found += [("Home", Path.home()), ("Project", PROJECT)]
        found += [(drive, Path(drive)) for drive in _drives()]
    return [(name, path) for name, path in found if roots.holds(path) and path.is_dir()]


def nearest(roots: Roots, wanted: Path) -> Path:
    """The folder, else the nearest one above it that exists and is open, else the first place to start from."""
    above = Path(os.path.abspath(wanted)) if "\0" not in str(wanted) else PROJECT
    found = (each for each in (above, *above.parents) if roots.holds(each) and os.path.isdir(each))
    return next(found, None) or starts(roots)[0][1]


def _drives() -> list[str]:
    if sys.platform == "win32":
        return [drive for drive in (f"{letter}:\\" for letter in "CDEFGHIJKLMNOPQRSTUVWXYZ") if os.path.isdir(drive)]
    return ["/"]


def listing(roots: Roots, text: str) -> Listing:
    """What lies in the folder that `text` names. Raises ProblemsError when it is not open."""
    folder = roots.check(text or str(PROJECT), "folder")
    folder = Path(os.path.abspath(folder))
    parent = folder.parent if folder.parent != folder and roots.holds(folder.parent) else None
    try:
        entries = list(islice(os.scandir(folder), LOOKED_AT + 1))
    except (OSError, ValueError) as error:
        return Listing(folder, parent, [], 0, False, getattr(error, "strerror", None) or "it cannot be opened")
    folders, images = [], 0
    for entry in entries[:LOOKED_AT]:
        if is_junk(entry.name):
            continue
        if is_image_name(entry.name):
            images += not is_label(entry.name)
        elif is_folder(entry) and roots.holds(entry.path):
            folders.append(entry.name)
    folders.sort(key=lambda name: (name.casefold(), name))
    return Listing(
        folder, parent, folders[:MOST_FOLDERS], images, len(entries) > LOOKED_AT or len(folders) > MOST_FOLDERS
    )


def step(roots: Roots, folder: str, act: str, arg: str) -> Path:
    """The folder after a click: "in" and "start" name a sub-folder or a starting place by number, "up" goes up."""
    now = listing(roots, folder)
    if act == "up":
        return now.parent or now.folder
    number = int(arg) if arg.isdecimal() and len(arg) < 9 else -1
    if act == "in" and 0 <= number < len(now.folders):
        return roots.check(now.folder / now.folders[number], "folder")
    places = starts(roots)
    if act == "start" and 0 <= number < len(places):
        return places[number][1]
    raise ProblemsError.one("This folder no longer exists", printable(folder), "check the list", code="folder.gone")


def panel(roots: Roots, folder: str, *, add: bool = True) -> str:
    """The browser as HTML: where one is, the starting places, the folders, and what to do with this one.

    add   it may be added to the chosen folders of images, which are counted then
    """
    try:
        now = listing(roots, folder)
    except ProblemsError as error:
        now = Listing(resolve_path("."), None, [], 0, False, error.problems[0].what)
    places = "".join(button("start", name, number, kind="quiet") for number, (name, _) in enumerate(starts(roots)))
    listed = [("up", ".. parent folder", "")] if now.parent else []
    listed += [("in", name, str(number)) for number, name in enumerate(now.folders)]
    at = printable(now.folder)  # the keyboard goes on in each folder that is opened
    rows = [button(act, name, arg, kind="folder", lands="" if n else at) for n, (act, name, arg) in enumerate(listed)]
    if now.reason:
        rows.append(f'<p class="hint">This folder cannot be opened: {esc(now.reason)}.</p>')
    elif not now.folders:
        rows.append('<p class="hint">No folders inside.</p>')
    if now.more:
        rows.append('<p class="hint">This folder has more entries than are listed. Enter the path above instead.</p>')
    holds = count(now.images, "image") + (" here" if not now.more else " or more here") if add else ""
    use = button("use", "Use this folder", kind="primary", disabled=bool(now.reason))
    also = button("also", "Add to folders", disabled=bool(now.reason)) if add else ""
    return (
        f'<div class="browser" role="group" aria-label="Folder browser"><div class="places">{places}'
        f'<span class="grow"></span>{button("close", "Close", kind="quiet")}</div>'
        f'<div class="at"><code>{esc(at)}</code><span class="hint">{holds}</span></div>'
        f'<div class="rows">{"".join(rows)}</div><div class="actions">{use}{also}</div></div>'
    )


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
        found += [(path.name, display_path(path)) for path in newest[:MOST_SETS] if not path.name.startswith(".")]
    return found


def _count(folder: Path) -> int:
    return sum(is_image_name(entry.name) and not is_label(entry.name) for entry in islice(os.scandir(folder), 5000))
