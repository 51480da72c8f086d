"""Reads a dataset config of sd-scripts (TOML or JSON) into the job's dataset, captions and validation groups.

What a folder inherits from its dataset, [general] and sd-scripts' own defaults is resolved here and written out in
full, so that a file means the same in both programs although some defaults differ.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from core.dataset.sources.metadata import MAX_BYTES, MAX_VALUES
from core.imports.dataset_check import Dataset, check_document
from core.imports.dataset_options import (
    CONDITIONED,
    FINE_TUNING,
    GROUPS,
    OPTIONS,
    PATHS,
    SUBSET,
    declaration,
    to_setting,
)
from core.imports.dataset_text import Document, read_document
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError, errors, limited, raise_if_errors
from core.record.workspace import PROJECT, resolve_path
from core.settings.base import declared
from core.settings.check import build, shorten
from core.settings.dataset.source import Source
from core.settings.job import TrainJob

# Set on each folder, never in the common groups.
OWN = (
    "folder",
    "metadata_file",
    "conditioning_data_dir",
    "class_tokens",
    "num_repeats",
    "cache_info",
    "custom_attributes",
)
# Unknown to sd-scripts and would change what a file means: an import resets them.
PUT_BACK: dict[str, dict[str, Any]] = {
    "dataset": {
        "folder": None,
        "reg_data_dir": None,
        "dataset_class": None,
        "more_resolutions": [],
        "conditioning_data_dir": None,
    },
    "captions": {"sidecars": "one", "caption_lines": "first", "trigger_word": None},
    "validation": {"best_checkpoint": "training"},  # sd-scripts trains on all that the file does not hold out
}

Job = TypeVar("Job", bound=TrainJob)


@dataclass
class Imported:
    """The content of a file. values: nested like a job's, empty if there are errors; notes: sentences to show."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Subset:
    """One folder with the resolved value of every option (sd-scripts' names)."""

    dataset: int
    method: str
    path: str  # in the file: datasets[0].subsets[2]
    options: dict[str, Any]
    enabled: bool = True


def read_dataset_config(path: str | os.PathLike) -> Imported:
    """Read a dataset config. Raises nothing: all errors and advice are in `problems`."""
    document = read_document(path)
    subsets: list[Subset] = []
    if document.raw is not None:
        general, datasets = check_document(document)
        for dataset in datasets:
            found = _resolve(dataset, general)
            _check_dataset_values(document, dataset, found)
            subsets += _without_twins(document, dataset, found)
        if datasets and not any(dataset.subsets for dataset in datasets) and not errors(document.problems):
            fix = "add [[datasets.subsets]] with an image_dir"
            document.error("The file contains no folder", "datasets", fix, "no-folder")
    document.problems = limited(document.problems)
    if errors(document.problems):
        return Imported({}, document.problems, document.notes)
    return Imported(_values(document, subsets), document.problems, document.notes)


def apply_dataset_config(job: Job, path: str | os.PathLike) -> tuple[Job, Imported]:
    """The job with its folders and their settings replaced by the file's, and the report.

    Settings that such a file cannot contain (prior loss weight, background color, ...) stay. Raises ProblemsError on errors.
    """
    report = read_dataset_config(path)
    raise_if_errors(report.problems)
    values = job.model_dump(mode="json")
    report.notes += _replaced(values, report.values)
    return build(type(job), {**values, **{name: values[name] | new for name, new in report.values.items()}}), report


