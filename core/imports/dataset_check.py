"""The rules of sd-scripts' dataset config: which key may stand where, of which type, for which kind of dataset."""

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
    EXPECTED,
    FINE_TUNING,
    GENERAL,
    INTERPOLATIONS,
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

_WHY_NOT = {  # (option, kind of dataset) -> why it has no place there, what to do
    "metadata_file": (
        "Folders with a metadata_file and folders without one cannot be mixed in one dataset.",
        "Put them into two [[datasets]].",
    ),
    "conditioning_data_dir": (
        "In a dataset either every folder has a conditioning_data_dir or none has.",
        "Put the others into a dataset of their own.",
    ),
    "alpha_mask": (
        "alpha_mask cannot stand beside a conditioning_data_dir: the masks come from that folder.",
        "Remove it.",
    ),
    "is_reg": (
        "Regularization (is_reg) is for DreamBooth datasets: it takes neither metadata nor masks.",
        "Remove it.",
    ),
    "class_tokens": ("class_tokens is for DreamBooth datasets.", "Remove it, or put it into [general]."),
    "caption_extension": ("caption_extension has no place here: captions come from the metadata file.", "Remove it."),
    "cache_info": ("cache_info has no place here: sizes and captions come from the metadata file.", "Remove it."),
}


@dataclass
class Dataset:
    """One [[datasets]] table, checked.

    values    what is right of its own options         subsets   (number in the file, its values)
    given     every name in it and in [general], right or wrong
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
    """Values of [general] and every dataset. What is wrong is added to the document's problems and left out."""
    raw = document.raw or {}
    for name in raw:
        if name not in ("general", "datasets"):
            near = difflib.get_close_matches(name, ["general", "datasets"], n=1)
            fix = (
                f"did you mean {near[0]}?"
                if near
                else "put options into [general], [[datasets]] or [[datasets.subsets]]"
            )
            document.error(f"'{name}' has no place at the top of the file.", name, fix)
    general = raw.get("general", {})
    if not isinstance(general, dict):
        document.error("general is not a table.", "general", "Write [general], and the options below it.")
        general = {}
    values = _check_table(document, general, "general", GENERAL, "")
    tables = _tables(document, raw.get("datasets", []), "datasets")
    if not tables and "datasets" not in raw:
        document.error("The file has no dataset.", "", "Write [[datasets]], and [[datasets.subsets]] for each folder.")
    return values, [_check_dataset(document, number, table, frozenset(general)) for number, table in tables]


