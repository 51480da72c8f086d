"""Number the blocks of a U-Net, and parse the settings with a rank, alpha or learning rate factor for each block.

SD 1.x and 2.x have 25: 0 to 11 on the way down from the image, 12 the middle, 13 to 24 on the way up; 0 is the first
convolution and never has a LoRA. SDXL has 23: 0 the embeddings of time and size, 1 to 9 down, 10 to 12 the middle,
13 to 21 up, 22 the last convolution; 0 and 22 never have a LoRA. The numbers are sd-scripts'.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.settings.network import NetworkSettings

COUNTS = {"sd1": 25, "sd2": 25, "sdxl": 23}
SHORT = 23
TITLES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
SIDES = {"down_lr_weight": (12, 9), "mid_lr_weight": (1, 3), "up_lr_weight": (12, 9)}  # SD 1.x and 2.x, SDXL
PRESETS = ("sine", "cosine", "linear", "reverse_linear", "zeros")
LISTS = ("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")


def has_nine_blocks(family: str | None) -> bool:
    """Return whether the family's U-Net has nine blocks on each side, like SDXL, instead of twelve."""
    return COUNTS.get(family or "") == SHORT


def blocks_in_words(counts: Collection[int]) -> str:
    """Return numbers of blocks with their families as text: "25 (SD 1.x and SD 2.x) or 23 (SDXL)"."""
    named = {count: [TITLES.get(name, name) for name, blocks in COUNTS.items() if blocks == count] for count in counts}
    each = (f"{count} ({' and '.join(named[count])})" if named[count] else "none" for count in sorted(counts)[::-1])
    return " or ".join(each)


@dataclass(frozen=True)
class BlockSize:
    """Rank and alpha of the adapters in a block; a rank of 0 skips the block."""

    rank: int
    alpha: float


def numbers(text: str) -> list[float]:
    """Parse comma-separated numbers: "1, 0.5,,2" -> [1, 0.5, 0, 2]; an empty item is 0, as in sd-scripts. Raises ValueError."""
    values = [float(word) if word.strip() else 0.0 for word in text.split(",")]
    if not all(math.isfinite(number) for number in values):
        raise ValueError(text)
    return values


def rate_numbers(text: str, count: int) -> list[float]:
    """Parse the learning rate factors of one side of the U-Net. Raises ValueError.

    text   a list, returned whatever its length; one number, repeated for all blocks if `count` is above 3; or a preset with an optional
           offset, such as "cosine+0.25"
    count  number of blocks on this side
    """
    name, plus, base = text.strip().partition("+")
    if name.strip() not in PRESETS:
        rates = numbers(text)
        return rates * count if len(rates) == 1 and count > 3 else rates
    added = float(base) if plus else 0.0
    if not math.isfinite(added):
        raise ValueError(text)
    rising = [i / (count - 1) if count > 1 else 0.0 for i in range(count)]
    curve = {
        "sine": [math.sin(math.pi * x / 2) for x in rising],
        "linear": rising,
        "zeros": [0.0] * count,
    }
    curve |= {"cosine": curve["sine"][::-1], "reverse_linear": rising[::-1]}
    return [value + added for value in curve[name.strip()]]


def side_count(name: str, blocks: int) -> int:
    """Return the number of factors in the setting `name` (down_lr_weight, mid_lr_weight, up_lr_weight) for a U-Net of `blocks` blocks."""
    return SIDES[name][0 if blocks == COUNTS["sd1"] else 1]


def block_rates(settings: NetworkSettings, blocks: int) -> list[float] | None:
    """Return the learning rate factor of each of the 25 or 23 blocks; None if no factors are set. Raises ValueError for invalid lists.

    An empty side has factor 1. A list that is too short is extended by 1, one that is too long is cut. Factors up to
    `block_lr_zero_threshold` become 0.
    """
    texts = {name: getattr(settings, name) for name in SIDES}
    if not any(texts.values()):
        return None
    factors: list[float] = []
    for name, text in texts.items():
        count = side_count(name, blocks)
        if not text:
            factors += [1.0] * count
            continue
        side = (rate_numbers(text, count) + [1.0] * count)[:count]
        factors += [factor if factor > settings.block_lr_zero_threshold else 0.0 for factor in side]
    return factors if blocks == COUNTS["sd1"] else [1.0, *factors, 1.0]


def block_sizes(settings: NetworkSettings, blocks: int) -> tuple[list[BlockSize], list[BlockSize]]:
    """Return (sizes of Linear and 1x1 layers, sizes of 3x3 convolutions), each a list with rank and alpha of every block.

    Blocks with learning rate factor 0 have rank 0. Raises ValueError for invalid lists.
    """
    ranks = _block_numbers(settings.block_dims, blocks) or [settings.rank] * blocks
    alphas = _block_numbers(settings.block_alphas, blocks) or [settings.alpha] * blocks
    like_linear = bool(settings.layers) and not settings.trains_conv  # chosen by name, and without a size of their own
    conv_ranks = _block_numbers(settings.conv_block_dims, blocks) or [settings.conv_rank or 0] * blocks
    conv_alpha = settings.conv_alpha
    conv_alphas = _block_numbers(settings.conv_block_alphas, blocks) or [
        conv_alpha if conv_alpha is not None else rank for rank in conv_ranks
    ]
    conv_ranks, conv_alphas = (ranks, alphas) if like_linear else (conv_ranks, conv_alphas)
    rates = block_rates(settings, blocks) or [1.0] * blocks
    return _sizes(ranks, alphas, rates), _sizes(conv_ranks, conv_alphas, rates)


def _sizes(ranks: list[float], alphas: list[float], rates: list[float]) -> list[BlockSize]:
    """Combine ranks, alphas and learning rate factors of all blocks. An alpha of 0 means the rank, as in sd-scripts; a factor of 0 makes
    the rank 0."""
    return [
        BlockSize(int(rank) if rate else 0, alpha or rank)
        for rank, alpha, rate in zip(ranks, alphas, rates, strict=True)
    ]


def _block_numbers(text: str | None, blocks: int) -> list[float] | None:
    """Parse a list with a number for each block; None if it is empty. Raises ValueError unless it has `blocks` finite numbers."""
    if not text:
        return None
    values = numbers(text)
    if len(values) != blocks:
        raise ValueError(text)
    return values
