"""Converts tensor names between single-file checkpoints (LDM) and diffusers, for the U-Net, the VAE and OpenCLIP.

CLIP-L's names differ by a prefix only (text_keys.py). Names are replaced by whole components between dots, never by substring: `out.2`
occurs inside other names.
"""

from functools import cache
from typing import NamedTuple

from core.formats.models.text_keys import bare_name

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIXES = {"sd1": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
OPEN_CLIP_PREFIXES = {
    "sd2": "cond_stage_model.model.",
    "sdxl": "conditioner.embedders.1.model.",
    "sdxl_refiner": "conditioner.embedders.0.model.",
}
# The part that is OpenCLIP.
OPEN_CLIP_PARTS = {"sd2": "text_encoder", "sdxl": "text_encoder_2", "sdxl_refiner": "text_encoder_2"}


class BlockPlan(NamedTuple):
    """Which U-Net blocks have attention: `down_attention` from the outermost block inwards, `up_attention` from the innermost outwards."""

    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]


SD_PLAN = BlockPlan((True, True, True, False), (False, True, True, True))
UNET_PLANS = {
    "sd1": SD_PLAN,
    "sd2": SD_PLAN,
    "sdxl": BlockPlan((False, True, True), (True, True, False)),
    "sdxl_refiner": BlockPlan((False, True, True, False), (False, True, True, False)),
}

