"""Bars for lists of numbers by block. assets/bars.js draws them below the list's text field and writes changes into it."""

import json
from collections.abc import Sequence
from typing import Any

from core.networks.block_weights import LARGEST, LISTS, ONLY_SD, ONLY_SDXL, SLOTS, WITHOUT_BASE, block_weights
from core.networks.block_weights import PRESETS as WEIGHT_PRESETS
from core.settings.base import Declared
from core.settings.blocks import COUNTS, PRESETS, SIDES, TITLES, has_nine_blocks, rate_numbers, side_count
from tabs.form.project import FIELDS
from tabs.markup import esc

# {title: text for each of SIDES}; None does not change a side.
RATE_PRESETS: dict[str, tuple[str | None, ...]] = {
    "Rising to the middle": ("linear", "", "reverse_linear"),
    "Falling to the middle": ("reverse_linear", "", "linear"),
    "Only down": ("", "zeros", "zeros"),
    "Only the middle": ("zeros", "", "zeros"),
    "Only up": ("zeros", "zeros", ""),
    **{f"Down: {name.replace('_', ' ')}": (name, None, None) for name in PRESETS},
    **{f"Up: {name.replace('_', ' ')}": (None, None, name) for name in PRESETS},
}
WEIGHT_LENGTHS = {False: 26, True: 20}  # of the list that is written, by whether the model is SDXL
WEIGHT_CURVES = {"Rising to OUT": "linear", "Falling to OUT": "reverse_linear"}


def block_names(blocks: int) -> list[str]:
    """Return the names of a U-Net's blocks in the order of sd-scripts' lists.
    blocks: 25: IN00 to IN11, MID, OUT00 to OUT11; 23: EMB, IN00 to IN08, MID0 to MID2, OUT00 to OUT08, LAST"""
    deep = 12 if blocks == COUNTS["sd1"] else 9
    ins, outs = [f"IN{n:02}" for n in range(deep)], [f"OUT{n:02}" for n in range(deep)]
    return [*ins, "MID", *outs] if deep == 12 else ["EMB", *ins, "MID0", "MID1", "MID2", *outs, "LAST"]


def side_names(name: str, blocks: int) -> list[str]:
    """Return the names of the blocks for which the setting `name` (down_lr_weight, mid_lr_weight or up_lr_weight) has factors."""
    begin = dict(zip(SIDES, ("IN", "MID", "OUT"), strict=True))[name]
    return [each for each in block_names(blocks) if each.startswith(begin)]


def size_bars(entry: Declared, control: str) -> str:
    """Return HTML of the bars for a list of ranks or alphas. control: id of the list's text field."""
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
    """Return HTML of the bars for the learning rate factors of all SIDES. controls: ids of their text fields."""
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


def weight_bars(family: str, control: str, *, default: float = 1.0, checkpoints: bool = False) -> str:
    """Return HTML of the bars for block weights.

    family        of the model file; "" if unknown
    control       id of the text field
    default       weight of each block while the field is empty
    checkpoints   whether it is a merge of checkpoints, whose lists may also omit BASE
    """
    return _element("Block weights", [control], _weight_facts(family, default, checkpoints))


def line_bars(files: Sequence[tuple[str, str]], control: str) -> str:
    """Return HTML of block weight bars for each line of the text field `control`. files: (name, family) of the file of each line."""
    return "".join(
        _element(f"Block weights of {name}", [control], _weight_facts(family), name, line)
        for line, (name, family) in enumerate(files)
    )


def _weight_facts(family: str, default: float = 1.0, checkpoints: bool = False) -> dict[str, Any]:
    """Return the data of `weight_bars` for the page's script.

    "slots"                    names of all blocks
    "lists", "length"          {length: block names} of the lists of weights, and the usual length
    "weights"                  {preset: its weights by block}
    "presets"                  {title: [text of a list]} of curves
    "even"                     weight while the field is empty
    "step", "most", "least"    of the sliders
    """
    sdxl = has_nine_blocks(family)
    length, others = WEIGHT_LENGTHS[sdxl], (ONLY_SD if sdxl else ONLY_SDXL) if family else ()
    without_base = {len(WITHOUT_BASE[sdxl]): WITHOUT_BASE[sdxl]} if checkpoints else {}
    curves = {
        title: [default, *(round(value, 2) for value in rate_numbers(name, length - 1))]
        for title, name in WEIGHT_CURVES.items()
    }
    return {
        "slots": SLOTS,
        "lists": {count: names for count, names in LISTS.items() if count not in others} | without_base,
        "length": length,
        "weights": {name: block_weights(name, sdxl) for name in WEIGHT_PRESETS},
        "presets": {title: [",".join(f"{value:g}" for value in values)] for title, values in curves.items()},
        "even": default,
        "step": 0.05,
        "most": LARGEST,
        "least": -LARGEST,
    }


def _element(title: str, controls: list[str], facts: dict[str, Any], label: str = "", line: int | None = None) -> str:
    """Return HTML of bars for the page's script.

    controls   ids of the text fields
    facts      data of the bars, such as `_weight_facts`
    label      title of the closed bars; "" for "Bars"
    line       line of the text field that the bars edit, from 0; None for the whole field
    """
    data, names = esc(json.dumps(facts, separators=(",", ":"))), esc(" ".join(controls))
    attributes = (f' data-label="{esc(label)}"' if label else "") + ("" if line is None else f' data-line="{line}"')
    return f'<block-bars data-title="{esc(title)}"{attributes} data-for="{names}" data-facts="{data}"></block-bars>'
