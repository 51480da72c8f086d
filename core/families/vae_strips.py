"""Encodes and decodes with the VAE in horizontal strips, to save VRAM (sd-scripts' `--vae_slices`).

Convolutions compute some rows of a feature map at a time; each GroupNorm uses the statistics of the whole map. So there are no seams,
and the result differs by rounding only. On a GPU only the current strip is in VRAM, the feature maps are in RAM.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad, scaled_dot_product_attention

from core.families.offload import replaced
from core.record.memory import is_out_of_memory

RETRY_STRIPS, MAX_STRIPS = 8, 64  # strips after memory ran out, and at most
# Supported classes of diffusers
BLOCKS = {"UpDecoderBlock2D", "DownEncoderBlock2D"}
Change = Callable[[Tensor], Tensor]


def can_use_strips(vae: Any) -> bool:
    """Return whether the VAE has only the blocks that `in_strips` supports: diffusers' standard ones, as in Stable Diffusion."""
    parts = getattr(vae, "decoder", None), getattr(vae, "encoder", None)
    if None in parts:
        return False
    blocks = (*getattr(vae.decoder, "up_blocks", (None,)), *getattr(vae.encoder, "down_blocks", (None,)))
    return {type(block).__name__ for block in blocks} <= BLOCKS


@contextmanager
def in_strips(
    vae: Any, slices: Callable[[int], int], out_of_memory: Callable[[int], None] | None = None
) -> Iterator[None]:
    """Context manager: the VAE encodes and decodes in strips.

    slices          (pixels of the image) -> number of strips; 1 is the whole image at once
    out_of_memory   called with the next number of strips before a retry after memory ran out; None: no retries
    """

    def in_strips_if_large(plain: Change, strips: Callable[[Strips], Change], scale: int) -> Change:
        """Return a forward pass that calls `plain` for one strip, else computes strips, with more of them when memory runs out.
        scale: image pixels per pixel of the input x, along a side"""

        def forward(x: Tensor, *more: Any) -> Tensor:
            """Compute the pass in as many strips as needed, more of them after running out of memory."""
            number = slices(x.shape[2] * x.shape[3] * scale**2)
            while True:
                try:
                    return plain(x, *more) if number == 1 else strips(Strips(number))(x)
                except Exception as error:
                    if out_of_memory is None or 4 * number > MAX_STRIPS or not is_out_of_memory(error):
                        raise
                number = max(RETRY_STRIPS, 4 * number)
                out_of_memory(number)

        return forward

    encoder, decoder = vae.encoder, vae.decoder
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    encode = in_strips_if_large(encoder.forward, lambda strips: strips.encoder(encoder), 1)
    decode = in_strips_if_large(decoder.forward, lambda strips: strips.decoder(decoder), scale)
    with replaced(encoder, forward=encode), replaced(decoder, forward=decode):
        yield


