"""Finds the files that settings of tools name: any file, a LoRA, a checkpoint."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from core.dataset.sources.files import printable
from core.families.locate import model_path
from core.formats.detect import identify
from core.generation.model.library import find, find_file
from core.record.allowed import may_reach
from core.record.problems import Problem, ProblemsError, at_setting, problems_at
from core.record.workspace import Workspace, display_path, typed_path


def file_of(name: str | None, workspace: Workspace, where: str) -> Path:
    """Return the file or folder that a setting names, by path or by the name of a LoRA. Raises ProblemsError if there is none.

    name    value of the setting
    where   the setting, for problems
    """
    reference = (name or "").strip()
    if not reference:
        fix = "enter a path, or the name of a LoRA"
        raise ProblemsError.one("No file is given", where, fix, "tools.no-file-given")
    path = find_file(reference, workspace)
    if path is not None:
        return path
    try:
        return find("lora", reference, workspace)
    except ProblemsError as error:
        fix = f"enter a path, or the name of a LoRA: {error.problems[0].fix}"
        what = f"There is no file and no LoRA named '{reference}'"
        raise ProblemsError.one(what, where, fix, "tools.no-such-file") from None


def single_file_of(name: str | None, workspace: Workspace, where: str) -> Path:
    """Return the file that a setting names, as `file_of` does. Raises ProblemsError also for a folder."""
    path = file_of(name, workspace, where)
    if path.is_dir():
        what, fix = f"{display_path(path)} is a folder", "choose a file in it"
        raise ProblemsError.one(what, where, fix, "tools.is-a-folder")
    return path


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files with these suffixes in a folder and its subfolders, sorted by path.

    Files that a shared page may not access are left out.
    """
    files = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in files if may_reach(path))


def model_file(reference: str | None, workspace: Workspace, where: str) -> Path:
    """Return the checkpoint or diffusers folder that a setting names, by path or by name in the models folder. Raises ProblemsError if it
    is not given, missing or unreadable."""
    if not (reference or "").strip():
        fix = "choose a .safetensors or .ckpt checkpoint, or a diffusers folder"
        raise ProblemsError.one("No model is given", where, fix, "tools.no-file-given")
    path = model_path(str(reference).strip(), workspace, where)
    with problems_at(where):
        identify(path)
    return path


def lora_of(name: str | None, workspace: Workspace, where: str) -> Path:
    """Return the LoRA file that a setting names, by path or name. Raises ProblemsError for anything else."""
    path, what = file_of(name, workspace, where), ""
    if path.is_dir():
        what, fix = f"{display_path(path)} is a folder, not a LoRA", "choose a LoRA file in it"
        raise ProblemsError.one(what, where, fix, "tools.not-a-lora")
    try:
        kind = identify(path)
        what = f"{display_path(path)} is not a LoRA but: {kind}" if kind.kind != "lora" else ""
    except ProblemsError as error:
        if error.codes != ["model.unknown-file"]:
            raise ProblemsError(at_setting(where, error.problems)) from None
        what = f"{display_path(path)} is not a model file"
    if what:
        fix = "choose a LoRA: a .safetensors, .ckpt or .pt file"
        raise ProblemsError.one(what, where, fix, "tools.not-a-lora")
    return path


def image_folders(texts: Sequence[str | None], where: str) -> tuple[list[Path], list[Problem]]:
    """Return (folders that a setting names, each once and in order; problems). `where`: the setting, for problems."""
    folders = list(dict.fromkeys(path for text in texts if (path := typed_path(text))))
    if not folders:
        fix = "choose the folder with the images"
        return [], [Problem("No folder is chosen", where, fix, code="tools.no-folder-chosen")]
    problems = []
    for path in folders:
        what, fix = (
            f"The image folder '{printable(path)}' does not exist",
            "check the spelling, or choose another folder",
        )
        if os.path.isfile(path):
            what, fix = (
                f"'{printable(path)}' is a file",
                f"choose the folder that contains it: {printable(path.parent)}",
            )
        if not os.path.isdir(path):
            problems.append(Problem(what, where, fix, code="tools.no-such-folder"))
    return folders, problems
