"""Cached scores of tagged images, one file per model and image folder, so that captions can be rewritten without the model.

Files are in the workspace's private folder. Their JSON lines form blocks: a line with the labels of the block, then a line per
image. Blocks are only appended, so that each image is written once and a kill damages the last line only. An image's last line
counts.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from core.captioning.tagger.tags import Label, Scored
from core.record import atomic
from core.record.bounded_json import parse_json
from core.record.problems import ProblemsError, write_errors
from core.record.regular import MissingFile, open_regular
from core.record.stamps import Stamp, stamp, stamp_of
from core.record.units import size_text
from core.record.workspace import Workspace

VERSION = 1
MAX_BYTES = 1 << 30
INDEXES = 64  # of folders, in memory
HEAD = re.compile(rb'\{"version": (\d+), ')
# An image's line up to its name, which is JSON. A truncated line has no end.
IMAGE = re.compile(rb'\{"image": ("[^"\\]*(?:\\.[^"\\]*)*"), "stamp": ')
END = b"]}\n"


@dataclass(frozen=True)
class ImageScores:
    """An image's (label, score) pairs. `stamp`: of the image file when it was tagged."""

    stamp: Stamp
    scored: tuple[Scored, ...]


@dataclass(frozen=True)
class LinePosition:
    """Byte offset (`start`) and length of an image's line, and the offset of its block (`head`)."""

    start: int
    length: int
    head: int


@dataclass
class Index:
    """Byte positions in a cache file of scores.

    images   by file name, encoded as JSON
    heads    {offset of a block: length of its label line}
    lines    number of image lines, including outdated ones
    labels   {offset of a block: (labels, thresholds)} of the blocks read so far
    """

    stamp: Stamp
    images: dict[bytes, LinePosition] = field(default_factory=dict)
    heads: dict[int, int] = field(default_factory=dict)  # start -> length
    lines: int = 0
    labels: dict[int, tuple[list[Label], dict[str, float]]] = field(default_factory=dict)  # as far as read


_indexes: dict[Path, Index] = {}


def _name(image: Path) -> str:
    """Return an image's file name as valid Unicode, with undecodable bytes escaped."""
    return os.fsencode(image.name).decode("utf-8", "backslashreplace")