def _replaced(before: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Notes on settings of the job that were replaced or reset."""
    notes = []
    folders = [before["dataset"]["folder"], before["dataset"]["reg_data_dir"], *before["dataset"]["sources"]]
    if any(folders):
        notes.append("The previous folders were replaced by those of the file.")
    for group, names in PUT_BACK.items():
        for name, plain in names.items():
            old = before[group][name]
            if old not in (plain, None) and name not in ("folder", "reg_data_dir") and new[group][name] != old:
                title = next(entry.title for entry in declared(TrainJob) if entry.path == f"{group}.{name}")
                notes.append(f"'{title}' was {shorten(old)} and was reset: such files do not contain it.")
    return notes


# ---- the options of each folder


def _resolve(dataset: Dataset, general: Mapping[str, Any]) -> list[Subset]:
    """Every folder of a dataset; precedence: subset, dataset, general, default."""
    found = []
    for index, own in dataset.subsets:
        options = {}
        for name, option in OPTIONS.items():
            if dataset.method not in option.methods:
                continue
            levels = (own, dataset.values, general) if SUBSET in option.levels else (dataset.values, general)
            options[name] = next((level[name] for level in levels if name in level), option.default)
        found.append(Subset(dataset.number, dataset.method, f"{dataset.path}.subsets[{index}]", options))
    return found


def _check_dataset_values(document: Document, dataset: Dataset, subsets: list[Subset]) -> None:
    """Rules over several options of one dataset."""
    if not subsets:
        return
    options = subsets[0].options
    sizes = _metadata_sizes(document, subsets) if dataset.method == FINE_TUNING else []
    if sizes:
        if options["bucket_no_upscale"]:
            what = "bucket_no_upscale cannot be used with metadata that contains train_resolution"
            document.error(what, f"{dataset.path}.bucket_no_upscale", "remove it", "no-upscale-with-metadata-sizes")
        for subset in subsets:
            subset.options["enable_bucket"] = True
        if options["resolution"] is None:
            side = math.isqrt(max(width * height for width, height in sizes))
            document.notes.append(f"{dataset.path}: sizes come from the metadata; the resolution is set to {side}.")
            for subset in subsets:
                subset.options["resolution"] = max(64, side)
    elif options["resolution"] is None and "resolution" in dataset.given:
        return  # already reported
    elif options["resolution"] is None:
        fix = "add resolution = 512, or the size you train at"
        document.error(f"{dataset.path} has no resolution", dataset.path, fix, "no-resolution")
    else:
        _check_sides(document, dataset, options)
    for subset in subsets:
        if dataset.method == CONDITIONED and subset.options["random_crop"]:
            what = "random_crop cannot be used with a conditioning_data_dir"
            document.error(what, f"{subset.path}.random_crop", "turn it off for this folder", "random-crop-with-masks")
        if subset.options["face_crop_aug_range"] is not None and options["enable_bucket"]:
            what = "face_crop_aug_range has no effect while enable_bucket is on"
            place = f"{subset.path}.face_crop_aug_range"
            document.advise(what, place, "turn one of them off", "face-crop-with-buckets")


def _check_sides(document: Document, dataset: Dataset, options: Mapping[str, Any]) -> None:
    """Shortest and longest bucket side against the resolution, after rounding to the step."""
    if not options["enable_bucket"]:
        return
    size, step = options["resolution"], options["bucket_reso_steps"]
    width, height = size if isinstance(size, list) else (size, size)
    lowest, highest = options["min_bucket_reso"] // step * step, -(-options["max_bucket_reso"] // step) * step
    # Without upscaling the limits have no effect, and only sd-scripts refuses them.
    say = document.advise if options["bucket_no_upscale"] else document.error
    default = "; sd-scripts' default"
    if min(width, height) < lowest:
        given = default if options["min_bucket_reso"] == 256 else ""
        what = f"min_bucket_reso ({lowest}{given}) is above the resolution {width} x {height}"
        fix = f"set min_bucket_reso to {min(width, height)} or less"
        say(what, f"{dataset.path}.min_bucket_reso", fix, "min-bucket-above-resolution")
    if max(width, height) > highest:
        given = default if options["max_bucket_reso"] == 1024 else ""
        what = f"max_bucket_reso ({highest}{given}) is below the resolution {width} x {height}"
        fix = f"set max_bucket_reso to {2 * max(width, height)}"
        say(what, f"{dataset.path}.max_bucket_reso", fix, "max-bucket-below-resolution")
    if step % 64:
        note = f"{dataset.path}: bucket_reso_steps {step} was accepted; sd-scripts requires multiples of 64 (SDXL: 32)."
        document.notes.append(note)


def _metadata_sizes(document: Document, subsets: list[Subset]) -> list[tuple[int, int]]:
    """train_resolution of all images of a fine-tuning dataset; empty unless every image has one."""
    sizes: list[tuple[int, int]] = []
    for subset in subsets:
        path = resolve_path(_path(document, subset.options["metadata_file"] or "", tell=False))
        try:
            entries = read_json_object(path, max_bytes=MAX_BYTES, max_values=MAX_VALUES).values()
            sizes += [(int(each["train_resolution"][0]), int(each["train_resolution"][1])) for each in entries]
        except (ProblemsError, ValueError, AttributeError, LookupError, TypeError, OverflowError):
            return []
    return sizes


def _without_twins(document: Document, dataset: Dataset, subsets: list[Subset]) -> list[Subset]:
    """A folder listed twice in one dataset counts once; repeats below 1 exclude a folder."""
    kept: dict[tuple, Subset] = {}
    for subset in subsets:
        options = subset.options
        if options["num_repeats"] < 1:
            what = f"num_repeats is {options['num_repeats']}: the folder is excluded, as in sd-scripts"
            document.advise(what, f"{subset.path}.num_repeats", "use 1 or more to train it", "no-repeats")
            subset.enabled = False
        names = ("metadata_file",) if dataset.method == FINE_TUNING else ("image_dir", "conditioning_data_dir")
        key = tuple(options.get(name) for name in names)
        if subset.enabled and key in kept:
            what = f"This folder is already in {dataset.path}; it counts once, as in {kept[key].path}"
            document.advise(what, subset.path, "remove one, or put it into a separate dataset", "duplicate-folder")
            continue
        kept[key if subset.enabled else (subset.path,)] = subset
    return list(kept.values())


# ---- folders -> the job's groups


def _values(document: Document, subsets: list[Subset]) -> dict[str, dict[str, Any]]:
    """Folders with their own values; values that all share go into the common groups."""
    grouped = len({subset.dataset for subset in subsets}) > 1
    sources = [_source(document, subset) for subset in subsets]
    for subset, source in zip(subsets, sources, strict=True):
        if grouped:
            source["batch_group"] = f"dataset {subset.dataset + 1}"
    values = {group: dict(names) for group, names in PUT_BACK.items()}
    for group, model in GROUPS.items():
        for name in model.model_fields:
            said = [source[name] for source in sources if name in source]
            if not said or name in OWN or name == "validation_seed":
                continue
            if all(each == said[0] for each in said):
                values[group][name] = said[0]
                for source in sources:
                    source.pop(name, None)
            else:  # empty on a folder means the common value, so the common one is empty if any folder's is
                values[group][name] = None if declaration(name).optional else said[0]
    values["validation"] |= _seed(document, subsets)
    values["dataset"]["sources"] = [
        Source.model_validate_json(json.dumps(source)).model_dump(mode="json") for source in sources
    ]
    _summary(document, subsets)
    return values


def _source(document: Document, subset: Subset) -> dict[str, Any]:
    """One folder under our setting names. sd-scripts neither searches subfolders nor reads the folder's name."""
    options = subset.options
    source: dict[str, Any] = {"recursive": False, "enabled": subset.enabled}
    for name, option in OPTIONS.items():
        if option.setting and name in options and name != "validation_seed":
            source[option.setting] = to_setting(option, options[name])
    for name in PATHS:
        setting = OPTIONS[name].setting or name
        if source.get(setting) is not None:
            source[setting] = _path(document, source[setting])
    if not 0 <= source["validation_split"] <= 1:
        source["validation_split"] = 0.0
    if not subset.enabled:
        source["num_repeats"] = None
    source["role"] = "regularization" if options.get("is_reg") else "train"
    source["masked_loss"] = subset.method == CONDITIONED
    source.setdefault("alpha_mask", False)
    if subset.method == FINE_TUNING:
        source["folder"] = source["folder"] or ""  # then the metadata's own
        source["recursive"] = True  # the metadata lists the images, wherever they are
    elif subset.method == CONDITIONED or source["class_tokens"] is None:
        source["class_tokens"] = ""  # without a caption file an image has no caption; ours would use the folder's name
    return source


def _path(document: Document, text: str, tell: bool = True) -> str:
    """A path of the file. One relative to the file instead of the program is made absolute."""
    path = Path(text)
    if path.is_absolute() or not text or os.path.exists(PROJECT / path):
        return text
    beside = document.path.absolute().parent / path
    if not os.path.exists(beside):
        return text
    if tell:
        document.notes.append(f"'{text}' was found next to the file: {beside}")
    return str(beside)


def _seed(document: Document, subsets: list[Subset]) -> dict[str, int]:
    """One seed selects the validation images of every folder."""
    seeds = {subset.options["validation_seed"] for subset in subsets} - {None}
    if len(seeds) > 1:
        what = f"Datasets have different values of validation_seed; {min(seeds)} is used for all"
        document.advise(what, "datasets", "set it once in [general]", "several-validation-seeds")
    return {"validation_seed": min(seeds)} if seeds else {}


def _summary(document: Document, subsets: list[Subset]) -> None:
    """What was imported, in one sentence; and what sd-scripts needs a command line option for."""
    datasets = Counter(subset.dataset for subset in subsets)
    folders = f"{len(subsets)} folder" + ("" if len(subsets) == 1 else "s")
    document.notes.insert(0, f"{folders} in {len(datasets)} dataset" + ("" if len(datasets) == 1 else "s") + ".")
    if any(subset.method == CONDITIONED for subset in subsets):
        document.notes.append(
            f"'{declaration('masked_loss').title}' is on: sd-scripts uses a conditioning_data_dir only with --masked_loss."
        )
