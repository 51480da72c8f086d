"""A network that starts from the weights of a file (network_weights), and what of the file does not fit it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from core.networks.lora import KEYS, LoraNetwork, Target, fit_shapes, group_by_module, named_as
from core.networks.sizes import has_large_kernel, part_of, sizes_by_file, wanted
from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from core.settings.network import NetworkSettings

SHOWN = 3
WHERE = "network.network_weights"


def start_network(
    targets: Iterable[Target], settings: NetworkSettings, seed: int, tensors: Mapping[str, Tensor]
) -> tuple[LoraNetwork, list[Problem]]:
    """The network to train with the weights of a file in it, and advice about what does not correspond.

    With `dim_from_weights` the network has the file's layers, ranks and alphas; otherwise those of the settings, and the
    file must have their ranks. The file's alpha counts in training as it does in any program that reads the file; with
    `weights_scale = "kohya"` the settings' alpha counts in training and the file's is saved.
    """
    targets = list(targets)
    modules = named_as(group_by_module(tensors), [target.name for target in targets])
    size_of = sizes_by_file(settings, modules) if settings.dim_from_weights else None
    network = LoraNetwork.create(targets, settings, seed, size_of)
    return network, _take_over(network, modules, settings)


def _take_over(
    network: LoraNetwork, modules: Mapping[str, Mapping[str, Tensor]], settings: NetworkSettings
) -> list[Problem]:
    found, ranks, shapes, alphas = {}, {}, [], {}
    for name, layer in network.layers.items():
        given = modules.get(name, {})
        if not set(KEYS[:2]) <= given.keys():
            continue
        shaped = fit_shapes(given[KEYS[0]], given[KEYS[1]], layer.module)
        if shaped is None:
            shapes.append(name)
        elif shaped[0].shape != layer.down.shape:
            ranks[name] = (shaped[0].shape[0], layer.rank, _rank_setting(name, layer.module, settings))
        else:
            alpha = float(given["alpha"]) if "alpha" in given else float(layer.rank)
            found[name] = (*shaped, alpha)
            if alpha != layer.alpha:
                alphas[name] = (alpha, layer.alpha)
    _refuse(found, ranks, shapes)
    for name, (down, up, alpha) in found.items():
        layer = network.layers[name]
        if settings.weights_scale == "kohya" and not settings.dim_from_weights:
            layer.saved_alpha = layer.alpha
        layer.set_weights(down, up, alpha)
    return [*_about_alphas(alphas, settings), *_about_layers(network, modules, found, settings)]


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
            Problem(
                what, WHERE, "set network.weights_scale to file, to train it at the strength it is used with", "advice"
            )
        ]
    what = f"The LoRA's alpha counts, not the one set here: {words}"
    return [Problem(what, WHERE, "set the same alpha, or leave it so", "advice")]


def _about_layers(
    network: LoraNetwork, modules: Mapping[str, object], found: Mapping[str, object], settings: NetworkSettings
) -> list[Problem]:
    problems = []
    fresh = [name for name in network.layers if name not in found]
    if fresh:
        what = f"{len(fresh)} of {len(network.layers)} layers are not in the LoRA and start fresh: {_some(fresh)}"
        problems.append(Problem(what, WHERE, "nothing, if that is meant", "advice"))
    left = [name for name in modules if name not in network.layers]
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
