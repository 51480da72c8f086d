"""Which layers a network trains, and their ranks and alphas, from the settings and the layers' names; without torch."""

from collections.abc import Callable, Sequence
from math import sqrt

from core.networks.block_weights import block_count, block_of
from core.networks.kinds import kind_named
from core.settings.base import Settings
from core.settings.blocks import BlockSize, block_sizes
from core.settings.layers import Layer, choice_of
from core.settings.network import NetworkSettings

LayerSize = Callable[[Layer], BlockSize | None]


def part_of(name: str) -> str:
    """Return a layer's part by its name in a file: "text_encoder" (lora_te, lora_te1 ...) or "unet", which stands for any denoiser."""
    return "text_encoder" if name.startswith(("lora_te", "text_encoder")) else "unet"


def trains_part_of(settings: NetworkSettings, name: str) -> bool:
    """Return whether the settings train the part of a layer."""
    return settings.train_unet if part_of(name) == "unet" else settings.train_text_encoder


def trains_by_default(settings: NetworkSettings, layer: Layer) -> bool:
    """Return whether a layer of a trained part is trained if the settings choose no layers."""
    return not layer.outer and (settings.hooks_residual or not layer.residual)


def layer_sizes(settings: NetworkSettings, layers: Sequence[Layer]) -> LayerSize:
    """Return a function from a layer to its rank and alpha; None for a layer that is not trained.

    layers   all layers of the model
    Parts by `train_unet` and `train_text_encoder`; layers by `layers` and `exclude_layers`, else residual and resampling blocks by
    `hooks_residual`. Ranks and alphas of the U-Net may differ by block, ranks by `layer_dims`; conv rank and alpha apply to 3x3
    convolutions only.
    """
    linear_sizes, conv_sizes = block_sizes(settings, block_count(layer.name for layer in layers))
    choice = choice_of(settings)

    def size_of(layer: Layer) -> BlockSize | None:
        """Return the rank and alpha of a layer; None if it is not trained."""
        if not trains_part_of(settings, layer.name):
            return None
        if choice is None:
            return stabilized(default_size(layer)) if trains_by_default(settings, layer) else None
        size = default_size(layer) if choice.trains(layer, trains_by_default(settings, layer)) else None
        rank = choice.rank(layer)
        if size is not None and rank is not None:
            size = BlockSize(rank, settings.alpha or rank) if rank else None
        return stabilized(size)

    def stabilized(size: BlockSize | None) -> BlockSize | None:
        """With rs_lora, multiply alpha by sqrt(rank), so that alpha / rank in files is the setting's alpha / sqrt(rank)."""
        if size is None or not settings.rs_lora:
            return size
        return BlockSize(size.rank, size.alpha * sqrt(size.rank))

    def default_size(layer: Layer) -> BlockSize | None:
        """Return the rank and alpha of a layer by block, without `layer_dims`; None for a rank of 0."""
        if not layer.unet:
            return BlockSize(settings.rank, settings.alpha or settings.rank)
        block = block_of(layer.name)
        size = conv_sizes[block] if layer.large_kernel else linear_sizes[block]
        return size if size.rank else None

    return size_of


def kind_sizes(settings: NetworkSettings, kind_settings: Settings | None, layers: Sequence[Layer]) -> LayerSize:
    """Return `layer_sizes` for the settings' network kind, without the layers that the kind excludes.
    kind_settings: the settings group of that kind; None if it has none"""
    kind = kind_named(settings.kind)
    size_of = layer_sizes(kind.sized(settings, kind_settings), layers)
    return lambda layer: size_of(layer) if kind.takes(layer, settings, kind_settings) else None
