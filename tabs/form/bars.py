"""Bars for lists of numbers by block: what assets/bars.js draws below the text field that holds the list, and writes back to."""

from __future__ import annotations

import json
from typing import Any

from core.networks.block_weights import LARGEST, LISTS, SLOTS, block_weights
from core.networks.block_weights import PRESETS as WEIGHT_PRESETS
from core.settings.base import Declared
from core.settings.blocks import COUNTS, PRESETS, SIDES, TITLES, rate_numbers, side_count
from tabs.form.project import FIELDS
from tabs.markup import esc

# Curves of the learning rate: the texts of SIDES; None leaves a side as it is.
RATE_PRESETS: dict[str, tuple[str | None, ...]] = {
    "Rising to the middle": ("linear", "", "reverse_linear"),
    "Falling to the middle": ("reverse_linear", "", "linear"),
    "Only down": ("", "zeros", "zeros"),
    "Only the middle": ("zeros", "", "zeros"),
    "Only up": ("zeros", "zeros", ""),
    **{f"Down: {name.replace('_', ' ')}": (name, None, None) for name in PRESETS},
    **{f"Up: {name.replace('_', ' ')}": (None, None, name) for name in PRESETS},
}
WEIGHT_LENGTHS = {False: 26, True: 20}  # of the list that is written; True: SDXL


def block_names(blocks: int) -> list[str]:
    """The names of a U-Net's 25 or 23 blocks in the order of sd-scripts' lists: IN00 to IN11, MID, OUT00 to OUT11."""
    deep = 12 if blocks == COUNTS["sd1"] else 9
    ins, outs = [f"IN{n:02}" for n in range(deep)], [f"OUT{n:02}" for n in range(deep)]
    return [*ins, "MID", *outs] if deep == 12 else ["EMB", *ins, "MID0", "MID1", "MID2", *outs, "LAST"]


def side_names(name: str, blocks: int) -> list[str]:
    """The names of the blocks of one side, as many as `down_lr_weight`, `mid_lr_weight` or `up_lr_weight` has factors."""
    begin = {"down_lr_weight": "IN", "mid_lr_weight": "MID", "up_lr_weight": "OUT"}[name]
    return [each for each in block_names(blocks) if each.startswith(begin)]


def size_bars(entry: Declared, control: str) -> str:
    """The bars of a rank or an alpha for each block. control: the id of its text field"""
    stands_for = [f"{entry.group}.{name}" for name in entry.empty_as.split(", ")]
    size = FIELDS[stands_for[0]]
    facts = {
        "names": {TITLES[family]: [block_names(blocks)] for family, blocks in COUNTS.items()},
        "base": stands_for,
        "step": 1,
        "most": size.bounds["le"],
        "least": 0,
        "ranks": size.kind == "int",
    }
    return _element(entry.title, [control], facts)


def rate_bars(controls: list[str]) -> str:
    """The bars of the factors of the learning rate: one row for the lists of all SIDES. controls: the ids of their text fields"""
    counts = {blocks: [side_count(name, blocks) for name in SIDES] for blocks in COUNTS.values()}
    lengths = {count for each in counts.values() for count in each}
    facts = {
        "names": {TITLES[family]: [side_names(name, blocks) for name in SIDES] for family, blocks in COUNTS.items()},
        "curves": {count: {name: rate_numbers(name, count) for name in PRESETS} for count in lengths},
        "presets": RATE_PRESETS,
        "step": 0.05,
        "most": 100,
        "least": 0,
    }
    return _element("LR weights", controls, facts)


def weight_bars(family: str, control: str) -> str:
    """The bars of a LoRA's strengths by block. family: of the LoRA; control: the id of its text field"""
    sdxl = family == "sdxl"
    facts = {
        "slots": SLOTS,
        "lists": LISTS,
        "length": WEIGHT_LENGTHS[sdxl],
        "weights": {name: block_weights(name, sdxl) for name in WEIGHT_PRESETS},
        "step": 0.05,
        "most": LARGEST,
        "least": -LARGEST,
    }
    return _element("Block weights", [control], facts)


def _element(title: str, controls: list[str], facts: dict[str, Any]) -> str:
    told, names = esc(json.dumps(facts, separators=(",", ":"))), esc(" ".join(controls))
    return f'<block-bars data-title="{esc(title)}" data-for="{names}" data-facts="{told}"></block-bars>'
