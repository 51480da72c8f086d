"""ControlNet (Zhang et al. 2023, arXiv:2302.05543): a trainable copy of the U-Net's encoder that also reads a control image."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from core.control.shapes import HINT
from core.diffusion.text_states import Conditioning
from core.families.attention import skip_divisions
from core.networks.fp8 import dequantized
from core.record.draws import address

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel

# Zero-initialized, so that a fresh net changes nothing; the rest of the hint embedding is random, all else is copied.
ZEROS = (f"{HINT}conv_out.", "controlnet_down_blocks.", "controlnet_mid_block.")
PIXELS = 8  # of a control image to each latent


@dataclass(frozen=True)
class Residuals:
    """The outputs of a ControlNet.

    down   a tensor for each of the U-Net's n skip connections, outermost first
    mid    the tensor for the middle block
    """

    down: tuple[Tensor, ...]
    mid: Tensor

    def scaled(self, weight: float | Sequence[float] | Tensor) -> Residuals:
        """Return the residuals multiplied by `weight`: one factor for all, or n + 1 factors, for `down` in order and then `mid`."""
        factors = list(weight) if isinstance(weight, (Sequence, Tensor)) else [weight] * (len(self.down) + 1)
        assert len(factors) == len(self.down) + 1, "one weight for each residual"
        down = tuple(each * factor for each, factor in zip(self.down, factors, strict=False))
        return Residuals(down, self.mid * factors[-1])

    def plus(self, other: Residuals) -> Residuals:
        """Return the elementwise sum of two ControlNets' residuals, as if both acted together."""
        down = tuple(one + more for one, more in zip(self.down, other.down, strict=True))
        return Residuals(down, self.mid + other.mid)

    def added(self, *, into_mid: bool = False) -> dict[str, Any]:
        """Return the residuals as keyword arguments of the diffusers U-Net's forward pass (for `Conditioning.added`).
        into_mid: also add the last tensor of `down` to the middle block's input, as sd-scripts trains SD 1.x and 2.x"""
        if not into_mid:
            return {"down_block_additional_residuals": list(self.down), "mid_block_additional_residual": self.mid}
        # diffusers adds a T2I-Adapter's number in place, so that it reaches the last skip connection and the middle block
        levels = [None] * (len(self.down) // 3 - 1)
        return {
            "down_block_additional_residuals": [*self.down[:-1], torch.zeros_like(self.down[-1])],
            "mid_block_additional_residual": self.mid,
            "down_intrablock_additional_residuals": [*levels, self.down[-1]],
        }


class ControlNet(nn.Module):
    """A diffusers ControlNet that runs before each forward pass of the U-Net.

    Its forward pass takes noisy latents [B, C, H, W], timesteps [B] and a Conditioning with a control image, and returns
    keyword arguments for the U-Net (`Residuals.added`).

    strength   factor for all residuals
    kohya      as sd-scripts trains SD 1.x and 2.x: control images in -1..1, the last residual also enters the middle block
    signed     whether `net` expects control images in -1..1 instead of 0..1
    """

    def __init__(self, net: ControlNetModel, *, kohya: bool = False):
        super().__init__()
        self.net, self.strength, self.kohya, self.signed = net, 1.0, kohya, kohya

    def residuals(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Residuals:
        """Run the ControlNet and return its residuals, not yet multiplied by `strength`."""
        assert conditioning.control is not None, "a ControlNet reads a control image"
        dtype, texts, sdxl = self.net.dtype, conditioning.texts, {}
        hints = repeat_for_batch(conditioning.control, len(noisy_latents)).to(dtype)
        if self.net.config.addition_embed_type == "text_time":
            assert texts.pooled is not None and conditioning.sizes is not None
            sdxl["added_cond_kwargs"] = {"text_embeds": texts.pooled.to(dtype), "time_ids": conditioning.sizes.float()}
        with _embedded_at(self.net, hints, noisy_latents):
            down, mid = self.net(
                noisy_latents.to(dtype),
                timesteps,
                encoder_hidden_states=texts.context.to(dtype),
                controlnet_cond=2 * hints - 1 if self.signed else hints,
                return_dict=False,
                **sdxl,
            )
        return Residuals(tuple(down), mid)

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Return the keyword arguments for the U-Net: the residuals times `strength` (see `Residuals.added`)."""
        residuals = self.residuals(noisy_latents, timesteps, conditioning)
        return (residuals if self.strength == 1 else residuals.scaled(self.strength)).added(into_mid=self.kohya)


@contextmanager
def _embedded_at(net: ControlNetModel, hints: Tensor, latents: Tensor) -> Iterator[None]:
    """While the context is open, resize (bicubic) the hint embedding to the latents' H x W where `hints` have another size.

    sd-scripts' generator does the same.
    """
    size = latents.shape[-2:]
    if hints.shape[-1] == PIXELS * size[-1] and hints.shape[-2] == PIXELS * size[-2]:
        yield
        return

    def resized(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        return interpolate(embedded.float(), size=size, mode="bicubic").to(embedded.dtype)

    handle = net.controlnet_cond_embedding.register_forward_hook(resized)
    try:
        yield
    finally:
        handle.remove()


def repeat_for_batch(control: Tensor, rows: int) -> Tensor:
    """Return control images [B, ...] repeated in order to [rows, ...], as CFG repeats latents. `rows` is a multiple of B."""
    times, remainder = divmod(rows, len(control))
    assert not remainder, f"{len(control)} control images for {rows} rows"
    return control.repeat(times, *[1] * (control.dim() - 1)) if times > 1 else control


def controlnet_config(unet_config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return arguments for ControlNetModel: the entries of a U-Net's config that it accepts, overridden by `changes`."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    parameters = inspect.signature(ControlNetModel.__init__).parameters
    return {name: value for name, value in unet_config.items() if name in parameters} | changes


def empty(config: Mapping[str, Any]) -> ControlNetModel:
    """Create a ControlNetModel with this config on the "meta" device: shapes without weights."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    with torch.device("meta"):
        net = ControlNetModel(**config)
    skip_divisions(net)
    return net


def from_unet(unet: Any, seed: int) -> ControlNetModel:
    """Create a ControlNet in fp32 on the U-Net's device, initialized from copies of the U-Net's weights.
    seed: of the hint embedding's random weights"""
    net = empty(controlnet_config(unet.config)).to_empty(device=unet.device)
    _initialize_hint(net, seed)
    with torch.no_grad():
        weights = dict(weights_of(unet))
        for name, weight in net.named_parameters():
            if name.startswith(ZEROS):
                weight.zero_()
            elif not name.startswith(HINT):
                weight.copy_(weights[name])
    return net


def weights_of(unet: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of each of a U-Net's parameters; fp8 weights are dequantized."""
    for path, module in unet.named_modules():
        factors = getattr(module, "factors", None)
        for name, weight in module.named_parameters(recurse=False):
            quantized = factors is not None and name == "weight"
            yield f"{path}.{name}", dequantized(weight, factors) if quantized and factors is not None else weight


def _initialize_hint(net: ControlNetModel, seed: int) -> None:
    """Initialize the hint embedding's convolutions as torch does by default, with the same values on every device."""
    for path, module in net.controlnet_cond_embedding.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        with torch.random.fork_rng([]):
            torch.manual_seed(address(seed, "controlnet", path))
            initial = nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size)
        with torch.no_grad():
            module.weight.copy_(initial.weight)
            assert module.bias is not None and initial.bias is not None
            module.bias.copy_(initial.bias)
