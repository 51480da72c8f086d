"""Custom dataset classes: package.module.Class lists the images instead of folders.

The class is code, so its module must be allowed on this machine (record/allowed.py); a preset from elsewhere that names one is
refused. The class is called with the dataset's settings as a dict; iterating the result, or its `.images()`, gives dicts
{path, caption?, repeats?, words?, is_reg?}. Each is checked like a scanned image.
"""

import importlib
import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.dataset.sources.files import MAX_REPEATS, path_ends, printable, reachable
from core.dataset.sources.folders import Root
from core.dataset.sources.image_info import Scan, about
from core.dataset.sources.memo import Memo
from core.dataset.sources.registered import SOURCES
from core.dataset.sources.scan_builder import ScanBuilder
from core.dataset.sources.walk import File, file_at
from core.record.allowed import FILE, allowed_modules
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError
from core.record.workspace import resolve_path
from core.settings.dataset.concepts import Concept
from core.settings.dataset.dataset import DatasetSettings

_WHERE = "dataset.dataset_class"
_KEYS = {"path", "caption", "repeats", "words", "is_reg"}


def scan_class(
    dataset: DatasetSettings,
    concepts: Sequence[Concept],
    cancel: CancelToken | None = None,
    memo_path: Path | str | None = None,
) -> Scan:
    """Return the images that the dataset class lists, in its order. Problems are returned; only a cancel raises.

    concepts   the folders' settings: images use the first with a role other than "regularization", those with is_reg the first
               with that role
    """
    name = (dataset.dataset_class or "").strip()
    try:
        rows = _rows_of(name, dataset, cancel)
    except ProblemsError as error:
        return Scan((), (), (), tuple(error.problems))
    builder = ScanBuilder(Memo(memo_path), cancel, "advice" if dataset.skip_broken else "error")
    builder.problems += _row_problems(name, rows)
    valid = [row for row in rows if not _complaints(row)]
    if not valid and not builder.problems:
        builder.problems.append(
            Problem(f"The dataset class {name} lists no images", _WHERE, "check its data", code="dataset-class.empty")
        )
    for is_reg in (False, True):
        rows_of_role = [row for row in valid if bool(row.get("is_reg", False)) == is_reg]
        if not rows_of_role:
            continue
        concept = next((each for each in concepts if (each.role == "regularization") == is_reg), None)
        if concept is None:
            role = "regularization" if is_reg else "train"
            what = f"The dataset class {name} lists images with the role '{role}', but no folder has this role"
            fix = f"add a folder with the role '{role}'"
            builder.problems.append(Problem(what, _WHERE, fix, code="dataset-class.no-role"))
            continue
        _add_images(builder, rows_of_role, name.rpartition(".")[2], concept)
    return builder.result()


def _add_images(builder: ScanBuilder, rows: Sequence[dict[str, Any]], name: str, concept: Concept) -> None:
    """Add the images of the class's rows to the scan, with the settings of `concept`.

    rows   {"path", perhaps "caption", "repeats", "words", "is_reg"} of each image
    name   of the class without its module
    """
    files = _files(rows)
    id = builder.new_id(name)
    by_relative = {file.relative: row for file, row in zip(files, rows, strict=True)}
    listed = builder.read(files, id, Root(Path(name), 1, ""), concept)
    images = []
    for image in listed:
        row = by_relative[image.relative]
        repeats, tokens = row.get("repeats") or 1, row.get("words") or ""
        images.append(replace(image, metadata_caption=row.get("caption"), repeats=repeats, class_tokens=tokens))
    builder.finish(images, concept, {})


def _files(rows: Sequence[Mapping[str, Any]]) -> list[File]:
    """Return the file of each row (its "path"), with a unique relative name: the file's name, with parent folders or a number if several
    share a name."""
    used_names: set[str] = set()
    files = []
    for row in rows:
        path = reachable(resolve_path(os.fspath(row["path"])))
        names = list(path_ends(path))
        number, name = 1, next((name for name in names if name not in used_names), "")
        while not name or name in used_names:  # one image listed twice
            number += 1
            name = f"{names[0]} #{number}" if f"{names[0]} #{number}" not in used_names else ""
        used_names.add(name)
        files.append(file_at(path, name))
    return files


