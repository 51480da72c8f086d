"""Results of a scan: readable images, broken files, and their folders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.dataset.sources.files import printable
from core.record.problems import Problem
from core.record.units import count, first_of

PLACEHOLDER = re.compile(r"\{(n|is|has|do|names)\}")


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """One readable image, from its header.

    source            id of its folder (base name, made unique)
    relative          path below that folder, with "/"
    width, height     pixels, after EXIF rotation
    repeats           uses per epoch
    class_tokens      its folder's default caption
    sidecars          names of the caption files next to it
    concept           number of the folder's settings (settings/concepts.py)
    metadata_caption  its caption from a metadata file or a dataset class; None if captions are in files next to the image
    metadata_texts    (caption, tags) if a metadata file has both; `metadata_caption` is then both joined
    conditioning      its mask
    control           its control image
    metadata_bucket   its bucket from the metadata file
    sidecar_states    (bytes, mtime_ns) of each of the sidecars, and for a face crop of those of its source image, so that
                      captions can be cached
    actual_format     its format if the extension is another one's ("JPEG"), else empty
    """

    source: str
    relative: str
    path: Path
    width: int
    height: int
    bytes: int
    mtime_ns: int
    repeats: int = 1
    class_tokens: str = ""
    sidecars: tuple[str, ...] = ()
    animated: bool = False
    rotated: bool = False
    concept: int = 0
    metadata_caption: str | None = None
    metadata_texts: tuple[str, str] | None = None
    conditioning: Path | None = None
    control: Path | None = None
    metadata_bucket: tuple[int, int] | None = None
    sidecar_states: tuple[tuple[int, int], ...] = ()
    actual_format: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Identifies the image in random draws: source and relative path, so content and absolute path may change."""
        return (self.source, self.relative)


@dataclass(frozen=True, slots=True)
class Broken:
    """A file with an image extension that cannot be read.
    reason: why, as predicate of a sentence about the image"""

    source: str
    relative: str
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A scanned folder.

    named     whether its name sets repeats and class tokens
    images    number of readable images
    concept   number of its settings
    """

    id: str
    path: Path
    repeats: int
    class_tokens: str
    named: bool
    images: int
    concept: int = 0


@dataclass(frozen=True)
class Scan:
    """Result of a scan.

    images     sorted by folder and path
    problems   errors and advice
    left_out   readable images that do not train, each with the reason
    """

    images: tuple[ImageInfo, ...]
    broken: tuple[Broken, ...]
    folders: tuple[Folder, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[tuple[ImageInfo, str], ...] = field(default=())


def names_of(images: Sequence[ImageInfo]) -> str:
    """Return the images' names in one line: "a.png, b.png and 12 more"."""
    return listed([image.relative for image in images])


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first `most` names in one line, and the number of others: "a, b and 12 more"."""
    return first_of([printable(name) for name in names], most)


def about(
    items: Sequence[ImageInfo] | Sequence[str],
    what: str,
    fix: str,
    code: str,
    level: str = "advice",
    *,
    where: str = "",
    noun: str = "image",
    most: int = 5,
) -> list[Problem]:
    """Return [a problem that counts and names the items], images or names; [] without items.

    what    template: {n} becomes "1 image" or "3 images"; {is}, {has}, {do} are verbs that agree with it; {names} becomes
            "a.png, b.png and 12 more"
    where   by default the folder of the first image
    noun    counted noun in place of "image"
    most    number of names
    """
    if not items:
        return []
    names = [each if isinstance(each, str) else each.relative for each in items]
    verbs = {"is": "is", "has": "has", "do": "does"} if len(items) == 1 else {"is": "are", "has": "have", "do": "do"}
    texts = {"n": count(len(items), noun), **verbs, "names": listed(names, most)}
    what = PLACEHOLDER.sub(lambda match: texts[match[1]], what)
    first = items[0]
    where = where or ("" if isinstance(first, str) else printable(first.path.parent))
    return [Problem(what, where, fix, level, code=code)]
