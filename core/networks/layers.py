"""The layers of a model that a network can change, from configs alone, and how many of them the settings choose."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from core.families import family
from core.families.targets import Target, is_norm
from core.networks.layer_sizes import kind_sizes, layer_sizes, trains_part_of
from core.networks.sizes import layer_of
from core.record.problems import Problem
from core.settings.base import Settings
from core.settings.layers import LayerChoice
from core.settings.network import NetworkSettings


@dataclass(frozen=True)
class LayerCounts:
    """How many layers the settings choose, without norm layers.

    total       number of all layers of the trained parts that a network can change
    norms       whether norm layers are trained
    unmatched   (setting, expression) of expressions that match no layer
    """

    chosen: int
    total: int
    unmatched: tuple[tuple[str, str], ...] = ()
    norms: bool = False

    def __str__(self) -> str:
        return f"{self.chosen} of {self.total} layers"


def meta_targets(
    family_name: str, configs: Mapping[str, Mapping[str, Any]] | None = None, *, norms: bool = False
) -> list[Target]:
    """Return the layers of a model, built on torch's meta device.

    configs  {part: config} ("unet", "text_encoder" ...); None: the family's published ones
    norms    include norm layers
    """
    layout = family(family_name).layout
    if configs is None:
        configs = {name: layout.config(name) for name in (*layout.text_encoders, layout.denoiser)}
    return list(_targets(family_name, json.dumps(configs, default=str), norms))


@lru_cache(maxsize=16)
def _targets(family_name: str, configs: str, norms: bool) -> tuple[Target, ...]:
    """Return the layers as `meta_targets`, cached.
    configs: as JSON, since the cache needs hashable arguments"""
    loaded = family(family_name)
    return tuple(
        target
        for name, config in json.loads(configs).items()
        for target in loaded.layers(loaded.make_empty(name, config), norms=norms)
    )


def count_layers(settings: NetworkSettings, kind_settings: Settings | None, targets: Iterable[Target]) -> LayerCounts:
    """Count the layers that the settings choose, without norm layers.

    kind_settings   the settings group of the network kind; None if it has none
    Raises ProblemsError for expressions that are invalid or take too long.
    """
    targets = list(targets)
    layers = [layer_of(target) for target in targets if not is_norm(target.module)]
    trained = [layer for layer in layers if trains_part_of(settings, layer.name)]
    norms = [layer_of(target) for target in targets if is_norm(target.module)]
    size_of, choice = kind_sizes(settings, kind_settings, layers), LayerChoice(settings)
    entries = [("network.layers", entry) for entry in choice.chosen]
    entries += [("network.exclude_layers", entry) for entry in choice.excluded]
    entries += [("network.layer_dims", entry) for entry, _ in choice.ranked]
    unmatched = tuple((where, each.text) for where, each in entries if not any(map(each.matches, (*trained, *norms))))
    of_norms = layer_sizes(settings, [*layers, *norms])
    trains_norms = settings.train_norm and any(of_norms(norm) is not None for norm in norms)
    return LayerCounts(sum(size_of(layer) is not None for layer in trained), len(trained), unmatched, trains_norms)


def layer_count_problems(settings: NetworkSettings, hits: LayerCounts) -> Iterable[Problem]:
    """Yield errors for expressions that match nothing or if no layer is chosen, else advice with the count."""
    for where, text in hits.unmatched:
        what = f"'{text[:60]}' finds no layer of the trained parts of this model"
        yield Problem(what, where, "correct or remove it", code="network.layers-not-found")
    if hits.unmatched:
        return
    if not hits.chosen and not settings.chooses_layers:
        what = "No layer would be trained: every block is excluded"
        fix = "set a rank and a learning rate above 0 for some block, or train another part"
        where = "network.block_dims, down_lr_weight, mid_lr_weight, up_lr_weight"
        yield Problem(what, where, fix, code="network.no-layers")
    elif not hits.chosen:
        what = f"No layer would be trained: none of {hits.total} is chosen"
        what = "Only norm layers would be trained, and LoRAs need others too" if hits.norms else what
        fix = "choose others, or exclude fewer"
        yield Problem(what, "network.layers, exclude_layers, layer_dims", fix, code="network.no-layers")
    elif settings.chooses_layers:
        what = f"The network trains {hits}"
        fix = "check that this is intended"
        yield Problem(what, "network.layers", fix, "advice", code="network.layers-chosen")
