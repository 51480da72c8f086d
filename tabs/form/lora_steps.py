"""A LoRA as a thing: the run it comes from, with its checkpoints and their samples, or a single file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from core.engine.verdict import candidates
from core.generation.model.index import preview_of
from core.record.best import read_best
from core.record.kept import read_kept
from core.record.problems import ProblemsError
from core.record.run_about import title_of
from core.record.run_folder import RunFolder, run_of
from core.record.workspace import Workspace
from tabs.form.model_lists import Listed
from tabs.form.picker import FormPage

STEP = re.compile(r"-(?:step\d{8}|\d{6})$")  # end of the name of a checkpoint that is not the last one
MARK = re.compile(r" (\([^()]*\))$")  # end of a label: best or kept


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run. label: "step 250"; marks: "best", "kept"; sample: its own first one, or None"""

    path: Path
    label: str
    marks: tuple[str, ...]
    sample: Path | None
    loss: float | None


def checkpoints(page: FormPage, run: Path) -> list[Checkpoint]:
    """The checkpoints of a run in the order of their steps; [] without its journal."""
    try:
        facts: dict[str, Any] = page.engine.snapshot(run.name)
        rows = candidates([file["name"] for file in facts["files"]], facts)
    except (ProblemsError, OSError, KeyError):
        return []
    best, kept = facts.get("best"), read_kept(run)
    found = []
    for row in rows:
        path = run / "checkpoints" / row["file"]
        marks = (
            *(["best"] if best and path.name == Path(best["file"]).name else []),
            *(["kept"] if f"checkpoints/{path.name}" in kept else []),
        )
        sample = run / "samples" / f"{row['step']:08d}_00.png"
        found.append(Checkpoint(path, row["label"], marks, sample if sample.is_file() else None, row["loss"]))
    return found


def name_of(path: Path, steps: Iterable[Checkpoint], workspace: Workspace) -> tuple[str, Checkpoint | None]:
    """(title of the run, checkpoint) of one of its checkpoints, (file name, None) of another file."""
    here = next((each for each in steps if each.path == path), None)
    run = run_of(path, workspace.runs)
    stem = path.name.removesuffix(path.suffix)
    return (title_of(RunFolder(run)), here) if here is not None and run is not None else (stem, None)


def picture_of(path: Path, here: Checkpoint | None, workspace: Workspace) -> Path | None:
    """The checkpoint's own sample, else the preview of the file."""
    return (here.sample if here is not None else None) or preview_of(path, workspace)


def one_for_each_run(files: Iterable[Listed], workspace: Workspace) -> list[Listed]:
    """The best file of each run, else its first one here, under the run's title with the number of its steps; other files as they
    are."""
    of_run = cache(lambda run: (title_of(RunFolder(run)), read_best(run)))
    found: dict[Any, list[Listed]] = {}
    for each in files:
        run, stem = run_of(each.path, workspace.runs), STEP.sub("", each.path.name.removesuffix(each.path.suffix))
        found.setdefault(each.path if run is None or each.facts.problem else (run, stem), []).append(each)
    return [_thing(key, each, of_run) for key, each in found.items()]


def _thing(key: Any, files: list[Listed], of_run: Callable[[Path], tuple[str, tuple[str, str] | None]]) -> Listed:
    """One entry for the files of a run. key: (run folder, file name without the step), or the path of another file"""
    if not isinstance(key, tuple):
        return files[0]
    run, stem = key
    title, best = of_run(run)
    file = next((each for each in files if best is not None and run / best[0] == each.path), files[0])
    mark = MARK.search(file.label)
    words = title if stem == title else f"{title} / {stem}"
    words += f" {mark[1]}" if mark else ""
    return replace(file, label=f"{words}, {len(files)} checkpoints" if len(files) > 1 else words)