def scores_folder(workspace: Workspace, model: str) -> Path:
    """Return the folder with the score files of a model. `model`: its key, see `model_key` in tagging.py."""
    return workspace.private / "tags" / hashlib.sha256(model.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class FolderScores:
    """The cached scores of one image folder by one model."""

    def __init__(self, workspace: Workspace, model: str, images: Path):
        """`model`: its key, see `model_key` in tagging.py; `images`: the image folder."""
        name = hashlib.sha256(os.fsencode(os.path.realpath(images))).hexdigest()[:16]
        self.path = scores_folder(workspace, model) / f"{name}.jsonl"

    # ---- reading

    def find(self, image: Path) -> tuple[ImageScores | None, dict[str, float]]:
        """Return (an image's scores, the model's thresholds by category); (None, thresholds) if the image was not tagged.

        Reads only this image's line. Raises ProblemsError for a damaged file.
        """
        try:
            with open_regular(self.path) as handle:
                index = self._index(handle)
                position = index.images.get(json.dumps(_name(image)).encode())
                scores = None if position is None else self._scores_at(handle, index, position)
                return scores, self._labels(handle, index, max(index.heads))[1] if index.heads else {}
        except MissingFile:
            return None, {}
        except ProblemsError:
            raise
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise self._damaged() from error

    def _index(self, handle: BinaryIO) -> Index:
        """Return the index of the open file, cached until the file changes. Raises ProblemsError."""
        stamp = stamp_of(os.fstat(handle.fileno()))
        index = _indexes.get(self.path)
        if index is None or index.stamp != stamp:
            if stamp[0] > MAX_BYTES:
                what = f"The file is larger than the limit of {size_text(MAX_BYTES)}"
                raise ProblemsError.one(what, str(self.path), "delete it and tag the images again", "file.too-large")
            index = read_index(handle, stamp)
            if index is None:
                raise self._damaged()
            if len(_indexes) >= INDEXES:
                _indexes.clear()
            _indexes[self.path] = index
        return index

    def _scores_at(self, handle: BinaryIO, index: Index, position: LinePosition) -> ImageScores:
        """Parse the line of an image at a position."""
        labels, _ = self._labels(handle, index, position.head)
        line = self._line(handle, position.start, position.length)
        size, time = line["stamp"]
        scored = tuple((labels[int(number)], float(score)) for number, score in line["scores"])
        return ImageScores((int(size), int(time)), scored)

    def _labels(self, handle: BinaryIO, index: Index, head: int) -> tuple[list[Label], dict[str, float]]:
        """Return (labels, thresholds by category) of the block that starts at byte `head`."""
        if head not in index.labels:
            line = self._line(handle, head, index.heads[head])
            labels = [Label(name, category, tuple(series)) for name, category, series in line["labels"]]
            index.labels[head] = labels, {str(kind): float(value) for kind, value in line["thresholds"].items()}
        return index.labels[head]

    def _line(self, handle: BinaryIO, start: int, length: int) -> Any:
        """Parse the JSON line at a byte offset."""
        handle.seek(start)
        return parse_json(handle.read(length), str(self.path))

    def _damaged(self) -> ProblemsError:
        """Return the error that the file is damaged."""
        fix = "delete it and tag the images again"
        return ProblemsError.one("The kept scores are damaged", str(self.path), fix, "tagger.bad-scores")

    # ---- writing

    def append(self, images: Mapping[str, ImageScores], thresholds: Mapping[str, float]) -> None:
        """Append a block of scores. `images`: by file name; `thresholds`: by category. Raises OSError and ProblemsError."""
        block = _block(images, thresholds)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begin = b"" if self._ends_a_line() else b"\n"
        with open(self.path, "ab") as handle:
            handle.write(begin + block)
        atomic.sync_file(self.path)

    def _ends_a_line(self) -> bool:
        """Return whether the file ends with a line break (or is missing); False after a kill during a write."""
        try:
            with open_regular(self.path) as handle:
                size = handle.seek(0, os.SEEK_END)
                handle.seek(max(0, size - 1))
                return handle.read() in (b"", b"\n")
        except MissingFile:
            return True

    def compact(self) -> None:
        """Rewrite the file without outdated lines if these are more than half. Raises OSError and ProblemsError."""
        with open_regular(self.path) as handle:
            index = self._index(handle)
        if index.lines <= 2 * len(index.images):
            return
        # closed before it is replaced, which Windows asks for
        with (
            atomic.open_atomic(self.path) as temporary,
            open_regular(self.path) as handle,
            open(temporary, "wb") as target,
        ):
            for start, length in _lines_to_keep(self._index(handle)):
                handle.seek(start)
                target.write(handle.read(length))


def _lines_to_keep(index: Index) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the lines to keep: of each block with a current image, the label line and those images."""
    blocks: dict[int, list[tuple[int, int]]] = {}
    for line in index.images.values():
        blocks.setdefault(line.head, []).append((line.start, line.length))
    for head, lines in sorted(blocks.items()):
        yield head, index.heads[head]
        yield from sorted(lines)


def read_index(handle: BinaryIO, stamp: Stamp) -> Index | None:
    """Return the index of an open file, without incomplete lines; None for a file of another format."""
    index, head, start, last = Index(stamp), None, 0, b""
    for last in handle:
        if last.endswith(END) and (version := HEAD.match(last)):
            head = start if int(version[1]) == VERSION else None
            index.heads |= {start: len(last)} if head is not None else {}
        elif head is not None and last.endswith(END) and (image := IMAGE.match(last)):
            index.images[image[1]] = LinePosition(start, len(last), head)
            index.lines += 1
        start += len(last)
    only_half_a_line = start == len(last) and not last.endswith(b"\n")
    return index if index.heads or only_half_a_line else None


def _block(images: Mapping[str, ImageScores], thresholds: Mapping[str, float]) -> bytes:
    """Return a block as JSON lines: thresholds and labels, then each image with its scores as [index of the label, score]."""
    numbers: dict[Label, int] = {}
    lines = []
    for name, entry in images.items():
        scores = [[numbers.setdefault(label, len(numbers)), score] for label, score in entry.scored]
        lines.append({"image": name, "stamp": entry.stamp, "scores": scores})
    labels = [[label.name, label.category, label.series] for label in numbers]
    head = {"version": VERSION, "thresholds": dict(thresholds), "labels": labels}
    return "".join(f"{json.dumps(line)}\n" for line in (head, *lines)).encode()


class ScoreCache:
    """Reads the cached scores of a model, and collects and writes those of a run.

    thresholds   the model's, by category; written with the scores
    waiting      number of images not written yet
    """

    def __init__(self, workspace: Workspace, model: str, thresholds: Mapping[str, float] | None = None):
        """`model`: its key, see `model_key` in tagging.py."""
        self._workspace, self._model, self._thresholds = workspace, model, thresholds or {}
        self._waiting: dict[Path, dict[str, ImageScores]] = {}
        self._folders: dict[Path, FolderScores] = {}
        self.waiting = 0

    def _folder(self, images: Path) -> FolderScores:
        """Return the cache of an image folder, opened once."""
        if images not in self._folders:
            self._folders[images] = FolderScores(self._workspace, self._model, images)
        return self._folders[images]

    def find(self, image: Path) -> tuple[ImageScores | None, dict[str, float]]:
        """Return (an image's scores, the model's thresholds by category); None for scores of an untagged image. Raises ProblemsError."""
        return self._folder(image.parent).find(image)

    def add(self, image: Path, scored: Sequence[Scored]) -> None:
        """Collect an image's scores for the next `write`. Does nothing if the image has disappeared."""
        with suppress(OSError):  # an image that was moved away meanwhile
            scores = ImageScores(stamp(image), tuple(scored))
            self._waiting.setdefault(image.parent, {})[_name(image)] = scores
            self.waiting += 1

    def write(self) -> None:
        """Write the scores added so far. Raises ProblemsError."""
        for images, added in sorted(self._waiting.items()):
            with _written(folder := self._folder(images)):
                folder.append(added, self._thresholds)
        self._waiting.clear()
        self.waiting = 0

    def close(self) -> None:
        """Write scores not written yet, and compact files with mostly outdated lines. Raises ProblemsError."""
        self.write()
        for folder in self._folders.values():
            with _written(folder):
                folder.compact()


def _written(folder: FolderScores) -> AbstractContextManager[None]:
    """Context that turns an OSError into a ProblemsError."""
    what = "The scores of the tagged images cannot be kept"
    return write_errors(what, str(folder.path), "captions written so far are kept")
