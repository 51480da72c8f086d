"""The preflight report as plain data: every image with its bucket, the length of the training, the problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.dataset.buckets.aspect_ratio import Size
from core.dataset.buckets.batches import Placed
from core.dataset.buckets.length import Length
from core.dataset.captions.files import SENTENCES, TAGS, lines_of
from core.dataset.images.look import Look
from core.dataset.sources.files import extension, printable
from core.dataset.sources.image_info import Folder, listed
from core.record.problems import Problem, errors
from core.record.units import count

MOST_NAMED = 16  # validation images in a line: as many as are ever held out automatically


@dataclass(frozen=True, slots=True)
class Row:
    """One image in the page's list.

    frame           the crop as fractions of the image: (left, top, right, bottom)
    scale           resize factor; above 1 the image is upscaled
    caption         with prefix and suffix, before random changes
    source          of the caption, as in `Caption`
    tokens          of its longest possible caption; None if not counted
    trains          whether the image trains; if not, `why` has the reason, as predicate of a sentence
    role            "train", "regularization" or "validation"
    concept         number of its folder's settings
    more            its buckets at the other resolutions
    mask            whether a mask, or its transparency with alpha_mask, weights its loss
    control         its control image
    actual_format   the image format if the extension is another one's
    transparent     whether it has transparency, if decoded
    readable        False: the file cannot be read or decoded
    """

    key: tuple[str, str]
    path: Path
    size: Size | None = None
    bucket: Size | None = None
    frame: tuple[float, float, float, float] | None = None
    scale: float | None = None
    repeats: int = 0
    caption: str = ""
    caption_path: Path | None = None
    source: str = "none"
    tokens: int | None = None
    trains: bool = False
    why: str = ""
    role: str = "train"
    concept: int = 0
    more: tuple[Size, ...] = ()
    mask: bool = False
    control: Path | None = None
    actual_format: str = ""
    transparent: bool = False
    readable: bool = True


@dataclass(frozen=True)
class Report:
    """The result of the preflight.

    problems         errors, which block a start, and advice
    placed           training and regularization images
    validation       held-out images
    captions_found   number of training images with a caption of their own
    sentence         the arithmetic of the length
    undecoded        number of images and masks of which only the header has been read
    """

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
        """Whether no problem blocks a start."""
        return not errors(self.problems)

    @property
    def trained(self) -> int:
        """Number of training and regularization images; an image at several resolutions counts once."""
        return sum(row.trains for row in self.rows)

    @property
    def skipped(self) -> int:
        """Number of images that do not train."""
        return sum(not row.trains for row in self.rows)

    @property
    def held_out(self) -> str:
        """The number and first MOST_NAMED names of the validation images, in one line; "" without any.

        Also names the training folders that give none if others do.
        """
        names = list(dict.fromkeys("/".join(each.image.key) for each in self.validation))
        split, trained = ({row.key[0] for row in self.rows if row.role == role} for role in ("validation", "train"))
        folders_without = sorted(trained - split) if trained & split else []
        more = f"; none of {listed(folders_without, MOST_NAMED)}" if folders_without else ""
        return (
            f"{count(len(names), 'image')} held out for validation: {listed(names, MOST_NAMED)}{more}" if names else ""
        )

    steps_per_epoch = property(lambda self: self.length.steps_per_epoch)
    epochs = property(lambda self: self.length.epochs)
    total_steps = property(lambda self: self.length.total_steps)

    def summary(self) -> dict[str, Any]:
        """Return the report without its rows as JSON values: "sentence", "trained", "skipped", "validation": number of images, "undecoded",
        "captions_found", "buckets": [{"width", "height", "images", "views"}], "batches_per_epoch", the fields of its `Length`,
        "longest_tokens", "token_limit", and "questions" and "problems" as dicts."""
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


EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the user about the dataset.

    kind       "transparency", "sidecars" or "lines"
    images     number of images concerned
    examples   names of some
    counts     number of images for each answer, such as {".txt": 24, ".caption": 20}
    """

    kind: str
    images: int
    examples: tuple[str, ...]
    counts: dict[str, int]


def questions_of(placed: Sequence[Placed], looks: Mapping[tuple[str, str], Look]) -> tuple[Question, ...]:
    """Return the questions about a dataset.

    placed   each image once
    looks    image key -> measurements of the images decoded so far
    """
    not_decoded = Look()
    transparent = [each for each in placed if looks.get(each.image.key, not_decoded).transparent]
    endings = {each.key: {extension(name) for name in each.image.sidecars} for each in placed}
    both_files = [each for each in placed if {SENTENCES, TAGS} <= endings[each.key]]
    caption_files = Counter(ending for of_image in endings.values() for ending in of_image)
    lines = [each for each in placed if len(lines_of(each.caption.text)) > 1]
    questions = [
        _question("transparency", transparent, {}),
        _question("sidecars", both_files, dict(sorted(caption_files.items()))),
        _question("lines", lines, {}),
    ]
    return tuple(question for question in questions if question.images)


def _question(kind: str, about: Sequence[Placed], counts: dict[str, int]) -> Question:
    """Return a question about images, with the first names as examples.

    kind     "transparency", "sidecars" or "lines"
    about    the images
    counts   number of images for each answer, {} if unknown
    """
    names = tuple(printable(each.image.relative) for each in about[:EXAMPLES])
    return Question(kind, len(about), names, counts)
