"""Registry of the network kinds that can train on a frozen model; each file registers one or several."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from core import extensions
from core.formats.lora.names import ALPHA
from core.record.lazy_torch import Tensor
from core.record.problems import ProblemsError
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.growth import add_choice, add_group
from core.settings.layers import Layer
from core.settings.network import NETWORK_KINDS, KindTraits, NetworkSettings

if TYPE_CHECKING:
    from core.families.targets import Target
    from core.networks.adapter import Adapter
    from core.settings.job import TrainJob

Tensors = Mapping[str, Tensor]  # of one layer, by the part of the key after "<name>."


@dataclass(frozen=True, kw_only=True)
class NetworkKind(KindTraits):
    """A registered kind of network.

    In these functions, `tensors` are one layer's by the key below its name, as in files.

    fresh           (layer, rank and alpha, kind's settings, seed) -> a new adapter without effect; None: the kind skips the layer
    from_tensors    (layer, tensors) -> the adapter of a file; None if the shapes do not fit the layer
    size            (tensors) -> rank and alpha. Like `flaw` and `misfit` also called with tensors on torch's meta device, so it must
                    only use shapes and the values of one-element tensors
    flaw            (layer's name, tensors) -> an error in a file's tensors, or ""
    weight_shape    (tensors) -> the shape of the weight that they change; None if the change depends on the weight. Tools without a base
                    model only measure and make LoRAs of kinds that have it
    network_args    (job) -> sd-scripts' metadata (ss_network_args)
    settings        the kind's settings group, named like the kind and shown while it is selected; None without settings
    initialize      (new adapter, network.initialization, seed) -> the initialized adapter; None: the setting has no effect
    idle            (tensors) -> whether the layer has no effect, as before training
    takes           (layer, network settings, kind's settings) -> whether this kind changes such a layer
    sized           (network settings, kind's settings) -> the network settings that decide layers and sizes
    fits            (output width, rank) -> whether such a layer can have this rank; None: always
    to_peft         (tensors, dtype) -> tensors in PEFT's format with the scale multiplied in; None: PEFT has no such kind
    in_peft         (tensors, possibly on the meta device) -> whether PEFT has this form of the kind
    from_peft       {PEFT's key: function that reshapes its tensor to the shape in the kind's files}
    from_older      (a file's tensors by key) -> the same in the kind's present format; None: there is no older one
    """

    fresh: Callable[[Target, BlockSize, Settings | None, int], Adapter | None]
    from_tensors: Callable[[Target, Tensors], Adapter | None]
    size: Callable[[Tensors], BlockSize]
    flaw: Callable[[str, Tensors], str]
    network_args: Callable[[TrainJob], dict[str, str]]
    weight_shape: Callable[[Tensors], tuple[int, ...] | None] = lambda tensors: None
    settings: type[Settings] | None = None
    initialize: Callable[[Adapter, str, int], Adapter] | None = None
    idle: Callable[[Tensors], bool] = lambda tensors: False
    takes: Callable[[Layer, NetworkSettings, Settings | None], bool] = lambda layer, network, options: True
    sized: Callable[[NetworkSettings, Settings | None], NetworkSettings] = lambda network, options: network
    fits: Callable[[int, int], bool] | None = None
    to_peft: Callable[[Tensors, Any], dict[str, Tensor]] | None = None
    in_peft: Callable[[Tensors], bool] = lambda tensors: True
    from_peft: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    from_older: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    def kind_settings(self, job: TrainJob) -> Settings | None:
        """Return the kind's settings group of a job; None if it has none."""
        return getattr(job, self.name) if self.settings is not None else None

    def holds(self, layer: Tensors | Iterable[str]) -> bool:
        """Return whether a layer with these tensors (or only their keys) is of this kind."""
        keys = set(layer)
        if not any(set(form) <= keys <= {*form, *self.optional} for form in self.forms):
            return False
        return self.looks is None or not isinstance(layer, Mapping) or self.looks(layer)


KINDS = cast("dict[str, NetworkKind]", NETWORK_KINDS)


def kinds() -> dict[str, NetworkKind]:
    """Return all registered kinds by name, also those of extensions."""
    extensions.load()
    return KINDS


def register(kind: NetworkKind) -> None:
    """Register a kind for the page, presets, the command line, training and files."""
    starts = {"initialization"} if kind.initialize is not None else set()
    KINDS[kind.name] = replace(kind, uses=kind.uses | starts)
    _with_keys.cache_clear()
    add_choice(NetworkSettings, "kind", kind.name, kind.title)
    if kind.settings is not None:
        add_group(NetworkSettings, kind.name, kind.settings, kind.title, chosen_by="network.kind")


def kind_named(name: str) -> NetworkKind:
    """Return the kind of this name. Raises ProblemsError if it is not registered."""
    if name not in kinds():
        what = f"The network kind '{name}' does not exist"
        raise ProblemsError.one(what, "network.kind", f"use one of {', '.join(KINDS)}", "network.unknown-kind")
    return KINDS[name]


def settings_as_text(job: TrainJob) -> str:
    """Return a job's network settings, with those of its kind, as JSON text for cache keys; `settings_from_text` parses it."""
    kind_settings = kind_named(job.network.kind).kind_settings(job)
    network = {name: getattr(job.network, name) for name in type(job.network).model_fields}
    return json.dumps([network, kind_settings.model_dump(mode="json") if kind_settings is not None else None])


def settings_from_text(text: str) -> tuple[NetworkSettings, Settings | None]:
    """Parse the text of `settings_as_text`: return (network settings, settings of the kind or None)."""
    network, kind_settings = json.loads(text)
    settings = NetworkSettings.model_validate_json(json.dumps(network))
    kind = kind_named(settings.kind)
    return settings, kind.settings.model_validate(kind_settings) if kind.settings is not None else None


def kind_of_keys(layer: Tensors | Iterable[str], name: str = "") -> NetworkKind | None:
    """Return the kind of a layer in a file; None if no kind matches.

    layer   its tensors by key, or only the keys
    name    of the layer in the file, since some kinds have a prefix
    """
    matches = [kind for kind in _with_keys(frozenset(layer), tuple(kinds())) if kind.holds(layer)]
    prefixed = (kind for kind in matches if kind.prefix and name.startswith(kind.prefix))
    return next(prefixed, None) or next((kind for kind in matches if not kind.prefix), None)


@lru_cache(maxsize=256)
def _with_keys(keys: frozenset[str], registered: tuple[str, ...]) -> tuple[NetworkKind, ...]:
    """Return the kinds that a layer with these keys can have. Cached: a file has few sets of keys and many layers."""
    return tuple(KINDS[name] for name in registered if KINDS[name].holds(keys))


# -- shared by kinds


def ranked(rank: int, tensors: Tensors) -> BlockSize:
    """Return rank and alpha of a layer in a file; a missing alpha means alpha = rank."""
    return BlockSize(rank, float(tensors[ALPHA]) if ALPHA in tensors else float(rank))


def is_number(value: Tensor) -> bool:
    """Return whether a tensor is a single finite number; works for fp8, which torch.isfinite does not."""
    return bool(value.numel() == 1 and math.isfinite(float(value)))


def number_error(name: str, tensors: Tensors, *keys: str) -> str:
    """Return the error if a tensor of `keys` (default: the alpha) is not a single finite number; "" if there is none."""
    wrong = (key for key in keys or (ALPHA,) if key in tensors and not is_number(tensors[key]))
    return next((f"{name}.{key} is not a number" for key in wrong), "")
