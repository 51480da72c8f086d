"""Base models and VAEs on the page: the catalog, the lists to choose from, and the file browser."""

import os
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from core.dataset.sources.files import is_junk, printable
from core.formats.hub import catalog
from core.formats.hub.references import resolve
from core.generation.model.library import SUFFIXES
from core.record.problems import ProblemsError
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.base import value_of
from tabs.form.folder_browser import MAX_ENTRIES, images_below, listing, nearest, starts
from tabs.form.model_lists import choices_of
from tabs.form.project import FIELDS, Project
from tabs.roots import Roots

FIELDS_OF_MODELS = {"base_model": "model.base_model", "vae": "model.vae"}
LISTING = ("Train", "Tools", "", None)  # the tabs that show base models
RECHECK_SECONDS = 3.0  # until the models folder is listed again
MOST_FILES = 500
MODEL = "model"  # what is browsed for, else "file", "folder" or "any"
WHOLE = ("model_index.json", "config.json")  # of a model that is a folder


class Models:
    """The available base models and VAEs, shared by all browsers."""

    def __init__(self, workspace: Workspace, project: Project, roots: Roots):
        self._workspace, self._project, self._roots = workspace, project, roots
        self._choices: tuple[float, list[Any]] = (float("-inf"), [])

    def parts(self, tab: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Return the part of the page's periodic update: on tabs with model fields "catalog" and "models" (names), and `browse` as "browse"
        for the folder body["wants"]["files"] with "kind", if requested."""
        wants = body.get("wants")
        folder, kind = (wants.get("files"), wants.get("kind", MODEL)) if isinstance(wants, dict) else (None, "")
        lists = {"catalog": self._catalog(), "models": self._model_choices()} if tab in LISTING else {}
        return lists | ({"browse": self._browse(folder, str(kind))} if isinstance(folder, str) else {})

    def _catalog(self) -> list[dict[str, Any]]:
        """Return `state` of the catalog's entries on this machine (core/formats/hub/catalog.py); "found" is a path as text, "" if
        missing."""
        facts = [catalog.state(entry, self._workspace.models) for entry in catalog.ENTRIES]
        return [each | {"found": display_path(each["found"]) if each["found"] else ""} for each in facts]

    def _model_choices(self) -> list[Any]:
        """Return the names of the base models and VAEs, read again after RECHECK_SECONDS."""
        read_at, choices = self._choices
        if time.monotonic() - read_at > RECHECK_SECONDS:
            listed = (choices_of(kind, self._workspace, RECHECK_SECONDS) for kind in ("checkpoint", "vae"))
            choices = [value for of_kind in listed for _, value in of_kind]
            self._choices = (time.monotonic(), choices)
        return choices

    def _browse(self, folder: str, kind: str) -> dict[str, Any]:
        """Return the data of `browse`; for a folder that cannot be opened, of the models folder with the "reason"."""
        try:
            if folder and kind != MODEL:  # the value of a field: a file, a new folder, a name
                folder = str(nearest(self._roots, resolve_path(folder)))
            return browse(self._workspace, self._roots, folder, kind)
        except ProblemsError as error:
            return browse(self._workspace, self._roots, "", kind) | {"reason": error.problems[0].what}

    def choose(self, data: dict[str, Any]) -> None:
        """Set a model field of the form: {"use": "base_model" or "vae", "about": file}. Raises ProblemsError if not allowed.

        Settings that a catalog model requires are set too, and those of the previous one reset.
        """
        field, file = FIELDS_OF_MODELS.get(str(data.get("use"))), str(data.get("about", ""))
        if field is None or field not in FIELDS or not file:
            return
        path = self._roots.check(file, field)
        with self._project.lock:
            job, changes = self._project.job, {field: display_path(path)}
            if field == FIELDS_OF_MODELS["base_model"]:
                old_needs = self._needs(job.model.base_model)
                changes |= {name: FIELDS[name].default for name in old_needs if value_of(job, name) == old_needs[name]}
                changes |= self._needs(str(path))
            self._project.set_values(changes, did="choosing a model")

    def _needs(self, reference: str) -> Mapping[str, Any]:
        """Return {setting path: value} that the base model `reference` requires by the catalog; {} if it is not in the catalog."""
        models = self._workspace.models
        try:
            path = resolve(reference, models, self._workspace.outputs)
        except ProblemsError:
            return {}
        matching = (entry for entry in catalog.ENTRIES if entry.needs and catalog.installed_path(entry, models) == path)
        return next((entry.needs for entry in matching), {})


def browse(workspace: Workspace, roots: Roots, text: str, kind: str = MODEL) -> dict[str, Any]:
    """Return a folder's data for the file browser. Raises ProblemsError if the page may not read it.

    text   path of the folder, "" for the models folder
    kind   what is chosen: "model", "file", "folder", or "any" (a file or a folder)

    "folder", "parent"     paths; "" without a parent
    "places"               [(name, path)] of folders to start from
    "folders", "files"     names of subfolders, [{"name", "size"}]; "more": whether some were left out
    "images", "below"      number of images here, and as `images_below`
    "whole"                whether the folder itself can be chosen
    "reason"               why it cannot be opened, "" if it can
    "separator"            of paths
    """
    starting_points = [("Models", workspace.models), *starts(roots)]
    starts_here = [
        (name, str(path))
        for name, path in starting_points
        if path.is_dir() and (kind != MODEL or name != "Starter images")
    ]
    current = listing(roots, text or str(workspace.models))
    return {
        "folder": printable(current.folder),
        "parent": str(current.parent) if current.parent else "",
        "places": [start for start in starts_here if _can_be_sent(start[1])],
        "folders": [name for name in current.folders if _can_be_sent(name)],
        "files": [] if current.reason or kind == "folder" else _files(roots, current.folder, kind),
        "images": current.images,
        "below": images_below(roots, current) if kind == "folder" else (0, False),
        "whole": kind in ("folder", "any")
        or (kind == MODEL and any((current.folder / name).is_file() for name in WHOLE)),
        "more": current.more,
        "reason": current.reason and f"This folder cannot be opened: {current.reason}",
        "separator": os.sep,
    }


def _files(roots: Roots, folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return [{"name", "size": bytes}] of the folder's files that can be chosen, at most MOST_FILES."""
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in islice(entries, MAX_ENTRIES):
            name = entry.name
            is_other = kind == MODEL and Path(name).suffix.lower() not in SUFFIXES
            if is_other or is_junk(name) or not _can_be_sent(name):
                continue
            try:
                if entry.is_file() and roots.holds(entry.path):
                    sizes[name] = entry.stat().st_size
            except OSError:
                continue
    names = sorted(sizes, key=str.casefold)[:MOST_FILES]
    return [{"name": name, "size": sizes[name]} for name in names]


def _can_be_sent(name: str) -> bool:
    """Return whether a file name can be sent as JSON, which bytes outside the file system's encoding cannot."""
    return printable(name) == name
