"""LoRAs in use: attached to a model with a strength each, and removed afterwards with the original weights restored bit for bit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from core.families.components import Components
from core.generation.model.store import fingerprint
from core.networks.block_weights import block_weights, weight_of
from core.networks.files import read_network, unmatched_problems
from core.networks.layer_sizes import part_of
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.settings.blocks import has_nine_blocks

if TYPE_CHECKING:
    from core.networks.network import Network
    from core.settings.generation.generate import LoraUse

MOST_CACHED, MOST_CACHED_BYTES = 20, 1 << 30  # networks cached with their model
ALL_STEPS = (0.0, 1.0)
ROUNDING = 1e-6  # of a step: 3 / 20 * 20 is not quite 3


@dataclass(frozen=True)
class AttachedLora:
    """A LoRA attached to a model.

    file       name in the settings
    strength   U-Net strength in the settings
    modules    number of the model's layers that it changes
    """

    file: str
    path: Path
    strength: float
    modules: int


@dataclass(frozen=True)
class Strength:
    """The strength of a LoRA.

    unet, text_encoder   1 is as trained; text_encoder None: as `unet`
    blocks               factors of the 26 block slots (`core.networks.block_weights`); None: 1 everywhere
    steps                fractions (start, end) of the steps during which its U-Net layers act
    """

    unet: float
    text_encoder: float | None = None
    blocks: tuple[float, ...] | None = None
    steps: tuple[float, float] = ALL_STEPS

    @classmethod
    def of(cls, use: LoraUse, sdxl: bool) -> Strength:
        """Create the strength from an entry of `generate.loras`. sdxl: whether block weights name SDXL's blocks"""
        blocks = block_weights(use.block_weights, sdxl) if use.block_weights else None
        return cls(use.strength, use.text_encoder_strength, blocks, (use.start_at, use.end_at))

    def set_on(self, network: Network) -> None:
        """Set the strengths of an attached network's layers."""
        of_layer = partial(weight_of, self.blocks) if self.blocks is not None else None
        network.set_multiplier(self.unet, self.text_encoder, of_layer)

    def acts(self, index: int, steps: int) -> bool:
        """Return whether the LoRA acts at step `index`, counted from 0, of `steps`."""
        first, last = (math.ceil(share * steps - ROUNDING) for share in self.steps)
        return first <= index < last


NO_STRENGTH = Strength(0.0)


@dataclass
class LorasInUse:
    """The LoRAs attached to a model, in order.

    problems    advice about layers in files that the model does not have
    networks    network of each LoRA
    merged      number of LoRAs, from the first, that are merged into the weights
    sdxl        whether the model is SDXL, which has other blocks
    strengths   current strength of each LoRA
    by_use      {index in the list given to `set_strengths`: network}
    """

    loras: list[AttachedLora] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    merged: int = 0
    sdxl: bool = False
    strengths: list[Strength] = field(default_factory=list)
    by_use: dict[int, Network] = field(default_factory=dict)
    _originals: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _merged_strengths: list[Strength] = field(default_factory=list)

    def set_strengths(self, uses: Sequence[LoraUse]) -> None:
        """Set the strengths for an image. LoRAs are matched by file and order; those without an entry in `uses` get strength 0."""
        remaining = dict(enumerate(uses))
        strengths: list[Strength] = []
        self.by_use = {}
        for lora, network in zip(self.loras, self.networks, strict=True):
            index = next((index for index, use in remaining.items() if use.file == lora.file), None)
            if index is not None:
                self.by_use[index] = network
            strengths.append(Strength.of(remaining.pop(index), self.sdxl) if index is not None else NO_STRENGTH)
            strengths[-1].set_on(network)
        self.strengths = strengths
        if self.merged and strengths[: self.merged] != self._merged_strengths:
            self._merge()
            self._merged_strengths = strengths[: self.merged]

    def text_state_key(self) -> tuple[Any, ...]:
        """Return a cache key for text encoder states: file, merging and strengths of each LoRA that changes the text encoders now."""
        key: list[Any] = []
        for number, (lora, network) in enumerate(zip(self.loras, self.networks, strict=True)):
            adapters = network.adapters.items()
            strengths = tuple(each.multiplier for name, each in adapters if part_of(name) == "text_encoder")
            if any(strengths):
                key.append((fingerprint(lora.path), number < self.merged, strengths))
        return tuple(key)

    def _merge(self) -> None:
        """Merge the first `merged` networks into the model's weights, and copy the original weights for `restore`."""
        self.restore()
        weights = {
            id(adapter.module): adapter.module
            for network in self.networks[: self.merged]
            for adapter in network.adapters.values()
        }
        tensors = (getattr(module, name, None) for module in weights.values() for name in ("weight", "bias", "factors"))
        self._originals = [(each, each.detach().clone()) for each in tensors if each is not None]
        for network in self.networks[: self.merged]:
            network.merge_to()

    def restore(self) -> None:
        """Restore the weights that merging changed, bit for bit."""
        # Not by `data`: values computed from a weight are cached by its version, which `data` does not change.
        with torch.no_grad():
            for weight, original in self._originals:
                weight.copy_(original)
        self._originals = []


