"""The rules of sd-scripts' dataset config: which option is allowed where, of which type, in which kind of dataset."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.imports.dataset_options import (
    COMMAND_LINE_NAMES,
    CONDITIONED,
    DATASET,
    DREAMBOOTH,
    FINE_TUNING,
    GENERAL,
    INTERPOLATIONS,
    KINDS,
    OPTIONS,
    REQUIRED,
    SUBSET,
    Option,
    fits,
    range_of,
    refused_there,
    to_setting,
)
from core.imports.dataset_text import Document
from core.record.problems import MOST
from core.settings.base import declared
from core.settings.check import shorten
from core.settings.job import TrainJob

_WHY_NOT = {  # option -> why this kind of dataset does not allow it, what to do
    "metadata_file": (
        "A dataset cannot mix folders with and without a metadata_file",
        "put them into two [[datasets]]",
    ),
    "conditioning_data_dir": (
        "Either all folders of a dataset have a conditioning_data_dir or none",
        "put the others into a separate dataset",
    ),
    "alpha_mask": (
        "alpha_mask cannot be combined with a conditioning_data_dir, which provides the masks",
        "remove it",
    ),
    "is_reg": (
        "is_reg (regularization) only works in DreamBooth datasets, without metadata or masks",
        "remove it",
    ),
    "class_tokens": ("class_tokens only works in DreamBooth datasets", "remove it, or move it to [general]"),
    "caption_extension": ("caption_extension is not allowed here: captions come from the metadata file", "remove it"),
    "cache_info": ("cache_info is not allowed here: sizes and captions come from the metadata file", "remove it"),
}


@dataclass
class Dataset:
    """One [[datasets]] table, checked.

    values    its own valid options                     subsets   (number in the file, its values)
    given     every name in it and in [general], valid or not
    """

    number: int
    method: str
    values: dict[str, Any]
    given: frozenset[str] = frozenset()
    subsets: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"datasets[{self.number}]"


def check_document(document: Document) -> tuple[dict[str, Any], list[Dataset]]:
    """Values of [general] and every dataset. Invalid options are left out and added to the document's problems."""
    raw = document.raw or {}
    for name in raw:
        if name not in ("general", "datasets"):
            near = difflib.get_close_matches(name, ["general", "datasets"], n=1)
            fix = f"use {near[0]}" if near else "put options into [general], [[datasets]] or [[datasets.subsets]]"
            document.error(f"'{name}' is not allowed at the top of the file", name, fix, "unknown-table")
    general = raw.get("general", {})
    if not isinstance(general, dict):
        document.error("general is not a table", "general", "write [general] with the options below it", "not-a-table")
        general = {}
    values = _check_table(document, general, "general", GENERAL, "")
    tables = _tables(document, raw.get("datasets", []), "datasets")
    if not tables and "datasets" not in raw:
        fix = "write [[datasets]], and [[datasets.subsets]] for each folder"
        document.error("The file has no dataset", "", fix, "no-dataset")
    return values, [_check_dataset(document, number, table, frozenset(general)) for number, table in tables]


def _tables(document: Document, raw: Any, path: str) -> list[tuple[int, dict[str, Any]]]:
    """The elements of an array of tables."""
    if not isinstance(raw, list):
        brackets = "[[datasets]]" if path == "datasets" else "[[datasets.subsets]]"
        document.error(
            f"{path} is not an array of tables", path, f"write {brackets} with double brackets", "not-an-array"
        )
        return []
    for number, table in enumerate(raw):
        if not isinstance(table, dict):
            what = f"{path}[{number}] is {shorten(table)}, not a table"
            document.error(what, f"{path}[{number}]", "write a table", "not-a-table")
    return [(number, table) for number, table in enumerate(raw) if isinstance(table, dict)]


def _check_dataset(document: Document, number: int, table: dict[str, Any], general: frozenset[str]) -> Dataset:
    path = f"datasets[{number}]"
    subsets = _tables(document, table.get("subsets", []), f"{path}.subsets")
    method = method_of([subset for _, subset in subsets])
    own = {name: value for name, value in table.items() if name != "subsets"}
    dataset = Dataset(number, method, _check_table(document, own, path, DATASET, method), general | frozenset(table))
    for index, subset in subsets:
        place = f"{path}.subsets[{index}]"
        dataset.subsets.append((index, _check_table(document, subset, place, SUBSET, method)))
        _check_required(document, subset, place, method)
    if not subsets and isinstance(table.get("subsets", []), list):
        fix = "add [[datasets.subsets]] with an image_dir, or remove the dataset"
        document.advise(f"{path} has no folder", path, fix, "dataset-without-folder")
    return dataset


