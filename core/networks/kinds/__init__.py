"""The kinds of networks that can train on a frozen model: one file each, registered by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from core import extensions
from core.formats.lora import names, recognition
from core.record.problems import ProblemsError
from core.settings.base import Settings
from core.settings.blocks import BlockSize
from core.settings.growth import add_choice, add_group
from core.settings.layers import Layer
from core.settings.network import OWN, SIZES, TRAITS, KindTraits, NetworkSettings
from core.settings.readers import READ_BY_NONE, Misread

if TYPE_CHECKING:
    from torch import Tensor

    from core.families.targets import Target
    from core.networks.adapter import Adapter
    from core.settings.job import TrainJob

Tensors = Mapping[str, "Tensor"]  # of one layer, by the part of the key after its name and a dot


@dataclass(frozen=True)
class NetworkKind:
    """The interface of a kind of network.

    name, title     in presets and on the page
    forms           sets of keys: a layer of this kind has exactly one of them in files      optional    keys it may have besides
    input_keys      the keys whose tensors read the layer's input: identifies a file's family. Their second dimensions,
                    of those a layer has, multiply to the layer's input width
    fresh           (layer, rank and alpha, own settings, seed) -> an adapter without effect yet; None: it changes no such layer
    from_tensors    (layer, its tensors) -> the adapter of a file; None if the shapes do not fit the layer
    size            (tensors) -> the rank and alpha they have; like `flaw` and `misfit` it is also asked before the start with
                    tensors on torch's meta device: look at shapes alone, but for tensors of one number, which are read
    flaw            (layer's name, tensors) -> what is wrong with a file's tensors, or ""
    weight_shape    (tensors) -> the shape of the weight that they change; None where the change depends on the weight. Tools that
                    have no base model measure and make LoRAs of kinds that say it
    module_name, network_args    sd-scripts' metadata (ss_network_module, ss_network_args)
    settings        its own group of settings, named after the kind, shown while it is selected
    uses            which of the settings core.settings.network.OWN (sizes, dropouts) it reads; others are said to have no effect, and
                    the training goes on
    needs_base_weight   its adapters read the layer's weight (`base_weight`: it may be in fp8), so it is not packed and rules refuse ZeRO-3
    by_chance       each training pass draws which weights train: torch.compile is refused, and processes agree on them at each step
    loraplus        some of its weights have the role that LoRA+'s ratio is for
    rates           its usual learning rates, as a multiple of a LoRA's: for advice
    initialize      (fresh adapter, network.initialization, seed) -> the adapter that starts this way; None: it has one way
    idle            (tensors) -> whether the layer has no effect, as before its training
    prefix          how the layers' names of its files begin in place of "lora_unet_"
    looks           (tensors of a layer) -> whether they are of this kind, by their shapes, where several kinds have the same keys
    takes           (layer's name, path and part, network's settings, own settings) -> whether it changes such a layer
    sized           (network's settings, own settings) -> the settings that decide which layers have which sizes
    fits            (output width, rank) -> whether a layer of this width can have this rank; else it is refused before the start
    misread         what other programs do not read of its files, or read otherwise; unless it says so, they read none of them
    to_peft         (tensors, dtype) -> tensors as PEFT writes them, the scale multiplied in; None: PEFT has no such kind
    """

    name: str
    title: str
    forms: tuple[tuple[str, ...], ...]
    fresh: Callable[[Target, BlockSize, Settings | None, int], Adapter | None]
    from_tensors: Callable[[Target, Tensors], Adapter | None]
    size: Callable[[Tensors], BlockSize]
    flaw: Callable[[str, Tensors], str]
    module_name: str
    network_args: Callable[[TrainJob], dict[str, str]]
    weight_shape: Callable[[Tensors], tuple[int, ...] | None] = lambda tensors: None
    input_keys: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    settings: type[Settings] | None = None
    uses: frozenset[str] = OWN
    needs_base_weight: bool = False
    by_chance: bool = False
    loraplus: bool = False
    rates: float = 1.0
    initialize: Callable[[Adapter, str, int], Adapter] | None = None
    idle: Callable[[Tensors], bool] = lambda tensors: False
    prefix: str = ""
    looks: Callable[[Mapping[str, Any]], bool] | None = None
    takes: Callable[[Layer, NetworkSettings, Settings | None], bool] = lambda layer, network, own: True
    sized: Callable[[NetworkSettings, Settings | None], NetworkSettings] = lambda network, own: network
    fits: Callable[[int, int], bool] | None = None
    misread: tuple[Misread, ...] = (READ_BY_NONE,)
    to_peft: Callable[[Tensors, Any], dict[str, Tensor]] | None = None

    def own(self, job: TrainJob) -> Settings | None:
        """Its own settings in a job."""
        return getattr(job, self.name) if self.settings is not None else None

    @cached_property
    def keys(self) -> frozenset[str]:
        """Every key that one of its forms has."""
        return frozenset(key for form in self.forms for key in form)

    def holds(self, layer: Tensors | Iterable[str]) -> bool:
        """Whether a layer with these tensors, or keys alone, is of this kind."""
        given = set(layer)
        if not any(set(form) <= given <= {*form, *self.optional} for form in self.forms):
            return False
        return self.looks is None or not isinstance(layer, Mapping) or self.looks(layer)


KINDS: dict[str, NetworkKind] = {}


def kinds() -> dict[str, NetworkKind]:
    """All registered kinds, by name."""
    extensions.load()
    return KINDS


def register(kind: NetworkKind) -> None:
    """Register a kind: from now on it is available on the page, in presets, on the command line, in trainings and files."""
    KINDS[kind.name] = kind
    _with_keys.cache_clear()
    uses = kind.uses | ({"initialization"} if kind.initialize is not None else set())
    TRAITS[kind.name] = KindTraits(
        uses, kind.needs_base_weight, kind.by_chance, kind.loraplus, kind.module_name, kind.rates, kind.misread
    )
    add_choice(NetworkSettings, "kind", kind.name, kind.title)
    if kind.settings is not None:
        add_group(NetworkSettings, kind.name, kind.settings, kind.title, chosen_by="network.kind")
    if kind.input_keys:
        recognition.ADAPTER_INPUTS.add(kind.input_keys)
    names.KEYS.update(kind.keys, kind.optional)
    names.KINDS[kind.title] = kind.keys | set(kind.optional)
    forms = tuple(map(frozenset, kind.forms))
    ranked = bool(kind.uses & SIZES)
    recognition.NETWORKS[kind.title] = recognition.NetworkKeys(forms, kind.prefix, kind.looks, kind.module_name, ranked)


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
