"""A dataset -> a fine-tuning metadata JSON with buckets, for sd-scripts and what reads its files.

The counterpart of merge_captions_to_metadata, merge_dd_tags_to_metadata and the sizes of prepare_buckets_latents
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

from core.dataset.batches import Placed
from core.dataset.caption_encodings import decode_text
from core.dataset.caption_files import read_caption_file
from core.dataset.files import TRASH_FOLDER, printable
from core.dataset.image_info import listed
from core.dataset.metadata import BUCKET_UNIT, MAX_BYTES, MAX_VALUES
from core.record import atomic
from core.record.allowed import may_reach
from core.record.bounded_json import parse_json
from core.record.problems import ProblemsError
from core.record.regular import read_regular


@dataclass(frozen=True)
class Written:
    """images: entries that are ours. kept: entries of the earlier list that stand as they were. backup: the file that
    was replaced, None where there was none."""

    images: int
    kept: int
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
    """Write caption, tags and bucket of each image; the earlier file of that name goes to the trash folder beside it.

    full_path    keys are absolute paths; else paths without extension below the folder of all images: in a flat folder
                 the stem. That folder is the image_dir to give with the file
    caption_extension, tags_extension   whose text becomes `caption` and `tags`; None leaves that out. An image that has
                 neither file gets what is said about it otherwise as its caption (metadata, the folder's words)
    buckets      write train_resolution, the bucket's size
    in_json      a list to add to: its entries keep what is not written anew, and those of other images stay

    ProblemsError when two images would have one key, or a list to add to cannot be read. Nothing is written then.
    """
    if not may_reach(path):
        what, fix = "The metadata file may not be written there by a shared page.", "Choose a path inside outputs."
        raise ProblemsError.one(what, printable(path), fix)
    once = list({each.image.path: each for each in reversed(placed)}.values())[::-1]  # one size of each image
    earlier = _read(in_json) if in_json is not None else {}
    keys = _keys(once, full_path, earlier, path)
    said = dict(earlier)
    for each in once:
        key = keys[each.image.path]
        entry = dict(earlier.get(key) or {})
        entry.update(_texts(each, caption_extension, tags_extension))
        if buckets:
            width, height = each.placement.bucket
            entry["train_resolution"] = [width - width % BUCKET_UNIT, height - height % BUCKET_UNIT]
        said[key] = entry
    try:
        backup = _put_away(path)
        atomic.write_json(path, said)
    except OSError as error:
        what = f"The metadata file could not be written ({error.strerror}); an earlier one is unchanged."
        fix = "Check that the folder may be written to and the disk is not full."
        raise ProblemsError.one(what, printable(path), fix) from error
    return Written(len(once), len(said) - len(set(keys.values())), backup)


def _keys(placed: Sequence[Placed], full_path: bool, earlier: dict[str, Any], path: Path) -> dict[Path, str]:
    """Each image's key; the one that it has in the earlier list comes first, whichever form it has there."""
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
        if stem in names:  # a.png.png beside a.png: its stem would name the other
            stem = below[at]
        forms = (absolute[at], below[at], stem, stem.rpartition("/")[2])
        key = next((form for form in forms if form in earlier), absolute[at] if full_path else stem)
        keys[at] = key
        owners.setdefault(key, []).append(each.image.relative)
    shared = [f"{key} for {listed(names)}" for key, names in owners.items() if len(names) > 1]
    if shared:
        what = f"Images would share a key of the metadata file, so it was not written: {listed(shared)}."
        raise ProblemsError.one(what, printable(path), "Write full paths as keys, or rename the images.")
    return keys


def _folder_of_all(placed: Sequence[Placed]) -> str | None:
    """The folder that the images' folders have in common; None where there is none (two drives of Windows)."""
    folders = {os.path.abspath(each.image.path.parents[each.image.relative.count("/")]) for each in placed}
    try:
        return os.path.commonpath(sorted(folders)) if folders else None
    except ValueError:
        return None


def _texts(each: Placed, caption_extension: str | None, tags_extension: str | None) -> dict[str, str]:
    found: dict[str, str] = {}
    if each.image.given_both is not None:
        return dict(zip(("caption", "tags"), each.image.given_both, strict=True))
    if each.image.given is None:
        for name, ending in (("caption", caption_extension), ("tags", tags_extension)):
            read = read_caption_file(each.image, ending) if ending else None
            if read is not None and read.source == "file":
                found[name] = read.text
    return found or {"caption": each.caption.text}


def _read(path: Path) -> dict[str, Any]:
    """The list to add to, with whatever else its entries hold."""
    shown = printable(path)
    text = decode_text(read_regular(path, MAX_BYTES)).text
    said = parse_json(text, shown, "correct it there, or write a new list", max_values=MAX_VALUES)
    if not isinstance(said, dict) or not all(isinstance(entry, dict) for entry in said.values()):
        fix = 'It should be {"name": {"caption": "..."}, ...}.'
        raise ProblemsError.one("The metadata file to add to holds no list of images.", shown, fix)
    return said


def _put_away(path: Path) -> Path | None:
    """A copy of the file in the trash folder beside it. The file itself stays until the new one takes its place."""
    if not path.exists():
        return None
    backup = path.parent / TRASH_FOLDER / f"{path.name}.{time.time_ns()}.bak"
    with atomic.open_atomic(backup) as temporary:
        shutil.copyfile(path, temporary)
    return backup
