"""Strengths of a LoRA by U-Net block: lists and presets of the block weight tools, and the block of each layer.

Lists of 12, 17, 20 or 26 numbers, as in sd-scripts' lbw options and A1111's LBW extension; blocks that a list leaves out keep 1.
Pure: no torch.
"""

import math
import re
from collections.abc import Iterable, Sequence

from core.formats.models import sd_keys
from core.record.units import count
from core.settings.blocks import COUNTS

BASE = "BASE"  # the text encoders
SLOTS = (BASE, *(f"IN{n:02}" for n in range(12)), "MID", *(f"OUT{n:02}" for n in range(12)))


def _slot_names(ins: Sequence[int], outs: Sequence[int]) -> tuple[str, ...]:
    """Return BASE, the input blocks `ins`, MID and the output blocks `outs` as names in SLOTS."""
    return (BASE, *(f"IN{n:02}" for n in ins), "MID", *(f"OUT{n:02}" for n in outs))


LISTS = {  # by length: the slots of the numbers
    12: _slot_names((4, 5, 7, 8), range(6)),
    17: _slot_names((1, 2, 4, 5, 7, 8), range(3, 12)),
    20: _slot_names(range(9), range(9)),
    26: SLOTS,
}
# Of 25 and 19, which the MBW extension has for checkpoints; True: SDXL
WITHOUT_BASE = {False: SLOTS[1:], True: LISTS[20][1:]}
ONLY_SDXL, ONLY_SD = (12, 20), (17,)
HALVES = {False: (5, 7), True: (6, 3)}  # where the deeper half of IN begins and that of OUT ends; True: SDXL
# What each name keeps: shallow (S) or deep (D) halves of the input and output blocks, and the middle.
NAMES = {
    "ALL": ("IN", "MID", "OUT"),
    "INS": ("INS",),
    "IND": ("IND",),
    "INALL": ("IN",),
    "MIDD": ("IND", "MID", "OUTD"),
    "OUTD": ("OUTD",),
    "OUTS": ("OUTS",),
    "OUTALL": ("OUT",),
}
UNET_BLOCK = re.compile(rf"{re.escape(sd_keys.UNET_PREFIX)}(input_blocks|middle_block|output_blocks|\w+)\.(\d*)")
MID, FIRST_OUT = SLOTS.index("MID"), SLOTS.index("OUT00")
LAST_OUT = {"sdxl": SLOTS.index("OUT08")}  # SDXL has nine output blocks, others twelve
NONE, HALF = "NONE", "ALL0.5"
PRESETS = (NONE, *NAMES, HALF)
LARGEST = 10.0


def block_weights(text: str, sdxl: bool | None = None) -> tuple[float, ...]:
    """Parse a preset's name, or 12, 17, 20 or 26 comma-separated numbers; return the strengths of the 26 SLOTS.

    Slots that a list leaves out have 1.
    sdxl   whether they are for SDXL; None if not known yet, which accepts lists of both
    Raises ValueError with a message for users.
    """
    name = text.strip().upper()
    if name in PRESETS:
        return _preset_weights(name, bool(sdxl))
    numbers = [_number(part) for part in text.split(",")]
    if len(numbers) not in LISTS:
        raise ValueError(f"{count(len(numbers), 'block weight')} given; lists have 12, 17, 20 or 26 numbers")
    if sdxl is not None and len(numbers) in (ONLY_SD if sdxl else ONLY_SDXL):
        families = ("SDXL", "SD 1.x and 2.x")
        raise ValueError(f"{len(numbers)} block weights are for {families[sdxl]}, not for {families[not sdxl]}")
    weights = dict(zip(LISTS[len(numbers)], numbers, strict=True))
    return tuple(weights.get(slot, 1.0) for slot in SLOTS)


def unlisted(text: str) -> frozenset[int]:
    """Return the indices in SLOTS of the blocks that a list of numbers leaves out; none for a preset's name."""
    listed = LISTS.get(text.count(",") + 1, SLOTS)
    return frozenset(index for index, slot in enumerate(SLOTS) if slot not in listed)


