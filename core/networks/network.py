"""`Network`: adapters of any kinds on one frozen model. Names, shapes and alphas are those of kohya's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.families.targets import Target, is_norm
from core.formats.lora.names import group_by_module, kohya_name, layer_name, module_path
from core.networks.adapter import STACK, Adapter, adapt, as_weight, forward_with_adapters, restore
from core.networks.bias_norm import NormAdapter
from core.networks.dropout import Dropout
from core.networks.fp8 import base_weight, set_weight
from core.networks.kinds import kind_named, kind_of_keys
from core.networks.layer_sizes import part_of
from core.networks.low_rank import CastCache
from core.networks.sizes import SizeOf, refuse_unfit, sized_layers
from core.record.problems import ProblemsError
from core.record.units import first_of
from core.settings.base import Settings
from core.settings.network import NetworkSettings


class Network:
    """A set of adapters, by kohya's layer name, for one model. The model is unchanged until the network is attached.

    unmatched           layer names in its file that this model does not have
    needs_base_weight   True if one of its kinds reads the layers' weights
    """

    def __init__(
        self,
        adapters: Iterable[Adapter],
        unmatched: Iterable[str] = (),
        dropout: Dropout | None = None,
        needs_base_weight: bool = False,
    ):
        self.adapters = {adapter.name: adapter for adapter in adapters}
        self.unmatched = tuple(unmatched)  # module names in its file that this model does not have
        self.attached = False
        self.needs_base_weight = needs_base_weight  # whether one of its kinds reads the layers' weights
        self.dropout, self._casts = dropout, CastCache()
        self._in_modules = False
        for adapter in self.adapters.values():
            adapter.dropout, adapter.casts = dropout, self._casts

    # -- creation

    @classmethod
    def create(
        cls,
        targets: Iterable[Target],
        settings: NetworkSettings,
        seed: int,
        size_of: SizeOf | None = None,
        kind_settings: Settings | None = None,
    ) -> Network:
        """Create an untrained network.

        targets         layers it may change
        size_of         layer -> rank and alpha, None for an unchanged layer; replaces the sizes of the settings
        kind_settings   the settings group of the network kind; None if it has none
        Raises ProblemsError for a rank that a layer cannot have.
        """
        kind = kind_named(settings.kind)
        sized = sized_layers(targets, settings, kind_settings, size_of)
        refuse_unfit(kind, sized)
        norms = [NormAdapter.fresh(target) for target, _ in sized if is_norm(target.module)]
        fresh = (kind.fresh(target, size, kind_settings, seed) for target, size in sized if not is_norm(target.module))
        adapters = [adapter for adapter in fresh if adapter is not None]
        if kind.initialize is not None:
            adapters = [kind.initialize(adapter, settings.initialization, seed) for adapter in adapters]
        dropout = Dropout(settings, seed) if settings.has_dropout else None
        return cls([*adapters, *norms], dropout=dropout, needs_base_weight=kind.needs_base_weight)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], targets: Iterable[Target], multiplier: float = 1.0) -> Network:
        """Build the network of a file, frozen. Each layer has the kind of its keys, and its own rank and alpha.

        tensors   by kohya's key
        Layers that this model lacks, or whose keys are of an unknown kind, are listed in `unmatched`.
        """
        targets = list(targets)
        by_file, names = group_by_module(tensors), {target.name for target in targets}
        by_module = named_as(by_file, names)
        in_file = dict(zip(by_module, by_file, strict=False))
        adapters, reads_weights = [], False
        for target in targets:
            layer = by_module.get(target.name)
            kind = kind_of_keys(layer, in_file[target.name]) if layer is not None else None
            adapter = kind.from_tensors(target, layer) if kind is not None and layer is not None else None
            if adapter is not None:
                for parameter, _ in adapter.parameters():
                    parameter.requires_grad_(False)
                adapters.append(adapter)
                reads_weights = reads_weights or (kind is not None and kind.needs_base_weight)
        matched = {adapter.name for adapter in adapters}
        unmatched = [name for name in by_module if name not in matched]
        network = cls(adapters, unmatched, needs_base_weight=reads_weights)
        network.set_multiplier(multiplier)
        return network

    # -- weights

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Return {"text_encoder" and "unet": its parameters in file order}; [] for a part without layers."""
        parts: dict[str, list[nn.Parameter]] = {"text_encoder": [], "unet": []}
        for name, adapter in self.adapters.items():
            parts[part_of(name)] += [parameter for parameter, _ in adapter.parameters()]
        return parts

    def parameters(self) -> list[nn.Parameter]:
        """Return all trained parameters, the text encoders' first."""
        parts = self.parameters_by_part()
        return parts["text_encoder"] + parts["unet"]

    def state_dict(self) -> dict[str, Tensor]:
        """Return {key: tensor} of a training state; live tensors, not copies."""
        return {
            f"{name}.{key}": tensor
            for name, adapter in self.adapters.items()
            for key, tensor in adapter.tensors().items()
        }

    def saved(self) -> dict[str, Tensor]:
        """Return {key: tensor} for a checkpoint file; some kinds save other tensors than they train."""
        return {
            f"{adapter.file_name}.{key}": tensor
            for adapter in self.adapters.values()
            for key, tensor in adapter.saved().items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of a file, including alphas. Raises ProblemsError, loading nothing, if layers or sizes differ."""
        by_module = named_as(group_by_module(tensors), self.adapters)
        wrong = [f"{name} is not trained" for name in by_module if name not in self.adapters]
        for name, adapter in self.adapters.items():
            layer = by_module.get(name)
            reason = adapter.misfit(layer) if layer is not None else "is missing"
            wrong += [f"{name} {reason}"] if reason else []
        if wrong:
            what = f"{len(wrong)} modules of the LoRA differ from the trained network: {first_of(wrong, 5, '; ')}"
            fix = "use the network settings it was trained with"
            raise ProblemsError.one(what, "the LoRA's weights", fix, "network.other-modules")
        for name, adapter in self.adapters.items():
            adapter.take(by_module[name])

    def set_multiplier(
        self,
        multiplier: float,
        text_encoder: float | None = None,
        of_layer: Callable[[str], float] | None = None,
    ) -> None:
        """Set the strength of the network: 0 is exactly the model without it, 1 as trained, below 0 the opposite.

        text_encoder   strength of the text encoders' layers; None: `multiplier`
        of_layer       layer's name -> a further factor
        """
        for name, adapter in self.adapters.items():
            in_text_encoder = text_encoder is not None and part_of(name) == "text_encoder"
            adapter.multiplier = text_encoder if in_text_encoder and text_encoder is not None else multiplier
            if of_layer is not None:
                adapter.multiplier *= of_layer(name)

    def apply_max_norm(self, limit: float) -> NormFacts:
        """Scale down changes whose norm exceeds `limit` (max weight norm); return the norms, still on the device."""
        return apply_max_norm(self.adapters.values(), limit)

    def to(self, dtype: torch.dtype) -> None:
        """Cast the parameters, and so their gradients, to this dtype. Must precede the creation of an optimizer."""
        for adapter in self.adapters.values():
            adapter.to(dtype)

    # -- the current step

    def show(self, step: int, micro_batch: int, images: Sequence[object]) -> None:
        """Set the images of the current micro-batch, in order, for dropout and casts until `hide`; no weight may change until then."""
        if not self._in_modules:
            self._casts.open()
        for adapter in self.adapters.values():
            adapter.micro_step = step, micro_batch
        if self.dropout is not None:
            self.dropout.show(step, micro_batch, images, self.parameters()[0].device)

    def hide(self) -> None:
        """End the training of the current micro-batch: no dropout, and weights may change."""
        self._casts.close()
        for adapter in self.adapters.values():
            adapter.micro_step = None
        if self.dropout is not None:
            self.dropout.hide()

    # -- on the model

    def attach(self) -> None:
        """Apply the changes in the layers' forward passes. Several networks may be attached, in any order."""
        assert not self.attached
        for adapter in self.adapters.values():
            stack = adapter.module.__dict__.setdefault(STACK, [])
            stack.append(adapter)
            adapt(adapter.module, forward_with_adapters)
        self.attached = True

    def register_in_modules(self) -> None:
        """Register the weights as parameters of the layers they change, for sharding code that gathers and frees a module's weights."""
        self._in_modules = True
        for adapter in self.adapters.values():
            number = len(adapter.module.__dict__[STACK])
            for index, (parameter, _) in enumerate(adapter.parameters()):
                adapter.module.register_parameter(f"adapter_{number}_{index}", parameter)

    def detach(self) -> None:
        """Undo `attach`; layers without other networks are restored bit for bit."""
        assert self.attached
        for adapter in self.adapters.values():
            stack = adapter.module.__dict__[STACK]
            stack.remove(adapter)
            if not stack:
                del adapter.module.__dict__[STACK]
                restore(adapter.module)
        self.attached = False

    @torch.no_grad()
    def merge_to(self) -> None:
        """Merge the changes permanently into the model's weights: computed in float32, then cast to the weight's dtype."""
        for adapter in self.adapters.values():
            weight = as_weight(adapter.module.weight)
            for parameter, _ in adapter.parameters():
                parameter.data = parameter.data.to(weight.device)
            if adapter.multiplier != 0.0:
                set_weight(adapter.module, adapter.merged(base_weight(adapter.module)))
            bias_change, bias = adapter.bias_delta(), adapter.module.bias
            if bias_change is not None and isinstance(bias, Tensor):
                bias.copy_((bias.float() + (bias_change * adapter.multiplier).to(bias.device)).to(bias.dtype))


@contextmanager
def attached(*networks: Network) -> Iterator[None]:
    """Context manager: these networks are attached; they are detached at the end, also after an error."""
    attached_networks = []
    try:
        for network in networks:
            network.attach()
            attached_networks.append(network)
        yield
    finally:
        for network in reversed(attached_networks):
            network.detach()


def named_as(modules: dict[str, dict[str, Tensor]], names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Return the layers of a file, in order, under the names of a model's layers.

    modules   {layer's name in the file: its tensors}
    names     of the model's layers; SDXL's have the original's block names, files may have diffusers' or a kind's prefix
    """
    known = set(names)
    if modules.keys() <= known:
        return modules
    return {_known_name(name, known): tensors for name, tensors in modules.items()}


def _known_name(name: str, known: set[str]) -> str:
    """Return the name of a file's layer as the model has it (one of `known`), or a normalized name if it has none."""
    name = layer_name(name)
    part_path = None if name in known else module_path(name)
    kohya = kohya_name(*part_path, "sdxl") if part_path is not None and part_path[0] == "unet" else None
    return kohya if kohya in known else name


@dataclass(frozen=True)
class NormFacts:
    """Norms of the weight changes after limiting, 0-d on the device: mean, largest, and the number of layers that were scaled down."""

    scaled: Tensor
    mean: Tensor
    largest: Tensor


@torch.no_grad()
def apply_max_norm(adapters: Iterable[Adapter], limit: float) -> NormFacts:
    """Scale each change to a Frobenius norm of at most `limit`: with n = max(norm, limit / 2), by min(n, limit) / n.

    Returns the norms after scaling.
    """
    adapters = list(adapters)
    lengths = torch.stack([adapter.norm() for adapter in adapters])
    n = lengths.clamp(min=limit / 2)
    ratio = n.clamp(max=limit) / n
    for adapter, each in zip(adapters, ratio.unbind(), strict=True):
        adapter.shorten(each)
    limited = lengths * ratio
    return NormFacts((ratio != 1).sum(), limited.mean(), limited.max())
