"""Checks names and shapes of a model's tensors against the classes of its parts, from headers and configs.

Parts of the published sizes are checked without torch; for others a module is built on the "meta" device.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from core.families.attention import skip_divisions
from core.families.imports import quick_imports, without_bitsandbytes
from core.families.layout import Layout
from core.families.published_shapes import published_shapes
from core.formats.detect import FAMILY_NAMES
from core.formats.models import text_keys
from core.formats.models.checkpoint import Part
from core.formats.models.part_config import check_config
from core.formats.models.part_kinds import PartKind, kind_of, part_title
from core.record.lazy_torch import torch
from core.record.problems import Problem, ProblemsError
from core.record.units import first_of

SHOWN_KEYS = 5


def known_tensors(layout: Layout, part: Part) -> tuple[Part, list[Problem]]:
    """Return (the part without tensors that its class does not know, problems of missing tensors and of wrong shapes and dtypes).

    Raises ProblemsError for an invalid config.
    """
    expected = expected_shapes(layout, part)
    locations = {name: each for name, each in part.locations.items() if library_name(name, expected) in expected}
    known = replace(part, locations=locations)
    return known, tensor_problems(expected, known, FAMILY_NAMES[layout.family])


def tensor_problems(expected: Mapping[str, tuple[int, ...]], part: Part, title: str) -> list[Problem]:
    """Return problems of a part whose names, shapes or dtypes differ from the expected ones; reads its header only.

    expected   {name: shape}
    title      of the model family, for messages
    """
    entries = {library_name(name, expected): location.entry for name, location in part.locations.items()}
    shapes = {name: entry.shape for name, entry in entries.items()}
    integers = [name for name in expected if name in entries and not entries[name].dtype.startswith(("F", "BF"))]
    return [*shape_problems(expected, shapes, part, title), *integer_problems(integers, part)]


def mismatch_problems(layout: Layout, parts: Iterable[Part], path: Path) -> list[Problem]:
    """Return problems of parts that do not work together; a missing VAE is replaced by the published one.

    Raises ProblemsError for a damaged tokenizer.
    """
    configs = {"vae": layout.config("vae")} | {part.name: config_of(layout, part) for part in parts}
    fix = f"choose a plain {FAMILY_NAMES[layout.family]} model, or download the folder again"
    return [
        Problem(f"The parts of this model do not fit together: {why}", str(path), fix, code="model.parts-mismatch")
        for why in layout.misfits(configs, path)
    ]


def config_of(layout: Layout, part: Part) -> dict[str, Any]:
    """Return the part's config: its folder's, or for a single file the published one with the sizes in its metadata."""
    return part.full_config(layout.config(part.name))


def expected_shapes(layout: Layout, part: Part, whole: bool = False) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the tensors that a part must have by its config: recorded ones, else those of the built module.

    whole   as in `published_shapes`
    Raises ProblemsError for an invalid config.
    """
    return published_shapes(layout, part, whole) or shapes_of(
        layout.kind(part.name), part.name, json.dumps(config_of(layout, part), sort_keys=True)
    )


