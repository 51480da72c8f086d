"""Read a dataset config of sd-scripts (TOML or JSON) into the job's dataset, captions and validation groups.

Every table is checked: which option is allowed where, of which type, in which kind of dataset. What a folder inherits from
its dataset, [general] and sd-scripts' own defaults is resolved and written out in full, so that a file means the same in
both programs although some defaults differ.
"""

import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from core.dataset.sources.metadata import MAX_BYTES, MAX_VALUES
from core.imports.dataset_options import (
    COMMAND_LINE_NAMES,
    CONDITIONED,
    DATASET,
    DREAMBOOTH,
    FINE_TUNING,
    GENERAL,
    GROUPS,
    INTERPOLATIONS,
    KINDS,
    OPTIONS,
    PATHS,
    REQUIRED,
    SUBSET,
    Option,
    declaration,
    fits,
    range_fix,
    sd_scripts_refuses,
    to_setting,
)
from core.imports.dataset_text import Document, read_document
from core.record.allowed import may_reach
from core.record.bounded_json import read_json_object
from core.record.problems import MOST, Problem, ProblemsError, errors, limited, raise_if_errors
from core.record.units import count
from core.record.workspace import PROJECT, resolve_path
from core.settings.base import declared
from core.settings.check import build, shorten
from core.settings.dataset.source import Source
from core.settings.job import TrainJob

# Settings of each folder, never in the common groups.
PER_FOLDER = "folder metadata_file conditioning_data_dir class_tokens num_repeats cache_info custom_attributes".split()
# Unknown to sd-scripts and would change what a file's folders and captions mean: an import resets them.
RESET: dict[str, dict[str, Any]] = {
    "dataset": dict.fromkeys(("folder", "reg_data_dir", "dataset_class", "conditioning_data_dir"))
    | {"more_resolutions": []},
    "captions": {"sidecars": "one", "caption_lines": "first", "trigger_word": None, "tag_dropout_mode": "each"},
    "validation": {},
}

_WHY_NOT = {  # option -> why this kind of dataset does not allow it, what to do
    "metadata_file": (
        "A dataset cannot mix folders with and without a metadata_file",
        "put them into two [[datasets]]",
    ),
    "conditioning_data_dir": (
        "Either all folders of a dataset have a conditioning_data_dir or none",
        "put the others into a separate dataset",
    ),
    "alpha_mask": ("alpha_mask cannot be combined with a conditioning_data_dir, which provides the masks", "remove it"),
    "is_reg": ("is_reg (regularization) only works in DreamBooth datasets, without metadata or masks", "remove it"),
    "class_tokens": ("class_tokens only works in DreamBooth datasets", "remove it, or move it to [general]"),
    "caption_extension": ("caption_extension is not allowed here: captions come from the metadata file", "remove it"),
    "cache_info": ("cache_info is not allowed here: sizes and captions come from the metadata file", "remove it"),
}  # fmt: skip

Job = TypeVar("Job", bound=TrainJob)


@dataclass
class Imported:
    """The content of a dataset config.

    values  {group: {setting: value}} as in a job; {} if there are errors
    notes   sentences for the report
    names   options that the file contains
    """

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


@dataclass
class Subset:
    """A folder with the resolved value of every option.

    dataset  index of its [[datasets]] table
    method   kind of dataset: DREAMBOOTH, FINE_TUNING or CONDITIONED
    path     location in the file: "datasets[0].subsets[2]"
    options  {sd-scripts' name: value}
    """

    dataset: int
    method: str
    path: str  # in the file: datasets[0].subsets[2]
    options: dict[str, Any]
    enabled: bool = True


@dataclass
class Dataset:
    """A [[datasets]] table.

    path    location in the file: "datasets[0]"
    method  kind of dataset: DREAMBOOTH, FINE_TUNING or CONDITIONED
    names   keys of this table and of [general], valid or not
    """

    path: str
    method: str
    names: frozenset[str]
    subsets: list[Subset] = field(default_factory=list)


