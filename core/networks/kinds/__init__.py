"""The kinds of networks that can train on a frozen model: one file each, registered by name."""

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

Tensors = Mapping[str, Tensor]  # of one layer, by the part of the key after its name and a dot


@dataclass(frozen=True, kw_only=True)
class NetworkKind(KindTraits):
    """The interface of a kind of network.

    fresh           (layer, rank and alpha, own settings, seed) -> an adapter without effect yet; None: it changes no such layer
    from_tensors    (layer, its tensors) -> the adapter of a file; None if the shapes do not fit the layer
    size            (tensors) -> the rank and alpha they have; like `flaw` and `misfit` it is also asked before the start with
                    tensors on torch's meta device: look at shapes alone, but for tensors of one number, which are read
    flaw            (layer's name, tensors) -> what is wrong with a file's tensors, or ""
    weight_shape    (tensors) -> the shape of the weight that they change; None where the change depends on the weight. Tools that
                    have no base model measure and make LoRAs of kinds that say it
    network_args    sd-scripts' metadata (ss_network_args)
    settings        its own group of settings, named after the kind, shown while it is selected
    initialize      (fresh adapter, network.initialization, seed) -> the adapter that starts this way; None: it has one way
    idle            (tensors) -> whether the layer has no effect, as before its training
    takes           (layer's name, path and part, network's settings, own settings) -> whether it changes such a layer
    sized           (network's settings, own settings) -> the settings that decide which layers have which sizes
    fits            (output width, rank) -> whether a layer of this width can have this rank; else it is refused before the start
    to_peft         (tensors, dtype) -> tensors as PEFT writes them, the scale multiplied in; None: PEFT has no such kind
    from_peft       PEFT's key -> (its tensor) -> the tensor in the shape of the kind's files, where PEFT's is another
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
    takes: Callable[[Layer, NetworkSettings, Settings | None], bool] = lambda layer, network, own: True
    sized: Callable[[NetworkSettings, Settings | None], NetworkSettings] = lambda network, own: network
    fits: Callable[[int, int], bool] | None = None
    to_peft: Callable[[Tensors, Any], dict[str, Tensor]] | None = None
    from_peft: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def own(self, job: TrainJob) -> Settings | None:
        """Its own settings in a job."""
        return getattr(job, self.name) if self.settings is not None else None

    def holds(self, layer: Tensors | Iterable[str]) -> bool:
        """Whether a layer with these tensors, or keys alone, is of this kind."""
        given = set(layer)
        if not any(set(form) <= given <= {*form, *self.optional} for form in self.forms):
            return False
        return self.looks is None or not isinstance(layer, Mapping) or self.looks(layer)


KINDS = cast("dict[str, NetworkKind]", NETWORK_KINDS)


def kinds() -> dict[str, NetworkKind]:
    """All registered kinds, by name."""
    extensions.load()
    return KINDS


def register(kind: NetworkKind) -> None:
    """Register a kind: from now on it is available on the page, in presets, on the command line, in trainings and files."""
    starts = {"initialization"} if kind.initialize is not None else set()
    KINDS[kind.name] = replace(kind, uses=kind.uses | starts)
    _with_keys.cache_clear()
    add_choice(NetworkSettings, "kind", kind.name, kind.title)
    if kind.settings is not None:
        add_group(NetworkSettings, kind.name, kind.settings, kind.title, chosen_by="network.kind")


def kind_named(name: str) -> NetworkKind:
    """Raises ProblemsError for a kind that is not registered."""
    if name not in kinds():
        what = f"The network kind '{name}' does not exist"
        raise ProblemsError.one(what, "network.kind", f"use one of {', '.join(KINDS)}", "network.unknown-kind")
    return KINDS[name]


def described(job: TrainJob) -> str:
    """The settings of the job's network as text, a cache key; `settings_of` parses it."""
    own = kind_named(job.network.kind).own(job)
    network = {name: getattr(job.network, name) for name in type(job.network).model_fields}
    return json.dumps([network, own.model_dump(mode="json") if own is not None else None])


def settings_of(text: str) -> tuple[NetworkSettings, Settings | None]:
    """The group `network` and the kind's own settings."""
    network, own = json.loads(text)
    settings = NetworkSettings.model_validate_json(json.dumps(network))
    kind = kind_named(settings.kind)
    return settings, kind.settings.model_validate(own) if kind.settings is not None else None


def kind_of_keys(layer: Tensors | Iterable[str], name: str = "") -> NetworkKind | None:
    """The kind of a file's layer by its tensors, or keys alone, and its name in the file; None if unknown."""
    found = [kind for kind in _with_keys(frozenset(layer), tuple(kinds())) if kind.holds(layer)]
    prefixed = (kind for kind in found if kind.prefix and name.startswith(kind.prefix))
    return next(prefixed, None) or next((kind for kind in found if not kind.prefix), None)


@lru_cache(maxsize=256)
def _with_keys(keys: frozenset[str], registered: tuple[str, ...]) -> tuple[NetworkKind, ...]:
    """The kinds whose layers can have these keys: a file has few sets of keys and many layers."""
    return tuple(KINDS[name] for name in registered if KINDS[name].holds(keys))


# -- what kinds share


def ranked(rank: int, tensors: Tensors) -> BlockSize:
    """Rank and alpha of a layer in a file; without an alpha it equals the rank."""
    return BlockSize(rank, float(tensors[ALPHA]) if ALPHA in tensors else float(rank))


def is_number(value: Tensor) -> bool:
    """Whether it is one finite number; also of fp8, of which torch has no isfinite."""
    return bool(value.numel() == 1 and math.isfinite(float(value)))


def not_a_number(name: str, tensors: Tensors, *keys: str) -> str:
    """What is wrong with the tensors of a layer that hold one number, by default its alpha; or ""."""
    wrong = (key for key in keys or (ALPHA,) if key in tensors and not is_number(tensors[key]))
    return next((f"{name}.{key} is not a number" for key in wrong), "")
