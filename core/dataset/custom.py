"""A dataset class of the user's own: package.module.Class lists the images instead of folders.

It is code, so the owner of the machine must have allowed its module (record/allowed.py); a preset that came from elsewhere
names one and gets a refusal. The class is called with the dataset's settings as a dict; what it then gives, by being
iterated or by `.images()`, are dicts: {path, caption?, repeats?, words?, is_reg?}. Each is checked like a scanned image.
"""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.dataset.files import MAX_REPEATS, printable, reachable
from core.dataset.folders import Root
from core.dataset.image_info import ImageInfo, Scan, listed
from core.dataset.memo import Memo
from core.dataset.scan import Gathered
from core.dataset.walk import File, file_at
from core.record.allowed import FILE, allowed_modules
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError
from core.record.workspace import resolve_path
from core.settings.concepts import Concept
from core.settings.dataset import DatasetSettings

_WHERE = "dataset.dataset_class"
_KEYS = {"path", "caption", "repeats", "words", "is_reg"}


def scan_class(
    dataset: DatasetSettings,
    concepts: Sequence[Concept],
    cancel: CancelToken | None = None,
    memo_path: Path | str | None = None,
) -> Scan:
    """What the dataset class lists, in its order. Problems are returned; only a cancel raises.

    concepts   whose settings hold: the first of the role "train" for images, of "regularization" for those of is_reg
    """
    name = (dataset.dataset_class or "").strip()
    try:
        rows = _list(name, dataset, cancel)
    except ProblemsError as error:
        return Scan((), (), (), tuple(error.problems))
    gathered = Gathered(Memo(memo_path), cancel, "advice" if dataset.skip_broken else "error")
    gathered.problems += _wrong(name, rows)
    known = [row for row in rows if not _complaints(row)]
    if not known and not gathered.problems:
        gathered.problems.append(Problem(f"The dataset class {name} lists no image.", _WHERE, "See to its source."))
    for is_reg in (False, True):
        part = [row for row in known if bool(row.get("is_reg", False)) == is_reg]
        if not part:
            continue
        concept = next((each for each in concepts if (each.role == "regularization") == is_reg), None)
        if concept is None:
            what = (
                f"The dataset class {name} lists {'regularization ' if is_reg else ''}images without settings for them."
            )
            fix = "Add a folder of the regularization role." if is_reg else "Let it list images to train, too."
            gathered.problems.append(Problem(what, _WHERE, fix))
            continue
        _take(gathered, part, name.rpartition(".")[2], concept)
    return gathered.result()


def _take(gathered: Gathered, rows: Sequence[dict[str, Any]], name: str, concept: Concept) -> None:
    files = _files(rows)
    id = gathered.new_id(name)
    by_relative = {file.relative: row for file, row in zip(files, rows, strict=True)}
    found = gathered.read(files, id, Root(Path(name), 1, ""), concept)
    images = [_with(image, by_relative[image.relative]) for image in found]
    gathered.finish(images, concept, {})


def _with(image: ImageInfo, row: Mapping[str, Any]) -> ImageInfo:
    given = row.get("caption")
    return replace(image, given=given, repeats=row.get("repeats") or 1, words=row.get("words") or "")


def _files(rows: Sequence[Mapping[str, Any]]) -> list[File]:
    """Each with an address of its own: the file's name, and where two have the same one, folders in front or a number."""
    taken: set[str] = set()
    files = []
    for row in rows:
        path = reachable(resolve_path(os.fspath(row["path"])))
        parts = [part for part in path.parts if part != path.anchor]
        names = ["/".join(parts[-most:]) for most in range(1, len(parts) + 1)]
        number, name = 1, next((name for name in names if name not in taken), "")
        while not name or name in taken:  # one image listed twice
            number += 1
            name = f"{names[0]} #{number}" if f"{names[0]} #{number}" not in taken else ""
        taken.add(name)
        files.append(file_at(path, name))
    return files


# ---- the class


def _list(name: str, dataset: DatasetSettings, cancel: CancelToken | None) -> list[Any]:
    """Import the class, call it and take all it gives."""
    module_name, _, class_name = name.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in name.split(".")):
        raise ProblemsError.one(f"'{name}' names no class.", _WHERE, "Write package.module.Class.")
    top = name.partition(".")[0]
    if top not in allowed_modules():
        what = f"The dataset class {name} is code of the module '{top}', which is not allowed to run on this machine."
        fix = f"If you trust it, start with --allow-module {top}, or write {top} into {FILE.name} beside webui.py."
        raise ProblemsError.one(what, _WHERE, fix)
    try:
        made = getattr(importlib.import_module(module_name), class_name)(dataset.model_dump(mode="json"))
        given: Iterable[Any] = made.images() if hasattr(made, "images") else made
        rows = []
        for row in given:
            if cancel:
                cancel.check()
            rows.append(dict(row) if isinstance(row, Mapping) else row)
        return rows
    except ModuleNotFoundError as error:
        what = f"The dataset class {name} cannot be imported: there is no module {error.name}."
        fix = "Install it into Atelier's own Python, or put it beside webui.py."
        raise ProblemsError.one(what, _WHERE, fix) from error
    except (Exception, SystemExit) as error:
        if cancel and cancel.wanted:
            raise
        what = f"The dataset class {name} failed: {type(error).__name__}: {error}"
        raise ProblemsError.one(what, _place(error), "Fix the class there.") from error


def _place(error: BaseException) -> str:
    """The last line of the class's own code that the error came through."""
    library = os.path.dirname(os.__file__)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        installed = "site-packages" in frame.filename
        if frame.filename == __file__ or frame.filename.startswith("<frozen"):
            continue
        if installed or not frame.filename.startswith(library):
            return f"{printable(frame.filename)}, line {frame.lineno}"
    return _WHERE


def _wrong(name: str, rows: Sequence[Any]) -> list[Problem]:
    found = [f"number {number} {why}" for number, row in enumerate(rows, 1) for why in _complaints(row)]
    if not found:
        return []
    what = f"The dataset class {name} lists images that cannot be used: {listed(found)}."
    fix = "Give dicts of path, and where wanted caption, repeats, words, is_reg."
    return [Problem(what, _WHERE, fix)]


def _complaints(row: Any) -> list[str]:
    """What is wrong with one of the dicts."""
    if not isinstance(row, dict):
        return [f"is {type(row).__name__}, not a dict"]
    found = [f"has the unknown key {key!r}" for key in row if key not in _KEYS]
    if not isinstance(row.get("path"), str | os.PathLike) or not os.fspath(row["path"]).strip():
        found.append("has no path")
    found += [
        f"has a {key} that is no text" for key in ("caption", "words") if not isinstance(row.get(key), str | None)
    ]
    repeats = row.get("repeats")
    if repeats is not None and (type(repeats) is not int or not 1 <= repeats <= MAX_REPEATS):
        found.append(f"has repeats of {repeats!r}, not 1 to {MAX_REPEATS}")
    if not isinstance(row.get("is_reg", False), bool):
        found.append("has an is_reg that is neither True nor False")
    return found
