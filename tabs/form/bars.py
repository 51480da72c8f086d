"""Bars for lists of numbers by block: what assets/bars.js draws below the text field that holds the list, and writes back to."""

from __future__ import annotations

import json
from typing import Any

from core.networks.block_weights import LARGEST, LISTS, SLOTS, block_weights
from core.networks.block_weights import PRESETS as WEIGHT_PRESETS
from core.settings.base import Declared
from core.settings.blocks import COUNTS, PRESETS, SIDES, TITLES, rate_numbers, side_count
from core.settings.blocks import LISTS as SIZE_LISTS
from tabs.markup import esc

# The settings whose values hold where a list is empty: the first that is set.
STANDS_FOR = {
    "block_dims": ("network.rank",),
    "block_alphas": ("network.alpha", "network.rank"),
    "conv_block_dims": ("network.conv_rank",),
    "conv_block_alphas": ("network.conv_alpha", "network.conv_rank"),
}
LARGEST_SIZE = {True: 1024, False: 4096}  # of a rank, and of an alpha
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


def train_bars(entry: Declared, control: str) -> str:
    """The bars of a setting of the network; "" for one that is no list by block. control: the id of its text field"""
    if entry.group != "network" or entry.name not in (*SIZE_LISTS, *SIDES):
        return ""
    sides = entry.name in SIDES
    count = (lambda blocks: side_count(entry.name, blocks)) if sides else (lambda blocks: blocks)
    names = {
        TITLES[family]: side_names(entry.name, blocks) if sides else block_names(blocks)
        for family, blocks in COUNTS.items()
    }
    facts: dict[str, Any] = {"names": names, "rates": sides}
    if sides:
        curves = {
            count(blocks): {name: rate_numbers(name, count(blocks)) for name in PRESETS} for blocks in COUNTS.values()
        }
        facts |= {"curves": curves, "step": 0.05, "most": 100, "least": 0}
    else:
        ranks = entry.name.endswith("dims")
        facts |= {"base": STANDS_FOR[entry.name], "step": 1, "most": LARGEST_SIZE[ranks], "least": 0, "ranks": ranks}
    return _element(entry.title, control, facts)


def weight_bars(family: str, control: str) -> str:
    """The bars of a LoRA's strengths by block. family: of the LoRA; control: the id of its text field"""
    sdxl = family == "sdxl"
    facts = {
        "slots": SLOTS,
        "lists": LISTS,
        "length": WEIGHT_LENGTHS[sdxl],
        "presets": {name: block_weights(name, sdxl) for name in WEIGHT_PRESETS},
        "step": 0.05,
        "most": LARGEST,
        "least": -LARGEST,
    }
    return _element("Block weights", control, facts)


def _element(title: str, control: str, facts: dict[str, Any]) -> str:
    told = esc(json.dumps(facts, separators=(",", ":")))
    return f'<block-bars data-title="{esc(title)}" data-for="{esc(control)}" data-facts="{told}"></block-bars>'
