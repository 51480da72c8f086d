"""Finds the model folder of a tagger, checks it and downloads it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from core.captioning.tagger import labels as tables
from core.captioning.tagger.profile import FIX, PROFILES, Profile
from core.captioning.tagger.tags import Label
from core.formats.hub import references as hub
from core.formats.onnx.file import check_onnx
from core.formats.onnx.profile import FILE, read_profile
from core.record import atomic
from core.record.context import JobContext
from core.record.problems import Problem, ProblemsError, collected
from core.record.regular import check_regular
from core.record.workspace import Workspace, display_path, resolve_path
from core.settings.captioning.tagger import TagSettings, TagTextSettings
from core.settings.named import leads_out

DOWNLOAD = "tag.download"
NEW = ".new"  # folder of a download that will replace files
# Files of models that onnxruntime cannot run -> what they are.
FOREIGN = {
    "saved_model.pb": "a Keras model of WD14",
    "keras_metadata.pb": "a Keras model of WD14",
    "project.json": "a DeepDanbooru project for TensorFlow",
    "model.safetensors": "a model for timm",
    "model.pth": "a model for torch",
}


@dataclass(frozen=True)
class ModelFiles:
    """A tagger and its folder. `is_users`: whether it is a folder of the user, which is not downloaded."""

    profile: Profile
    folder: Path
    is_users: bool

    @property
    def title(self) -> str:
        """The profile's title, or the folder's name."""
        return self.profile.title or self.folder.name

    @property
    def model(self) -> Path:
        """Path of the ONNX file."""
        return self.folder / self.profile.model

    @property
    def missing(self) -> list[str]:
        """The names of missing files."""
        return [name for name in self.profile.required_files if not (self.folder / name).is_file()]


def find(settings: TagTextSettings, workspace: Workspace) -> ModelFiles:
    """Return the tagger that the settings name; its files may be missing. Raises ProblemsError."""
    typed = settings.model_dir
    if not typed:
        profile = PROFILES[settings.repo_id]
        return ModelFiles(profile, workspace.captioners / profile.folder_name, is_users=False)
    named = not leads_out(typed) and os.path.isdir(workspace.captioners / typed)
    folder = workspace.captioners / typed if named else resolve_path(typed)
    if not os.path.isdir(folder):  # false, not an error, for an invalid name
        fix = "choose the folder with model.onnx and selected_tags.csv"
        where = f"{'tag' if isinstance(settings, TagSettings) else 'retag'}.model_dir"
        what = f"The model folder '{folder}' does not exist"
        raise ProblemsError.one(what, where, fix, "tagger.no-folder")
    if os.path.lexists(folder / FILE):
        return ModelFiles(read_profile(folder / FILE, Profile, FIX, "tagger.bad-profile"), folder, is_users=True)
    known = next((each for each in PROFILES.values() if each.folder_name == folder.name), Profile())
    return ModelFiles(known, folder, is_users=True)


def check_files(files: ModelFiles) -> None:
    """Raise ProblemsError for missing, incomplete or damaged files."""
    if files.missing:
        raise ProblemsError([_missing_problem(files)])
    for name in files.profile.required_files:
        check_regular(files.folder / name)
    check_onnx(files.model)
    if files.profile.labels:
        read_labels(files, "")


def _missing_problem(files: ModelFiles) -> Problem:
    """Return the problem of missing files, with where to get them."""
    names, verb = " and ".join(files.missing), "are" if len(files.missing) > 1 else "is"
    where = display_path(files.folder)
    foreign = next((what for name, what in FOREIGN.items() if (files.folder / name).exists()), "")
    source = files.profile.page if files.profile.repo else "the model's page"
    if foreign:
        what = f"The folder contains {foreign}, which onnxruntime cannot run"
        return Problem(what, where, f"download {names} from {source} into it", code="tagger.tensorflow")
    what = f"The tagger {files.title} is incomplete: {names} {verb} missing"
    fix = f"download {names} from {source} into the folder"
    if files.is_users:
        return Problem(what, where, fix, code="tagger.no-model")
    fix = f"turn on 'Download if missing' ({files.profile.megabytes:,} MB, {files.profile.license}), or {fix}"
    return Problem(what, where, fix, remedy=DOWNLOAD, code="tagger.no-model")


def read_labels(files: ModelFiles, metadata: str) -> list[Label]:
    """Return the label of each output. Raises ProblemsError for a damaged table.
    metadata: tag list in the model file, used by taggers without a label file"""
    path = files.folder / files.profile.labels
    match files.profile.label_kind:
        case "csv":
            return tables.read_csv(path)
        case "mapping":
            return tables.read_mapping(path)
        case _:
            return tables.read_metadata(metadata, files.model)


def fetch_missing(files: ModelFiles, settings: TagSettings, context: JobContext) -> None:
    """Download missing or damaged files, or all files, according to the settings. Raises ProblemsError."""
    if files.is_users and settings.force_download:
        context.say("'Download again' has no effect with a model folder", "warning")
    if not downloads(files, settings):
        return
    if not settings.force_download:
        _download(files, _missing_or_damaged(files), files.folder, context)
        return
    new = files.folder / NEW
    _download(files, files.profile.required_files, new, context)
    for name in files.profile.required_files:
        (files.folder / name).parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(new / name, files.folder / name)
    atomic.remove_folder(new)


def downloads(files: ModelFiles, settings: TagSettings) -> bool:
    """Return whether the settings allow a download of this tagger."""
    return (settings.download or settings.force_download) and not files.is_users


def _download(files: ModelFiles, names: Sequence[str], folder: Path, context: JobContext) -> None:
    """Download the named files of the tagger's repository into a folder."""
    if not names:
        return
    owner, name = files.profile.repo.split("/")

    on_progress = partial(context.stage, f"downloading {files.title}", of_bytes=True)
    hub.download_files(hub.HubId(owner, name), names, folder, on_progress, context.cancel)


def _missing_or_damaged(files: ModelFiles) -> list[str]:
    """Return the names of missing or damaged files."""
    problems: list[Problem] = []
    names = list(files.missing)
    if files.profile.model not in names and collected(problems, check_onnx, files.model) is None:
        names.append(files.profile.model)
    if files.profile.labels not in ("", *names) and collected(problems, read_labels, files, "") is None:
        names.append(files.profile.labels)
    return names
