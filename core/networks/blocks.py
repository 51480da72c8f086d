"""The U-Net block of a LoRA layer, by its name (numbered as in core.settings.blocks)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from core.settings.blocks import COUNTS

DIFFUSERS = re.compile(
    r"lora_unet_(?P<side>down|mid|up)_blocks?_(?P<block>\d+_)?(?P<kind>resnets|attentions|downsamplers|upsamplers)_(?P<place>\d+)_"
)
ORIGINAL = re.compile(r"lora_unet_(?P<side>input_blocks|middle_block|output_blocks)_(?P<place>\d+)_")
FIRST = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}
LAST = 22  # SDXL's last convolution


def block_of(name: str) -> int:
    """`lora_unet_down_blocks_1_attentions_0_proj_in` -> 4; `lora_unet_input_blocks_4_1_proj_in` -> 5.

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
    three = 3 * int(match["block"].rstrip("_"))
    if match["kind"] in ("downsamplers", "upsamplers"):
        return three + (3 if match["side"] == "down" else 15)
    return three + int(match["place"]) + (1 if match["side"] == "down" else 13)


def block_count(names: Iterable[str]) -> int:
    """25 for SD 1.x and 2.x, 23 for SDXL, whose layers have the original names."""
    return COUNTS["sdxl" if any(ORIGINAL.match(name) for name in names) else "sd1"]
