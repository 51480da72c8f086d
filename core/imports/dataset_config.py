"""A dataset config of sd-scripts (TOML or JSON) -> the job's dataset, captions and validation groups.

What a folder takes from its dataset, from [general] and from sd-scripts' own defaults is worked out here and written
down in full, so that a file means here what it means there although some defaults differ.
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

from core.dataset.metadata import MAX_BYTES, MAX_VALUES
from core.imports.dataset_check import Dataset, check_command_line, check_document
from core.imports.dataset_options import (
    CONDITIONED,
    FINE_TUNING,
    OPTIONS,
    PATHS,
    SUBSET,
    declaration,
    groups,
    to_setting,
)
from core.imports.dataset_text import Document, read_document
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError, errors, limited, raise_if_errors
from core.record.workspace import PROJECT, resolve_path
from core.settings.base import declared
from core.settings.check import build, shorten
from core.settings.job import TrainJob
from core.settings.source import Source

# Stands on each folder, never in the common groups.
OWN = (
    "folder",
    "metadata_file",
    "conditioning_data_dir",
    "class_tokens",
    "num_repeats",
    "cache_info",
    "custom_attributes",
)
# Ours alone, and would change what a file means: an import puts them back.
PUT_BACK: dict[str, dict[str, Any]] = {
    "dataset": {
        "folder": None,
        "reg_data_dir": None,
        "dataset_class": None,
        "more_resolutions": [],
        "conditioning_data_dir": None,
    },
    "captions": {"sidecars": "one", "caption_lines": "first", "trigger_word": None},
    "validation": {},
}

Job = TypeVar("Job", bound=TrainJob)


@dataclass
class Imported:
    """What a file says. values: nested like a job's, empty where there are errors; notes: sentences for a person."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Subset:
    """One folder with the value of every option that holds for it (sd-scripts' names)."""

    dataset: int
    method: str
    path: str  # in the file: datasets[0].subsets[2]
    options: dict[str, Any]
    enabled: bool = True


def read_dataset_config(path: str | os.PathLike, command_line: Mapping[str, Any] | None = None) -> Imported:
    """Read a dataset config. Nothing is raised: errors and advice are in `problems`, all at once.

    command_line   what sd-scripts was given beside the file ({"train_batch_size": 2, "color_aug": True}): the file's
                   own values come first, these next, sd-scripts' defaults last
    """
    document = read_document(path)
    given = check_command_line(document, command_line)
    subsets: list[Subset] = []
    if document.raw is not None:
        general, datasets = check_document(document)
        for dataset in datasets:
            found = _resolve(dataset, general, given)
            _check_dataset_values(document, dataset, found)
            subsets += _without_twins(document, dataset, found)
        if datasets and not any(dataset.subsets for dataset in datasets) and not errors(document.problems):
            document.error("The file names no folder.", "datasets", "Add [[datasets.subsets]] with an image_dir.")
    document.problems = limited(document.problems)
    if errors(document.problems):
        return Imported({}, document.problems, document.notes)
    masked = (command_line or {}).get("masked_loss") is not False
    return Imported(_values(document, subsets, masked), document.problems, document.notes)


def apply_dataset_config(
    job: Job, path: str | os.PathLike, command_line: Mapping[str, Any] | None = None
) -> tuple[Job, Imported]:
    """The job with the file's folders and their settings in place of its own, and the report.

    Settings that such a file cannot hold (prior loss weight, masks' color, ...) stay. Raises ProblemsError on errors.
    """
    report = read_dataset_config(path, command_line)
    raise_if_errors(report.problems)
    values = job.model_dump(mode="json")
    report.notes += _replaced(values, report.values)
    return build(type(job), {**values, **{name: values[name] | new for name, new in report.values.items()}}), report


