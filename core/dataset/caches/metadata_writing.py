"""Write a dataset as fine-tuning metadata JSON with buckets, for sd-scripts and compatible programs.

Does what merge_captions_to_metadata, merge_dd_tags_to_metadata and the bucketing of prepare_buckets_latents do
(reference: sections 2.3, 6.1, 6.2, 6.4).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.dataset.buckets.batches import Placed
from core.dataset.captions.encodings import decode_text
from core.dataset.captions.files import read_caption_file
from core.dataset.sources.files import TRASH_FOLDER, printable
from core.dataset.sources.image_info import listed
from core.dataset.sources.metadata import BUCKET_UNIT, MAX_BYTES, MAX_VALUES
from core.record import atomic
from core.record.allowed import may_reach
from core.record.bounded_json import parse_json
from core.record.problems import ProblemsError
from core.record.regular import read_regular


@dataclass(frozen=True)
class Written:
    """The result of `write_metadata`. images: number of entries written; unchanged: other entries of `in_json`; backup: a copy of
    the replaced file, None without one."""

    images: int
    unchanged: int
    backup: Path | None


def write_metadata(
    path: Path,
    placed: Sequence[Placed],
    *,
    full_path: bool = False,
    caption_extension: str | None = ".caption",
    tags_extension: str | None = ".txt",
    buckets: bool = True,
    in_json: Path | None = None,
) -> Written:
    """Write caption, tags and bucket of each image; an existing file of that name goes to the trash folder next to it.

    full_path    keys are absolute paths; else paths without extension below the images' common folder (in a flat
                 folder the stem), which is the image_dir to use with the file
    caption_extension, tags_extension   files whose text becomes `caption` and `tags`; None omits it. An image with
                 neither file gets its other caption (metadata, the folder's default)
    buckets      write train_resolution, the bucket's size
    in_json      an existing file to add to: its other keys and images are kept

    Raises ProblemsError, with nothing written, when two images share a key or in_json cannot be read.
    """
    if not may_reach(path):
        what, fix = "A shared page may not write the metadata file there", "choose a path inside outputs"
        raise ProblemsError.one(what, printable(path), fix, code="path.no-access")
    once = list({each.image.path: each for each in reversed(placed)}.values())[::-1]  # one size of each image
    earlier = _read(in_json) if in_json is not None else {}
    keys = _keys(once, full_path, earlier, path)
    content = dict(earlier)
    for each in once:
        key = keys[each.image.path]
        entry = dict(earlier.get(key) or {})
        entry.update(_texts(each, caption_extension, tags_extension))
        if buckets:
            width, height = each.placement.bucket
            entry["train_resolution"] = [width - width % BUCKET_UNIT, height - height % BUCKET_UNIT]
        content[key] = entry
    try:
        backup = _put_away(path)
        atomic.write_json(path, content)
    except OSError as error:
        what = f"The metadata file could not be written ({error.strerror}); an existing one is unchanged"
        fix = "check that the folder is writable and the disk is not full"
        raise ProblemsError.one(what, printable(path), fix, code="metadata.unwritten") from error
    return Written(len(once), len(content) - len(set(keys.values())), backup)


def _keys(placed: Sequence[Placed], full_path: bool, earlier: dict[str, Any], path: Path) -> dict[Path, str]:
    """{image: its key}: the existing key of `in_json` in any form, else a new one."""
    folder = _folder_of_all(placed)
    absolute = {each.image.path: os.path.abspath(each.image.path) for each in placed}
    below = {
        path: Path(os.path.relpath(full, folder)).as_posix() if folder else full for path, full in absolute.items()
    }
    names = set(below.values())
    keys: dict[Path, str] = {}
    owners: dict[str, list[str]] = {}
    for each in placed:
        at = each.image.path
        stem = os.path.splitext(below[at])[0]
        if stem in names:  # a.png.png next to a.png: its stem would name the other
            stem = below[at]
        forms = (absolute[at], below[at], stem, stem.rpartition("/")[2])
        key = next((form for form in forms if form in earlier), absolute[at] if full_path else stem)
        keys[at] = key
        owners.setdefault(key, []).append(each.image.relative)
    shared = [f"{key} for {listed(names)}" for key, names in owners.items() if len(names) > 1]
    if shared:
        what = f"The metadata file was not written because images would share a key: {listed(shared)}"
        fix = "use full paths as keys, or rename the images"
        raise ProblemsError.one(what, printable(path), fix, code="metadata.shared-key")
    return keys


def _folder_of_all(placed: Sequence[Placed]) -> str | None:
    """The common parent folder of all images; None where there is none (two Windows drives)."""
    folders = {os.path.abspath(each.image.path.parents[each.image.relative.count("/")]) for each in placed}
    try:
        return os.path.commonpath(sorted(folders)) if folders else None
    except ValueError:
        return None


def _texts(each: Placed, caption_extension: str | None, tags_extension: str | None) -> dict[str, str]:
    """{"caption", "tags"}, those that the image has: from its metadata, else from the files with these extensions, else its
    caption."""
    texts: dict[str, str] = {}
    if each.image.metadata_texts is not None:
        return dict(zip(("caption", "tags"), each.image.metadata_texts, strict=True))
    if each.image.metadata_caption is None:
        for name, ending in (("caption", caption_extension), ("tags", tags_extension)):
            read = read_caption_file(each.image, ending) if ending else None
            if read is not None and read.source == "file":
                texts[name] = read.text
    return texts or {"caption": each.caption.text}


def _read(path: Path) -> dict[str, Any]:
    """{image's key: its entry} of `in_json`, with all its keys. Raises ProblemsError."""
    shown = printable(path)
    text = decode_text(read_regular(path, MAX_BYTES)).text
    content = parse_json(text, shown, "correct it there, or write a new file", max_values=MAX_VALUES)
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        fix = 'use the form {"name": {"caption": "..."}, ...}'
        raise ProblemsError.one("The metadata file is not a list of images", shown, fix, code="metadata.not-a-list")
    return content


def _put_away(path: Path) -> Path | None:
    """Copy the file into the trash folder next to it. The file itself stays until the new one replaces it."""
    if not path.exists():
        return None
    backup = path.parent / TRASH_FOLDER / f"{path.name}.{time.time_ns()}.bak"
    with atomic.open_atomic(backup) as temporary:
        shutil.copyfile(path, temporary)
    return backup
