"""The layers that a network can have, by block, and how many of them the settings choose; from shapes alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from core.families import family
from core.families.targets import Target
from core.networks.block_weights import SLOTS, slot_of
from core.networks.sizes import layer_of, sizes_by_settings, wanted
from core.record.problems import Problem
from core.settings.layers import Layer, LayerChoice
from core.settings.network import NetworkSettings

TEXT_ENCODERS = {"lora_te": "Text encoder", "lora_te1": "Text encoder 1", "lora_te2": "Text encoder 2"}
OUTSIDE = "Outside of the blocks"


@dataclass(frozen=True)
class LayerGroup:
    """Layers that lie together. title: of a text encoder, or a block as block weights name it ("IN01", "MID", "OUT11")."""

    title: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Hits:
    """How many layers the settings choose. of: all layers of the trained parts that a network can have, with convolutions;
    idle: (setting, expression) that finds none of them."""

    chosen: int
    of: int
    idle: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.chosen} of {self.of} layers"


def layer_groups(family_name: str, configs: Mapping[str, Mapping[str, Any]] | None = None) -> list[LayerGroup]:
    """All layers of a model that a network can have, text encoders first, then the blocks from the input on.

    configs  of its parts by name ("unet", "text_encoder" ...); None: as published
    """
    groups: dict[str, list[Layer]] = {}
    for target in empty_targets(family_name, configs):
        groups.setdefault(_title(target.name), []).append(layer_of(target))
    return [LayerGroup(title, tuple(layers)) for title, layers in groups.items()]


def empty_targets(family_name: str, configs: Mapping[str, Mapping[str, Any]] | None = None) -> list[Target]:
    """The layers of a model whose weights are on torch's meta device. configs: as of `layer_groups`."""
    layout = family(family_name).layout
    if configs is None:
        configs = {name: layout.config(name) for name in (*layout.text_encoders, layout.denoiser)}
    return list(_targets(family_name, json.dumps(configs, default=str)))


@lru_cache(maxsize=16)
def _targets(family_name: str, configs: str) -> tuple[Target, ...]:
    loaded = family(family_name)
    return tuple(
        target
        for name, config in json.loads(configs).items()
        for target in loaded.lora_targets(loaded.make_empty(name, config), conv=True)
    )


def _title(name: str) -> str:
    prefix = name.split("_text_model_")[0]
    if prefix in TEXT_ENCODERS:
        return TEXT_ENCODERS[prefix]
    slot = slot_of(name)
    return OUTSIDE if slot is None else SLOTS[slot]


def layer_hits(settings: NetworkSettings, targets: Sequence[Target]) -> Hits:
    """What the settings choose of a model's layers. Raises ProblemsError for expressions that are invalid or take too long."""
    own = [target for target in targets if wanted(settings, target.name)]
    size_of, choice = sizes_by_settings(settings, targets), LayerChoice(settings)
    layers = [layer_of(target) for target in own]
    entries = [("network.layers", entry) for entry in choice.chosen]
    entries += [("network.exclude_layers", entry) for entry in choice.excluded]
    entries += [("network.layer_dims", entry) for entry, _ in choice.ranked]
    idle = tuple((where, each.text) for where, each in entries if not any(map(each.finds, layers)))
    return Hits(sum(size_of(target) is not None for target in own), len(own), idle)


def hit_problems(settings: NetworkSettings, hits: Hits) -> Iterable[Problem]:
    """Expressions that find nothing, no layer at all, and advice with the count."""
    for where, text in hits.idle:
        what = f"'{text[:60]}' finds no layer of the trained parts of this model"
        yield Problem(what, where, "correct or remove it", code="network.layers-not-found")
    if hits.idle:
        return
    if not hits.chosen:
        what = f"No layer would be trained: none of {hits.of} is chosen"
        fix = "choose others, or exclude fewer"
        yield Problem(what, "network.layers, exclude_layers, layer_dims", fix, code="network.no-layers")
    elif settings.chooses_layers:
        what = f"The network trains {hits}"
        fix = "check that this is intended"
        yield Problem(what, "network.layers", fix, "advice", code="network.layers-chosen")
