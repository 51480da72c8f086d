"""The layers of a model as a tree of blocks and parts, and the settings that select a set of its layers."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from core.networks.layer_list import ListedLayer
from core.settings.layers import PRESETS, Entry, Layer

# (part, matrix, expression for the U-Net's layers, expression for a text encoder's): the first that is in a path.
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
ATTN = {("Self-attention", True): "attn1", ("Self-attention", False): "self_attn", ("Cross-attention", True): "attn2"}
CONTAINER = re.compile(r"^(.*?)\.((?:attentions|resnets|downsamplers|upsamplers)\.\d+)\.")


class Leaf(NamedTuple):
    """Layers that are selected together: those of one block and one row of PARTS (`part`, `matrix`).
    mask: their set, as in LayerTree"""

    block: str
    part: str
    matrix: str
    mask: int


class LayerTree:
    """The tree of a model's layers. A set of layers is an integer bit mask: bit n stands for `layers[n]`."""

    def __init__(self, listed: Sequence[ListedLayer]):
        self.listed, self.layers = list(listed), [each.layer for each in listed]
        self._kinds = [_kind(layer) for layer in self.layers]

    def mask(self, members: Iterator[bool]) -> int:
        """Return the bit mask of the layers whose value in `members` (one per layer, in order) is True."""
        return sum(1 << n for n, each in enumerate(members) if each)

    def parameter_count(self, mask: int) -> int:
        """Return the number of parameters of the layers in `mask`."""
        return sum(each.parameters for n, each in enumerate(self.listed) if mask >> n & 1)

    @cached_property
    def leaves(self) -> list[Leaf]:
        """The sets of layers with the same block and row of PARTS, by block, then in PARTS' order."""
        masks: dict[tuple[str, int], int] = {}
        for n, (each, kind) in enumerate(zip(self.listed, self._kinds, strict=True)):
            masks[each.block, kind] = masks.get((each.block, kind), 0) | 1 << n
        blocks = {block: n for n, block in enumerate(dict.fromkeys(each.block for each in self.listed))}
        order = sorted(masks, key=lambda key: (blocks[key[0]], key[1]))
        return [Leaf(block, *PARTS[kind][:2], masks[block, kind]) for block, kind in order]

    @cached_property
    def presets(self) -> dict[str, int]:
        """{preset's name: bit mask of its layers}."""
        entries = {name: Entry(name, "network.layers") for name in PRESETS}
        return {name: self.mask(entry.matches(layer) for layer in self.layers) for name, entry in entries.items()}

    @cached_property
    def expressions(self) -> dict[str, int]:
        """{expression: bit mask of the layers it matches}, from those that match most down to single layers."""
        masks: dict[str, int] = {}
        levels: list[dict[str, int]] = [{} for _ in range(9)]
        containers = self._containers()
        for n, each in enumerate(self.listed):
            for level, text in enumerate(_expressions(each, self._kinds[n], containers)):
                levels[level][text] = levels[level].get(text, 0) | 1 << n
        for texts in levels:
            masks |= {text: mask for text, mask in texts.items() if text not in masks}
        return masks

    def _containers(self) -> dict[tuple[str, int | str], list[str]]:
        """Return {(block, key): U-Net modules with layers of that kind, such as "down_blocks.0 attentions.0"}.
        key: "" for layers of any kind, a part's name or an index in PARTS"""
        containers: dict[tuple[str, int | str], list[str]] = {}
        for each, kind in zip(self.listed, self._kinds, strict=True):
            if (match := CONTAINER.match(each.layer.path)) and each.layer.unet:
                for key in ("", PARTS[kind][0], kind):
                    modules = containers.setdefault((each.block, key), [])
                    modules += [f"{match[1]} {match[2]}"] if f"{match[1]} {match[2]}" not in modules else []
        return containers

    def settings_for(self, chosen: int, usual: int, trained: int) -> tuple[list[str], list[str]]:
        """Return (`network.layers`, `network.exclude_layers`) that select the layers `chosen`, with as few entries as found.

        chosen   bit mask of the layers to train
        usual    bit mask of the layers that are trained if both settings are empty
        trained  bit mask of the layers of trained parts; others do not count
        """
        chosen &= trained
        single = {text: mask & trained for text, mask in (self.presets | self.expressions).items() if mask & trained}
        bases = [([], usual & trained), *(([text], mask) for text, mask in single.items())]
        choices = [(base, self._cover(mask & ~chosen, ~chosen, trained)) for base, mask in bases if not chosen & ~mask]
        if chosen:
            choices.append((self._cover(chosen, chosen, trained), []))
        return min(choices, key=lambda each: len(each[0]) + len(each[1]))

    def _cover(self, missing: int, allowed: int, trained: int) -> list[str]:
        """Return expressions that together match all of `missing` and, of the `trained` layers, only those in `allowed`; all are bit
        masks.

        Greedy: the expression that matches most missing layers comes first.
        """
        candidates = [
            (text, mask) for text, mask in self.expressions.items() if mask & missing and not mask & trained & ~allowed
        ]
        cover = []
        while missing:
            text, mask = max(candidates, key=lambda each: (each[1] & missing).bit_count())
            cover.append(text)
            missing &= ~mask
        return cover


def _kind(layer: Layer) -> int:
    """Return the index in PARTS of the row that a layer belongs to."""
    texts = (row[2] if layer.unet else row[3] for row in PARTS)
    return next(n for n, text in enumerate(texts) if text is not None and re.search(text, layer.path))


def _expressions(each: ListedLayer, kind: int, containers: dict[tuple[str, int | str], list[str]]) -> Iterator[str]:
    """Yield expressions that match a layer, from the widest to the layer's full name.

    kind         the layer's index in PARTS
    containers   of `LayerTree._containers`
    """
    layer, (part, _, in_unet, in_text) = each.layer, PARTS[kind]
    name = (in_unet if layer.unet else in_text) or ""
    attention = ATTN.get((part, layer.unet), name)
    yield "lora_"
    yield "lora_unet" if layer.unet else "lora_te"
    yield layer.path.split(".")[0] if layer.unet else layer.name.split("_text_model_")[0] + "_"
    yield attention
    yield name
    if layer.outer:  # not inside a module of a block
        yield layer.name
        return
    for key, text in (("", ""), (part, attention), (kind, name)):
        within = _any_of(containers[each.block, key]) if layer.unet else layer.name.split("_text_model_")[0] + "_"
        yield f"{within}.*{text}" if text else within
    yield layer.name


def _any_of(containers: Sequence[str]) -> str:
    """Return one expression for several modules.

    ["down_blocks.0 attentions.0", "down_blocks.0 resnets.0"] -> `down_blocks.0.(attentions.0|resnets.0)`
    """
    pairs = [each.split(" ") for each in containers]
    grouped = [(root, [pair[1] for pair in inner]) for root, inner in groupby(sorted(pairs), key=lambda pair: pair[0])]
    texts = [f"{root}.{names[0] if len(names) == 1 else '(' + '|'.join(names) + ')'}" for root, names in grouped]
    return texts[0] if len(texts) == 1 else f"({'|'.join(texts)})"
