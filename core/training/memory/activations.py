"""Memory of a forward and backward pass, counted on torch's meta device, where tensors have shapes but no data.

Each tensor counts until it is freed, so the peak includes saved activations, recomputation and temporary tensors. Memory that
libraries use within an operation is not counted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch

from core.families import family
from core.families.attention import checkpoint_unet, set_attention
from core.families.components import Components
from core.families.counting import FusedAttention, LiveBytes, conditioning_on_meta, config_key, model_on_meta
from core.networks.kinds import settings_from_text
from core.networks.network import Network
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.methods import spec_of

TEXT_TOKENS = 77


@dataclass(frozen=True)
class Pass:
    """A forward and backward pass of the denoiser.

    sides        width and height in pixels
    dtype        compute dtype
    trains       "network", "weights" (the full model), "text" (only inputs of the U-Net) or "side" (a module of the method next to the
                 U-Net)
    network      settings of the network as text (core.networks.kinds.described)
    checkpoint   whether gradient checkpointing is on
    blocks       checkpoint_blocks of the memory settings
    attention    "sdpa", "xformers", "sliced" or "plain"
    tokens       length of the text
    side         the method and its settings as a preset's JSON if a module next to the U-Net trains; else empty
    """

    family: str
    sides: tuple[int, int]
    batch: int
    dtype: torch.dtype
    trains: str
    network: str = ""
    checkpoint: bool = False
    blocks: str = "all"
    attention: str = "sdpa"
    tokens: int = TEXT_TOKENS
    side: str = ""


def peak_bytes(pass_: Pass, config: Mapping[str, Any] | None = None) -> int:
    """Return the peak bytes of a pass of the U-Net, without weights and their gradients. Raises ProblemsError for a config whose layers do
    not fit together.
    config: of the U-Net; None uses the family's published config"""
    try:
        return _peak(pass_, config_key(config if config is not None else family(pass_.family).layout.config("unet")))
    except RuntimeError as error:  # shapes of the config that do not multiply
        what = f"The sizes of this U-Net's layers do not match ({str(error).splitlines()[0][:200]})"
        fix = "download the model again: its config was changed"
        raise ProblemsError.one(what, "model.base_model", fix, code="model.bad-config") from error


@lru_cache(maxsize=256)
def _peak(pass_: Pass, config: tuple) -> int:
    """Return `peak_bytes`, cached. config: the U-Net's config as a hashable key, from `config_key`"""
    (unet, side, weights), kind = _models(pass_, config), family(pass_.family)
    on_meta = partial(torch.empty, device="meta")
    rows, (width, height) = pass_.batch, pass_.sides
    conditioning = conditioning_on_meta(pass_.family, config, rows, pass_.dtype, pass_.tokens)
    conditioning.texts.context.requires_grad_(pass_.trains == "text")
    with torch.enable_grad(), LiveBytes(weights) as live:
        latents = on_meta(rows, *kind.latent_shape((width, height)), dtype=pass_.dtype)
        times = torch.zeros(rows, device="meta")
        if side is not None:
            conditioning = replace(conditioning, control=on_meta(rows, 3, height, width, dtype=pass_.dtype))
            conditioning = replace(conditioning, added=side(latents, times, conditioning))
        output = kind.predict(Components(denoiser=unet, family=pass_.family), latents, times, conditioning)
        output.float().square().mean().backward()
    return live.peak


def _models(pass_: Pass, config: tuple) -> tuple[Any, Any, list[torch.Tensor]]:
    """Return (U-Net with its network, module that trains next to it or None, all weights) on the meta device. Hooks free each gradient as
    soon as it is computed."""
    unet, side = model_on_meta("unet", pass_.family, config, pass_.dtype), None
    if pass_.side:
        job = build(TrainJob, json.loads(pass_.side))
        make = spec_of(job).side
        assert make is not None
        with torch.device("meta"):
            side = make(unet, job)
        for weight in side.parameters():
            weight.data = weight.data.to(pass_.dtype)
    for model in filter(None, (unet, side)):
        _prepare(model, pass_)
    if pass_.checkpoint:
        checkpoint_unet(unet, pass_.blocks)
    if pass_.trains == "network":
        settings, kind_settings = settings_from_text(pass_.network)
        targets = list(family(pass_.family).layers(unet, norms=settings.train_norm))
        network = Network.create(targets, settings, 0, kind_settings=kind_settings)
        network.attach()
        weights = network.parameters()
    else:
        trains = {"weights": unet, "side": side}.get(pass_.trains)
        weights = list(trains.parameters()) if trains is not None else []
        for weight in weights:
            weight.requires_grad_()
    for weight in weights:
        weight.register_post_accumulate_grad_hook(_drop)
    return unet, side, [*unet.parameters(), *unet.buffers(), *weights]


def _prepare(model: torch.nn.Module, pass_: Pass) -> None:
    """Set the attention and gradient checkpointing of a model by the fields of `pass_`."""
    fused = pass_.attention in ("sdpa", "xformers")
    for module in model.modules():
        if fused and hasattr(module, "set_processor"):
            module.set_processor(FusedAttention())
        elif not fused and hasattr(module, "set_attn_processor"):
            set_attention(module, pass_.attention)
        if pass_.checkpoint and hasattr(module, "enable_gradient_checkpointing"):
            module.enable_gradient_checkpointing()


def _drop(weight: torch.Tensor) -> None:
    """Free the weight's gradient. A hook for when it is accumulated."""
    weight.grad = None
