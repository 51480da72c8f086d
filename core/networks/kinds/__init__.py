"""The kinds of networks that can train beside a frozen model: one file each, registered by its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core import extensions
from core.formats import detect
from core.record.problems import ProblemsError
from core.settings.base import Settings
from core.settings.growth import add_choice, add_group, rebuild
from core.settings.network import NetworkSettings

if TYPE_CHECKING:
    from torch import Tensor

    from core.networks.adapter import Adapter
    from core.networks.sizes import Target
    from core.settings.blocks import BlockSize
    from core.settings.job import TrainJob

Tensors = Mapping[str, "Tensor"]  # of one layer, by what stands after its name and a dot in a file's keys


@dataclass(frozen=True)
class NetworkKind:
    """What Atelier asks of a kind of network.

    name, title     in presets and on the page
    keys            what its files hold for each layer          optional    what they may hold besides
    input_key       of the keys, the one whose tensor is as wide as the layer's input: tells a file's family
    fresh           (layer, rank and alpha, own settings, seed) -> an adapter that changes nothing yet
    from_tensors    (layer, its tensors) -> the adapter of a file; None where the shapes do not fit the layer
    size            (tensors) -> the rank and alpha they have
    flaw            (layer's name, tensors) -> what is wrong with a file's tensors, "" for nothing
    module_name, network_args    sd-scripts' metadata (ss_network_module, ss_network_args)
    settings        a group of its own, named after the kind, shown while it is chosen
    ignores         settings of the group `network` that it does not use
    needs_base_weight   its adapters read the layer's weight: that stays wide, unpacked and whole
    from_peft, to_peft  key endings of PEFT's files and the kind's; tensors as PEFT writes them, the scale multiplied in
    """

    name: str
    title: str
    keys: tuple[str, ...]
    fresh: Callable[[Target, BlockSize, Settings | None, int], Adapter]
    from_tensors: Callable[[Target, Tensors], Adapter | None]
    size: Callable[[Tensors], BlockSize]
    flaw: Callable[[str, Tensors], str]
    module_name: str
    network_args: Callable[[TrainJob], dict[str, str]]
    input_key: str = ""
    optional: tuple[str, ...] = ()
    settings: type[Settings] | None = None
    ignores: frozenset[str] = frozenset()
    needs_base_weight: bool = False
    from_peft: Mapping[str, str] | None = None
    to_peft: Callable[[Tensors, Any], dict[str, Tensor]] | None = None

    def own(self, job: TrainJob) -> Settings | None:
        """Its own settings in a job."""
        return getattr(job, self.name) if self.settings is not None else None

    def holds(self, keys: Iterable[str]) -> bool:
        """Whether a layer with these keys is of this kind."""
        return set(self.keys) <= set(keys) <= {*self.keys, *self.optional}


KINDS: dict[str, NetworkKind] = {}


def kinds() -> dict[str, NetworkKind]:
    """All that are registered, by name."""
    extensions.load()
    return KINDS


def register(kind: NetworkKind) -> None:
    """Offer a kind: from now on the page, presets, the command line, trainings and files know it."""
    from core.settings.job import TrainJob  # which asks for the extensions itself

    KINDS[kind.name] = kind
    add_choice(NetworkSettings, "kind", kind.name, kind.title)
    if kind.settings is not None:
        add_group(TrainJob, kind.name, kind.settings, kind.title, chosen_by="network.kind")
    rebuild(TrainJob)
    if kind.input_key:
        detect.ADAPTER_INPUTS.add(kind.input_key)
    detect.ADAPTER_KEYS[kind.name] = kind.keys


def kind_named(name: str) -> NetworkKind:
    """Raises ProblemsError for a kind that is not registered."""
    if name not in kinds():
        raise ProblemsError.one(
            f"There is no network of the kind '{name}'",
            "network.kind",
            f"choose one of {', '.join(KINDS)}",
            "network.unknown-kind",
        )
    return KINDS[name]


def described(job: TrainJob) -> str:
    """The settings of the job's network as text, for memory of what was counted; `settings_of` reads them back."""
    own = kind_named(job.network.kind).own(job)
    return json.dumps([job.network.model_dump(mode="json"), own.model_dump(mode="json") if own is not None else None])


def settings_of(text: str) -> tuple[NetworkSettings, Settings | None]:
    """The group `network` and the kind's own settings."""
    network, own = json.loads(text)
    settings = NetworkSettings.model_validate_json(json.dumps(network))
    kind = kind_named(settings.kind)
    return settings, kind.settings.model_validate(own) if kind.settings is not None else None


def kind_of_keys(keys: Iterable[str]) -> NetworkKind | None:
    """The kind of a file's layer by the endings of its keys; None for one that is not known."""
    keys = set(keys)
    return next((kind for kind in kinds().values() if kind.holds(keys)), None)
