"""The scores of images that were tagged, kept per model and folder of images, so that captions can be written again without the
model. Below the workspace's private folder; JSON lines: the labels, then an image a line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.captioning.tagger.tags import Label, Scored
from core.record import atomic
from core.record.bounded_json import parse_json
from core.record.problems import ProblemsError, unwritten
from core.record.regular import MissingFile, read_regular
from core.record.workspace import Workspace

VERSION = 1
MAX_BYTES = 1 << 30
Stamp = tuple[int, int]  # size and time of the file


@dataclass(frozen=True)
class Kept:
    """An image's scores, and the file that they are of."""

    stamp: Stamp
    scored: tuple[Scored, ...]


def stamp_of(image: Path) -> Stamp:
    """Raises OSError."""
    facts = os.stat(image)
    return facts.st_size, facts.st_mtime_ns


def _name(image: Path) -> str:
    return os.fsencode(image.name).decode("utf-8", "backslashreplace")


def place_of(workspace: Workspace, model: str) -> Path:
    """The folder with the scores of a model."""
    return workspace.private / "tags" / hashlib.sha256(model.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class Folder:
    """The scores of the images of one folder by one model."""

    def __init__(self, workspace: Workspace, model: str, images: Path):
        name = hashlib.sha256(os.fsencode(os.path.realpath(images))).hexdigest()[:16]
        self.path = place_of(workspace, model) / f"{name}.jsonl"
        self.of: dict[str, Kept] = {}
        self.thresholds: dict[str, float] = {}

    def read(self) -> None:
        """Take up what is kept; nothing where there is no file. Raises ProblemsError for a damaged one."""
        try:
            lines = read_regular(self.path, MAX_BYTES).decode("utf-8").splitlines()
            head, *images = [parse_json(line, str(self.path)) for line in lines]
            labels = [Label(name, category, tuple(series)) for name, category, series in head["labels"]]
            assert head["version"] == VERSION
            found = {each["image"]: _kept(each, labels) for each in images}
            self.of, self.thresholds = found, {str(kind): float(value) for kind, value in head["thresholds"].items()}
        except MissingFile:
            return
        except ProblemsError:
            raise
        except (ValueError, KeyError, TypeError, IndexError, AssertionError, AttributeError) as error:
            fix = "delete it and tag the images again"
            raise ProblemsError.one(
                "The file with kept scores is damaged", str(self.path), fix, "tagger.bad-scores"
            ) from error

    def write(self) -> None:
        """Atomic: the file has every image that was added until now. Raises ProblemsError."""
        numbers: dict[Label, int] = {}
        lines = []
        for name, kept in self.of.items():
            scores = [[numbers.setdefault(label, len(numbers)), score] for label, score in kept.scored]
            lines.append({"image": name, "stamp": kept.stamp, "scores": scores})
        labels = [[label.name, label.category, label.series] for label in numbers]
        head = {"version": VERSION, "thresholds": self.thresholds, "labels": labels}
        text = "".join(f"{json.dumps(line)}\n" for line in (head, *lines))
        try:
            atomic.write_text(self.path, text)
        except OSError as error:
            what = "The scores of the tagged images cannot be kept"
            raise unwritten(error, what, str(self.path), "captions written so far are kept") from error


def _kept(line: dict[str, Any], labels: Sequence[Label]) -> Kept:
    size, time = line["stamp"]
    scored = tuple((labels[int(number)], float(score)) for number, score in line["scores"])
    return Kept((int(size), int(time)), scored)


class Keeper:
    """Gathers the scores of a run, and writes them folder by folder."""

    def __init__(self, workspace: Workspace, model: str, thresholds: dict[str, float]):
        self._workspace, self._model, self._thresholds = workspace, model, thresholds
        self._folders: dict[Path, Folder] = {}
        self._changed: set[Path] = set()
        self.waiting = 0

    def add(self, image: Path, scored: Sequence[Scored]) -> None:
        folder = self._folders.get(image.parent)
        if folder is None:
            folder = self._folders[image.parent] = Folder(self._workspace, self._model, image.parent)
            try:
                folder.read()
            except ProblemsError:  # a damaged file is replaced
                folder.of = {}
        folder.thresholds = self._thresholds
        with suppress(OSError):  # an image that was moved away meanwhile
            folder.of[_name(image)] = Kept(stamp_of(image), tuple(scored))
            self._changed.add(image.parent)
            self.waiting += 1

    def write(self) -> None:
        for place in sorted(self._changed):
            self._folders[place].write()
        self._changed.clear()
        self.waiting = 0


class Shelf:
    """Finds the kept scores of images, folder by folder."""

    def __init__(self, workspace: Workspace, model: str):
        self._workspace, self._model = workspace, model
        self._folders: dict[Path, Folder] = {}

    def find(self, image: Path) -> tuple[Kept | None, dict[str, float]]:
        """(scores, the model's thresholds); None for an image that was not tagged. Raises ProblemsError."""
        if image.parent not in self._folders:
            folder = Folder(self._workspace, self._model, image.parent)
            folder.read()
            self._folders[image.parent] = folder
        folder = self._folders[image.parent]
        return folder.of.get(_name(image)), folder.thresholds