def read_dataset_config(
    path: str | os.PathLike | Document, fallback: Mapping[str, Any] | None = None, *, alone: bool = False
) -> Imported:
    """Read a dataset config. Raises nothing: all errors and advice are in the result's `problems`.

    path      of the file, or its content
    fallback  {option: value} of the command line, used where the file does not set the option
    alone     whether no other file is read or looked for, so that paths stay as written
    """
    document = path if isinstance(path, Document) else read_document(path)
    document.alone = alone
    subsets: list[Subset] = []
    if document.raw is not None:
        datasets = _datasets(document, document.raw, fallback or {})
        for dataset in datasets:
            _check_dataset_values(document, dataset)
            subsets += _without_duplicates(document, dataset)
        if datasets and not any(dataset.subsets for dataset in datasets) and not errors(document.problems):
            fix = "add [[datasets.subsets]] with an image_dir"
            document.error("The file contains no folder", "datasets", fix, "no-folder")
    document.problems = limited(document.problems)
    if errors(document.problems):
        return Imported({}, document.problems, document.notes)
    return Imported(_values(document, subsets), document.problems, document.notes, _names(document.raw))


def _names(value: Any) -> set[str]:
    """Return the keys of all tables nested in a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set(value if isinstance(value, dict) else ()).union(*map(_names, inner))


def apply_dataset_config(job: Job, path: str | os.PathLike) -> tuple[Job, Imported]:
    """Return (the job with its folders and their settings replaced by those of the file, report). Raises ProblemsError on errors.

    Settings that such a file cannot contain (prior loss weight, background color, ...) are unchanged.
    """
    report = read_dataset_config(path)
    raise_if_errors(report.problems)
    values = job.model_dump(mode="json")
    report.notes += _replacement_notes(values, report)
    return build(type(job), {**values, **{name: values[name] | new for name, new in report.values.items()}}), report


def _replacement_notes(before: Mapping[str, Any], imported: Imported) -> list[str]:
    """Return notes on the job's folders, and on the settings that change although the file does not set them.
    before: {group: {setting: value}} of the job"""
    from core.settings.values import shown_value  # it loads the extensions, which may import this module

    notes = []
    folders = [before["dataset"]["folder"], before["dataset"]["reg_data_dir"], *before["dataset"]["sources"]]
    if any(folders):
        notes.append("The previous folders were replaced by those of the file.")
    in_file = imported.names | {name for name, other in COMMAND_LINE_NAMES.items() if other in imported.names}
    for entry in declared(TrainJob):
        old, new = (groups.get(entry.group, {}).get(entry.name) for groups in (before, imported.values))
        if (
            old is None
            or entry.name not in imported.values.get(entry.group, {})
            or not in_file.isdisjoint(entry.kohya_names)
        ):
            continue
        if old != new and entry.name not in ("folder", "reg_data_dir", "sources"):
            texts = f"was {shown_value(entry, old)} and is now {shown_value(entry, new)}"
            notes.append(f"'{entry.title}' {texts}: the file does not set it.")
    return notes


# ---- tables


def _datasets(document: Document, raw: Mapping[str, Any], fallback: Mapping[str, Any]) -> list[Dataset]:
    """Return every dataset of a file. Invalid options are left out and added to the document's problems.
    fallback: {option: value} used where the file does not set the option"""
    for name in raw:
        if name not in ("general", "datasets"):
            near = difflib.get_close_matches(name, ["general", "datasets"], n=1)
            fix = f"use {near[0]}" if near else "put options into [general], [[datasets]] or [[datasets.subsets]]"
            document.error(f"'{name}' is not allowed at the top of the file", name, fix, "unknown-table")
    general = raw.get("general", {})
    if not isinstance(general, dict):
        document.error("general is not a table", "general", "write [general] with the options below it", "not-a-table")
        general = {}
    values = {**fallback, **_check_table(document, general, "general", GENERAL, "")}
    tables = _tables(document, raw.get("datasets", []), "datasets")
    if not tables and "datasets" not in raw:
        fix = "write [[datasets]], and [[datasets.subsets]] for each folder"
        document.error("The file has no dataset", "", fix, "no-dataset")
    return [_dataset(document, number, table, frozenset(general), values) for number, table in tables]


def _dataset(
    document: Document, number: int, table: Mapping[str, Any], general_names: frozenset[str], general: Mapping[str, Any]
) -> Dataset:
    """Return a dataset with its folders. A value comes from the subset, else the dataset, else [general], else sd-scripts' default.

    number         index of the dataset
    general_names  keys of [general], valid or not
    general        {option: valid value} of [general] and the command line
    """
    path = f"datasets[{number}]"
    tables = _tables(document, table.get("subsets", []), f"{path}.subsets")
    method = method_of(subset for _, subset in tables)
    written = {name: value for name, value in table.items() if name != "subsets"}
    inherited = {**general, **_check_table(document, written, path, DATASET, method)}
    dataset = Dataset(path, method, general_names | frozenset(table))
    defaults = {name: option.default for name, option in OPTIONS.items() if method in option.methods}
    for index, subset in tables:
        subset_path = f"{path}.subsets[{index}]"
        values = inherited | _check_table(document, subset, subset_path, SUBSET, method)
        options = {name: values.get(name, default) for name, default in defaults.items()}
        dataset.subsets.append(Subset(number, method, subset_path, options))
        _check_required(document, subset, subset_path, method)
    if not tables and isinstance(table.get("subsets", []), list):
        fix = "add [[datasets.subsets]] with an image_dir, or remove the dataset"
        document.advise(f"{path} has no folder", path, fix, "dataset-without-folder")
    return dataset


def _tables(document: Document, raw: Any, path: str) -> list[tuple[int, dict[str, Any]]]:
    """Return (index, table) of each table in an array of tables; adds a problem for any other value."""
    if not isinstance(raw, list):
        fix = f"write {DATASET if path == 'datasets' else SUBSET} with double brackets"
        document.error(f"{path} is not an array of tables", path, fix, "not-an-array")
        return []
    for number, table in enumerate(raw):
        if not isinstance(table, dict):
            what = f"{path}[{number}] is {shorten(table)}, not a table"
            document.error(what, f"{path}[{number}]", "write a table", "not-a-table")
    return [(number, table) for number, table in enumerate(raw) if isinstance(table, dict)]


def method_of(subsets: Iterable[Mapping[str, Any]]) -> str:
    """Return the kind of a dataset from its subset tables. A mixture counts as DREAMBOOTH, which then refuses the other keys."""
    subsets = list(subsets)
    if subsets and all("conditioning_data_dir" in subset for subset in subsets):
        return CONDITIONED
    return FINE_TUNING if subsets and all("metadata_file" in subset for subset in subsets) else DREAMBOOTH


def _check_required(document: Document, subset: Mapping[str, Any], path: str, method: str) -> None:
    """Add a problem for each required option that is missing or empty, unless it is misspelled and so reported as unknown."""
    for name in REQUIRED[method]:
        misspelled = [key for key in subset if key not in OPTIONS and _nearest_option(key, SUBSET, method) == name]
        if name in subset and subset[name] == "":
            document.error(f"{path} has an empty {name}", f"{path}.{name}", "set it to a folder or file", "empty-path")
        elif name not in subset and not misspelled:
            document.error(f"{path} has no {name}", path, f"add {name} = 'path'", "missing-path")


# ---- one table


def _check_table(document: Document, table: Mapping[str, Any], path: str, level: str, method: str) -> dict[str, Any]:
    """Return {option: value} of a table's valid options; adds a problem for each invalid one.

    path    location of the table: "datasets[0]"
    level   GENERAL, DATASET or SUBSET
    method  kind of dataset; not used for GENERAL
    """
    valid: dict[str, Any] = {}
    for name, value in table.items():
        key_path = f"{path}.{name}"
        option = OPTIONS.get(name)
        if option is None:
            fix = _fix_for(name, level, method) if len(document.problems) < MOST else "remove it"  # the search is slow
            document.error(f"{key_path} is not an option of sd-scripts dataset files", key_path, fix, "unknown-option")
        elif level not in option.levels:
            fix = f"move it to {' or '.join(option.levels)}"
            document.error(f"{name} is not allowed in {level}", key_path, fix, "misplaced-option")
        elif level != GENERAL and method not in option.methods:
            what, fix = _WHY_NOT[name]
            document.error(what, key_path, fix, "wrong-dataset-kind")
        elif value is None:
            document.notes.append(f"{key_path} is null, which counts as not set.")
        elif _value_fits(document, option, value, key_path):
            valid[name] = value
    return valid


def _value_fits(document: Document, option: Option, value: Any, path: str) -> bool:
    """Return whether an option's value has a valid type and range; adds a problem if not. path: location of the key"""
    name = option.name
    if not fits(option.kind, value):
        expected = KINDS[option.kind][1]
        fix = f"write {expected}"
        if isinstance(value, bool) and option.kind in ("int", "number"):
            fix += f"; sd-scripts would read {shorten(value)} as {int(value)}"
        what = f"{name} is {shorten(value)}, not {expected.split(':')[0]}"
        document.error(what, path, fix, "wrong-type")
        return False
    if sd_scripts_refuses(option.kind, value):
        document.notes.append(f"{path}: {shorten(value)} was accepted; sd-scripts requires a decimal point here.")
    if name == "resize_interpolation" and value not in INTERPOLATIONS:
        what = f"{name} is {shorten(value)}"
        document.error(what, path, f"use one of {', '.join(INTERPOLATIONS)}", "value-out-of-range")
        return False
    if name == "face_crop_aug_range" and value[0] > value[1]:
        what = f"{name} is {shorten(value)}: the first number is larger than the second"
        document.error(what, path, "swap the two numbers", "range-reversed")
        return False
    if name == "num_repeats" and value < 1:
        return True  # excludes the folder, reported with the folders
    if name == "validation_split" and not 0 <= value <= 1:
        what = f"{name} is {shorten(value)}: outside 0 to 1 no image is held out"
        document.advise(what, path, "use 0 to 1", "validation-split-out-of-range")
        return True
    fix = range_fix(option, to_setting(option, value))
    if fix:
        document.error(f"{name} is {shorten(value)}", path, fix, "value-out-of-range")
    return not fix


