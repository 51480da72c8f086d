"""Scanning of dataset folders: images with size, repeats and captions, and all problems.

Reads headers only: nothing is decoded and no model is loaded. Any folder works: plain, with subfolders, `<repeats>_<words>`,
or a parent of such folders (reference: the folder convention of sd-scripts, which refuses all but the last). A metadata
file or sd-scripts' metadata_cache.json lists the images instead, if chosen.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from core.dataset.sources.custom import scan_class
from core.dataset.sources.files import printable
from core.dataset.sources.folders import folder_of, roots_of
from core.dataset.sources.image_info import Scan
from core.dataset.sources.memo import Memo
from core.dataset.sources.scan_builder import ScanBuilder, excluded_folders, split_sidecars
from core.dataset.sources.walk import walk
from core.record.cancel import CancelToken
from core.record.problems import Problem
from core.record.units import count, first_of
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import PLAIN, Concept
from core.settings.dataset.concepts import concepts as concepts_in
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.source import Source
from core.settings.dataset.validation import ValidationSettings


def scan_dataset(
    dataset: DatasetSettings,
    concepts: Sequence[Concept] | None = None,
    cancel: CancelToken | None = None,
    memo_path: Path | str | None = None,
) -> Scan:
    """Scan a job's folders, or its dataset class; see `scan`. concepts: None for default caption settings"""
    if concepts is None:
        concepts = concepts_in(dataset, CaptionSettings(), ValidationSettings())
    if dataset.dataset_class:
        return scan_class(dataset, concepts, cancel, memo_path)
    return scan(concepts, cancel, memo_path, skip_broken=dataset.skip_broken)


def scan(
    concepts: Sequence[Concept],
    cancel: CancelToken | None = None,
    memo_path: Path | str | None = None,
    *,
    skip_broken: bool = False,
) -> Scan:
    """Scan every folder. Problems are part of the result; only a cancel raises.

    memo_path     where headers are cached by path, size and time; None for none
    skip_broken   report unreadable images as advice instead of errors
    """
    builder = ScanBuilder(Memo(memo_path), cancel, "advice" if skip_broken else "error")
    if not concepts:
        fix = "choose the folder with the training images"
        builder.problems.append(Problem("No image folder is chosen", "dataset.folder", fix, code="dataset.no-folder"))
    for concept in concepts:
        builder.add(concept)
    return builder.result()


def describe_layout(folder: str | os.PathLike, concept: Concept = PLAIN) -> str:
    """Describe how a folder is organized: "24 images in one folder", "2 folders with repeats: 10_fox, 5_style (24 images)".
    concept: its settings, by which masks and control images are not counted"""
    source = Source(folder=os.fspath(folder))
    path, problem = folder_of(source)
    if path is None:
        return problem.what if problem else "no images found"
    roots, problems = roots_of(source, path)
    if not roots:
        return problems[0].what if problems else "no images found"
    excluded, recursive = excluded_folders(concept, path), concept.source.recursive
    walks = [(root, walk(root.path, left_out=root.left_out, excluded=excluded, recursive=recursive)) for root in roots]
    counted = [(root, walked, len(split_sidecars(walked.files, concept)[0])) for root, walked in walks]
    with_repeats = [each for each in counted if each[0].named and each[2]]
    without_repeats = [each for each in counted if not each[0].named and each[2]]
    if not with_repeats and not without_repeats:
        return "no images found"
    loose = sum(number for _, _, number in without_repeats)
    if not with_repeats:
        subfolders = sum(walked.folders for _, walked, _ in without_repeats)
        return f"{count(loose, 'image')} in " + ("one folder" if subfolders <= 1 else f"{subfolders} folders")
    names = first_of([printable(root.path.name) for root, _, _ in with_repeats], 6)
    total = sum(number for _, _, number in with_repeats)
    text = f"{count(len(with_repeats), 'folder')} with repeats: {names} ({count(total, 'image')})"
    return text + (f", and {count(loose, 'image')} outside them" if loose else "")
