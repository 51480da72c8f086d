"""Stores uploaded files as a new folder in outputs/datasets."""

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from itertools import chain, repeat
from pathlib import Path

from core.dataset.sources.archive import DATASET_EXTENSIONS, unpack_zip
from core.dataset.sources.files import extension, is_image, is_junk, printable, repeats_and_words, split_label
from core.dataset.sources.walk import Walk, note_unused
from core.record.atomic import numbered, remove_folder, remove_leftovers, rename_to_unused
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError, write_errors
from core.record.units import first_of
from core.settings.names import bad_name

FIX = "Drop images (.png, .jpg, .webp ...) with .txt captions, or one zip file."


def store_upload(
    files: Sequence[str | Path], datasets: Path, task=None, unused: Walk | None = None, folders: Sequence[str] = ()
) -> Path:
    """Store one zip, or images with captions, in a new folder of `datasets` and return it. Raises ProblemsError, also for a zip together
    with other files.

    task      a LightTask for progress
    unused    collects the names of files that are left out
    folders   name of the folder that each file was in, "" if unknown. One that gives repeats ("10_fox") is kept.
    """
    token = task.token if task else CancelToken()
    paths = [Path(file) for file in files]
    zips = [path for path in paths if extension(path.name) == ".zip"]
    if zips and len(paths) > 1:
        what = "A zip was dropped together with other files"
        raise ProblemsError.one(what, printable(zips[0].name), "drop one zip, or only images", "upload.zip-and-others")
    if zips:
        if task:
            task.stage(f"Unpacking {printable(zips[0].name)}")
        return unpack_zip(zips[0], datasets, token, unused)
    return copy_files(paths, datasets, task, unused, folders)


def copy_files(
    paths: Sequence[Path], datasets: Path, task=None, unused: Walk | None = None, folders: Sequence[str] = ()
) -> Path:
    """Copy images and captions into a new folder of `datasets` and return it. Arguments as in `store_upload`.

    Raises ProblemsError if there is no image or a file cannot be copied; nothing is kept then.
    """
    kept = [
        (path, folder)
        for path, folder in zip(paths, chain(folders, repeat("")), strict=False)
        if not is_junk(path.name) and (extension(path.name) in DATASET_EXTENSIONS or is_image(path, path.name))
    ]
    usable = [path for path, _ in kept]
    unused, copied = Walk() if unused is None else unused, set(usable)
    for path in paths:
        if path not in copied:
            note_unused(unused, path.name)
    images = [path for path in usable if is_image(path, path.name)]
    if not images:
        names = ", ".join(printable(path.name) for path in paths[:3])
        raise ProblemsError.one("The dropped files contain no images", names, FIX, code="upload.no-images")
    targets = [
        Path(folder if repeats_and_words(folder) and bad_name(folder) is None else "", name)
        for (_, folder), name in zip(kept, _names(usable, set(images)), strict=True)
    ]
    datasets.mkdir(parents=True, exist_ok=True)
    remove_leftovers(datasets)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=datasets))
    try:
        with write_errors("The files could not be copied", str(datasets), "none of the files were added"):
            for number, (path, name) in enumerate(zip(usable, targets, strict=True)):
                if task:
                    task.check()
                    task.stage(f"Copying {number + 1} of {len(usable)}", number, len(usable))
                (temporary / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, temporary / name)
            os.chmod(temporary, 0o755)
            return rename_to_unused(temporary, datasets, _name_for(images))
    finally:
        remove_folder(temporary)


def _names(paths: Sequence[Path], images: Collection[Path]) -> list[str]:
    """Return a name for each file, unique even ignoring case. Repeated names of images get a number.

    Raises ProblemsError if a caption or mask could belong to several images of one name: browsers send no folders.
    """
    names_by_stem: dict[str, list[str]] = defaultdict(list)
    companions, of_images = set[str](), set[str]()  # stems of captions and masks, of images
    for path in paths:
        base, label = split_label(path.stem.casefold())
        names_by_stem[base].append(path.name.casefold())
        (of_images if path in images and not label else companions).add(base)
    unclear = [
        stem for stem, names in names_by_stem.items() if stem in companions & of_images and len(set(names)) < len(names)
    ]
    if unclear:
        what = f"Of several files named {printable(first_of(unclear, 3))}, it is not known which caption or mask belongs to which image"
        fix = "drop one folder at a time or a zip, or rename the images"
        raise ProblemsError.one(what, "the dropped files", fix, "upload.captions-unclear")
    names: list[str] = []
    stems: dict[tuple[str, int], str] = {}
    used, repeats = {path.stem.casefold() for path in paths}, Counter[str]()
    for path in paths:
        stem, index = path.stem, repeats[path.name.casefold()]
        repeats[path.name.casefold()] += 1
        if index and (stem.casefold(), index) not in stems:
            free = next(each for each in numbered(stem) if each.casefold() not in used)
            used.add(free.casefold())
            stems[stem.casefold(), index] = free
        names.append(stems.get((stem.casefold(), index), stem) + path.suffix)
    return names


def _name_for(images: Sequence[Path]) -> str:
    """Return a folder name from the common start of the images' names ("fox_01.png", "fox_02.png": "fox"), else "images"."""
    common = os.path.commonprefix([path.stem for path in images])  # noqa: RUF071  names, not paths
    name = common.rstrip(" 0123456789._-")
    return name if len(name) >= 3 and bad_name(name) is None else "images"