@contextmanager
def loras_attached(
    components: Components, uses: Sequence[LoraUse], find: Callable[[str], Path], merged: int = 0
) -> Iterator[LorasInUse]:
    """Context with LoRAs attached to U-Net and text encoders; their deltas add up.

    Modules add the delta to their output until the context ends, also after an error. Only merged LoRAs change weights,
    which are restored at the end. Raises ProblemsError with the problems of all files before anything is attached.

    uses     entries of `generate.loras`
    find     (file name in the settings) -> path
    merged   number of LoRAs, from the first, to merge into the weights
    """
    from core.networks.frozen import readable
    from core.networks.network import attached

    loras = LorasInUse(merged=merged, sdxl=has_nine_blocks(components.family))
    problems: list[Problem] = []
    for use in uses:
        try:
            path = find(use.file)
            network = _network(components, path, [lora.path for lora in loras.loras].count(path))
        except ProblemsError as error:
            problems.extend(error.problems)
            continue
        loras.networks.append(network)
        loras.loras.append(AttachedLora(use.file, path, use.strength, len(network.adapters)))
        loras.problems.extend(unmatched_problems(network, path))
    raise_if_errors(problems)
    for network in loras.networks[merged:]:  # layers may rest in RAM
        for parameter in network.parameters():
            parameter.data = parameter.data.to(components.device)
    needs_weights = bool(merged) or any(network.needs_base_weight for network in loras.networks)
    with readable(components.denoiser) if needs_weights else nullcontext(), attached(*loras.networks[merged:]):
        try:
            loras.set_strengths(uses)
            yield loras
        finally:
            loras.restore()
            _forget_oldest(components)


# Networks of a loaded model, the most recently used last, so that a new strength or a LoRA used again reads no file.
# They are freed with the model: adapters reference its layers, but nothing references the denoiser.
_NETWORKS: WeakKeyDictionary[Any, dict[Any, Network]] = WeakKeyDictionary()


def _network(components: Components, path: Path, earlier_uses: int) -> Network:
    """Return the network of a LoRA file, from the cache if possible. earlier_uses: number of uses of the same file before this one"""
    parts = (*components.text_encoders, components.denoiser)
    cached = _NETWORKS.setdefault(components.denoiser, {})
    key = (fingerprint(path), earlier_uses, tuple(part is None for part in parts))
    network = cached.pop(key, None)
    layers = {id(module) for part in parts if part is not None for module in part.modules()}
    if network is None or any(id(each.module) not in layers for each in network.adapters.values()):
        network = read_network(components, path, 1.0)
    cached[key] = network
    return network


def _forget_oldest(components: Components) -> None:
    """Drop the least recently used networks of a model beyond MOST_CACHED and MOST_CACHED_BYTES."""
    cached = _NETWORKS.get(components.denoiser, {})
    sizes = {key: sum(each.nbytes for each in network.parameters()) for key, network in cached.items()}
    for key in list(cached):
        if len(cached) <= MOST_CACHED and sum(sizes[each] for each in cached) <= MOST_CACHED_BYTES:
            break
        del cached[key]


def loras_to_attach(uses_of_images: Iterable[Sequence[LoraUse]]) -> list[LoraUse]:
    """Return the LoRAs to attach for several images: each file as often as the image that uses it most needs it."""
    attached: dict[tuple[str, int], LoraUse] = {}
    for uses in uses_of_images:
        counts: Counter[str] = Counter()
        for use in uses:
            attached.setdefault((use.file, counts[use.file]), use)
            counts[use.file] += 1
    return list(attached.values())
