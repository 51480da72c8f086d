"""A LoRA in lists and on cards: the run it comes from, with its checkpoints and their samples, or a single file."""

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


@dataclass(frozen=True)
class Lora:
    """A LoRA file. name: title of its run, else of the file; image: sample or preview; here: its checkpoint; steps: all of its run"""

    name: str
    image: Path | None
    here: Checkpoint | None
    steps: list[Checkpoint]


def lora_of(page: FormPage, path: Path) -> Lora:
    steps, run = checkpoints(page, path), run_of(path, page.workspace.runs)
    here = next((each for each in steps if each.path == path), None)
    if here is None or run is None:
        return Lora(path.name.removesuffix(path.suffix), preview_of(path, page.workspace), None, [])
    return Lora(title_of(RunFolder(run)), here.sample or preview_of(path, page.workspace), here, steps)


def checkpoints(page: FormPage, path: Path | None) -> list[Checkpoint]:
    """The checkpoints of the run that saved a file, in the order of their steps; [] of no run, or one without its journal."""
    run = run_of(path, page.workspace.runs)
    if run is None:
        return []
    try:
        facts: dict[str, Any] = page.engine.snapshot(run.name)
        rows = candidates([file["name"] for file in facts["files"]], facts)
    except (ProblemsError, OSError, KeyError):
        return []
    best, kept = Path((facts.get("best") or {}).get("file", "")).name, {Path(file).name for file in read_kept(run)}
    found = []
    for row in rows:
        marks = tuple(mark for mark, marked in (("best", row["file"] == best), ("kept", row["file"] in kept)) if marked)
        sample = run / "samples" / f"{row['step']:08d}_00.png"
        existing = sample if sample.is_file() else None
        found.append(Checkpoint(run / "checkpoints" / row["file"], row["label"], marks, existing, row["loss"]))
    return found


def one_for_each_run(files: Iterable[Listed], workspace: Workspace) -> list[Listed]:
    """The best file of each run, else its first one here, under the run's title with the number of its steps; other files as they
    are."""
    of_run = cache(lambda run: (title_of(RunFolder(run)), read_best(run)))
    found: dict[Any, list[Listed]] = {}
    for each in files:
        run, stem = run_of(each.path, workspace.runs), STEP.sub("", each.path.name.removesuffix(each.path.suffix))
        found.setdefault(each.path if run is None or each.facts.problem else (run, stem), []).append(each)
    return [_entry(key, each, of_run) for key, each in found.items()]


def _entry(key: Any, files: list[Listed], of_run: Callable[[Path], tuple[str, tuple[str, str] | None]]) -> Listed:
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