@lru_cache(maxsize=16)
def shapes_of(kind: PartKind, name: str, config: str) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the tensors that files of a part store. `config` is JSON, since the cache needs hashable arguments."""
    return stored_shapes(kind, make_empty(name, json.loads(config), kind))


def stored_shapes(kind: PartKind, module: Any) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of a module's tensors that files store: all but tied ones."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name not in kind.tied}


def library_name(name: str, expected: Mapping[str, Any]) -> str:
    """Return the tensor's name in the installed transformers, with or without "text_model." (core.formats.models.text_keys).
    expected: the names that the module has"""
    full = text_keys.full_name(name)
    return full if full in expected else name


def shape_problems(
    expected: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], part: Part, title: str
) -> list[Problem]:
    """Return problems of tensors that are missing, unknown or of other shapes.

    expected, shapes   {name: shape}: of the module, of the file
    title              of the model family, for messages
    """
    problems = []
    if missing := sorted(expected.keys() - shapes.keys()):
        problems.append(_keys_problem("lacks", "", missing, part, title))
    if extra := sorted(shapes.keys() - expected.keys()):
        problems.append(_keys_problem("has", "unknown ", extra, part, title))
    wrong = [
        f"{name} {_size(shapes[name])} instead of {_size(expected[name])}"
        for name in sorted(expected.keys() & shapes.keys())
        if not _fits(shapes[name], expected[name])
    ]
    return problems + ([_shapes_problem(wrong, part, title)] if wrong else [])


def integer_problems(names: Iterable[str], part: Part) -> list[Problem]:
    """Return the problem that a part has integer weights, quantized by another program; [] if `names` has none besides position_ids.
    names: of integer tensors"""
    names = [name for name in names if not name.endswith("position_ids")]
    if not names:
        return []
    what = f"The {part_title(part.name)} has integer tensors instead of weights, such as {names[0]}"
    fix = "choose the model in fp32, fp16, bf16 or fp8"
    return [Problem(what, str(part.source), fix, code="model.integer-weights")]


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Return whether shapes are equal up to trailing sizes of 1, since a Linear's weight fits a 1x1 convolution."""
    if shape == expected:
        return True
    shorter, longer = sorted((shape, expected), key=len)
    return len(shorter) >= 2 and longer[: len(shorter)] == shorter and prod(longer[len(shorter) :]) == 1


def _keys_problem(verb: str, kind: str, keys: list[str], part: Part, title: str) -> Problem:
    """Return the problem that a part has unknown tensors or lacks tensors.

    verb, kind   "has" and "unknown ", or "lacks" and ""
    keys         names of these tensors
    title        of the model family
    """
    what = f"The {part_title(part.name)} {verb} {len(keys)} {kind}{'tensor' if len(keys) == 1 else 'tensors'}: {first_of(keys, SHOWN_KEYS)}"
    fix = f"choose another file: this one is incomplete or not a plain {title} model"
    return Problem(what, str(part.source), fix, code="model.other-tensors")


def _shapes_problem(lines: list[str], part: Part, title: str) -> Problem:
    """Return the problem that a part has tensors of other sizes, described by `lines`."""
    fix = (
        f"use the model's diffusers folder, whose config gives its sizes: a single file must have {title}'s published sizes"
        if part.config is None
        else "download the folder again: its config.json and its weights are of different models"
    )
    what = f"The {part_title(part.name)} has tensors of other sizes: {first_of(lines, SHOWN_KEYS, '; ')}"
    return Problem(what, str(part.source), fix, code="model.other-sizes")


def _size(shape: tuple[int, ...]) -> str:
    """Return a shape as text: "320x4x3x3"."""
    return "x".join(str(side) for side in shape)


def make_empty(name: str, config: Mapping[str, Any], kind: PartKind | None = None) -> Any:
    """Build the module of a part on the "meta" device, which takes no memory. Raises ProblemsError for an invalid config.
    kind: the kind of the part; None: that of the class named in `config`"""
    kind, where = kind or kind_of(name, config), f"{part_title(name)}, config.json"
    assert kind is not None, f"the class of {name} is not registered in core/formats/models/part_kinds.py"
    with quick_imports(), without_bitsandbytes() if kind.module.startswith("diffusers") else nullcontext():
        make = kind.module_builder()
    check_config(kind, config, where, complete=False)
    try:
        with torch.device("meta"):
            module = make(config).requires_grad_(False)
    except Exception as error:  # the libraries check little: a config that contradicts itself raises anything
        what = f"The config does not describe a valid {part_title(name)} ({type(error).__name__}: {str(error)[:200]})"
        raise ProblemsError.one(what, where, "download the model's folder again", code="model.bad-config") from error
    skip_divisions(module)
    return module
