"""The layers of a model as a tree of blocks and parts, and the settings that choose what is chosen in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from core.networks.layer_list import Listed
from core.settings.layers import PRESETS, Entry, Layer

# (part, matrix, expression of the U-Net's layers, expression of a text encoder's): the first that a path has.
PARTS = (
    *(("Self-attention", each, f"attn1.to_{each}", f"self_attn.{each}_proj") for each in "qkv"),
    ("Self-attention", "out", "attn1.to_out", "self_attn.out_proj"),
    *(("Cross-attention", each, f"attn2.to_{each}", None) for each in "qkv"),
    ("Cross-attention", "out", "attn2.to_out", None),
    ("Feed-forward", "", "ff.net", "mlp.fc"),
    ("Projections", "", "proj_(in|out)$", None),
    ("3x3 convolutions", "", "conv[12]?$", None),
    ("Shortcuts", "", "conv_shortcut$", None),
    ("Time embedding", "", "time_emb_proj$", None),
    ("3x3 convolutions", "", "conv_(in|out)$", None),  # outside of the blocks, as the last
    ("Time embedding", "", "time_embedding", None),
)
WHOLE = {("Self-attention", True): "attn1", ("Self-attention", False): "self_attn", ("Cross-attention", True): "attn2"}
CONTAINER = re.compile(r"^(.*?)\.((?:attentions|resnets|downsamplers|upsamplers)\.\d+)\.")


class Leaf(NamedTuple):
    """Layers that are chosen together. part, matrix: as of PARTS; mask: a bit for each, by its place in the list"""

    block: str
    part: str
    matrix: str
    mask: int


class LayerTree:
    """The tree of a model's layers. A set of layers is a number, a bit for each by its place in the list."""

    def __init__(self, listed: Sequence[Listed]):
        self.listed, self.layers = list(listed), [each.layer for each in listed]
        self._places = [_place(layer) for layer in self.layers]

    def mask(self, which: Iterator[bool]) -> int:
        """The set of the layers for which it is true, in the order of the list."""
        return sum(1 << n for n, each in enumerate(which) if each)

    def numbers(self, mask: int) -> int:
        """How many parameters the model has in these layers."""
        return sum(each.numbers for n, each in enumerate(self.listed) if mask >> n & 1)

    @cached_property
    def leaves(self) -> list[Leaf]:
        found: dict[tuple[str, int], int] = {}
        for n, (each, place) in enumerate(zip(self.listed, self._places, strict=True)):
            found[each.block, place] = found.get((each.block, place), 0) | 1 << n
        blocks = {block: n for n, block in enumerate(dict.fromkeys(each.block for each in self.listed))}
        order = sorted(found, key=lambda key: (blocks[key[0]], key[1]))
        return [Leaf(block, *PARTS[place][:2], found[block, place]) for block, place in order]

    @cached_property
    def presets(self) -> dict[str, int]:
        """The layers that each named preset finds."""
        entries = {name: Entry(name, "network.layers") for name in PRESETS}
        return {name: self.mask(entry.finds(layer) for layer in self.layers) for name, entry in entries.items()}

    @cached_property
    def expressions(self) -> dict[str, int]:
        """Expressions with the layers that they find, from the widest to single layers."""
        found: dict[str, int] = {}
        levels: list[dict[str, int]] = [{} for _ in range(9)]
        containers = self._containers()
        for n, each in enumerate(self.listed):
            for level, text in enumerate(_expressions(each, self._places[n], containers)):
                levels[level][text] = levels[level].get(text, 0) | 1 << n
        for texts in levels:
            found |= {text: mask for text, mask in texts.items() if text not in found}
        return found

    def _containers(self) -> dict[tuple[str, int | str], list[str]]:
        """The modules that layers of a block lie in: of all, of a part, and of a place in PARTS."""
        found: dict[tuple[str, int | str], list[str]] = {}
        for each, place in zip(self.listed, self._places, strict=True):
            if (match := CONTAINER.match(each.layer.path)) and each.layer.unet:
                for key in ("", PARTS[place][0], place):
                    own = found.setdefault((each.block, key), [])
                    own += [f"{match[1]} {match[2]}"] if f"{match[1]} {match[2]}" not in own else []
        return found

    def texts(self, chosen: int, usual: int, trained: int) -> tuple[list[str], list[str]]:
        """The shortest `network.layers` and `network.exclude_layers` found that choose these layers.

        usual    the layers of a network that chooses none       trained  those of the parts that train; others do not count
        """
        chosen &= trained
        whole = {text: mask & trained for text, mask in (self.presets | self.expressions).items() if mask & trained}
        bases = [([], usual & trained), *(([text], mask) for text, mask in whole.items())]
        found = [(base, self._cover(mask & ~chosen, ~chosen, trained)) for base, mask in bases if not chosen & ~mask]
        if chosen:
            found.append((self._cover(chosen, chosen, trained), []))
        return min(found, key=lambda each: len(each[0]) + len(each[1]))

    def _cover(self, wanted: int, allowed: int, trained: int) -> list[str]:
        """Expressions that find these layers, and of the trained ones no others than the allowed: at each step the one that finds
        most."""
        own = [
            (text, mask) for text, mask in self.expressions.items() if mask & wanted and not mask & trained & ~allowed
        ]
        found = []
        while wanted:
            text, mask = max(own, key=lambda each: (each[1] & wanted).bit_count())
            found.append(text)
            wanted &= ~mask
        return found


def _place(layer: Layer) -> int:
    """Its place in PARTS."""
    texts = (row[2] if layer.unet else row[3] for row in PARTS)
    return next(n for n, text in enumerate(texts) if text is not None and re.search(text, layer.path))


def _expressions(each: Listed, place: int, containers: dict[tuple[str, int | str], list[str]]) -> Iterator[str]:
    """What finds a layer, from the widest to the layer's own name."""
    layer, (part, _, in_unet, in_text) = each.layer, PARTS[place]
    own = (in_unet if layer.unet else in_text) or ""
    whole = WHOLE.get((part, layer.unet), own)
    yield "lora_"
    yield "lora_unet" if layer.unet else "lora_te"
    yield layer.path.split(".")[0] if layer.unet else layer.name.split("_text_model_")[0] + "_"
    yield whole
    yield own
    if layer.outer:  # in no module of a block
        yield layer.name
        return
    for key, text in (("", ""), (part, whole), (place, own)):
        within = _any_of(containers[each.block, key]) if layer.unet else layer.name.split("_text_model_")[0] + "_"
        yield f"{within}.*{text}" if text else within
    yield layer.name


def _any_of(containers: Sequence[str]) -> str:
    """ "down_blocks.0.(attentions.0|resnets.0)" of "down_blocks.0 attentions.0" and "down_blocks.0 resnets.0"."""
    pairs = [each.split(" ") for each in containers]
    grouped = [(root, [pair[1] for pair in own]) for root, own in groupby(sorted(pairs), key=lambda pair: pair[0])]
    texts = [f"{root}.{names[0] if len(names) == 1 else '(' + '|'.join(names) + ')'}" for root, names in grouped]
    return texts[0] if len(texts) == 1 else f"({'|'.join(texts)})"
