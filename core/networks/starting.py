"""A network that starts from the weights of a file (network_weights), and what of the file does not fit it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.formats.lora_names import group_by_module
from core.networks.kinds import NetworkKind, kind_named
from core.networks.network import Network, named_as
from core.networks.sizes import Target, has_large_kernel, part_of, sizes_by_file, wanted
from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from core.settings.base import Settings
    from core.settings.network import NetworkSettings

SHOWN = 3
WHERE = "network.network_weights"


def start_network(
    targets: Iterable[Target],
    settings: NetworkSettings,
    seed: int,
    tensors: Mapping[str, Tensor],
    own: Settings | None = None,
) -> tuple[Network, list[Problem]]:
    """The network to train with the weights of a file in it, and advice about what does not correspond.

    With `dim_from_weights` the network has the file's layers, ranks and alphas; otherwise those of the settings, and the
    file must have their ranks. The file's alpha counts in training as it does in any program that reads the file; with
    `model.compatibility` the settings' alpha counts in training and the file's is saved.
    """
    targets = list(targets)
    modules = named_as(group_by_module(tensors), [target.name for target in targets])
    size_of = sizes_by_file(settings, modules) if settings.dim_from_weights else None
    network = Network.create(targets, settings, seed, size_of, own)
    return network, _take_over(network, kind_named(settings.kind), modules, settings)


def _take_over(
    network: Network, kind: NetworkKind, modules: Mapping[str, Mapping[str, Tensor]], settings: NetworkSettings
) -> list[Problem]:
    found, ranks, shapes, alphas = {}, {}, [], {}
    for name, adapter in network.adapters.items():
        given = modules.get(name, {})
        if not kind.holds(given):
            continue
        size = kind.size(given)
        if not adapter.misfit(given):
            found[name] = given
            if size.alpha != adapter.alpha:
                alphas[name] = (size.alpha, adapter.alpha)
        elif size.rank != adapter.rank and kind.from_tensors(_Layer(name, adapter.module), given) is not None:
            ranks[name] = (size.rank, adapter.rank, _rank_setting(name, adapter.module, settings))
        else:
            shapes.append(name)
    _refuse(found, ranks, shapes)
    for name, given in found.items():
        adapter = network.adapters[name]
        if settings.weights_scale == "kohya" and not settings.dim_from_weights:
            adapter.saved_alpha = adapter.alpha
        adapter.take(given)
    return [*_about_alphas(alphas, settings), *_about_layers(network, modules, found, settings)]


@dataclass(frozen=True)
class _Layer:
    """A layer of the model, as kinds take it."""

    name: str
    module: nn.Module

    @property
    def parent(self) -> nn.Module:
        return self.module


def _refuse(found: Mapping, ranks: Mapping[str, tuple[int, int, str]], shapes: Sequence[str]) -> None:
    problems = []
    for (given, asked, setting), count in Counter(ranks.values()).items():
        names = [name for name, three in ranks.items() if three == (given, asked, setting)]
        what = f"{count} layers of the LoRA have rank {given}, and rank {asked} is set here: {_some(names)}"
        fix = f"set network.{setting} to {given}, or switch on network.dim_from_weights"
        if setting.endswith("dims"):
            fix = f"give these blocks rank {given} in network.{setting}, or switch on network.dim_from_weights"
        problems.append(Problem(what, f"{WHERE}, {setting}", fix))
    if shapes:
        what = f"{len(shapes)} layers of the LoRA are of another size than the model's: {_some(shapes)}"
        problems.append(Problem(what, WHERE, "choose a LoRA of the same model family"))
    if not problems and not found:
        what = "The LoRA to start from has no layer that is trained here"
        problems.append(Problem(what, WHERE, "choose another, or train the part that it has"))
    if problems:
        raise ProblemsError(problems)


def _rank_setting(name: str, module: nn.Module, settings: NetworkSettings) -> str:
    """The setting that a layer's rank is from."""
    if has_large_kernel(module):
        return "conv_block_dims" if settings.conv_block_dims else "conv_rank"
    return "block_dims" if settings.block_dims and part_of(name) == "unet" else "rank"


def _about_alphas(alphas: Mapping[str, tuple[float, float]], settings: NetworkSettings) -> list[Problem]:
    if not alphas or settings.dim_from_weights:
        return []
    pairs = Counter(alphas.values()).most_common(SHOWN)
    words = "; ".join(f"{given:g} in {count} layers where {asked:g} is set" for (given, asked), count in pairs)
    if settings.weights_scale == "kohya":
        what = f"The LoRA's alpha is another than set here ({words}): it trains with the one set here and is saved with its own"
        return [
            Problem(what, WHERE, "turn model.compatibility off to train it at the strength it is used with", "advice")
        ]
    what = f"The LoRA's alpha counts, not the one set here: {words}"
    return [Problem(what, WHERE, "set the same alpha, or leave it so", "advice")]


def _about_layers(
    network: Network, modules: Mapping[str, object], found: Mapping[str, object], settings: NetworkSettings
) -> list[Problem]:
    problems = []
    fresh = [name for name in network.adapters if name not in found]
    if fresh:
        what = f"{len(fresh)} of {len(network.adapters)} layers are not in the LoRA and start fresh: {_some(fresh)}"
        problems.append(Problem(what, WHERE, "nothing, if that is meant", "advice"))
    left = [name for name in modules if name not in network.adapters]
    untrained = [name for name in left if not wanted(settings, name)]
    if untrained:
        what = (
            f"{len(untrained)} layers of the LoRA are of a part that is not trained here, and will not be in the result"
        )
        problems.append(Problem(what, WHERE, "train that part too, if it should stay", "advice"))
    others = [name for name in left if wanted(settings, name)]
    if others:
        what = f"{len(others)} layers of the LoRA are left out here: {_some(others)}"
        problems.append(Problem(what, WHERE, "switch on network.dim_from_weights to train all of them", "advice"))
    return problems


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