class Strips:
    """The forward passes of a VAE's encoder and decoder, computed in `slices` horizontal strips."""

    def __init__(self, slices: int):
        self.slices = slices

    def encoder(self, encoder: Any) -> Change:
        """Return a function that replaces the encoder's forward pass: pixels [B, 3, H, W] -> moments [B, 2C, h, w]."""

        def forward(pixels: Tensor) -> Tensor:
            x = self.convolution(encoder.conv_in, pixels)
            for block in encoder.down_blocks:
                for resnet in block.resnets:
                    x = self.resnet(resnet, x)
                for down in block.downsamplers or ():
                    x = self.convolution(down.conv, x, extra_padding=1)
            return self.output(encoder, self.middle(encoder.mid_block, x))

        return forward

    def decoder(self, decoder: Any) -> Change:
        """Return a function that replaces the decoder's forward pass: latents [B, C, h, w] -> pixels [B, 3, 8h, 8w]."""

        def forward(latents: Tensor, *_: Any) -> Tensor:
            x = self.middle(decoder.mid_block, self.convolution(decoder.conv_in, latents))
            for block in decoder.up_blocks:
                for resnet in block.resnets:
                    x = self.resnet(resnet, x)
                for up in block.upsamplers or ():
                    x = self.convolution(up.conv, x, upscale=2)
            return self.output(decoder, x)

        return forward

    def middle(self, block: Any, x: Tensor) -> Tensor:
        """Return the output of the mid block of an encoder or decoder."""
        x = self.resnet(block.resnets[0], x)
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            x = self.resnet(resnet, x if attention is None else self.attention_output(attention, x))
        return x

    def output(self, part: Any, x: Tensor) -> Tensor:
        """Apply the last norm, activation and convolution of an encoder or decoder; the result is on its device."""
        pixels = self.convolution(part.conv_out, x, before=self.normalized(part.conv_norm_out, x, part.conv_act))
        return pixels.to(part.conv_out.weight.device)

    def resnet(self, block: Any, x: Tensor) -> Tensor:
        """Return the output of diffusers' ResnetBlock2D without a timestep."""
        hidden = self.convolution(block.conv1, x, before=self.normalized(block.norm1, x, block.nonlinearity))

        def combine(strip: Tensor, first: int, last: int) -> Tensor:
            """Add the shortcut of x's rows `first` to `last` to the strip of these rows."""
            shortcut = x[:, :, first:last].to(strip.device)
            shortcut = shortcut if block.conv_shortcut is None else block.conv_shortcut(shortcut)
            return (shortcut + strip) / block.output_scale_factor

        return self.convolution(
            block.conv2, hidden, before=self.normalized(block.norm2, hidden, block.nonlinearity), combine=combine
        )

    def normalized(self, norm: Any, x: Tensor, act: Change) -> Change:
        """Return a function that applies GroupNorm and activation to a strip of `x` [B, C, H, W], with the statistics of the whole `x`."""
        shares, means, squares = [], [], []  # for each strip: share of x's values, mean, mean of squares
        for strip in x.split(self._height(x.shape[2]), 2):
            values = strip.to(norm.weight.device).float().reshape(len(x), norm.num_groups, -1)
            variance, mean = torch.var_mean(values, -1, correction=0)
            shares.append(values.shape[-1] / (x[0].numel() / norm.num_groups))
            means.append(mean.double())
            squares.append(variance.double() + mean.double() ** 2)
        mean = torch.stack([share * each for share, each in zip(shares, means, strict=True)]).sum(0)
        square = torch.stack([share * each for share, each in zip(shares, squares, strict=True)]).sum(0)
        root = (square - mean**2 + norm.eps).rsqrt()
        per_group = norm.num_channels // norm.num_groups
        scale = root.repeat_interleave(per_group, 1) * norm.weight
        shift = norm.bias - mean.repeat_interleave(per_group, 1) * scale
        scale, shift = (each.float()[..., None, None] for each in (scale, shift))
        return lambda strip: act((strip.float() * scale + shift).to(strip.dtype))

    def attention_output(self, attention: Any, x: Tensor) -> Tensor:
        """Return the output of diffusers' Attention in the mid block, computed for a part of the queries at a time. x: [B, C, H, W]."""
        whole = x.to(attention.to_q.weight.device)
        tokens = attention.group_norm(whole.flatten(2)).transpose(1, 2)
        parts = (layer(tokens) for layer in (attention.to_q, attention.to_k, attention.to_v))
        q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in parts)
        mixed = torch.cat([scaled_dot_product_attention(queries, k, v) for queries in q.chunk(self.slices, 2)], 2)
        out = attention.to_out[0](mixed.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(whole.shape)
        return (out + whole) / attention.rescale_output_factor

    def convolution(
        self,
        conv: Any,
        x: Tensor,
        before: Change = lambda strip: strip,
        combine: Callable[[Tensor, int, int], Tensor] | None = None,
        upscale: int = 1,
        extra_padding: int = 0,
    ) -> Tensor:
        """Return the convolution of `before(x)`, upscaled by the factor `upscale`, computed in strips: [B, C, H, W] on the CPU.

        before    applied to each strip of input rows
        combine   (output rows, first row, end) -> what replaces them; None: unchanged
        extra_padding   rows and columns of extra zero padding at the bottom and right
        """
        (kernel, _), (stride, _), (edge, _) = conv.kernel_size, conv.stride, conv.padding
        height = (x.shape[2] * upscale + 2 * edge + extra_padding - kernel) // stride + 1
        whole, step = None, self._height(height)
        for first in range(0, height, step):
            last = min(first + step, height)
            rows = self._rows(x, first * stride - edge, (last - 1) * stride - edge + kernel, before, upscale, conv)
            strip = conv2d(pad(rows, (0, extra_padding)), conv.weight, conv.bias, conv.stride, (0, edge))
            strip = strip if combine is None else combine(strip, first, last)
            if whole is None:
                whole = torch.empty((*strip.shape[:2], height, strip.shape[3]), dtype=strip.dtype)
            whole[:, :, first:last] = strip
            del rows, strip  # before the next ones
        assert whole is not None
        return whole

    def _rows(self, x: Tensor, first: int, last: int, before: Change, upscale: int, conv: Any) -> Tensor:
        """Return rows `first` to `last` of the upscaled `before(x)`, on the convolution's device; zeros outside of the image."""
        low, high = max(first, 0), min(last, x.shape[2] * upscale)
        rows = before(x[:, :, low // upscale : -(-high // upscale)].to(conv.weight.device))
        if upscale > 1:
            skipped = low % upscale
            rows = interpolate(rows, scale_factor=float(upscale), mode="nearest")[:, :, skipped : skipped + high - low]
        return pad(rows, (0, 0, low - first, last - high))

    def _height(self, rows: int) -> int:
        """Return the number of rows per strip, for `rows` rows."""
        return -(-rows // self.slices)