def method_of(subsets: Iterable[Mapping[str, Any]]) -> str:
    """The kind of a dataset, from its subsets. A mixture counts as DreamBooth, which then refuses the other keys."""
    subsets = list(subsets)
    if subsets and all("conditioning_data_dir" in subset for subset in subsets):
        return CONDITIONED
    return FINE_TUNING if subsets and all("metadata_file" in subset for subset in subsets) else DREAMBOOTH


def _check_required(document: Document, subset: Mapping[str, Any], path: str, method: str) -> None:
    for name in REQUIRED[method]:
        misspelt = [key for key in subset if key not in OPTIONS and _meant_by(key, SUBSET, method) == name]
        if name in subset and subset[name] == "":
            document.error(f"{path} has an empty {name}", f"{path}.{name}", "set it to a folder or file", "empty-path")
        elif name not in subset and not misspelt:
            document.error(f"{path} has no {name}", path, f"add {name} = 'path'", "missing-path")


# ---- one table


def _check_table(document: Document, table: Mapping[str, Any], path: str, level: str, method: str) -> dict[str, Any]:
    """The valid values of a table."""
    good: dict[str, Any] = {}
    for name, value in table.items():
        place = f"{path}.{name}"
        option = OPTIONS.get(name)
        if option is None:
            fix = _unknown(name, level, method) if len(document.problems) < MOST else "remove it"  # the search is slow
            document.error(f"{place} is not an option of sd-scripts dataset files", place, fix, "unknown-option")
        elif level not in option.levels:
            what = f"{name} is not allowed in {_level_words(level)}"
            document.error(what, place, _right_level(option), "misplaced-option")
        elif level != GENERAL and method not in option.methods:
            what, fix = _WHY_NOT[name]
            document.error(what, place, fix, "wrong-dataset-kind")
        elif value is None:
            document.notes.append(f"{place} is null, which counts as not set.")
        elif _value_fits(document, option, value, place):
            good[name] = value
    return good


def _value_fits(document: Document, option: Option, value: Any, place: str) -> bool:
    """Whether type and range are valid; adds a problem if not."""
    name = option.name
    if not fits(option.kind, value):
        expected = KINDS[option.kind][1]
        fix = f"write {expected}"
        if isinstance(value, bool) and option.kind in ("int", "number"):
            fix += f"; sd-scripts would read {shorten(value)} as {int(value)}"
        what = f"{name} is {shorten(value)}, not {expected.split(':')[0]}"
        document.error(what, place, fix, "wrong-type")
        return False
    if refused_there(option.kind, value):
        document.notes.append(f"{place}: {shorten(value)} was accepted; sd-scripts requires a decimal point here.")
    if name == "resize_interpolation" and value not in INTERPOLATIONS:
        what = f"{name} is {shorten(value)}"
        document.error(what, place, f"use one of {', '.join(INTERPOLATIONS)}", "value-out-of-range")
        return False
    if name == "face_crop_aug_range" and value[0] > value[1]:
        what = f"{name} is {shorten(value)}: the first number is larger than the second"
        document.error(what, place, "swap the two numbers", "range-reversed")
        return False
    if name == "num_repeats" and value < 1:
        return True  # excludes the folder, reported with the folders
    if name == "validation_split" and not 0 <= value <= 1:
        what = f"{name} is {shorten(value)}: outside 0 to 1 no image is held out"
        document.advise(what, place, "use 0 to 1", "validation-split-out-of-range")
        return True
    wrong = range_of(option, to_setting(option, value))
    if wrong:
        document.error(f"{name} is {shorten(value)}", place, wrong, "value-out-of-range")
    return not wrong


def _level_words(level: str) -> str:
    return {GENERAL: "[general]", DATASET: "[[datasets]]", SUBSET: "[[datasets.subsets]]"}[level]


def _right_level(option: Option) -> str:
    tables = [_level_words(level) for level in (GENERAL, DATASET, SUBSET) if level in option.levels]
    return f"move it to {' or '.join(tables)}"


def _meant_by(name: str, level: str, method: str) -> str:
    """The option most similar to an unknown key; empty if none is."""
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


def _unknown(name: str, level: str, method: str) -> str:
    for entry in declared(TrainJob):
        if name in entry.kohya_names and name not in COMMAND_LINE_NAMES:
            return f"remove it: it is a command line option of sd-scripts, and here the setting {entry.path}"
    near = _meant_by(name, level, method)
    return f"use {near}" if near else "remove it"