def _number(text: str) -> float:
    """Parse a strength from -10 to 10. Raises ValueError with a message for users."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise ValueError(f"'{text.strip()[:20]}' is neither a number from -10 to 10 nor one of {', '.join(PRESETS)}")
    return value


def _preset_weights(name: str, sdxl: bool) -> tuple[float, ...]:
    """Return the strengths of a preset: 0 or 0.5 everywhere (NONE, ALL0.5), else 1 in the preset's blocks and 0 in the others."""
    if name in (NONE, HALF):
        return (0.0 if name == NONE else 0.5,) * len(SLOTS)
    deep_in, deep_out = HALVES[sdxl]
    halves = NAMES[name]

    def keeps(slot: str) -> bool:
        """Return whether the preset has this slot at strength 1."""
        if slot in (BASE, "MID"):
            return slot == BASE or slot in halves
        side, number = slot.rstrip("0123456789"), int(slot[-2:])
        deep = number >= deep_in if side == "IN" else number < deep_out
        return side in halves or side + ("D" if deep else "S") in halves

    return tuple(float(keeps(slot)) for slot in SLOTS)


def slot_of(name: str) -> int | None:
    """Return the index in SLOTS of a layer by its kohya name: 0 for text encoders, None for U-Net layers outside of the blocks."""
    if not name.startswith("lora_unet_"):
        return 0
    block = block_of(name)
    if ORIGINAL.match(name):  # SDXL, whose middle has three
        return 13 if 10 <= block <= 12 else block if block < 10 else block + 1
    if name.startswith(("lora_unet_time_embed_", "lora_unet_label_emb_")):
        return 1
    return block + 1 if block else None


def weight_of(weights: Sequence[float], name: str) -> float:
    """Return the strength of a layer by its kohya name; 1 outside of the blocks.
    weights: of the 26 SLOTS"""
    slot = slot_of(name)
    return 1.0 if slot is None else weights[slot]


def slot_of_key(key: str, family: str | None) -> int:
    """Return the index in SLOTS of a checkpoint's key: BASE (0) for everything outside the U-Net.

    As in the MBW extension, the time and size embeddings count as IN00, the last convolution as the last output block.
    """
    match = UNET_BLOCK.match(key)
    if match is None:
        return 0
    side, number = match[1], int(match[2] or 0)
    if side == "input_blocks":
        return 1 + min(number, 11)
    if side == "middle_block":
        return MID
    if side == "output_blocks":
        return FIRST_OUT + min(number, 11)
    return LAST_OUT.get(family or "", len(SLOTS) - 1) if side == "out" else 1


# -- the block of a layer (numbered as in core.settings.blocks)


DIFFUSERS = re.compile(
    r"lora_unet_(?P<side>down|mid|up)_blocks?_(?P<block>\d+_)?(?P<kind>resnets|attentions|downsamplers|upsamplers)_(?P<place>\d+)_"
)
ORIGINAL = re.compile(r"lora_unet_(?P<side>input_blocks|middle_block|output_blocks)_(?P<place>\d+)_")
FIRST = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}
LAST = 22  # SDXL's last convolution


def block_of(name: str) -> int:
    """Return the index of a layer's block, numbered as in core.settings.blocks, by its kohya name.

    `lora_unet_down_blocks_1_attentions_0_proj_in` -> 4; `lora_unet_input_blocks_4_1_proj_in` -> 5.
    Layers outside of the blocks (time and size embeddings) are in block 0; SDXL's last convolution in 22.
    """
    match = ORIGINAL.match(name)
    if match:
        return FIRST[match["side"]] + int(match["place"])
    match = DIFFUSERS.match(name)
    if match is None:
        return LAST if name.startswith("lora_unet_out_") else 0
    if match["side"] == "mid":
        return 12
    first_of_block = 3 * int(match["block"].rstrip("_"))
    if match["kind"] in ("downsamplers", "upsamplers"):
        return first_of_block + (3 if match["side"] == "down" else 15)
    return first_of_block + int(match["place"]) + (1 if match["side"] == "down" else 13)


def block_count(names: Iterable[str]) -> int:
    """Return the number of blocks of the model that these kohya names belong to: 25 for SD 1.x and 2.x, 23 for SDXL."""
    return COUNTS["sdxl" if any(ORIGINAL.match(name) for name in names) else "sd1"]
