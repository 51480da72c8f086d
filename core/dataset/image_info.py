"""What a scan finds: images that can be read, files that cannot, the folders they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.dataset.files import printable
from core.record.problems import Problem


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One image that can be read, as its header tells.

    source     id of its folder (base name, made unique)     relative   path below that folder, with "/"
    width, height   pixels, after the rotation its EXIF asks for
    repeats    how often it is shown in an epoch             words      what is said about it without a caption file
    sidecars   names of the caption files beside it
    concept    number of the folder's settings (settings/concepts.py)
    given      its caption from a metadata file or a dataset class; None: captions lie beside the image
    given_both   (caption, tags) where a metadata file has both; `given` is then both as one
    conditioning   its mask or control image             own_bucket   the size that metadata gives it
    really     what kind of file it is where its name says another ("JPEG"), else empty
    sidecar_states   (bytes, mtime_ns) of each of the sidecars, and of those it shares with the image that it was cut
              out of, so that their texts can be remembered
    """

    source: str
    relative: str
    path: Path
    width: int
    height: int
    bytes: int
    mtime_ns: int
    repeats: int = 1
    words: str = ""
    sidecars: tuple[str, ...] = ()
    animated: bool = False
    rotated: bool = False
    concept: int = 0
    given: str | None = None
    given_both: tuple[str, str] | None = None
    conditioning: Path | None = None
    own_bucket: tuple[int, int] | None = None
    sidecar_states: tuple[tuple[int, int], ...] = ()
    really: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """The image's address in random draws: never its content or absolute path."""
        return (self.source, self.relative)


@dataclass(frozen=True, slots=True)
class Broken:
    """A file that is named like an image and cannot train."""

    source: str
    relative: str
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that images were taken from. named: its name gave the repeats and words; concept: whose settings hold."""

    id: str
    path: Path
    repeats: int
    words: str
    named: bool
    images: int
    concept: int = 0


@dataclass(frozen=True)
class Scan:
    """Images sorted by folder and path; broken ones apart; problems are errors and advice, for a person.

    left_out   images that can be read and do not train, each with the reason
    """

    images: tuple[ImageInfo, ...]
    broken: tuple[Broken, ...]
    folders: tuple[Folder, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[tuple[ImageInfo, str], ...] = field(default=())


def names_of(images: Sequence[ImageInfo], most: int = 5) -> str:
    """ "a.png, b.png and 12 more"."""
    return listed([image.relative for image in images], most)


def listed(names: Sequence[str], most: int = 5) -> str:
    """ "a, b and 12 more"."""
    text = ", ".join(printable(name) for name in names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


def count(number: int, noun: str) -> str:
    """ "1 image", "3 images"; nouns in -y become -ies."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("ry") else f"{number} {noun}s"
