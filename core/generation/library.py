"""Which models, LoRAs and embeddings there are: under the models folder and among the results of runs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from core.formats.detect import identify
from core.record.problems import ProblemsError
from core.record.workspace import Workspace, resolve_path

SUFFIXES = {".safetensors", ".ckpt", ".pt", ".bin"}
INDEX = "model_index.json"


def list_loras(workspace: Workspace) -> list[tuple[str, Path]]:
    """(label, path) of every LoRA, newest first. The folder is part of a label: "loras/fox", "2026-01-31_fox / fox"."""
    return _newest_first(workspace, "lora")


def list_embeddings(workspace: Workspace) -> list[tuple[str, Path]]:
    """(label, path) of every file of textual inversion, in the same way."""
    return _newest_first(workspace, "embedding")


def _newest_first(workspace: Workspace, kind: str) -> list[tuple[str, Path]]:
    found = [*_files(workspace.models, kind), *_results(workspace, kind)]
    return sorted(found, key=lambda item: (-item[1].stat().st_mtime_ns, item[0]))


def list_models(workspace: Workspace) -> list[tuple[str, Path]]:
    """(label, path) of every whole model, files and diffusers folders: those under models/ by name, then results."""
    folders = [(_label(path, workspace.models), path) for path in _diffusers_folders(workspace.models)]
    ours = sorted([*folders, *_files(workspace.models, "checkpoint")], key=lambda item: item[0].lower())
    results = sorted(_results(workspace, "checkpoint"), key=lambda item: -item[1].stat().st_mtime_ns)
    return ours + results


def find_file(name: str, workspace: Workspace) -> Path | None:
    """The file or folder at a path that is absolute or relative to the project, the models or the outputs folder."""
    text = name.strip()
    return next((path for path in _as_paths(text, workspace) if path.exists()), None) if text else None


def find_lora(name: str, workspace: Workspace) -> Path:
    """The file a LoRA's name stands for: a path as in `find_file`, else a label or a file name with or without its
    ending. Of several with that name, the newest. Raises ProblemsError."""
    return _find(name, workspace, "LoRA")


def find_embedding(name: str, workspace: Workspace) -> Path:
    """The file that an embedding's name stands for, in the same way."""
    return _find(name, workspace, "embedding")


def _find(name: str, workspace: Workspace, kind: str) -> Path:
    text = name.strip()
    path = find_file(text, workspace)
    if path is not None and path.is_file():
        return path
    known = _newest_first(workspace, kind.lower())
    wanted = _plain(text)
    for label, path in known:
        if wanted in (_plain(label), _plain(path.name)):
            return path
    raise ProblemsError.one(f"There is no {kind} '{name}'", f"{kind}s", _advice(wanted, known, f"{kind.lower()}s"))


def _as_paths(text: str, workspace: Workspace) -> Iterator[Path]:
    """Places where a path may lie; `models/...` and `outputs/...` mean those folders, wherever they are."""
    if "\0" in text:
        return
    yield resolve_path(text)
    inside = PurePosixPath(text.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts:
        return
    for name, root in (("models", workspace.models), ("outputs", workspace.outputs)):
        yield root / inside
        if inside.parts[:1] == (name,):
            yield root / PurePosixPath(*inside.parts[1:])


def _plain(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return (stem if dot and f".{suffix.lower()}" in SUFFIXES else name).lower()


def _advice(wanted: str, known: list[tuple[str, Path]], folder: str) -> str:
    if not known:
        return f"train one, or put a file into models/{folder}"
    names = {_plain(path.name): label for label, path in known}
    near = difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.5)
    shown = [names[stem] for stem in near] or [label for label, _ in known[:3]]
    return f"choose one from the list, for example {', '.join(shown)}"


# -- walking


def _files(root: Path, kind: str) -> Iterator[tuple[str, Path]]:
    """Model files of a kind below a folder; the parts of diffusers folders and hidden folders are passed over."""
    for folder, names, files in os.walk(root):
        if INDEX in files:
            names[:] = []
            continue
        names[:] = sorted(name for name in names if not name.startswith((".", "_")))
        for file in sorted(files):
            path = Path(folder) / file
            if path.suffix.lower() in SUFFIXES and not file.startswith(".") and kind_of(path) == kind:
                yield _label(path, root), path


def _diffusers_folders(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        if INDEX in files:
            names[:] = []
            yield Path(folder)
        else:
            names[:] = sorted(name for name in names if not name.startswith((".", "_")))


def _results(workspace: Workspace, kind: str) -> Iterator[tuple[str, Path]]:
    if not workspace.runs.is_dir():
        return
    for run in sorted(workspace.runs.iterdir()):
        folder = run / "checkpoints"
        if folder.is_dir():
            whole = (
                [(_label(path, folder), path) for path in _diffusers_folders(folder)] if kind == "checkpoint" else []
            )
            yield from ((f"{run.name} / {label}", path) for label, path in [*whole, *_files(folder, kind)])


def _label(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    return name.removesuffix(path.suffix) if path.is_file() else name


def kind_of(path: Path) -> str:
    """The kind that `formats.detect` names ("lora", "checkpoint" ...), remembered while the file does not change;
    "unreadable" for a damaged file, which has no place in a list."""
    try:
        facts = path.stat()
    except OSError:
        return "unreadable"
    return _kind(str(path), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=4096)
def _kind(path: str, size: int, changed: int) -> str:
    try:
        return identify(path).kind
    except ProblemsError:
        return "unreadable"
