"""Dataset folders of a training job as a list of Source, which the folder cards edit."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.dataset.report import Report
from core.dataset.sources.image_info import Folder
from core.record.problems import ProblemsError
from core.settings.check import build as build_job
from core.settings.dataset.concepts import overridden_settings
from core.settings.dataset.source import Source
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from tabs.form.form_values import SOURCE, changed_values
from tabs.form.view import NOTHING
from tabs.roots import Roots


def entries_of(job: TrainJob) -> list[Source]:
    """Return all folders of a job, disabled ones included: dataset.folder and dataset.reg_data_dir first, then dataset.sources."""
    short = [Source(folder=job.dataset.folder)] if job.dataset.folder else []
    if job.dataset.reg_data_dir:
        short.append(Source(folder=job.dataset.reg_data_dir, role="regularization"))
    return short + list(job.dataset.sources)


def with_entries(job: TrainJob, entries: Sequence[Any]) -> TrainJob:
    """Return `job` with these folders (Source or their values) in place of its own.

    A first training folder without settings becomes dataset.folder, a following regularization folder without settings reg_data_dir.
    Raises ProblemsError for invalid values.
    """
    folders = [to_values(entry) if isinstance(entry, Source) else dict(entry) for entry in entries]
    values = to_values(job)
    values["dataset"]["folder"] = values["dataset"]["reg_data_dir"] = None
    if folders and folders[0] == to_values(Source(folder=folders[0]["folder"])):
        values["dataset"]["folder"] = folders.pop(0)["folder"]
    if folders and folders[0] == to_values(Source(folder=folders[0]["folder"], role="regularization")):
        values["dataset"]["reg_data_dir"] = folders.pop(0)["folder"]
    values["dataset"]["sources"] = folders
    return build_job(TrainJob, values)


def changed(entry: Source, name: str, text: str, roots: Roots) -> dict[str, Any]:
    """Return the values of folder `entry` with setting `name` parsed from `text`. Raises ProblemsError if invalid or not allowed."""
    if name not in SOURCE:
        what = f"A folder has no setting '{name[:40]}'"
        raise ProblemsError.one(what, "Dataset", "reload the page", "folder.unknown-setting")
    if name == "folder" and text.strip() in ("", NOTHING):
        what = "The folder's path is empty"
        raise ProblemsError.one(what, "Folder", "enter a path, or remove the folder", "folder.no-path")
    values = changed_values(SOURCE, to_values(entry), name, text, roots)
    unset = values[name] is None and name not in ("num_repeats", "class_tokens")
    return {each: value for each, value in values.items() if not (unset and each == name)}


def with_shared_settings(entry: Source) -> dict[str, Any]:
    """Return the values of folder `entry` without those that override the settings of all folders."""
    return {name: value for name, value in to_values(entry).items() if name not in overridden_settings(entry)}


@dataclass(frozen=True)
class FolderContents:
    """Contents of a dataset folder.

    folders  the folder and its subfolders with images
    images   number of images in use
    views    number of views in the first epoch
    first    an image to show on the card
    """

    folders: tuple[Folder, ...] = ()
    images: int = 0
    views: int = 0
    first: Path | None = None


def folder_contents(entries: Sequence[Source], report: Report | None) -> list[FolderContents]:
    """Return the contents of each folder of `entries`, in order; empty ones for disabled folders or without a report.

    report: on the enabled folders of `entries`
    """
    if report is None:
        return [FolderContents()] * len(entries)
    first: dict[int, Path] = {}
    images: Counter[int] = Counter()
    ids: dict[int, set[str]] = defaultdict(set)
    for row in report.rows:
        if row.bucket is not None:
            first.setdefault(row.concept, row.path)
            images[row.concept] += row.trains or row.role == "validation"
        ids[row.concept].add(row.key[0])
    contents, enabled_index = [], 0
    for entry in entries:
        if not entry.enabled:
            contents.append(FolderContents())
            continue
        folders = tuple(folder for folder in report.folders if folder.id in ids[enabled_index])
        views = report.views.get(enabled_index, 0)
        contents.append(FolderContents(folders, images[enabled_index], views, first.get(enabled_index)))
        enabled_index += 1
    return contents
