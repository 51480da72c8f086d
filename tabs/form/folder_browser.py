"""Folders for the page: contents of an allowed folder, folders where browsing begins, known image folders."""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from core.dataset.sources.files import is_folder, is_image_name, is_junk, is_label
from core.record.workspace import PROJECT, Workspace, display_path
from tabs.form.model_lists import STARTER
from tabs.roots import Roots

MAX_FOLDERS, MAX_SETS = 500, 200
MAX_ENTRIES = 5000  # entries of a folder that are read; a folder of a million files must not delay the list
MAX_BELOW = 1000  # the same of its subfolders together


@dataclass(frozen=True)
class Listing:
    """A folder and its direct contents.

    parent    None if the page may not read it
    folders   names
    images    number of images
    more      whether some entries were not listed
    reason    why the folder cannot be read; "" if it can
    """

    folder: Path
    parent: Path | None
    folders: list[str]
    images: int
    more: bool
    reason: str = ""


def starts(roots: Roots) -> list[tuple[str, Path]]:
    """Return [(name, folder)] of the existing folders at which browsing can begin."""
    space = roots.workspace
    folders = [
        ("Starter images", STARTER / "images"),
        ("Uploaded sets", space.datasets),
        ("Outputs", space.outputs),
        *((folder.name or str(folder), folder) for folder in space.allowed),
    ]
    if roots.local:
        folders += [("Home", Path.home()), ("Project", PROJECT)]
        folders += [(drive, Path(drive)) for drive in _drives()]
    return [(name, path) for name, path in folders if roots.holds(path) and path.is_dir()]


def nearest(roots: Roots, folder: Path) -> Path:
    """Return `folder` or its nearest parent that exists and is allowed, else the first of `starts`."""
    above = Path(os.path.abspath(folder)) if "\0" not in str(folder) else PROJECT
    existing = (each for each in (above, *above.parents) if roots.holds(each) and os.path.isdir(each))
    return next(existing, None) or starts(roots)[0][1]


def _drives() -> list[str]:
    """Return the root folders of the drives."""
    if sys.platform == "win32":
        return [drive for drive in (f"{letter}:\\" for letter in "CDEFGHIJKLMNOPQRSTUVWXYZ") if os.path.isdir(drive)]
    return ["/"]


def listing(roots: Roots, text: str) -> Listing:
    """List the folder with the path `text`, PROJECT for "". Raises ProblemsError if the page may not read it; `reason` tells why it cannot
    be read otherwise."""
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


def images_below(roots: Roots, listed: Listing) -> tuple[int, bool]:
    """Return (number of images in the subfolders at any depth, whether there may be more). Reads at most MAX_BELOW entries."""
    queue, images, entries_left = [os.path.join(listed.folder, name) for name in listed.folders], 0, MAX_BELOW
    while queue and entries_left > 0:
        with suppress(OSError), os.scandir(queue.pop(0)) as entries:
            for entry in islice(entries, entries_left):
                entries_left -= 1
                if is_junk(entry.name):
                    continue
                if is_image_name(entry.name):
                    images += not is_label(entry.name)
                elif entry.is_dir(follow_symlinks=False) and roots.holds(entry.path):
                    queue.append(entry.path)
    return images, entries_left == 0


def image_folders(workspace: Workspace) -> list[tuple[str, str]]:
    """Return [(label, path)]: the starter's images, then the newest MAX_SETS folders in outputs/datasets, newest first."""
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
    """Return the number of images directly in a folder."""
    names = (entry.name for entry in islice(os.scandir(folder), MAX_ENTRIES))
    return sum(is_image_name(name) and not is_label(name) for name in names)
