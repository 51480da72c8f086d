"""The folder browser inside the page, which lists allowed folders only, and the list of known image folders."""

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

MAX_FOLDERS, MAX_SETS = 500, 200
MAX_ENTRIES = 5000  # entries of a folder that are read; a folder of a million files must not delay the list


@dataclass(frozen=True)
class Listing:
    """A folder and its direct contents. parent: None if it is not allowed; more: not all entries are listed; reason: why the
    folder cannot be read"""

    folder: Path
    parent: Path | None
    folders: list[str]
    images: int
    more: bool
    reason: str = ""


def starts(roots: Roots) -> list[tuple[str, Path]]:
    """[(name, folder)] at which browsing can begin."""
    space = roots.workspace
    folders = [
        ("Starter images", PROJECT / "models" / "starter" / "images"),
        ("Uploaded sets", space.datasets),
        ("Outputs", space.outputs),
    ]
    if roots.local:
        folders += [("Home", Path.home()), ("Project", PROJECT)]
        folders += [(drive, Path(drive)) for drive in _drives()]
    return [(name, path) for name, path in folders if roots.holds(path) and path.is_dir()]


def nearest(roots: Roots, wanted: Path) -> Path:
    """Return `wanted` or its nearest parent that exists and is allowed, else the first start."""
    above = Path(os.path.abspath(wanted)) if "\0" not in str(wanted) else PROJECT
    existing = (each for each in (above, *above.parents) if roots.holds(each) and os.path.isdir(each))
    return next(existing, None) or starts(roots)[0][1]


def _drives() -> list[str]:
    if sys.platform == "win32":
        return [drive for drive in (f"{letter}:\\" for letter in "CDEFGHIJKLMNOPQRSTUVWXYZ") if os.path.isdir(drive)]
    return ["/"]


def listing(roots: Roots, text: str) -> Listing:
    """List the folder that `text` names. Raises ProblemsError if it is not allowed."""
    folder = roots.check(text or str(PROJECT), "folder")
    folder = Path(os.path.abspath(folder))
    parent = folder.parent if folder.parent != folder and roots.holds(folder.parent) else None
    try:
        entries = list(islice(os.scandir(folder), MAX_ENTRIES + 1))
    except (OSError, ValueError) as error:
        return Listing(folder, parent, [], 0, False, getattr(error, "strerror", None) or "it cannot be opened")
    folders, images = [], 0
    for entry in entries[:MAX_ENTRIES]:
        if is_junk(entry.name):
            continue
        if is_image_name(entry.name):
            images += not is_label(entry.name)
        elif is_folder(entry) and roots.holds(entry.path):
            folders.append(entry.name)
    folders.sort(key=lambda name: (name.casefold(), name))
    return Listing(
        folder, parent, folders[:MAX_FOLDERS], images, len(entries) > MAX_ENTRIES or len(folders) > MAX_FOLDERS
    )


def step(roots: Roots, folder: str, act: str, arg: str) -> Path:
    """The folder after a click. act: "up", or "in" or "start" with the number of a subfolder or start as `arg`"""
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
    """HTML of the folder browser: path, starts, subfolders and buttons.

    add   with a button that adds it to the dataset's folders, and the count of its images
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
    """[(label, value)]: the starter's images, then the folders in outputs/datasets, newest first."""
    folders: list[tuple[str, str]] = []
    starter = STARTER / "images"
    if starter.is_dir():
        folders.append((f"starter images ({_count(starter)})", display_path(starter)))
    if workspace.datasets.is_dir():
        newest = sorted(
            (path for path in workspace.datasets.iterdir() if path.is_dir()), key=lambda path: -path.stat().st_mtime
        )
        folders += [(path.name, display_path(path)) for path in newest[:MAX_SETS] if not path.name.startswith(".")]
    return folders


def _count(folder: Path) -> int:
    return sum(is_image_name(entry.name) and not is_label(entry.name) for entry in islice(os.scandir(folder), 5000))
