"""Folders of painted masks, one for each image folder: outputs/datasets/<name>_masks. Images without one keep their other masks."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.dataset.sources.files import MASK_LABEL, plain_form, printable
from core.dataset.sources.image_info import ImageInfo
from core.record.allowed import may_reach
from core.record.atomic import numbered
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError

MARK = ".atelier-masks.json"  # in each of these folders: which images it is for
LONGEST_NAME = 60
MASK_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")


def is_painted(folder: Path) -> bool:
    """Return whether a mask folder is a folder of painted masks, in which a mask is only for the image at the same path."""
    return os.path.isfile(folder / MARK)


def images_of(folder: Path) -> str:
    """Return the image folder of a folder of painted masks, links followed; "" for any other folder."""
    return str(_mark(folder).get("images", ""))


def replaced_folders(folder: Path) -> list[Path]:
    """Return the mask folders that a folder of painted masks replaced in the settings; [] for any other folder."""
    paths = _mark(folder).get("replaced")
    return [Path(path) for path in paths if isinstance(path, str)] if isinstance(paths, list) else []


def other_masks(folder: Path | None) -> Path | None:
    """Return the mask folder of images without a painted mask: the one that a folder of painted masks replaced, None for the masks next
    to the images. Any other folder is returned."""
    if folder is None or not is_painted(folder):
        return folder
    return next(filter(may_reach, replaced_folders(folder)), None)


def _mark(folder: Path) -> dict[str, Any]:
    """Return the record of a folder of painted masks: {"images": its image folder, "replaced": mask folders it replaced}; {} for any other
    folder."""
    try:
        return read_json_object(folder / MARK)
    except ProblemsError:
        return {}


def painted_folder(datasets: Path, images: Path) -> Path:
    """Return the folder of painted masks of an image folder; an unused name if there is none yet. datasets: the folder for both"""
    real = os.path.realpath(images)
    name = f"{printable(os.path.basename(real))[:LONGEST_NAME] or 'images'}_masks"
    for candidate in numbered(name):
        folder = datasets / candidate
        if not os.path.lexists(folder) or images_of(folder) == real:
            return folder
    raise AssertionError("the numbers never end")


def stem_below(image: ImageInfo, folder: Path) -> str:
    """Return the image's path below `folder` without the extension, where `pair` looks for its mask first."""
    path = os.path.relpath(plain_form(str(image.path)), plain_form(str(folder)))
    return os.path.splitext(path)[0].replace(os.sep, "/")


def sidecar_mask(image: ImageInfo) -> Path | None:
    """Return OneTrainer's mask next to the image, or None."""
    paths = (image.path.with_name(image.path.stem + MASK_LABEL + ending) for ending in MASK_EXTENSIONS)
    return next((path for path in paths if path.is_file()), None)


def refusal(image: ImageInfo, others: Iterable[Path], folder: Path, datasets: Path) -> Problem | None:
    """Return the problem if no mask can be painted for an image, else None.

    others     images whose paths differ only in extension and case
    folder     the image folder
    datasets   where folders of painted masks are
    """
    where = printable(image.relative)
    if twins := [printable(path.name) for path in others if path != image.path]:
        what = (
            f"{printable(image.path.name)} and {', '.join(twins)} would share one mask: only extension or case differ"
        )
        return Problem(what, where, "rename one of them", code="mask.same-stem")
    if Path(os.path.realpath(datasets)).is_relative_to(os.path.realpath(folder)):
        what = "The masks would be stored among the images and be trained as images"
        return Problem(what, printable(folder), "choose the folder that contains the images", code="mask.among-images")
    return None