def check_command_line(document: Document, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of sd-scripts' command line that stand for defaults; those that are no dataset options are passed over."""
    found: dict[str, Any] = {}
    for name, value in (given or {}).items():
        name = COMMAND_LINE_NAMES.get(name, name)
        option = OPTIONS.get(name)
        if option is None or option.kind == "path" or value is None:
            continue
        if option.kind in ("size", "range") and isinstance(value, str):
            value = _numbers(value, option.kind)
        if _value_fits(document, option, value, f"--{name}"):
            found[name] = value
    return found


def _numbers(text: str, kind: str) -> Any:
    try:
        numbers = [int(part) if kind == "size" else float(part) for part in text.split(",")]
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else numbers


def _tables(document: Document, raw: Any, path: str) -> list[tuple[int, dict[str, Any]]]:
    """The elements of an array of tables."""
    if not isinstance(raw, list):
        brackets = "[[datasets]]" if path == "datasets" else "[[datasets.subsets]]"
        document.error(f"{path} is not a list of tables.", path, f"Write {brackets}, with two brackets.")
        return []
    for number, table in enumerate(raw):
        if not isinstance(table, dict):
            document.error(f"{path}[{number}] is {shorten(table)}, not a table.", f"{path}[{number}]", "Write a table.")
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
        document.advise(f"{path} has no folder.", path, "Add [[datasets.subsets]] with an image_dir, or remove it.")
    return dataset


def method_of(subsets: Iterable[Mapping[str, Any]]) -> str:
    """The kind of a dataset, from its subsets. A mixture counts as DreamBooth; the odd keys are then refused."""
    subsets = list(subsets)
    if subsets and all("conditioning_data_dir" in subset for subset in subsets):
        return CONDITIONED
    return FINE_TUNING if subsets and all("metadata_file" in subset for subset in subsets) else DREAMBOOTH


def _check_required(document: Document, subset: Mapping[str, Any], path: str, method: str) -> None:
    for name in REQUIRED[method]:
        misspelt = [key for key in subset if key not in OPTIONS and _meant_by(key, SUBSET, method) == name]
        if name in subset and subset[name] == "":
            document.error(f"{path} has an empty {name}.", f"{path}.{name}", "Give the folder or file.")
        elif name not in subset and not misspelt:
            document.error(f"{path} has no {name}.", path, f"Give it: {name} = 'path'.")


# ---- one table


def _check_table(document: Document, table: Mapping[str, Any], path: str, level: str, method: str) -> dict[str, Any]:
    """The values of a table that are right."""
    good: dict[str, Any] = {}
    for name, value in table.items():
        place = f"{path}.{name}"
        option = OPTIONS.get(name)
        if option is None:
            fix = _unknown(name, level, method) if len(document.problems) < MOST else "remove it"  # a search each
            document.error(f"{place} is no option of sd-scripts' dataset files.", place, fix)
        elif level not in option.levels:
            document.error(f"{name} has no place in {_level_words(level)}.", place, _right_level(option))
        elif level != GENERAL and method not in option.methods:
            what, fix = _WHY_NOT[name]
            document.error(what, place, fix)
        elif value is None:
            document.notes.append(f"{place} is null, which counts as not given.")
        elif _value_fits(document, option, value, place):
            good[name] = value
    return good


def _value_fits(document: Document, option: Option, value: Any, place: str) -> bool:
    """Whether type and range are right; says so where they are not."""
    name = option.name
    if not fits(option.kind, value):
        fix = f"write {EXPECTED[option.kind]}"
        if isinstance(value, bool) and option.kind in ("int", "number"):
            fix = f"write {EXPECTED[option.kind]}; sd-scripts would take {shorten(value)} for {int(value)}"
        document.error(f"{name} is {shorten(value)}, which is not {EXPECTED[option.kind].split(':')[0]}.", place, fix)
        return False
    if refused_there(option.kind, value):
        document.notes.append(
            f"{place}: {shorten(value)} was taken; sd-scripts itself wants numbers with a point here."
        )
    if name == "resize_interpolation" and value not in INTERPOLATIONS:
        document.error(f"{name} is {shorten(value)}.", place, f"Use one of {', '.join(INTERPOLATIONS)}.")
        return False
    if name == "face_crop_aug_range" and value[0] > value[1]:
        document.error(f"{name} is {shorten(value)}: the first is above the second.", place, "Swap the two numbers.")
        return False
    if name == "num_repeats" and value < 1:
        return True  # leaves the folder out, told where folders are made
    if name == "validation_split" and not 0 <= value <= 1:
        document.advise(f"{name} is {shorten(value)}: outside 0 to 1 nothing is held out.", place, "Use 0 to 1.")
        return True
    wrong = range_of(option, to_setting(option, value))
    if wrong:
        document.error(f"{name} is {shorten(value)}.", place, f"{wrong[:1].upper()}{wrong[1:]}.")
    return not wrong


def _level_words(level: str) -> str:
    return {GENERAL: "[general]", DATASET: "[[datasets]]", SUBSET: "[[datasets.subsets]]"}[level]


def _right_level(option: Option) -> str:
    tables = [_level_words(level) for level in (GENERAL, DATASET, SUBSET) if level in option.levels]
    return f"Move it to {' or '.join(tables)}."


def _meant_by(name: str, level: str, method: str) -> str:
    """The option that was probably meant by an unknown key; empty if none is near."""
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
            return f"It belongs to sd-scripts' command line; here it is the setting {entry.path}. Remove it."
    near = _meant_by(name, level, method)
    return f"Did you mean {near}?" if near else "Remove it."
