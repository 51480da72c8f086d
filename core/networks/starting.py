"""Starts a network from the weights of a file (network_weights), with advice about what does not match."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn

from core.families.targets import Target
from core.formats.lora.names import group_by_module
from core.networks.adapter_file import LoraFile
from core.networks.bias_norm import NormAdapter
from core.networks.kinds import NetworkKind, kind_named, kind_of_keys
from core.networks.layer_sizes import part_of, trains_part_of
from core.networks.network import Network, named_as
from core.networks.sizes import has_large_kernel, sizes_by_file
from core.record.problems import Problem, raise_any
from core.record.units import count, first_of, listed
from core.settings.base import Settings
from core.settings.network import NetworkSettings

SHOWN = 3
WHERE = "network.network_weights"


def start_network(
    targets: Iterable[Target],
    settings: NetworkSettings,
    seed: int,
    lora: LoraFile,
    kind_settings: Settings | None = None,
) -> tuple[Network, list[Problem]]:
    """Create a network, load the weights of a file into it, and return it with advice about differences.

    With `dim_from_weights` the network has the file's layers, ranks and alphas; otherwise those of the settings, and the file must have
    the same ranks. The file's alpha is used in training, as in any program that reads the file; with `model.compatibility` the settings'
    alpha is used in training and the file's is saved.
    Raises ProblemsError if ranks, shapes or the kind differ, or if the file has no trained layer.
    """
    targets = list(targets)
    tensors = lora.with_norms
    modules = named_as(group_by_module(tensors), [target.name for target in targets])
    size_of = sizes_by_file(settings, modules) if settings.dim_from_weights else None
    settings = settings.model_copy(update={"initialization": "kaiming"})  # of layers that the file lacks
    network = Network.create(targets, settings, seed, size_of, kind_settings)
    advice = _load_file(network, kind_named(settings.kind), modules, settings)
    return network, advice + _untrained_tensor_advice(
        [key for key in (*lora.bias_norm, *lora.bundled) if key not in tensors]
    )


def _load_file(
    network: Network, kind: NetworkKind, modules: Mapping[str, Mapping[str, Tensor]], settings: NetworkSettings
) -> list[Problem]:
    """Load the file's tensors into the network's adapters; return advice about differences.

    modules   {layer's name: its tensors in the file}
    Raises ProblemsError if ranks, shapes or the kind differ.
    """
    loaded, ranks, shapes, alphas = {}, {}, [], {}
    for name, adapter in network.adapters.items():
        tensors = modules.get(name, {})
        if isinstance(adapter, NormAdapter):
            if tensors and adapter.misfit(tensors):
                shapes.append(name)
            elif tensors:
                loaded[name] = tensors
            continue
        if not kind.holds(tensors):
            continue
        size = kind.size(tensors)
        if not adapter.misfit(tensors):
            loaded[name] = tensors
            if size.alpha != adapter.alpha:
                alphas[name] = (size.alpha, adapter.alpha)
        elif size.rank != adapter.rank and kind.from_tensors(_layer(name, adapter.module), tensors) is not None:
            ranks[name] = (size.rank, adapter.rank, _rank_setting(name, adapter.module, settings))
        else:
            shapes.append(name)
    layers = [name for name in loaded if not isinstance(network.adapters[name], NormAdapter)]
    kinds = [] if layers else _kinds_in_file(kind, modules, settings)
    _raise_differences(layers if settings.dim_from_weights else loaded, ranks, shapes, kinds)
    for name, tensors in loaded.items():
        adapter = network.adapters[name]
        if settings.weights_scale == "kohya" and not settings.dim_from_weights:
            adapter.saved_alpha = adapter.alpha
        adapter.take(tensors)
    advice = [*_alpha_advice(alphas, settings), *_layer_advice(network, modules, loaded, settings)]
    return advice + (_zero_alpha_problems(network, layers) if "alpha" in settings.traits.uses else [])


def _zero_alpha_problems(network: Network, layers: Sequence[str]) -> list[Problem]:
    """Return the problem of loaded layers whose alpha is 0, so that they get no gradient: an error if these are all, else advice."""
    still = [name for name in layers if network.adapters[name].alpha == 0]
    what = f"{len(still)} of {len(layers)} layers of the LoRA have alpha 0 and would not be trained: {first_of(still, SHOWN)}"
    fix = "choose another LoRA, or this one before its blocks were turned off"
    level = "error" if len(still) == len(layers) else "advice"
    return [Problem(what, WHERE, fix, level, code="network.start-alpha-zero")] if still else []


def _layer(name: str, module: nn.Module) -> Target:
    """Return a layer as a target without its position in the model, which network kinds do not need."""
    return Target(name, path="", parent=module, attribute="", module=module)


def _kinds_in_file(
    kind: NetworkKind, modules: Mapping[str, Mapping[str, Tensor]], settings: NetworkSettings
) -> list[NetworkKind]:
    """Return the kinds that the file has for layers of trained parts, if `kind` is not one of them; else []."""
    in_parts = {name: tensors for name, tensors in modules.items() if trains_part_of(settings, name)}
    in_file = {each.name: each for name, tensors in in_parts.items() if (each := kind_of_keys(tensors, name))}
    return [] if kind.name in in_file else list(in_file.values())


def _raise_differences(
    loaded: Collection[str],
    ranks: Mapping[str, tuple[int, int, str]],
    shapes: Sequence[str],
    kinds: Sequence[NetworkKind],
) -> None:
    """Raise ProblemsError if layers differ in rank or shape, or none could be loaded.

    loaded   names of layers that fit
    ranks    {layer: (rank in the file, rank of the settings, name of that setting)}
    shapes   names of layers of other shapes
    kinds    kinds in the file, if they differ from the settings'
    """
    problems = []
    by_setting = {
        setting: {sizes[0] for sizes in ranks.values() if sizes[2] == setting} for _, _, setting in ranks.values()
    }
    for (file_rank, rank, setting), number in Counter(ranks.values()).items():
        names = [name for name, sizes in ranks.items() if sizes == (file_rank, rank, setting)]
        what = f"The LoRA has rank {file_rank} in {count(number, 'layer')}, but rank {rank} is set: {first_of(names, SHOWN)}"
        fix = f"set network.{setting} to {file_rank}, or turn on network.dim_from_weights"
        if len(by_setting[setting]) > 1:  # several, such as ranks that follow the width (BOFT)
            fix = "turn on network.dim_from_weights"
        elif setting.endswith("dims"):
            fix = f"set these blocks to rank {file_rank} in network.{setting}, or turn on network.dim_from_weights"
        problems.append(Problem(what, f"{WHERE}, {setting}", fix, code="network.start-rank"))
    if shapes:
        what = (
            f"The LoRA differs from the model in the size of {count(len(shapes), 'layer')}: {first_of(shapes, SHOWN)}"
        )
        problems.append(Problem(what, WHERE, "choose a LoRA of the same model family", code="network.start-shape"))
    if not problems and kinds:
        what = f"The LoRA to start from is of the network type {listed([each.title for each in kinds])}"
        fix = f"set network.kind to {kinds[0].name}, or choose another LoRA"
        problems.append(Problem(what, f"{WHERE}, kind", fix, code="network.start-kind"))
    if not problems and not loaded:
        what = "The LoRA to start from has no trained layer"
        problems.append(
            Problem(
                what,
                WHERE,
                "choose another LoRA, or train the parts that it contains",
                code="network.start-without-layers",
            )
        )
    raise_any(problems)


def _rank_setting(name: str, module: nn.Module, settings: NetworkSettings) -> str:
    """Return the setting that decides a layer's rank: "rank", "block_dims", "conv_rank" or "conv_block_dims". name: kohya's layer name"""
    if has_large_kernel(module):
        return "conv_block_dims" if settings.conv_block_dims else "conv_rank"
    return "block_dims" if settings.block_dims and part_of(name) == "unet" else "rank"


def _alpha_advice(alphas: Mapping[str, tuple[float, float]], settings: NetworkSettings) -> list[Problem]:
    """Return advice about alphas that differ; [] with `dim_from_weights`, which uses the file's.
    alphas: {layer: (alpha in the file, alpha of the settings)}"""
    if not alphas or settings.dim_from_weights:
        return []
    pairs = Counter(alphas.values()).most_common(SHOWN)
    text = "; ".join(
        f"{loaded:g} in {count(number, 'layer')} where {alpha:g} is set" for (loaded, alpha), number in pairs
    )
    if settings.weights_scale == "kohya":
        what = (
            f"The LoRA's alpha differs from the settings ({text}): training uses the settings, the saved "
            "file keeps its own"
        )
        fix = "turn model.compatibility off to train at the strength it is used with"
        return [Problem(what, WHERE, fix, "advice", code="network.start-alpha-saved")]
    what = f"The LoRA's alpha is used instead of the setting: {text}"
    return [Problem(what, WHERE, "set the same alpha, or ignore this", "advice", code="network.start-alpha")]


def _layer_advice(
    network: Network, modules: Mapping[str, object], loaded: Mapping[str, object], settings: NetworkSettings
) -> list[Problem]:
    """Return advice about layers that only the network or only the file has."""
    problems = []
    fresh = [name for name in network.adapters if name not in loaded]
    if fresh:
        what = f"{len(fresh)} of {len(network.adapters)} layers are not in the LoRA and start from scratch: {first_of(fresh, SHOWN)}"
        problems.append(
            Problem(what, WHERE, "check that this is intended", "advice", code="network.start-fresh-layers")
        )
    unmatched = [name for name in modules if name not in network.adapters]
    untrained = [name for name in unmatched if not trains_part_of(settings, name)]
    if untrained:
        what = f"{len(untrained)} layers of the LoRA belong to a part that is not trained and will be missing in the result"
        problems.append(
            Problem(what, WHERE, "train that part too to keep it", "advice", code="network.start-untrained-part")
        )
    unused = [name for name in unmatched if trains_part_of(settings, name)]
    if unused:
        what = f"The training leaves out {count(len(unused), 'layer')} of the LoRA: {first_of(unused, SHOWN)}"
        fix = "turn on network.dim_from_weights to train all of them"
        problems.append(Problem(what, WHERE, fix, "advice", code="network.start-unused-layers"))
    return problems


def _untrained_tensor_advice(keys: Sequence[str]) -> list[Problem]:
    """Return advice about tensors of the file that are not trained further, such as changes of biases."""
    if not keys:
        return []
    what = f"The training and its result leave out {count(len(keys), 'tensor')} of the LoRA: {first_of(keys, SHOWN)}"
    fix = "merge the LoRA into the base model with network.base_weights to keep their effect"
    return [Problem(what, WHERE, fix, "advice", code="network.start-left-out")]
