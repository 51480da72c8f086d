"""Random jobs from a seed: a few settings changed, each to a value of its own domain, often an edge."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random
from typing import Any
from zlib import crc32

from pydantic import BaseModel

from core.settings.base import Declared, declared, item_of

WORDS = ("", "a fox", "sks, fox", "a (red:1.3) fox", "fox BREAK den", "zkw", "0.5", "1,0.5,0", "cosine", "linear+0.25")
NUMBERS = (0, 1, 2, 3, 0.5, 0.1, 10, 100, 1000, 1e-4, 0.999, -1)
SPANS = (0, 1, 10, 100, 0.1, 0.5, 0.99, "10%", "100%", "5", -1)
SIZES = (64, 256, 512, 768, 1024, 1000, (512, 768), (1024, 1024), (832, 1216), 520)
COUNTS = (1, 12, 16, 17, 20, 25, 26, 9, 10, 3)  # of lists by block
ARGUMENTS = ({}, {"weight_decay": 0.1}, {"betas": [0.9, 0.99]}, {"d_coef": 2}, {"relative_step": False}, {"power": 2})
FILES = ("x.safetensors", "missing/y.safetensors", "wd14")


def sampled(entry: Declared, draw: Random) -> Any:
    """A JSON value of a setting: mostly one that its declaration allows."""
    if entry.optional and draw.random() < 0.15:
        return None
    return SAMPLERS[entry.kind](entry, draw)


def _number(entry: Declared, draw: Random) -> Any:
    bounds, whole = entry.bounds, entry.kind == "int"
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    usual = [number for number in NUMBERS if not whole or number == int(number)]
    inside = [each for each in usual if (low is None or each >= low) and (high is None or each <= high)]
    edges = [each for each in (low, high, entry.default) if isinstance(each, int | float)]
    near = [each + step for each in edges for step in (0, 0, 1, -1) if draw.random() < 0.6]
    choices = [*near, *inside, *inside] or usual
    if low is not None and high is not None:
        choices += [low + (high - low) * draw.random() for _ in range(3)]
    value = draw.choice(choices)
    if (low is not None and value < low) or (high is not None and value > high):
        value = draw.choice(choices)  # most are allowed
    if whole:
        step = bounds.get("multiple_of", 1)
        return int(value) // step * step if draw.random() < 0.9 else int(value)
    return float(f"{value:.4g}")


def _pair(entry: Declared, draw: Random) -> Any:
    if entry.unit == "pixels":
        return draw.choice(SIZES)
    return draw.choice([0.1, 1, [0.5, 1], [1, 0.5], [0, 0], [0.9, 0.999], 1e-4, [1e-4, 5e-5]])


def _text(entry: Declared, draw: Random) -> str:
    if entry.names:
        return draw.choice(FILES)
    if "block" in entry.widget or entry.name.startswith(("down_", "mid_", "up_", "conv_block", "block_")):
        count, numbers = draw.choice(COUNTS), (0, 1, 0.5, 4, 8, -1, 1.5)
        return ",".join(f"{draw.choice(numbers):g}" for _ in range(count))
    return draw.choice(WORDS)


def _list(entry: Declared, draw: Random) -> list[Any]:
    if entry.name == "sources":
        return [_source(draw) for _ in range(draw.randint(1, 3))]
    if (item := item_of(entry)) is not None:
        return [_item(item, draw) for _ in range(draw.randint(1, 3))]
    kinds = str(entry.info.annotation)
    if "float" in kinds or "int" in kinds:
        return [draw.choice((0, 1, 0.5, 2, 64, 512)) for _ in range(draw.randint(0, 3))]
    return [draw.choice(FILES if entry.names else WORDS[1:]) for _ in range(draw.randint(0, 3))]


def _source(draw: Random) -> dict[str, Any]:
    """A folder with settings of its own."""
    values = {
        "role": ("train", "train", "regularization", "validation"),
        "num_repeats": (1, 2, 10),
        "samples_per_epoch": (1, 7, 100),
        "resolution": SIZES,
        "train_batch_size": (1, 2, 4),
        "class_tokens": ("fox", "sks fox"),
        "loss_weight": (0, 0.5, 1, 2),
        "enabled": (True, False),
        "caption_dropout_rate": (0, 0.1, 1),
        "flip_aug": (True, False),
        "shuffle_caption": (True, False),
        "keep_tokens": (0, 1, 2),
        "validation_split": (0, 0.1, 1),
        "conditioning_data_dir": ("hints",),
        "metadata_file": ("meta.json",),
        "batch_group": ("a", "b"),
        "random_crop": (True, False),
        "color_aug": (True, False),
    }
    names = draw.sample(sorted(values), draw.randint(0, 4))
    return {"folder": draw.choice(("a", "b", "10_fox", "c")), **{name: draw.choice(values[name]) for name in names}}


def _item(item: type[BaseModel], draw: Random) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, info in item.model_fields.items():
        if info.is_required() or draw.random() < 0.4:
            values[name] = sampled(Declared(name, "", name, info), draw)
    return values


SAMPLERS = {
    "choice": lambda entry, draw: draw.choice(entry.choices),
    "bool": lambda entry, draw: draw.random() < 0.5 if entry.default is None else not entry.default,
    "int": _number,
    "float": _number,
    "text": _text,
    "pair": _pair,
    "list": _list,
    "object": lambda entry, draw: draw.choice(({}, {"name": 1}, {"a": {"b": 2}})),
    "span": lambda entry, draw: draw.choice(SPANS),
    "arguments": lambda entry, draw: dict(draw.choice(ARGUMENTS)),
}


def changes(
    model: type[BaseModel], seed: str, settings: int, groups: Collection[str] = (), fixed: Mapping[str, Any] = {}
) -> dict[str, dict[str, Any]]:
    """{group: {name: value}} with about this many random settings of a job model. Each is drawn by its own name, so that a new
    setting changes no other.

    groups   draw from these alone; empty for all      fixed   {dotted path: value} besides
    """
    entries = [each for each in declared(model) if not groups or each.group in groups]
    values: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if crc32(f"{seed} {entry.path}".encode()) % 10_000 < 10_000 * settings / len(entries):
            values.setdefault(entry.group, {})[entry.name] = sampled(entry, Random(f"{seed} {entry.path}"))
    for path, value in fixed.items():
        group, _, name = path.partition(".")
        values.setdefault(group, {})[name] = value
    return values