def _nearest_option(name: str, level: str, method: str) -> str:
    """Return the option most similar to an unknown key, preferably one allowed in this table; "" if none is similar."""
    if name in COMMAND_LINE_NAMES:
        return COMMAND_LINE_NAMES[name]
    known = [
        option.name
        for option in OPTIONS.values()
        if level in option.levels and (level == GENERAL or method in option.methods)
    ]
    for names in (known, list(OPTIONS)):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
        if near:
            return near[0]
    return ""


def _fix_for(name: str, level: str, method: str) -> str:
    """Return the fix for an unknown key: the setting for command line options, else the most similar option, else to remove it."""
    for entry in declared(TrainJob):
        if name in entry.kohya_names and name not in COMMAND_LINE_NAMES:
            return f"remove it: it is a command line option of sd-scripts, and here the setting {entry.path}"
    near = _nearest_option(name, level, method)
    return f"use {near}" if near else "remove it"


# ---- datasets


def _check_dataset_values(document: Document, dataset: Dataset) -> None:
    """Add problems of a dataset's options that conflict.

    If the metadata of a fine-tuning dataset has sizes, buckets are turned on and a missing resolution is set, in place.
    """
    subsets = dataset.subsets
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
    elif options["resolution"] is None and "resolution" in dataset.names:
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
            path = f"{subset.path}.face_crop_aug_range"
            document.advise(what, path, "turn one of them off", "face-crop-with-buckets")