# ---- the class


def _rows_of(name: str, dataset: DatasetSettings, cancel: CancelToken | None) -> list[Any]:
    """Import the class, or take the registered source; call it and return its rows, not yet checked (`_complaints`). Raises ProblemsError.
    name: class path, or a key of SOURCES"""
    source = SOURCES.get(name)
    if source is None:
        _check_allowed(name)
    try:
        factory = source.images if source else _imported(name)
        instance: Any = factory(dataset.model_dump(mode="json"))
        listed: Iterable[Any] = instance.images() if hasattr(instance, "images") else instance
        rows = []
        for row in listed:
            if cancel:
                cancel.check()
            rows.append(dict(row) if isinstance(row, Mapping) else row)
        return rows
    except ModuleNotFoundError as error:
        what = f"The dataset class {name} cannot be imported: there is no module {error.name}"
        fix = "install it into Atelier's Python environment, or put it next to webui.py"
        raise ProblemsError.one(what, _WHERE, fix, code="dataset-class.no-module") from error
    except (Exception, SystemExit) as error:
        if cancel and cancel.wanted:
            raise
        what = f"The dataset class {name} failed: {type(error).__name__}: {error}"
        raise ProblemsError.one(what, _location(error), "fix the class there", "dataset-class.failed") from error


def _check_allowed(name: str) -> None:
    """Raise ProblemsError unless `name` is a class path in a module that the user allowed on this machine."""
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        what = f"'{name}' is not a class path"
        raise ProblemsError.one(what, _WHERE, "use package.module.Class", "dataset-class.name")
    top = name.partition(".")[0]
    if top not in allowed_modules():
        what = f"The dataset class {name} needs the module '{top}', which is not allowed on this machine"
        fix = f"start with --allow-module {top} if you trust it, or add {top} to {FILE.name} next to webui.py"
        raise ProblemsError.one(what, _WHERE, fix, code="module.not-allowed")


def _imported(name: str) -> Any:
    """Import a class by its path package.module.Class."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _location(error: BaseException) -> str:
    """Return where a dataset class failed: "file, line n" of the last frame outside Python's library, else the setting."""
    library = os.path.dirname(os.__file__)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        installed = "site-packages" in frame.filename
        if frame.filename == __file__ or frame.filename.startswith("<frozen"):
            continue
        if installed or not frame.filename.startswith(library):
            return f"{printable(frame.filename)}, line {frame.lineno}"
    return _WHERE


def _row_problems(name: str, rows: Sequence[Any]) -> list[Problem]:
    """Return [the error that lists all invalid rows], or []."""
    complaints = [f"number {number} {why}" for number, row in enumerate(rows, 1) for why in _complaints(row)]
    what = f"The dataset class {name} returns invalid images: {{names}}"
    fix = "return dicts with path and, optionally, caption, repeats, words, is_reg"
    return about(complaints, what, fix, "dataset-class.invalid-row", "error", where=_WHERE)


def _complaints(row: Any) -> list[str]:
    """Return what is wrong with one row, each as predicate of a sentence, "has no path"; [] if it is valid: {"path", perhaps "caption",
    "words": texts, "repeats": integer, "is_reg": bool}."""
    if not isinstance(row, dict):
        return [f"is {type(row).__name__}, not a dict"]
    complaints = [f"has the unknown key {key!r}" for key in row if key not in _KEYS]
    if not isinstance(row.get("path"), str | os.PathLike) or not os.fspath(row["path"]).strip():
        complaints.append("has no path")
    complaints += [
        f"has a {key} that is not a string" for key in ("caption", "words") if not isinstance(row.get(key), str | None)
    ]
    repeats = row.get("repeats")
    if repeats is not None and (type(repeats) is not int or not 1 <= repeats <= MAX_REPEATS):
        complaints.append(f"has repeats of {repeats!r}, not 1 to {MAX_REPEATS}")
    if not isinstance(row.get("is_reg", False), bool):
        complaints.append("has an is_reg that is not a bool")
    return complaints
