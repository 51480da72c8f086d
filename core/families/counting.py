"""Counts the peak memory of a forward or backward pass without loading or computing anything.

The model is built on torch's "meta" device, where tensors have shapes but no data, and runs one pass of the given size. Each tensor
counts until it is freed. Memory that libraries use within an operation is not counted.
"""

import weakref
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from core import families
from core.diffusion.text_states import Conditioning, TextStates
from core.families.attention import set_attention
from core.families.components import Components


class LiveBytes(TorchDispatchMode):
    """Context manager that counts the bytes of new tensors: `now` of those alive, `peak` the maximum so far.
    existing: tensors that are not counted"""

    def __init__(self, existing: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._existing = {tensor.untyped_storage()._cdata for tensor in existing}
        self._bytes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in tree_iter(outputs):
            if isinstance(output, torch.Tensor):
                self._add(output.untyped_storage())
        return outputs

    def _add(self, storage: torch.UntypedStorage) -> None:
        """Count a new storage until it is freed."""
        key = storage._cdata
        if key in self._bytes or key in self._existing:
            return
        self._bytes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        """Stop counting a storage."""
        self.now -= self._bytes.pop(key, 0)


class FusedKernel(torch.autograd.Function):
    """An attention that saves for the backward pass what fused kernels save: inputs and output, no attention matrix."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class FusedAttention:
    """An attention processor for diffusers that takes as much memory as fused kernels."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, *_: Any, **__: Any) -> Any:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        parts = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
        mixed = FusedKernel.apply(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](mixed)) / attn.rescale_output_factor


def config_key(value: Any) -> Any:
    """Convert a config to a hashable cache key: dicts become sorted tuples of pairs, lists tuples."""
    if isinstance(value, Mapping):
        return tuple((key, config_key(inner)) for key, inner in sorted(value.items()))
    return tuple(map(config_key, value)) if isinstance(value, (list, tuple)) else value


class FusedVaeAttention(FusedAttention):
    """An attention processor as `FusedAttention`, for the mid block of a VAE."""

    def __call__(self, attn: Any, hidden_states: Any, *_: Any, temb: Any = None, **__: Any) -> Any:
        tokens = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)
        return super().__call__(attn, tokens).transpose(1, 2).reshape(hidden_states.shape) + hidden_states


@lru_cache(maxsize=64)
def evaluation_bytes(
    name: str, config: tuple, sides: tuple[int, int], rows: int, dtype: torch.dtype, attention: str, tokens: int
) -> int:
    """Return the peak bytes of one forward pass of a family's U-Net without gradients and without its weights.

    config   `config_key` of the U-Net's config
    sides    (width, height) in pixels
    rows     batch size including guidance (2 x images)
    tokens   length of the text encoder states
    """
    family, unet = families.family(name), _unet(name, config, dtype, attention)
    conditioning = conditioning_on_meta(name, config, rows, dtype, tokens)
    with torch.no_grad(), LiveBytes([*unet.parameters(), *unet.buffers()]) as live:
        latents = torch.empty(rows, *family.latent_shape(sides), device="meta")
        family.predict(Components(denoiser=unet, family=name), latents, torch.zeros((), device="meta"), conditioning)
    return live.peak


@lru_cache(maxsize=64)
def gradient_bytes(
    name: str,
    config: tuple,
    vae_config: tuple,
    sides: tuple[int, int],
    rows: int,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
    attention: str,
    tokens: int,
) -> int:
    """Return the peak bytes of the gradient of decoded images by the latents, as CLIP and VGG guidance compute it, without weights.

    All images pass the U-Net at once and the VAE one by one, with gradient checkpointing. Arguments as in `evaluation_bytes`.
    """
    family, unet, vae = families.family(name), _unet(name, config, dtype, attention), _vae(name, vae_config, vae_dtype)
    conditioning = conditioning_on_meta(name, config, rows, dtype, tokens)
    existing = [*unet.parameters(), *unet.buffers(), *vae.parameters(), *vae.buffers()]
    for part in (unet, vae):
        part.enable_gradient_checkpointing()
    with LiveBytes(existing) as live:
        latents = torch.empty(rows, *family.latent_shape(sides), device="meta", requires_grad=True)
        timestep = torch.zeros((), device="meta")
        decoded = latents - family.predict(Components(denoiser=unet, family=name), latents, timestep, conditioning)
        first = decoded[:1].detach().requires_grad_()
        image = family.decode_latents(vae, first)
        torch.autograd.grad(image, first, torch.empty_like(image))
        del image, first
        torch.autograd.grad(decoded, latents, torch.empty_like(decoded))
    return live.peak


def _unet(name: str, config: tuple, dtype: torch.dtype, attention: str) -> Any:
    """Build the family's denoiser on "meta" with an attention that takes the same memory as `attention`.

    name        of the family
    config      `config_key` of the denoiser's config
    attention   as in `set_attention`
    """
    unet = model_on_meta(families.family(name).denoiser, name, config, dtype)
    if attention in ("auto", "sdpa", "xformers"):
        unet.set_attn_processor(FusedAttention())
    else:
        set_attention(unet, attention)
    return unet


def conditioning_on_meta(name: str, config: tuple, rows: int, dtype: torch.dtype, tokens: int) -> Conditioning:
    """Return empty conditioning for the family's `predict` on the "meta" device, with text encoder states [rows, tokens, C].
    config: `config_key` of the U-Net's config"""
    family, sizes = families.family(name), dict(config)
    text, pooled = torch.empty(rows, tokens, sizes["cross_attention_dim"], device="meta", dtype=dtype), None
    if family.reads_sizes:
        width = sizes["projection_class_embeddings_input_dim"] - family.size_numbers * sizes["addition_time_embed_dim"]
        pooled = torch.empty(rows, width, device="meta", dtype=dtype)
    return Conditioning(TextStates(text, pooled), torch.empty(rows, family.size_numbers, device="meta"))


@lru_cache(maxsize=64)
def decoding_bytes(name: str, config: tuple, pixels: int, dtype: torch.dtype) -> int:
    """Return the peak bytes of decoding a square image of `pixels` pixels at once, without the VAE's weights.
    config: `config_key` of the VAE's config"""
    family, vae = families.family(name), _vae(name, config, dtype)
    side = max(1, round(pixels**0.5) // family.latent_pixels)
    with torch.no_grad(), LiveBytes([*vae.parameters(), *vae.buffers()]) as live:
        family.decode_latents(vae, torch.empty(1, family.latent_channels, side, side, device="meta"))
    return live.peak


def _vae(name: str, config: tuple, dtype: torch.dtype) -> Any:
    """Build a VAE of the family `name` on "meta", with the attention memory of fused kernels.
    config: `config_key` of its config"""
    vae = model_on_meta("vae", name, config, dtype)
    for module in vae.modules():
        if hasattr(module, "set_processor"):
            module.set_processor(FusedVaeAttention())
    return vae


def model_on_meta(part: str, name: str, config: tuple, dtype: torch.dtype) -> Any:
    """Build a part of the family `name` on the "meta" device in this dtype.
    config: `config_key` of the part's config"""
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in config}
    model = families.family(name).make_empty(part, settings)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model
