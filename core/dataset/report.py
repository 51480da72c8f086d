"""What a look at a dataset found, as plain data: every image with its place, the arithmetic, the findings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.dataset.batches import Placed
from core.dataset.buckets import Size
from core.dataset.length import Length
from core.dataset.questions import Question
from core.dataset.scan import Folder
from core.record.problems import Problem, errors


@dataclass(frozen=True, slots=True)
class Row:
    """One image as the page lists it.

    caption   after prefix and suffix, before draws      source    as in Caption
    frame     what trains, as fractions of the image: (left, top, right, bottom)
    scale     above 1 it is enlarged                     tokens    of the longest that may be drawn; None: not counted
    trains    False: `why` says the reason               role      "train", "regularization" or "validation"
    concept   number of its folder's settings            more      its buckets at the further resolutions
    really, transparent   its kind where the name says another; whether it is seen through (once it was decoded)
    mask      whether a mask or control image goes with it
    """

    key: tuple[str, str]
    path: Path
    size: Size | None
    bucket: Size | None
    frame: tuple[float, float, float, float] | None
    scale: float | None
    repeats: int
    caption: str
    caption_path: Path | None
    source: str
    tokens: int | None
    trains: bool
    why: str = ""
    role: str = "train"
    concept: int = 0
    more: tuple[Size, ...] = ()
    mask: bool = False
    really: str = ""
    transparent: bool = False


@dataclass(frozen=True)
class Report:
    """What a start would do. `placed` is what the training takes over; `problems`: errors (they block) and advice.
    `undecoded`: images and masks of which only the header was read, so that damage behind it is not known yet."""

    problems: tuple[Problem, ...]
    placed: tuple[Placed, ...]
    validation: tuple[Placed, ...]
    rows: tuple[Row, ...]
    folders: tuple[Folder, ...]
    buckets: dict[Size, tuple[int, int]]  # {size: (images, views in the first epoch)}
    views: dict[int, int]  # {number of the folder's settings: views in the first epoch}
    captions_found: int
    batches_per_epoch: int
    length: Length
    sentence: str
    longest_tokens: int | None
    token_limit: int
    questions: tuple[Question, ...] = ()
    undecoded: int = 0

    @property
    def ok(self) -> bool:
        return not errors(self.problems)

    @property
    def trained(self) -> int:
        """Images that train, each counted once however many resolutions it trains at."""
        return sum(row.trains for row in self.rows)

    @property
    def skipped(self) -> int:
        return sum(not row.trains for row in self.rows)

    steps_per_epoch = property(lambda self: self.length.steps_per_epoch)
    epochs = property(lambda self: self.length.epochs)
    total_steps = property(lambda self: self.length.total_steps)

    def summary(self) -> dict[str, Any]:
        """Without the rows, as plain JSON."""
        return {
            "sentence": self.sentence,
            "trained": self.trained,
            "skipped": self.skipped,
            "validation": len(self.validation),
            "undecoded": self.undecoded,
            "captions_found": self.captions_found,
            "buckets": [{"width": w, "height": h, "images": n, "views": v} for (w, h), (n, v) in self.buckets.items()],
            "batches_per_epoch": self.batches_per_epoch,
            **asdict(self.length),
            "longest_tokens": self.longest_tokens,
            "token_limit": self.token_limit,
            "questions": [asdict(question) for question in self.questions],
            "problems": [problem.to_dict() for problem in self.problems],
        }
