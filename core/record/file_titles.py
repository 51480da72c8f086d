"""Titles of model files in lists and messages: the title of the run with the step, else the file's name."""

import re
from collections.abc import Sequence
from pathlib import Path

from core.record.journal import JOURNAL, read_lines
from core.record.run_about import title_of
from core.record.run_folder import RunFolder, run_of
from core.record.stamps import cached_until_changed
from core.record.workspace import last_part

BASE_MODEL = "base model"
AVERAGE = re.compile(r"-average-(\d+)-to-(\d+)(-power)?(-\d+)?$")  # ends the name of an average of checkpoints
MOST_NAMED = 4  # checkpoints that a sentence names
WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def file_stem(text: str) -> str:
    """Return the last component of a path, without the extension if that is one of WEIGHTS."""
    name = last_part(text) or text
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.casefold() in WEIGHTS else name


def is_average(name: str) -> bool:
    """Whether a checkpoint named `name` is an average of checkpoints."""
    return AVERAGE.search(Path(name).stem) is not None


def label_of(file: str, step: int | None) -> str:
    """Return the label of a checkpoint file: "step 1,200"; "average 40 to 120" for an average; "base model" for an empty `file`.
    step: after which it was saved; None: as in the file's name, else the label is the name without extension"""
    if not file:
        return BASE_MODEL
    if average := AVERAGE.search(Path(file).stem):
        power = " (power)" if average[3] else ""
        return f"average {int(average[1]):,} to {int(average[2]):,}{power}"
    saved_after = re.search(r"-step(\d+)$", Path(file).stem)  # of a file that is gone
    step = int(saved_after[1]) if step is None and saved_after else step
    return Path(file).stem if step is None else f"step {step:,}"


def labels_of(files: Sequence[tuple[str, int]]) -> list[str]:
    """Return `label_of` for each (file, step) of a run; equal labels get the file's name in brackets."""
    labels = [label_of(*each) for each in files]
    pairs = zip(labels, files, strict=True)
    return [label if labels.count(label) == 1 else f"{label} ({file_stem(name)})" for label, (name, _) in pairs]


def title_of_file(path: Path, runs: Path) -> str:
    """Return the title of a model file: "fox, step 250" for a checkpoint of a run in `runs`, else its name without extension."""
    run = run_of(path, runs)
    if run is None:
        return file_stem(path.name)
    title, label = title_of(RunFolder(run)), label_of(path.name, steps_of(run).get(path.name))
    return title if label == title else f"{title}, {label}"


def titles_of(files: Sequence[Sequence[Path]], runs: Path) -> list[str]:
    """Return a title for each group of files: the titles of its files, joined by commas.

    Different groups with the same title get a distinction in brackets, the first that differs for all: name of the run's or
    file's folder, name of the file, path.
    """
    titles = [", ".join(dict.fromkeys(title_of_file(path, runs) for path in each)) for each in files]
    groups: dict[str, set[tuple[Path, ...]]] = {}
    for title, each in zip(titles, files, strict=True):
        groups.setdefault(title, set()).add(tuple(each))
    names = {title: _distinctions(same, runs) for title, same in groups.items() if len(same) > 1}
    return [
        f"{title} ({names[title][tuple(each)]})" if title in names else title
        for title, each in zip(titles, files, strict=True)
    ]


def _distinctions(groups: set[tuple[Path, ...]], runs: Path) -> dict[tuple[Path, ...], str]:
    """Return {group: text that distinguishes it from the others} for groups of files that have the same title."""
    names: dict[tuple[Path, ...], str] = {}
    for name in (lambda path: (run_of(path, runs) or path.parent).name, lambda path: path.name, Path.as_posix):
        names = {each: ", ".join(dict.fromkeys(map(name, each))) for each in groups}
        if len(set(names.values())) == len(groups):
            break
    return names


@cached_until_changed(200, missing={}, name=JOURNAL)
def steps_of(run: Path) -> dict[str, int]:
    """Return {file name: step} of the checkpoints saved by the run in folder `run`, from its journal."""
    saved = (line for line in read_lines(run / JOURNAL) if line.get("kind") == "saved")
    return {Path(line["file"]).name: line["step"] for line in saved if {"file", "step"} <= line.keys()}