RESNET = {  # inside a resnet of the U-Net, LDM -> diffusers
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
# Names of the VAE's attention in diffusers before 0.17; old folders and VAE files still use them.
OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

OPEN_CLIP_LAYER = {  # inside a layer of OpenCLIP's text model -> transformers
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OPEN_CLIP_OUTSIDE = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
OPEN_CLIP_RESBLOCK = "transformer.resblocks"
LONGEST = 8  # components of the longest module name in the tables, with margin
TRANSFORMERS_LAYER = "encoder.layers"


@cache
def _unet_modules(family: str) -> dict[str, str]:
    """Return {LDM module: diffusers module} of the U-Net's renamed modules; an attention block as a whole."""
    plan = UNET_PLANS[family]
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        "middle_block.1": "mid_block.attentions.0",
    }
    resnets = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    for block, attention in enumerate(plan.down_attention):
        for layer in range(2):
            resnets[f"input_blocks.{3 * block + layer + 1}.0"] = f"down_blocks.{block}.resnets.{layer}"
            if attention:
                names[f"input_blocks.{3 * block + layer + 1}.1"] = f"down_blocks.{block}.attentions.{layer}"
        names[f"input_blocks.{3 * (block + 1)}.0.op"] = f"down_blocks.{block}.downsamplers.0.conv"
    for block, attention in enumerate(plan.up_attention):
        for layer in range(3):
            resnets[f"output_blocks.{3 * block + layer}.0"] = f"up_blocks.{block}.resnets.{layer}"
            if attention:
                names[f"output_blocks.{3 * block + layer}.1"] = f"up_blocks.{block}.attentions.{layer}"
        # The upsampler comes after the resnet, and after the attention where there is one.
        names[f"output_blocks.{3 * block + 2}.{2 if attention else 1}.conv"] = f"up_blocks.{block}.upsamplers.0.conv"
    for ldm, diffusers in resnets.items():
        names.update({f"{ldm}.{inner}": f"{diffusers}.{diffusers_inner}" for inner, diffusers_inner in RESNET.items()})
    return names


@cache
def _vae_modules() -> dict[str, str]:
    """Return {LDM module: diffusers module} of the VAE's renamed modules."""
    names = {}
    for half, down in (("encoder", True), ("decoder", False)):
        names[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        for number in (1, 2):
            names.update(_vae_resnet(f"{half}.mid.block_{number}", f"{half}.mid_block.resnets.{number - 1}"))
        for ldm_name, name in VAE_ATTENTION.items():
            names[f"{half}.mid.attn_1.{ldm_name}"] = f"{half}.mid_block.attentions.0.{name}"
        for block in range(4):
            # The decoder's blocks are counted from the image in LDM, from the latent in diffusers.
            ldm, diffusers = (
                (f"down.{block}", f"down_blocks.{block}") if down else (f"up.{3 - block}", f"up_blocks.{block}")
            )
            for layer in range(2 if down else 3):
                names.update(_vae_resnet(f"{half}.{ldm}.block.{layer}", f"{half}.{diffusers}.resnets.{layer}"))
            sampler, ldm_name = ("downsample", "downsamplers") if down else ("upsample", "upsamplers")
            names[f"{half}.{ldm}.{sampler}.conv"] = f"{half}.{diffusers}.{ldm_name}.0.conv"
    return names


def _vae_resnet(ldm: str, diffusers: str) -> dict[str, str]:
    """Return {LDM module: diffusers module} of one resnet of the VAE."""
    inner = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
    return {f"{ldm}.{ldm_name}": f"{diffusers}.{diffusers_name}" for ldm_name, diffusers_name in inner.items()}


@cache
def _inverse(part: str, family: str) -> dict[str, str]:
    """Return {diffusers module: LDM module} of "unet" or "vae"."""
    names = _unet_modules(family) if part == "unet" else _vae_modules()
    return {diffusers: ldm for ldm, diffusers in names.items()}


def _rename(name: str, modules: dict[str, str]) -> str:
    """Replace the longest leading run of components that is a key of `modules`; without one, return `name` unchanged."""
    components = name.split(".")
    for length in range(min(len(components), LONGEST), 0, -1):
        renamed = modules.get(".".join(components[:length]))
        if renamed is not None:
            return ".".join([renamed, *components[length:]])
    return name


def unet_to_diffusers(name: str, family: str = "sd1") -> str:
    """Convert a U-Net name from LDM to diffusers, both without prefix.

    `input_blocks.1.0.in_layers.2.weight` -> `down_blocks.0.resnets.0.conv1.weight`
    """
    return _rename(name, _unet_modules(family))


def unet_to_ldm(name: str, family: str = "sd1") -> str:
    """Convert a U-Net name from diffusers to LDM, both without prefix."""
    return _rename(name, _inverse("unet", family))


def vae_to_diffusers(name: str) -> str:
    """Convert a VAE name from LDM or old diffusers to diffusers.

    `decoder.up.0.block.2.conv1.bias` -> `decoder.up_blocks.3.resnets.2.conv1.bias`
    """
    name = _rename(name, _vae_modules())
    components = name.split(".")
    if "attentions" in components[:-1] and components[-2] in OLD_VAE_ATTENTION:
        components[-2] = OLD_VAE_ATTENTION[components[-2]]
    return ".".join(components)


def vae_to_ldm(name: str) -> str:
    """Convert a VAE name from diffusers to LDM. LDM's attention weights (q, k, v, proj_out) also have two more dimensions of size 1."""
    return _rename(name, _inverse("vae", ""))


def open_clip_to_diffusers(name: str) -> tuple[str, ...]:
    """Convert an OpenCLIP name (without prefix) to transformers' names (without "text_model.").

    Three names for q, k, v, which OpenCLIP stacks along the first axis of one tensor; () for tensors that transformers does not have
    (logit_scale, attn_mask). `text_projection` is the transpose of transformers' `text_projection.weight`.
    """
    if name.startswith(OPEN_CLIP_RESBLOCK + "."):
        number, _, inner = name.removeprefix(OPEN_CLIP_RESBLOCK + ".").partition(".")
        layer = f"{TRANSFORMERS_LAYER}.{number}"
        if inner.startswith("attn.in_proj_"):
            kind = inner.removeprefix("attn.in_proj_")
            return tuple(f"{layer}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
        module, _, kind = inner.rpartition(".")
        return (f"{layer}.{OPEN_CLIP_LAYER[module]}.{kind}",) if module in OPEN_CLIP_LAYER else ()
    if name == "text_projection.weight":  # Playground's files have transformers' names
        return (name,)
    return (OPEN_CLIP_OUTSIDE[name],) if name in OPEN_CLIP_OUTSIDE else ()


def open_clip_to_ldm(name: str) -> tuple[str, int | None]:
    """Convert a transformers name to OpenCLIP's: return (name, third of its rows: 0 for q, 1 for k, 2 for v; None for the whole tensor)."""
    name = bare_name(name)
    if name.startswith(TRANSFORMERS_LAYER + "."):
        number, _, inner = name.removeprefix(TRANSFORMERS_LAYER + ".").partition(".")
        module, _, kind = inner.rpartition(".")
        block = f"{OPEN_CLIP_RESBLOCK}.{number}"
        if module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            return f"{block}.attn.in_proj_{kind}", "qkv".index(module[len("self_attn.")])
        ldm_inner = {diffusers: ldm for ldm, diffusers in OPEN_CLIP_LAYER.items()}[module]
        return f"{block}.{ldm_inner}.{kind}", None
    return {diffusers: ldm for ldm, diffusers in OPEN_CLIP_OUTSIDE.items()}[name], None
