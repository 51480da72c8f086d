"""Writing a dataset as fine-tuning metadata JSON with buckets, for sd-scripts and compatible programs.

Does what merge_captions_to_metadata, merge_dd_tags_to_metadata and the bucketing of prepare_buckets_latents do
(reference: sections 2.3, 6.1, 6.2, 6.4).
"""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from core.dataset.buckets.batches import Placed
from core.dataset.captions.files import read_caption_file
from core.dataset.sources.files import TRASH_FOLDER, printable
from core.dataset.sources.image_info import listed
from core.dataset.sources.metadata import BUCKET_UNIT
from core.record import atomic
from core.record.allowed import may_reach
from core.record.problems import ProblemsError

FILES = {"caption": ".caption", "tags": ".txt"}  # entry of an image -> extension of the file whose text it gets


def write_metadata(path: Path, placed: Sequence[Placed], *, full_path: bool = False) -> int:
    """Write caption, tags and bucket of each image to a metadata JSON file; return the number of images.

    An existing file of that name is copied to the trash folder next to it.

    full_path   keys are absolute paths; else paths without extension below the images' common folder, which is then the
                image_dir to use with the file

    Raises ProblemsError if the file cannot be written, and without writing if two images would share a key.
    """
    if not may_reach(path):
        what, fix = "A shared page may not write the metadata file there", "choose a path inside outputs"
        raise ProblemsError.one(what, printable(path), fix, code="path.no-access")
    images = list({each.image.path: each for each in reversed(placed)}.values())[::-1]  # one size of each image
    keys = _keys(images, full_path, path)
    content = {
        keys[each.image.path]: {
            **_texts(each),
            "train_resolution": [side - side % BUCKET_UNIT for side in each.placement.bucket],
        }
        for each in images
    }
    try:
        _copy_to_trash(path)
        atomic.write_json(path, content)
    except OSError as error:
        what = f"The metadata file could not be written ({error.strerror}); an existing one is unchanged"
        fix = "check that the folder is writable and the disk is not full"
        raise ProblemsError.one(what, printable(path), fix, code="metadata.unwritten") from error
    return len(images)


def _keys(placed: Sequence[Placed], full_path: bool, path: Path) -> dict[Path, str]:
    """Return {image path: key in the metadata file}. Raises ProblemsError if two images would share a key.
    path: the metadata file, for the problem"""
    folder = _folder_of_all(placed)
    absolute = {each.image.path: os.path.abspath(each.image.path) for each in placed}
    relative = {
        path: Path(os.path.relpath(full, folder)).as_posix() if folder else full for path, full in absolute.items()
    }
    names = set(relative.values())
    keys: dict[Path, str] = {}
    images_of_key: dict[str, list[str]] = {}
    for each in placed:
        image = each.image.path
        stem = os.path.splitext(relative[image])[0]
        if stem in names:  # a.png.png next to a.png: its stem would name the other
            stem = relative[image]
        keys[image] = key = absolute[image] if full_path else stem
        images_of_key.setdefault(key, []).append(each.image.relative)
    clashes = [f"{key} for {listed(names)}" for key, names in images_of_key.items() if len(names) > 1]
    if clashes:
        what = f"The metadata file was not written because images would share a key: {listed(clashes)}"
        fix = "use full paths as keys, or rename the images"
        raise ProblemsError.one(what, printable(path), fix, code="metadata.shared-key")
    return keys


def _folder_of_all(placed: Sequence[Placed]) -> str | None:
    """Return the common parent folder of all images, or None without one (two Windows drives)."""
    folders = {os.path.abspath(each.image.path.parents[each.image.relative.count("/")]) for each in placed}
    try:
        return os.path.commonpath(sorted(folders)) if folders else None
    except ValueError:
        return None


def _texts(placed: Placed) -> dict[str, str]:
    """Return an image's texts for the metadata file, by "caption" and "tags".

    They come from the metadata file that the image was read from, else from caption files (see FILES), else from the image's
    training caption.
    """
    texts: dict[str, str] = {}
    if placed.image.metadata_texts is not None:
        return dict(zip(("caption", "tags"), placed.image.metadata_texts, strict=True))
    if placed.image.metadata_caption is None:
        for name, ending in FILES.items():
            caption = read_caption_file(placed.image, ending)
            if caption.source == "file":
                texts[name] = caption.text
    return texts or {"caption": placed.caption.text}


def _copy_to_trash(path: Path) -> None:
    """Copy a file into the trash folder next to it, if it exists; the file itself stays until the new one replaces it."""
    if path.exists():
        with atomic.open_atomic(path.parent / TRASH_FOLDER / f"{path.name}.{time.time_ns()}.bak") as temporary:
            shutil.copyfile(path, temporary)
