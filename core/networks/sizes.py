"""Which layers of a built model a network has, with their ranks and alphas: from the settings, or from a file."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from core.families.targets import Target, is_norm
from core.formats.lora.names import NORM
from core.networks.adapter import as_weight
from core.networks.block_weights import block_count, block_of
from core.networks.kinds import NetworkKind, kind_named
from core.networks.layer_sizes import kind_sizes, layer_sizes, part_of, trains_part_of
from core.record.problems import ProblemsError
from core.settings.base import Settings
from core.settings.blocks import BlockSize, block_rates
from core.settings.layers import OUTER, Layer
from core.settings.network import NetworkSettings

# Their time embedding and 1x1 shortcut are hooked too, but only when 3x3 convolutions are (kohya's C3Lier).
CONV_CONTAINERS = {"ResnetBlock2D", "Downsample2D", "Upsample2D"}
SizeOf = Callable[[Target], BlockSize | None]


def has_large_kernel(module: nn.Module) -> bool:
    """Return whether the module is a convolution other than 1x1."""
    return isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)


def needs_conv_rank(target: Target) -> bool:
    """Return whether only LoRA-C3Lier trains the layer: a 3x3 convolution, or any layer in a residual or resampling block."""
    return has_large_kernel(target.module) or type(target.parent).__name__ in CONV_CONTAINERS


def layer_of(target: Target) -> Layer:
    """Return the layer as the settings' expressions see it: name, path and kind of layer, without its module."""
    large_kernel, unet = has_large_kernel(target.module), part_of(target.name) == "unet"
    return Layer(target.name, target.path, unet, large_kernel, needs_conv_rank(target), unet and target.path in OUTER)


def sized_layers(
    targets: Iterable[Target], settings: NetworkSettings, kind_settings: Settings | None, size_of: SizeOf | None = None
) -> list[tuple[Target, BlockSize]]:
    """Return (layer, rank and alpha) of each layer that a network with these settings changes.

    kind_settings   the settings group of the network kind; None if it has none
    size_of         replaces the sizes of the settings
    Norm layers are sized by the settings alone, whatever the kind.
    """
    targets = list(targets)
    if size_of is None:
        layers = list(map(layer_of, targets))
        of_kind, of_norms = kind_sizes(settings, kind_settings, layers), layer_sizes(settings, layers)
        pairs = zip(targets, layers, strict=True)
        sized = [(target, (of_norms if is_norm(target.module) else of_kind)(layer)) for target, layer in pairs]
    else:
        sized = [(target, size_of(target)) for target in targets]
    return [(target, size) for target, size in sized if size is not None]


def refuse_unfit(kind: NetworkKind, sized: Sequence[tuple[Target, BlockSize]]) -> None:
    """Raise ProblemsError if a layer cannot have its rank; the fix is the nearest rank that all layers can have."""
    fits = kind.fits
    if fits is None:
        return
    sized = [pair for pair in sized if not is_norm(pair[0].module)]
    layers = [(target.name, int(as_weight(target.module.weight).shape[0]), size.rank) for target, size in sized]
    unfit = [(name, width, rank) for name, width, rank in layers if not fits(width, rank)]
    if not unfit:
        return
    widths, rank = {width for _, width, _ in layers}, unfit[0][2]
    near = sorted(range(1, 4 * rank + 1), key=lambda nearest: abs(nearest - rank))
    nearest = next((each for each in near if all(fits(width, each) for width in widths)), None)
    listed = ", ".join(f"{name} ({width} wide)" for name, width, _ in unfit[:3])
    what = f"{len(unfit)} layers cannot be divided into blocks by {kind.title} with rank {rank}: {listed}"
    fix = f"use rank {nearest}" if nearest is not None else "choose fewer layers, or another network type"
    raise ProblemsError.one(what, "network.rank", fix, "network.unfit-rank")


def sizes_by_file(settings: NetworkSettings, modules: Mapping[str, Mapping[str, Tensor]]) -> SizeOf:
    """Return a function from a layer to its rank and alpha in a file.

    modules  {layer's name: {key: tensor}} of the file
    The function returns None for layers that the file lacks, of untrained parts, or in blocks with a learning rate of 0.
    """
    rates, kind = block_rates(settings, block_count(modules)), kind_named(settings.kind)

    def size_of(target: Target) -> BlockSize | None:
        """Return rank and alpha of a layer in the file; None if the layer is not trained."""
        tensors = modules.get(target.name, {})
        norm = is_norm(target.module)
        if not (NORM in tensors if norm else kind.holds(tensors)) or not trains_part_of(settings, target.name):
            return None
        if part_of(target.name) == "unet" and rates is not None and rates[block_of(target.name)] == 0:
            return None
        return BlockSize(1, 1.0) if norm else kind.size(tensors)

    return size_of