def _replaced(before: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a person had set that is gone now."""
    notes = []
    folders = [before["dataset"]["folder"], before["dataset"]["reg_data_dir"], *before["dataset"]["sources"]]
    if any(folders):
        notes.append("The folders that were chosen before are replaced by those of the file.")
    for group, names in PUT_BACK.items():
        for name, plain in names.items():
            old = before[group][name]
            if old not in (plain, None) and name not in ("folder", "reg_data_dir") and new[group][name] != old:
                title = next(entry.title for entry in declared(TrainJob) if entry.path == f"{group}.{name}")
                notes.append(f"'{title}' was {shorten(old)} and is now as it was at first: the file does not know it.")
    return notes


# ---- what holds for each folder


def _resolve(dataset: Dataset, general: Mapping[str, Any], command_line: Mapping[str, Any]) -> list[Subset]:
    """Every folder of a dataset: subset before dataset before general before command line before default."""
    found = []
    for index, own in dataset.subsets:
        options = {}
        for name, option in OPTIONS.items():
            if dataset.method not in option.methods:
                continue
            levels = (own, dataset.values, general) if SUBSET in option.levels else (dataset.values, general)
            options[name] = next((level[name] for level in (*levels, command_line) if name in level), option.default)
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
            what = "bucket_no_upscale cannot be used with metadata that holds train_resolution"
            document.error(what, f"{dataset.path}.bucket_no_upscale", "Remove it.")
        for subset in subsets:
            subset.options["enable_bucket"] = True
        if options["resolution"] is None:
            side = math.isqrt(max(width * height for width, height in sizes))
            document.notes.append(f"{dataset.path}: sizes come from the metadata; the resolution is set to {side}.")
            for subset in subsets:
                subset.options["resolution"] = max(64, side)
    elif options["resolution"] is None and "resolution" in dataset.given:
        return  # it was told already what is wrong with it
    elif options["resolution"] is None:
        fix = "add resolution = 512, or the size that you train at"
        document.error(f"{dataset.path} has no resolution.", dataset.path, fix)
    else:
        _check_sides(document, dataset, options)
    for subset in subsets:
        if dataset.method == CONDITIONED and subset.options["random_crop"]:
            what = "random_crop cannot be used with a conditioning_data_dir"
            document.error(what, f"{subset.path}.random_crop", "Switch it off for this folder.")
        if subset.options["face_crop_aug_range"] is not None and options["enable_bucket"]:
            what = "face_crop_aug_range has no effect while enable_bucket is on"
            document.advise(what, f"{subset.path}.face_crop_aug_range", "Switch one of them off.")


def _check_sides(document: Document, dataset: Dataset, options: Mapping[str, Any]) -> None:
    """Shortest and longest bucket side against the resolution, after rounding to the step."""
    if not options["enable_bucket"]:
        return
    size, step = options["resolution"], options["bucket_reso_steps"]
    width, height = size if isinstance(size, list) else (size, size)
    lowest, highest = options["min_bucket_reso"] // step * step, -(-options["max_bucket_reso"] // step) * step
    # Where images are never enlarged the limits have no effect, so only sd-scripts minds.
    say = document.advise if options["bucket_no_upscale"] else document.error
    default = "; what sd-scripts takes where none is given"
    if min(width, height) < lowest:
        given = default if options["min_bucket_reso"] == 256 else ""
        what = f"min_bucket_reso ({lowest}{given}) is above the resolution {width} x {height}"
        say(what, f"{dataset.path}.min_bucket_reso", f"Set min_bucket_reso to {min(width, height)} or less.")
    if max(width, height) > highest:
        given = default if options["max_bucket_reso"] == 1024 else ""
        what = f"max_bucket_reso ({highest}{given}) is below the resolution {width} x {height}"
        say(what, f"{dataset.path}.max_bucket_reso", f"Set max_bucket_reso to {2 * max(width, height)}.")
    if step % 64:
        note = (
            f"{dataset.path}: bucket_reso_steps {step} was taken; sd-scripts itself wants multiples of 64 (SDXL: 32)."
        )
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
    """A folder that stands twice in one dataset counts once; repeats below 1 leave a folder out."""
    kept: dict[tuple, Subset] = {}
    for subset in subsets:
        options = subset.options
        if options["num_repeats"] < 1:
            what = f"num_repeats is {options['num_repeats']}: the folder is left out, as by sd-scripts"
            document.advise(what, f"{subset.path}.num_repeats", "Use 1 or more if it should train.")
            subset.enabled = False
        names = ("metadata_file",) if dataset.method == FINE_TUNING else ("image_dir", "conditioning_data_dir")
        key = tuple(options.get(name) for name in names)
        if subset.enabled and key in kept:
            what = f"This folder stands in {dataset.path} already; it counts once, as in {kept[key].path}"
            document.advise(what, subset.path, "Remove one, or put it into a dataset of its own.")
            continue
        kept[key if subset.enabled else (subset.path,)] = subset
    return list(kept.values())


# ---- folders -> the job's groups


def _values(document: Document, subsets: list[Subset], masked: bool) -> dict[str, dict[str, Any]]:
    """Folders with what each has of its own; what all share stands in the common groups."""
    grouped = len({subset.dataset for subset in subsets}) > 1
    sources = [_source(document, subset, masked) for subset in subsets]
    for subset, source in zip(subsets, sources, strict=True):
        if grouped:
            source["batch_group"] = f"dataset {subset.dataset + 1}"
    values = {group: dict(names) for group, names in PUT_BACK.items()}
    for group, model in groups().items():
        for name in model.model_fields:
            said = [source[name] for source in sources if name in source]
            if not said or name in OWN or name == "validation_seed":
                continue
            if all(each == said[0] for each in said):
                values[group][name] = said[0]
                for source in sources:
                    source.pop(name, None)
            else:  # empty on a folder means the common value, so where some have none the common one is empty
                values[group][name] = None if declaration(name).optional else said[0]
    values["validation"] |= _seed(document, subsets)
    values["dataset"]["sources"] = [
        Source.model_validate_json(json.dumps(source)).model_dump(mode="json") for source in sources
    ]
    _summary(document, subsets, masked)
    return values


def _source(document: Document, subset: Subset, masked: bool) -> dict[str, Any]:
    """One folder in our settings' names. sd-scripts neither looks into sub-folders nor reads the folder's name."""
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
    source["masked_loss"] = subset.method == CONDITIONED and masked
    source.setdefault("alpha_mask", False)
    if subset.method == FINE_TUNING:
        source["folder"] = source["folder"] or ""  # then the metadata's own
        source["recursive"] = True  # the metadata names the images, wherever they lie
    elif subset.method == CONDITIONED or source["class_tokens"] is None:
        source["class_tokens"] = ""  # without a caption file an image has none; ours would take the folder's name
    return source


def _path(document: Document, text: str, tell: bool = True) -> str:
    """A path of the file. A relative one that lies beside the file, not beside the program, is made whole."""
    path = Path(text)
    if path.is_absolute() or not text or os.path.exists(PROJECT / path):
        return text
    beside = document.path.absolute().parent / path
    if not os.path.exists(beside):
        return text
    if tell:
        document.notes.append(f"'{text}' was found beside the file: {beside}")
    return str(beside)


def _seed(document: Document, subsets: list[Subset]) -> dict[str, int]:
    """One seed chooses what is held out of every folder."""
    seeds = {subset.options["validation_seed"] for subset in subsets} - {None}
    if len(seeds) > 1:
        what = f"Datasets have different values of validation_seed; one holds for all here: {min(seeds)}"
        document.advise(what, "datasets", "Give one in [general].")
    return {"validation_seed": min(seeds)} if seeds else {}


def _summary(document: Document, subsets: list[Subset], masked: bool) -> None:
    """What was taken over, in a sentence; what sd-scripts does by an option of its command line."""
    datasets = Counter(subset.dataset for subset in subsets)
    folders = f"{len(subsets)} folder" + ("" if len(subsets) == 1 else "s")
    document.notes.insert(0, f"{folders} in {len(datasets)} dataset" + ("" if len(datasets) == 1 else "s") + ".")
    if masked and any(subset.method == CONDITIONED for subset in subsets):
        document.notes.append(
            "'Use the masks' is on: sd-scripts takes a conditioning_data_dir only with --masked_loss."
        )
