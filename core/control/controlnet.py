"""ControlNet (Zhang et al. 2023, arXiv:2302.05543): a copy of the U-Net's encoder, which reads a control image too."""

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
from core.networks.narrow import widened
from core.record.draws import address

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel

# What begins with zeros, so that a fresh net changes nothing; the rest of the hint embedding is drawn, and all else copied.
ZEROS = (f"{HINT}conv_out.", "controlnet_down_blocks.", "controlnet_mid_block.")
PIXELS = 8  # of a control image to each latent


@dataclass(frozen=True)
class Residuals:
    """What a ControlNet adds to a U-Net's pass: to each of its n skip connections, nearest to the image first, and to the
    output of its middle block."""

    down: tuple[Tensor, ...]
    mid: Tensor

    def scaled(self, weight: float | Sequence[float] | Tensor) -> Residuals:
        """weight: one for all, or n + 1 of them, the middle block's last."""
        every = list(weight) if isinstance(weight, (Sequence, Tensor)) else [weight] * (len(self.down) + 1)
        assert len(every) == len(self.down) + 1, "one weight for each residual"
        down = tuple(each * own for each, own in zip(self.down, every, strict=False))
        return Residuals(down, self.mid * every[-1])

    def plus(self, other: Residuals) -> Residuals:
        """Both together, as several ControlNets act."""
        down = tuple(one + more for one, more in zip(self.down, other.down, strict=True))
        return Residuals(down, self.mid + other.mid)

    def added(self, *, into_mid: bool = False) -> dict[str, Any]:
        """`Conditioning.added` of one pass.

        into_mid   the last one also enters the middle block, as sd-scripts trains SD 1.x and 2.x
        """
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
    """A ControlNet as passes use it: `added` of (noisy latents, timesteps, Conditioning with a control image).

    strength       multiplies all residuals
    kohya          control images are shown in -1..1 and the last residual enters the middle block: sd-scripts' way of training
                   those of SD 1.x and 2.x
    signed         whether they are shown in -1..1, else in 0..1
    """

    def __init__(self, net: ControlNetModel, *, kohya: bool = False):
        super().__init__()
        self.net, self.strength, self.kohya, self.signed = net, 1.0, kohya, kohya

    def residuals(self, noisy_latents: Tensor, timesteps: Tensor, given: Conditioning) -> Residuals:
        """At full strength."""
        assert given.control is not None, "a ControlNet reads a control image"
        dtype, texts, more = self.net.dtype, given.texts, {}
        hints = for_rows(given.control, len(noisy_latents)).to(dtype)
        if self.net.config.addition_embed_type == "text_time":
            assert texts.pooled is not None and given.sizes is not None
            more["added_cond_kwargs"] = {"text_embeds": texts.pooled.to(dtype), "time_ids": given.sizes.float()}
        with _embedded_at(self.net, hints, noisy_latents):
            down, mid = self.net(
                noisy_latents.to(dtype),
                timesteps,
                encoder_hidden_states=texts.context.to(dtype),
                controlnet_cond=2 * hints - 1 if self.signed else hints,
                return_dict=False,
                **more,
            )
        return Residuals(tuple(down), mid)

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, given: Conditioning) -> dict[str, Any]:
        found = self.residuals(noisy_latents, timesteps, given)
        return (found if self.strength == 1 else found.scaled(self.strength)).added(into_mid=self.kohya)


@contextmanager
def _embedded_at(net: ControlNetModel, hints: Tensor, latents: Tensor) -> Iterator[None]:
    """Inside, the embedding of control images of another size is resized to the latents, as in sd-scripts' generator."""
    size = latents.shape[-2:]
    if hints.shape[-1] == PIXELS * size[-1] and hints.shape[-2] == PIXELS * size[-2]:
        yield
        return

    def resized(module: nn.Module, given: Any, embedded: Tensor) -> Tensor:
        return interpolate(embedded.float(), size=size, mode="bicubic").to(embedded.dtype)

    handle = net.controlnet_cond_embedding.register_forward_hook(resized)
    try:
        yield
    finally:
        handle.remove()


def for_rows(control: Tensor, rows: int) -> Tensor:
    """Control images [B, ...] for a batch of `rows`, a multiple of B: repeated in order, as CFG repeats latents."""
    times, rest = divmod(rows, len(control))
    assert not rest, f"{len(control)} control images for {rows} rows"
    return control.repeat(times, *[1] * (control.dim() - 1)) if times > 1 else control


def config_beside(unet_config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The config of a ControlNet for this U-Net."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    known = inspect.signature(ControlNetModel.__init__).parameters
    return {name: value for name, value in unet_config.items() if name in known} | changes


def empty(config: Mapping[str, Any]) -> ControlNetModel:
    """A ControlNet without numbers, on the "meta" device."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    with torch.device("meta"):
        return ControlNetModel(**config)


def from_unet(unet: Any, seed: int) -> ControlNetModel:
    """A fresh ControlNet in fp32 on the U-Net's device, which shares no memory with it.

    seed   of the hint embedding's weights, drawn as torch's convolutions begin
    """
    net = empty(config_beside(unet.config)).to_empty(device=unet.device)
    _draw(net, seed)
    with torch.no_grad():
        given = dict(weights_of(unet))
        for name, weight in net.named_parameters():
            if name.startswith(ZEROS):
                weight.zero_()
            elif not name.startswith(HINT):
                weight.copy_(given[name])
    return net


def weights_of(unet: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, values) of a U-Net's weights, those in fp8 as they act."""
    for path, module in unet.named_modules():
        factors = getattr(module, "factors", None)
        for name, weight in module.named_parameters(recurse=False):
            narrow = factors is not None and name == "weight"
            yield f"{path}.{name}", widened(weight, factors) if narrow and factors is not None else weight


def _draw(net: ControlNetModel, seed: int) -> None:
    """Fill the hint embedding with torch's initial values for convolutions, the same on every device."""
    for path, module in net.controlnet_cond_embedding.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        with torch.random.fork_rng([]):
            torch.manual_seed(address(seed, "controlnet", path))
            drawn = nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size)
        with torch.no_grad():
            module.weight.copy_(drawn.weight)
            assert module.bias is not None and drawn.bias is not None
            module.bias.copy_(drawn.bias)