def _check_sides(document: Document, dataset: Dataset, options: Mapping[str, Any]) -> None:
    """Add problems of bucket sides that do not fit the resolution after rounding to the step (only advice with bucket_no_upscale), and a
    note on a step that sd-scripts refuses. Nothing without enable_bucket."""
    if not options["enable_bucket"]:
        return
    size, step = options["resolution"], options["bucket_reso_steps"]
    width, height = size if isinstance(size, list) else (size, size)
    lowest, highest = options["min_bucket_reso"] // step * step, -(-options["max_bucket_reso"] // step) * step
    # Without upscaling the limits have no effect, and only sd-scripts refuses them.
    report = document.advise if options["bucket_no_upscale"] else document.error
    default = "; sd-scripts' default"
    if min(width, height) < lowest:
        origin = default if options["min_bucket_reso"] == 256 else ""
        what = f"min_bucket_reso ({lowest}{origin}) is above the resolution {width} x {height}"
        fix = f"set min_bucket_reso to {min(width, height)} or less"
        report(what, f"{dataset.path}.min_bucket_reso", fix, "min-bucket-above-resolution")
    if max(width, height) > highest:
        origin = default if options["max_bucket_reso"] == 1024 else ""
        what = f"max_bucket_reso ({highest}{origin}) is below the resolution {width} x {height}"
        fix = f"set max_bucket_reso to {2 * max(width, height)}"
        report(what, f"{dataset.path}.max_bucket_reso", fix, "max-bucket-below-resolution")
    if step % 64:
        note = f"{dataset.path}: bucket_reso_steps {step} was accepted; sd-scripts requires multiples of 64 (SDXL: 32)."
        document.notes.append(note)


def _metadata_sizes(document: Document, subsets: list[Subset]) -> list[tuple[int, int]]:
    """Return train_resolution, (width, height) in pixels, of all images in a fine-tuning dataset's metadata; [] unless every image has
    one."""
    sizes: list[tuple[int, int]] = []
    for subset in subsets:
        if document.alone:
            return []
        path = resolve_path(_path(document, subset.options["metadata_file"] or "", add_note=False))
        if not may_reach(path):  # refused with the other paths of the job
            return []
        try:
            entries = read_json_object(path, max_bytes=MAX_BYTES, max_values=MAX_VALUES).values()
            sizes += [(int(each["train_resolution"][0]), int(each["train_resolution"][1])) for each in entries]
        except (ProblemsError, ValueError, AttributeError, LookupError, TypeError, OverflowError):
            return []
    return sizes


