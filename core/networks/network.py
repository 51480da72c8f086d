"""`Network`: a set of adapters of any kinds on one frozen model. Names, shapes and alphas are those of kohya's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.families.targets import Target, is_norm
from core.formats.lora.names import group_by_module, kohya_name, layer_name, module_path
from core.networks.adapter import STACK, Adapter, adapt, as_weight, forward_with_adapters, restore
from core.networks.dropout import Dropout
from core.networks.kinds import kind_named, kind_of_keys
from core.networks.layer_sizes import part_of
from core.networks.narrow import base_weight, put_weight
from core.networks.norm_adapter import NormAdapter
from core.networks.sizes import SizeOf, refuse_unfit, sized_layers
from core.record.problems import ProblemsError
from core.settings.base import Settings
from core.settings.network import NetworkSettings


class Network:
    """A set of adapters, by kohya name, for one model. The model is unchanged while it is not attached."""

    def __init__(
        self,
        adapters: Iterable[Adapter],
        unmatched: Iterable[str] = (),
        dropout: Dropout | None = None,
        needs_base_weight: bool = False,
    ):
        self.adapters = {adapter.name: adapter for adapter in adapters}
        self.unmatched = tuple(unmatched)  # module names of its file that this model does not have
        self.attached = False
        self.needs_base_weight = needs_base_weight  # whether one of its kinds reads the layers' weights
        self.dropout = dropout
        for adapter in self.adapters.values():
            adapter.dropout = dropout

    # -- creation

    @classmethod
    def create(
        cls,
        targets: Iterable[Target],
        settings: NetworkSettings,
        seed: int,
        size_of: SizeOf | None = None,
        own: Settings | None = None,
    ) -> Network:
        """A fresh network on the targets that have a size: by the settings, unless given.

        own   the settings of its kind
        """
        kind = kind_named(settings.kind)
        sized = sized_layers(targets, settings, own, size_of)
        refuse_unfit(kind, sized)
        norms = [NormAdapter.fresh(target) for target, _ in sized if is_norm(target.module)]
        made = (kind.fresh(target, size, own, seed) for target, size in sized if not is_norm(target.module))
        adapters = [adapter for adapter in made if adapter is not None]
        if kind.initialize is not None:
            adapters = [kind.initialize(adapter, settings.initialization, seed) for adapter in adapters]
        dropout = Dropout(settings, seed) if settings.dropped_out else None
        return cls([*adapters, *norms], dropout=dropout, needs_base_weight=kind.needs_base_weight)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], targets: Iterable[Target], multiplier: float = 1.0) -> Network:
        """The network in a file, each layer of the kind of its keys, with its own rank and alpha.

        Modules this model lacks, or whose keys are of an unknown kind, are listed in `unmatched`.
        """
        targets = list(targets)
        by_file, names = group_by_module(tensors), {target.name for target in targets}
        by_module = named_as(by_file, names)
        in_file = dict(zip(by_module, by_file, strict=False))
        adapters, reads = [], False
        for target in targets:
            given = by_module.get(target.name)
            kind = kind_of_keys(given, in_file[target.name]) if given is not None else None
            adapter = kind.from_tensors(target, given) if kind is not None and given is not None else None
            if adapter is not None:
                for parameter, _ in adapter.parameters():
                    parameter.requires_grad_(False)
                adapters.append(adapter)
                reads = reads or (kind is not None and kind.needs_base_weight)
        taken = {adapter.name for adapter in adapters}
        unmatched = [name for name in by_module if name not in taken]
        network = cls(adapters, unmatched, needs_base_weight=reads)
        network.set_multiplier(multiplier)
        return network

    # -- weights

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by part, in file order; a part without modules has an empty list."""
        parts: dict[str, list[nn.Parameter]] = {"text_encoder": [], "unet": []}
        for name, adapter in self.adapters.items():
            parts[part_of(name)] += [parameter for parameter, _ in adapter.parameters()]
        return parts

    def parameters(self) -> list[nn.Parameter]:
        parts = self.parameters_by_part()
        return parts["text_encoder"] + parts["unet"]

    def state_dict(self) -> dict[str, Tensor]:
        """File key -> float32 tensor; the weights are live, not copied."""
        return {
            f"{name}.{key}": tensor
            for name, adapter in self.adapters.items()
            for key, tensor in adapter.tensors().items()
        }

    def saved(self) -> dict[str, Tensor]:
        """The tensors of its file, by file key."""
        return {
            f"{adapter.file_name}.{key}": tensor
            for adapter in self.adapters.values()
            for key, tensor in adapter.saved().items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the weights of a file with the same modules and sizes; its alphas are used. All or nothing."""
        by_module = group_by_module(tensors)
        wrong = [f"{name} is not trained" for name in by_module if name not in self.adapters]
        for name, adapter in self.adapters.items():
            given = by_module.get(name)
            reason = adapter.misfit(given) if given is not None else "is missing"
            wrong += [f"{name} {reason}"] if reason else []
        if wrong:
            shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
            what = f"{len(wrong)} modules of the LoRA differ from the trained network: {shown}"
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
        """Strength of the whole network: 0 is exactly the model without it, 1 as trained, below 0 reversed.

        text_encoder   that of the text encoders' layers, if it is another
        of_layer       a layer's name -> a further factor
        """
        for name, adapter in self.adapters.items():
            own = text_encoder is not None and part_of(name) == "text_encoder"
            adapter.multiplier = text_encoder if own and text_encoder is not None else multiplier
            if of_layer is not None:
                adapter.multiplier *= of_layer(name)

    def apply_max_norm(self, limit: float) -> NormFacts:
        """Scale down weight changes whose norm exceeds `limit`; the facts stay on the device."""
        return apply_max_norm(self.adapters.values(), limit)

    def to(self, dtype: torch.dtype) -> None:
        """Keep the weights, and so their gradients, in this dtype. Call before creating an optimizer."""
        for adapter in self.adapters.values():
            adapter.to(dtype)

    # -- the current step

    def show(self, step: int, micro_batch: int, images: Sequence[object]) -> None:
        """Until `hide`, the adapters train on these images, in the batch's order, with dropout."""
        for adapter in self.adapters.values():
            adapter.moment = step, micro_batch
        if self.dropout is not None:
            self.dropout.show(step, micro_batch, images, self.parameters()[0].device)

    def hide(self) -> None:
        for adapter in self.adapters.values():
            adapter.moment = None
        if self.dropout is not None:
            self.dropout.hide()

    # -- on the model

    def attach(self) -> None:
        """Let the modules compute with the changes. Any number of networks may be attached, in any order."""
        assert not self.attached
        for adapter in self.adapters.values():
            stack = adapter.module.__dict__.setdefault(STACK, [])
            stack.append(adapter)
            adapt(adapter.module, forward_with_adapters)
        self.attached = True

    def lay_in_modules(self) -> None:
        """Register the weights as parameters of the modules they change, where code that gathers a module's weights finds them."""
        for adapter in self.adapters.values():
            number = len(adapter.module.__dict__[STACK])
            for place, (parameter, _) in enumerate(adapter.parameters()):
                adapter.module.register_parameter(f"adapter_{number}_{place}", parameter)

    def detach(self) -> None:
        """Remove the changes; a module without any left is restored, bit for bit."""
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
                put_weight(adapter.module, adapter.merged(base_weight(adapter.module)))
            of_bias, bias = adapter.bias_delta(), adapter.module.bias
            if of_bias is not None and isinstance(bias, Tensor):
                bias.copy_((bias.float() + (of_bias * adapter.multiplier).to(bias.device)).to(bias.dtype))


@contextmanager
def attached(*networks: Network) -> Iterator[None]:
    """Run the block with these networks attached; afterwards, also after an error, the model is as before."""
    done = []
    try:
        for network in networks:
            network.attach()
            done.append(network)
        yield
    finally:
        for network in reversed(done):
            network.detach()


def named_as(modules: dict[str, dict[str, Tensor]], names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """The same modules, in order, under the names of a model's layers: SDXL's blocks have the original's or diffusers' names, and
    kinds a prefix of their own."""
    known = set(names)
    if modules.keys() <= known:
        return modules
    return {_known_name(name, known): tensors for name, tensors in modules.items()}


def _known_name(name: str, known: set[str]) -> str:
    name = layer_name(name)
    found = None if name in known else module_path(name)
    other = kohya_name(*found, "sdxl") if found is not None and found[0] == "unet" else None
    return other if other in known else name


@dataclass(frozen=True)
class NormFacts:
    """Norms of the weight changes after limiting, 0-d on the device. scaled: how many layers were limited."""

    scaled: Tensor
    mean: Tensor
    largest: Tensor


@torch.no_grad()
def apply_max_norm(adapters: Iterable[Adapter], limit: float) -> NormFacts:
    """Scale each change W to a Frobenius norm of `limit`: with n = max(|W|, limit / 2), by the ratio min(n, limit) / n."""
    adapters = list(adapters)
    lengths = torch.stack([adapter.norm() for adapter in adapters])
    n = lengths.clamp(min=limit / 2)
    ratio = n.clamp(max=limit) / n
    for adapter, each in zip(adapters, ratio.unbind(), strict=True):
        adapter.shorten(each)
    kept = lengths * ratio
    return NormFacts((ratio != 1).sum(), kept.mean(), kept.max())
