"""Guidance away from a perturbed model: the prompt is evaluated in extra rows, for which some layers of the U-Net are changed."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from core.families.offload import replaced
from core.generation.sample.guidance import PERTURBED, POSITIVE, Guidance, Moment, Outputs, classic
from core.settings.generation.guidance import PagSettings, SkipLayerSettings, SmoothedEnergySettings

SHORT = {"mid": "mid_block", "down": "down_blocks", "up": "up_blocks"}

# (layer, moment, (states [B, N, C]) -> index of the first perturbed row) -> context manager of an evaluation
Change = Callable[[nn.Module, Moment, Callable[[Tensor], int]], AbstractContextManager[Any]]


def pag(scale: float, negative_scale: float | None, settings: PagSettings) -> Guidance:
    """Return perturbed-attention guidance (Ahn et al. 2024, arXiv:2403.17377): the self-attention map is the identity.
    scale, negative_scale: of the classic guidance that it is added to"""
    return _perturbed(scale, negative_scale, settings.pag_scale, settings.pag_layers, "attn1", _identity)


def skip_layer(scale: float, negative_scale: float | None, settings: SkipLayerSettings) -> Guidance:
    """Return skip-layer guidance (Hyung et al. 2024, arXiv:2411.18664): transformer blocks return their input.
    scale, negative_scale: of the classic guidance that it is added to"""
    return _perturbed(scale, negative_scale, settings.slg_scale, settings.slg_layers, "transformer_blocks.*", _skipped)


def smoothed_energy(scale: float, negative_scale: float | None, settings: SmoothedEnergySettings) -> Guidance:
    """Return smoothed energy guidance (Hong 2024, arXiv:2408.00760): the queries of self-attention are blurred.
    scale, negative_scale: of the classic guidance that it is added to"""

    def change(layer: nn.Module, at: Moment, start_of: Callable[[Tensor], int]) -> AbstractContextManager[Any]:
        return _blurred_queries(layer, at, start_of, settings.seg_blur)

    return _perturbed(scale, negative_scale, settings.seg_scale, settings.seg_layers, "attn1", change)


def _perturbed(
    scale: float, negative_scale: float | None, perturbed_scale: float, layers: str, suffix: str, change: Change
) -> Guidance:
    """Return classic guidance plus perturbed_scale (p - p'), where p' is the prompt's output with changed layers.

    scale, negative_scale   of the classic guidance
    layers                  blocks to change, such as "mid, up.1"
    suffix                  end of the names of the layers to change in them; * is a number
    change                  changes one layer during an evaluation
    """
    base = classic(scale, negative_scale)
    if not perturbed_scale:
        return base

    def combine(outputs: Outputs, at: Moment) -> Tensor:
        return base.combine(outputs, at) + perturbed_scale * (outputs[POSITIVE] - outputs[PERTURBED])

    @contextmanager
    def changed(module: nn.Module, at: Moment, unperturbed: int, sides: int) -> Iterator[None]:
        """Context of an evaluation in which the layers are changed in the perturbed rows (`Guidance.changed`)."""
        with ExitStack() as stack:
            for layer in layers_of(module, layers, suffix).values():
                stack.enter_context(change(layer, at, lambda rows: len(rows) * unperturbed // sides))
            yield

    return Guidance((*base.sides, PERTURBED), combine, changed)


def layers_of(module: nn.Module, text: str, suffix: str) -> dict[str, nn.Module]:
    """Return {name: layer} of the layers in the blocks named by `text` ("mid, up.1") whose names end with `suffix` (* is a number)."""
    blocks = [_block(part.strip()) for part in text.split(",") if part.strip()]
    last = re.compile(r"(^|.*\.)" + re.escape(suffix).replace(r"\*", r"\d+"))
    return {
        name: layer
        for name, layer in module.named_modules()
        if last.fullmatch(name) and any(f"{name}.".startswith(f"{block}.") for block in blocks)
    }


def _block(part: str) -> str:
    """Expand the short name of a block: "up.1" -> "up_blocks.1"."""
    first, dot, inner = part.partition(".")
    return SHORT.get(first, first) + dot + inner


def _identity(layer: Any, at: Moment, start_of: Callable[[Tensor], int]) -> AbstractContextManager[Any]:
    """Context in which self-attention returns its projected values in the perturbed rows.
    start_of: (tensor) -> index of the first perturbed row"""
    original_forward = layer.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        start = start_of(hidden_states)
        unperturbed: Tensor = original_forward(hidden_states[:start], *args, **kwargs)
        values = layer.to_v(hidden_states[start:])
        for part in layer.to_out:
            values = part(values)
        return torch.cat([unperturbed, values])

    return replaced(layer, forward=forward)


def _skipped(layer: nn.Module, at: Moment, start_of: Callable[[Tensor], int]) -> AbstractContextManager[Any]:
    """Context in which the layer returns its input in the perturbed rows. start_of: (tensor) -> index of the first perturbed row"""
    original_forward = layer.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        start = start_of(hidden_states)
        return torch.cat([original_forward(hidden_states, *args, **kwargs)[:start], hidden_states[start:]])

    return replaced(layer, forward=forward)


@contextmanager
def _blurred_queries(layer: Any, at: Moment, start_of: Callable[[Tensor], int], sigma: float | None) -> Iterator[None]:
    """Context in which the queries of self-attention are blurred in the perturbed rows.

    start_of   (tensor) -> index of the first perturbed row
    sigma      of the blur in positions of the layer; None: infinite
    """
    height, width = at.latents.shape[-2:]

    def change(module: nn.Module, inputs: Any, queries: Tensor) -> Tensor:
        start = start_of(queries)
        size = sides_of(queries.shape[1], height / width)
        return torch.cat([queries[:start], smoothed(queries[start:], size, sigma)])

    handle = layer.to_q.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def sides_of(count: int, ratio: float) -> tuple[int, int]:
    """Return (height, width) with height * width = count whose ratio is nearest to `ratio` = height / width."""
    pairs = [(side, count // side) for side in range(1, count + 1) if count % side == 0]
    return min(pairs, key=lambda pair: abs(pair[0] / pair[1] / ratio - 1) + abs(pair[1] / pair[0] * ratio - 1))


def smoothed(queries: Tensor, size: tuple[int, int], sigma: float | None) -> Tensor:
    """Blur queries [B, N, C] over their map. Return the same shape.

    size    (height, width) of the map, N = height * width
    sigma   in positions, with a kernel up to the shorter side; None: replace all queries by their mean
    """
    if sigma is None:
        return queries.mean(dim=1, keepdim=True).expand_as(queries)
    short = min(size)
    kernel = min(math.ceil(6 * sigma) // 2 * 2 + 1, short + 1 - short % 2)  # both odd
    images = queries.mT.unflatten(2, size)
    return blurred(images, kernel, sigma).flatten(2).mT


def blurred(images: Tensor, size: int, sigma: float) -> Tensor:
    """Return images [B, C, H, W] with Gaussian blur and reflected borders, as in torchvision.

    size    of the kernel in pixels, odd
    sigma   standard deviation in pixels
    """
    half = (size - 1) / 2
    offsets = torch.linspace(-half, half, size, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    square = (kernel[:, None] * kernel[None]).expand(channels, 1, size, size)
    padding = [size // 2] * 4
    return torch.nn.functional.conv2d(pad(images, padding, mode="reflect"), square, groups=channels)