def _without_duplicates(document: Document, dataset: Dataset) -> list[Subset]:
    """Return the dataset's subsets without repeated folders, with advice on them; subsets with repeats below 1 are disabled."""
    folders: dict[tuple, Subset] = {}
    for subset in dataset.subsets:
        options = subset.options
        if options["num_repeats"] < 1:
            what = f"num_repeats is {options['num_repeats']}: the folder is excluded, as in sd-scripts"
            document.advise(what, f"{subset.path}.num_repeats", "use 1 or more to train it", "no-repeats")
            subset.enabled = False
        names = ("metadata_file",) if dataset.method == FINE_TUNING else ("image_dir", "conditioning_data_dir")
        key = tuple(options.get(name) for name in names)
        if subset.enabled and key in folders:
            what = f"This folder is already in {dataset.path}; it counts once, as in {folders[key].path}"
            document.advise(what, subset.path, "remove one, or put it into a separate dataset", "duplicate-folder")
            continue
        folders[key if subset.enabled else (subset.path,)] = subset
    return list(folders.values())


# ---- folders -> the job's groups


def _values(document: Document, subsets: list[Subset]) -> dict[str, dict[str, Any]]:
    """Return {group: {setting: value}} for the job. A value that all folders share goes into its group, others stay with the folder."""
    grouped = len({subset.dataset for subset in subsets}) > 1
    sources = [_source(document, subset) for subset in subsets]
    for subset, source in zip(subsets, sources, strict=True):
        if grouped:
            source["batch_group"] = f"dataset {subset.dataset + 1}"
    values = {group: dict(names) for group, names in RESET.items()}
    for group, model in GROUPS.items():
        for name in model.model_fields:
            stated = [source[name] for source in sources if name in source]
            if not stated or name in PER_FOLDER or name == "validation_seed":
                continue
            if all(each == stated[0] for each in stated):
                values[group][name] = stated[0]
                for source in sources:
                    source.pop(name, None)
            else:  # empty on a folder means the common value, so the common one is empty if any folder's is
                values[group][name] = None if declaration(name).optional else stated[0]
    values["validation"] |= _seed(document, subsets)
    values["dataset"]["sources"] = [
        Source.model_validate_json(json.dumps(source)).model_dump(mode="json") for source in sources
    ]
    _add_summary(document, subsets)
    return values


def _source(document: Document, subset: Subset) -> dict[str, Any]:
    """Return {setting: value} of a folder, as in `Source`. sd-scripts neither searches subfolders nor reads the folder's name."""
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


def _path(document: Document, text: str, add_note: bool = True) -> str:
    """Return a path from the file, made absolute if it exists relative to the file but not to the program.
    add_note: whether to add a note on that to the document"""
    path = Path(text)
    if document.alone or path.is_absolute() or not text or os.path.exists(PROJECT / path):
        return text
    next_to_file = document.path.absolute().parent / path
    if not may_reach(next_to_file) or not os.path.exists(next_to_file):
        return text
    if add_note:
        document.notes.append(f"'{text}' was found next to the file: {next_to_file}")
    return str(next_to_file)


def _seed(document: Document, subsets: list[Subset]) -> dict[str, int]:
    """Return {"validation_seed": the lowest of the subsets'}, or {} if none is set; advice if they differ, since one seed serves all."""
    seeds = {subset.options["validation_seed"] for subset in subsets} - {None}
    if len(seeds) > 1:
        what = f"Datasets have different values of validation_seed; {min(seeds)} is used for all"
        document.advise(what, "datasets", "set it once in [general]", "several-validation-seeds")
    return {"validation_seed": min(seeds)} if seeds else {}


def _add_summary(document: Document, subsets: list[Subset]) -> None:
    """Add notes to the document: first the numbers of folders and datasets, last that masks need --masked_loss in sd-scripts."""
    datasets = {subset.dataset for subset in subsets}
    document.notes.insert(0, f"{count(len(subsets), 'folder')} in {count(len(datasets), 'dataset')}.")
    if any(subset.method == CONDITIONED for subset in subsets):
        document.notes.append(
            f"'{declaration('masked_loss').title}' is on: sd-scripts uses a conditioning_data_dir only with --masked_loss."
        )
