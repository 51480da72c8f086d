"""Model files for lists and cards: a checkpoint with the other checkpoints of its run and their samples, or a single file."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.assess.recommended import recommended
from core.engine.verdict import candidates, images_in
from core.generation.model.index import facts_of_file, preview_of
from core.record.best import read_best, short_label, stored_best
from core.record.file_titles import AVERAGE, file_stem, label_of, steps_of
from core.record.kept import kept_mark, read_kept
from core.record.problems import ProblemsError
from core.record.run_about import initial_title, title_of
from core.record.run_folder import RunFolder, run_of
from core.record.workspace import Workspace
from tabs.form.form_page import FormPage
from tabs.form.model_lists import Listed

STEP = re.compile(r"-(?:step\d{8}|\d{6})$")  # end of the name of a checkpoint that is not the last one
EPOCH = re.compile(r"-(\d{6})$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run.

    step     None if unknown
    label    "step 250"
    marks    "best" or "lowest loss", "kept"
    loss     None if not measured
    sample   the run's first sample at this step, else an image in the run's comparison, or None
    """

    path: Path
    step: int | None
    label: str
    marks: tuple[str, ...]
    sample: Path | None
    loss: float | None


@dataclass(frozen=True)
class Lora:
    """A model file as lists and cards show it.

    name         title of its run, else of the file
    image        sample or preview
    checkpoint   None for a file without a run
    steps        all checkpoints of the run, if they were read
    """

    path: Path
    name: str
    image: Path | None = None
    checkpoint: Checkpoint | None = None
    steps: tuple[Checkpoint, ...] = ()


def brief(path: Path, workspace: Workspace) -> Lora:
    """Return the `Lora` of a file without reading its run's journal, so without steps and losses."""
    run, stem = run_of(path, workspace.runs), file_stem(path.name)
    if run is None:
        return Lora(path, stem, preview_of(path, workspace))
    image = preview_of(path, workspace, facts_of_file(path).step)
    folder, best, keep_marks = RunFolder(run), read_best(run), read_kept(run)
    file, output = path.relative_to(run).as_posix(), output_name_of(stem)
    title, image = title_of(folder), image or _comparison_image(run, path.name, workspace)
    checkpoint = Checkpoint(path, None, _label(path, run), _marks(file, best, keep_marks), None, None)
    return Lora(path, title if output in (title, initial_title(folder)) else f"{title} / {output}", image, checkpoint)


def _marks(file: str, best: tuple[str, str] | None, kept_names: Mapping[str, str]) -> tuple[str, ...]:
    """Return the marks of a checkpoint, such as ("best", "kept"); () for none.

    file         relative to its run
    best         of `read_best`
    kept_names   of `read_kept`
    """
    lowest = (short_label(best[1]),) if best and best[1] and best[0] == file else ()
    return lowest + ((kept_mark(file, kept_names[file]),) if file in kept_names else ())


def _comparison_image(run: Path, file: str, workspace: Workspace) -> Path | None:
    """Return the first image of a checkpoint in the comparison of its run; None without one."""
    return next((image for image, _ in images_in(run, file, workspace)), None)


def _label(path: Path, run: Path) -> str:
    """Return the label of a checkpoint: "step 250", by the file's metadata or name or the run's journal; "epoch 4"; or the file's name."""
    step = facts_of_file(path).step
    label = label_of(path.name, step)
    if epoch := EPOCH.search(label):
        return f"epoch {int(epoch[1]):,}"
    return label if step is not None else label_of(path.name, steps_of(run).get(path.name))  # as of ControlNets


def output_name_of(stem: str) -> str:
    """Return the output name of a run, from the name of one of its files without extension."""
    return AVERAGE.sub("", STEP.sub("", stem))


def lora_of(page: FormPage, path: Path) -> Lora:
    """Return the `Lora` of a file with all checkpoints of its run."""
    lora, steps = brief(path, page.workspace), checkpoints(page, path)
    checkpoint = next((each for each in steps if each.path == path), None)
    if checkpoint is None:
        return Lora(path, file_stem(path.name), lora.image)
    image = checkpoint.sample or preview_of(path, page.workspace, checkpoint.step)
    return replace(lora, image=image, checkpoint=checkpoint, steps=tuple(steps))


def checkpoints(page: FormPage, path: Path | None) -> list[Checkpoint]:
    """Return the checkpoints of the run that saved a file, in the run's order; [] if no run did or its journal cannot be read."""
    run = run_of(path, page.workspace.runs)
    if run is None:
        return []
    try:
        facts: dict[str, Any] = page.engine.snapshot(run.name)
        rows = candidates([file["name"] for file in facts["files"]], facts)
    except (ProblemsError, OSError, KeyError):
        return []
    best, keep_marks = facts.get("best"), read_kept(run)
    best_mark = (best["file"], best.get("label", "best")) if best else None
    checkpoints = []
    for row in rows:
        path = run / "checkpoints" / row["file"]
        marks = _marks(path.relative_to(run).as_posix(), best_mark, keep_marks)
        sample = run / "samples" / f"{row['step']:08d}_00.png"
        has_sample = sample.is_file() and not row["average"]
        image = sample if has_sample else _comparison_image(run, row["file"], page.workspace)
        checkpoints.append(Checkpoint(path, row["step"], row["label"], marks, image, row["loss"]))
    return checkpoints


def one_for_each_run(files: Iterable[Listed], workspace: Workspace) -> list[tuple[Listed, int]]:
    """Return [(file, number of its run's files)]: of each run and output name the `recommended` file, else the first listed one.

    A file without a run, and an unreadable file, is an entry of its own.
    """
    by_output: dict[Any, list[Listed]] = {}
    for each in files:
        run = run_of(each.path, workspace.runs)
        single = run is None or bool(each.facts.problem)
        by_output.setdefault(each.path if single else (run, output_name_of(file_stem(each.path.name))), []).append(each)
    return [_entry(each, workspace) for each in by_output.values()]


def _entry(files: list[Listed], workspace: Workspace) -> tuple[Listed, int]:
    """Return (the recommended of a run's files, else the first; their number)."""
    run = run_of(files[0].path, workspace.runs)
    path = recommended(run, stored_best(run))[0] if run is not None else None
    return next((each for each in files if each.path == path), files[0]), len(files)
