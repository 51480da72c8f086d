"""The dataset doctor's findings as plain data: images, reason, and the images that the fix moves to the trash."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.dataset.buckets.batches import Placed
from core.dataset.images.look import Look
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import ImageInfo
from core.record.problems import Problem

Key = tuple[str, str]

# kind of a finding -> its heading
KINDS = {
    "unreadable": "Unreadable images",
    "leak": "Duplicates in training and validation",
    "near leak": "Near duplicates in training and validation",
    "class": "Duplicates in training and regularization",
    "near class": "Near duplicates in training and regularization",
    "copy": "Duplicates",
    "near copy": "Near duplicates",
    "plain": "Single color",
    "blur": "Blurry",
    "border": "Borders and bars",
    "small": "Very small",
    "enlarged": "Strongly upscaled",
    "long": "Extreme aspect ratio",
    "no caption": "No caption",
    "one caption": "Identical captions",
    "alike captions": "Similar captions",
    "file name": "File names as captions",
    "rare tags": "Tags used once",
}


@dataclass(frozen=True, slots=True)
class FindingImage:
    """One image of a finding.

    note       details about the image, such as "320 x 240, validation"
    sidecars   files of its mask and control image, if no other image uses them
    """

    key: Key
    path: Path
    note: str = ""
    sidecars: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding about images of a dataset.

    kind        a key of KINDS, such as "copy" or "blur"
    level       "error" blocks a start, "advice" does not
    what, fix   as in Problem
    images      groups that belong together (duplicates); single images are groups of one
    advised     keys of the images that `treat` moves to the trash
    action      "put away" if moving images to the trash is the fix, "open" if the user has to look at images or captions
    """

    kind: str
    level: str
    what: str
    fix: str
    images: tuple[tuple[FindingImage, ...], ...]
    advised: tuple[Key, ...] = ()
    action: str = "open"

    @property
    def id(self) -> str:
        """An id for the page, the same for the same finding about the same images."""
        keys = sorted("/".join(each.key) for group in self.images for each in group)
        text = "\n".join([self.kind, *keys]).encode("utf-8", "surrogateescape")
        return f"{self.kind}-{hashlib.sha256(text).hexdigest()[:12]}"

    @property
    def count(self) -> int:
        """Number of images in the finding."""
        return sum(map(len, self.images))

    def problem(self) -> Problem:
        """Return the finding as a Problem, for the preflight."""
        where = printable(self.images[0][0].path.parent) if self.images else "dataset"
        return Problem(self.what, where, self.fix, self.level, code=f"doctor.{self.kind.replace(' ', '-')}")

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values: its fields with "id", "title", "count", "advised": number of images, and "images": [groups of
        {"key", "path", "note", "advised": whether it is advised}].

        Names that are not valid Unicode get replacement characters, so actions must use `id`, not names.
        """
        advised = set(self.advised)
        groups = [
            [
                {
                    "key": [printable(part) for part in each.key],
                    "path": printable(each.path),
                    "note": each.note,
                    "advised": each.key in advised,
                }
                for each in group
            ]
            for group in self.images
        ]
        return {
            "id": self.id,
            "kind": self.kind,
            "title": KINDS[self.kind],
            "level": self.level,
            "what": self.what,
            "fix": self.fix,
            "count": self.count,
            "images": groups,
            "advised": len(advised),
            "action": self.action,
        }


@dataclass(frozen=True, slots=True)
class ExaminedImage:
    """An image for the doctor.

    role       "train", "regularization" or "validation"
    sidecars   files of its mask and control image, if no other image uses them
    look       measurements of the decoded image
    """

    placed: Placed
    role: str
    sidecars: tuple[Path, ...] = ()
    look: Look = field(default_factory=Look)

    @property
    def image(self) -> ImageInfo:
        return self.placed.image

    @property
    def key(self) -> Key:
        return self.placed.image.key

    def in_finding(self, note: str = "") -> FindingImage:
        """Return this image as an image of a finding, with a note."""
        return FindingImage(self.key, self.image.path, note, self.sidecars)


def images_finding(
    kind: str,
    items: Sequence[ExaminedImage],
    what: str,
    fix: str,
    note: Callable[[ExaminedImage], str] = lambda item: "",
    put_away: bool = False,
) -> list[Finding]:
    """Return the finding about single images; [] for no images.

    kind, what, fix   as in `Finding`; `{n}` in `what` is replaced by a count with a verb, such as "3 images are"
    note              returns the note of an image
    put_away          whether the fix is to move the images to the trash
    """
    if not items:
        return []
    number = "1 image is" if len(items) == 1 else f"{len(items)} images are"
    return [
        Finding(
            kind,
            "advice",
            what.replace("{n}", number),
            fix,
            tuple((item.in_finding(note(item)),) for item in items),
            tuple(item.key for item in items) if put_away else (),
            "put away" if put_away else "open",
        )
    ]


def size_of(item: ExaminedImage) -> str:
    """Return the size of an image as text, such as "640 x 480"."""
    return f"{item.image.width} x {item.image.height}"


def connected_components(pairs: Iterable[tuple[int, int]], count: int) -> list[list[int]]:
    """Return the connected components of the graph with nodes 0 to count - 1 and edges `pairs`, each sorted (union-find).

    Single nodes are left out.
    """
    parent = list(range(count))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for number in range(count):
        groups.setdefault(root(number), []).append(number)
    return [group for group in groups.values() if len(group) > 1]
