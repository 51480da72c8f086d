"""The tiny models of the recorded vectors (tests/vectors/controlnet/README.md): each tensor is a function of its key and shape."""

import zlib

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

SD1 = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 128, 128),
    "attention_head_dim": 8,
    "cross_attention_dim": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SDXL = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 128),
    "attention_head_dim": (1, 1, 2),
    "cross_attention_dim": 96,
    "transformer_layers_per_block": (1, 1, 2),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 32 + 6 * 256,
}


def by_formula(key, shape):
    r = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    module, _, kind = key.rpartition(".")
    if kind == "bias":
        return 0.02 * r
    return 1 + 0.1 * r if "norm" in module.rpartition(".")[2] else r / (r.numel() / r.shape[0]) ** 0.5


@torch.no_grad()
def fill(module, prefix="", scale=lambda name: 1.0):
    for name, weight in module.named_parameters():
        weight.copy_(by_formula(prefix + name, tuple(weight.shape)) * scale(name))
    return module.requires_grad_(False).eval()


def unet_of(family):
    return fill(UNet2DConditionModel(**(SDXL if family == "sdxl" else SD1)))


def scale_of_file(name):
    """Of a net that starts from a file."""
    zero = ("controlnet_down_blocks.", "controlnet_mid_block.", "controlnet_cond_embedding.conv_out.")
    return 0.1 if name.startswith(zero) else 1.0


def net_of(unet):
    """The ControlNet of the recorded passes."""
    from core.control.controlnet import from_unet

    return fill(from_unet(unet, 0), "controlnet.", scale_of_file)


@pytest.fixture(scope="session")
def unets():
    """Family -> its tiny U-Net of the vectors."""
    return {family: unet_of(family) for family in ("sd1", "sdxl")}
