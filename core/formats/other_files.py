"""Detects upscalers, IP-Adapters, T2I-Adapters and hypernetworks by the names and shapes of their tensors."""

from collections.abc import Iterable, Mapping

from core.formats.tensors.entry import TensorEntry

# (kind, family, variant, evidence), as in `core.formats.detect.ModelKind`.
Recognized = tuple[str, str | None, str | None, str]
# Width of the text encoder states that image prompts are used with.
IMAGE_FAMILY = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
HINT_FAMILY = {192: "sd1", 64: "sd1", 768: "sdxl", 256: "sdxl"}  # channels of a hint of 3 or 1, unshuffled by 8 or 16
# Prefixes of an upscaler's keys, averaged weights first.
WRAPPERS = ("params_ema.", "params-ema.", "params.", "model_state_dict.", "module.", "netG.")
# Key -> the first of spandrel's architectures that has it. ESRGAN's files have names of three ages.
UPSCALERS = {
    "layers.0.residual_group.layers.0.attn_atd.scale": "ATD",
    "final_res_block.block1.proj.weights": "AuraSR",
    "layers.0.residual_group.hf_blocks.0.attn.temperature": "CRAFT",
    "layers.0.blocks.0.attn.dwconv.0.weight": "DAT",
    "B1.body.0.transformer_body.0.blocks.0.attn.qkv.weight": "DCTLSA",
    "UFONE.0.ITLs.0.attn.temperature": "DITN",
    "layers.0.swin1.attn.qkv.weight": "DRCT",
    "qf_pred.0.res.0.weight": "FBCNN",
    "m_body.0.res.0.weight": "DRUNet",
    "groups.0.blocks.0.inter.cg.1.weight": "FDAT",
    "encoder_level1.0.ffn.fft": "FFTformer",
    "layers.0.blocks.0.attn.window_attn.attn_transform.logit_scale": "GRL",
    "model.layers.0.blocks.0.attn.window_attn.attn_transform.logit_scale": "GRL",
    "model_g.layers.0.blocks.0.attn.window_attn.attn_transform.logit_scale": "GRL",
    "layers.0.residual_group.overlap_attn.qkv.weight": "HAT",
    "HVE_block1.down.0.weight": "HVICIDNet",
    "body.encoder.layers.0.self_attn.in_proj_weight": "IPT",
    "middle_blks.0.w": "KBNet",
    "latent.0.ffn.qkv.weight": "KBNet",
    "layer1.blocks.0.conv3_19.weight": "MixDehazeNet",
    "de_net.conv_first.0.weight": "MMRealSR",
    "blocks.0.blocks.0.conv.dwconv_hw.weight": "MoESR",
    "gblocks.1.fc1.weight": "MoSR",
    "middle_blks.0.beta": "NAFNet",
    "residual_layer.0.residual_layer.0.layer.0.fn.0.weight": "OmniSR",
    "feats.1.refine.weight": "PLKSR",
    "body.0.body.0.body.3.conv_du.0.weight": "RCAN",
    "unet2.conv_bottom.weight": "RealCUGAN",
    "body.0.estimator.conv1.weight": "RetinexFormer",
    "layers.0.blocks.0.attn.attns.0.rpe_biases": "RGT",
    "feats.0.safm.aggr.weight": "SAFMN",
    "feats.0.layers.0.safm.mfr.0.weight": "SAFMNBCIE",
    "m_head.0.weight": "SCUNet",
    "body.0.local_block.block.conv_1.0.weight": "SeemoRe",
    "block_1.c1_r.sk.weight": "SPAN",
    "initial.cnn.depthwise.weight": "SwiftSRGAN",
    "layers.0.residual_group.blocks.0.attn.logit_scale": "Swin2SR",
    "layers.0.residual_group.blocks.0.attn.qkv.weight": "SwinIR",
    "encoderlayer_0.blocks.0.norm1.weight": "Uformer",
    "model.1.sub.0.RDB1.conv5.0.weight": "ESRGAN",
    "RRDB_trunk.0.RDB1.conv5.weight": "ESRGAN",
    "body.0.rdb1.conv5.weight": "ESRGAN",
}
CHAINS = {"body.": "Compact", "model.": "DnCNN"}  # networks without branches: all keys have this start and a number
LATENT_UPSCALER = {"conv1.weight", "resblock20.conv2.weight", "conv_final.weight"}
WIDTHS = ("320", "640", "768", "1024", "1280")


def recognize(tensors: Mapping[str, TensorEntry]) -> Recognized | None:
    """Return (kind, family, variant, evidence) of an upscaler, adapter or hypernetwork file; None for any other file."""
    return _ip_adapter(tensors) or _t2i_adapter(tensors) or _upscaler(tensors) or _hypernetwork(tensors)


def _ip_adapter(tensors: Mapping[str, TensorEntry]) -> Recognized | None:
    """Recognize IP-Adapters (Ye et al. 2023, arXiv:2308.06721); None for other files."""
    adapter_keys = [name for name in tensors if name.startswith("ip_adapter.")]
    if not adapter_keys or not any(name.startswith("image_proj.") for name in tensors):
        return None
    reads = next((tensors[name].side(-1) for name in adapter_keys if name.endswith(".to_k_ip.weight")), 0)
    face = "FaceID" if any("_lora." in name for name in adapter_keys) else None
    return "ip_adapter", IMAGE_FAMILY.get(reads), face, "it has the keys image_proj and ip_adapter"


def _t2i_adapter(tensors: Mapping[str, TensorEntry]) -> Recognized | None:
    """Recognize T2I-Adapters (Mou et al. 2023, arXiv:2302.08453): the authors' and diffusers' files; None for others."""
    for prefix in ("", "adapter."):
        first = tensors.get(f"{prefix}conv_in.weight")
        starts = tuple(f"{prefix}body.0.{inner}" for inner in ("block1.", "in_conv.", "resnets.0.block1."))
        if first is not None and any(name.startswith(starts) for name in tensors):
            return "t2i_adapter", HINT_FAMILY.get(first.side(1)), None, f"it has {prefix}body and takes a hint image"
    return None


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Return {key as the architecture names it: key in the file} of an upscaler's averaged weights, or of the only ones."""
    keys = {name: name for name in names}
    for prefix in WRAPPERS:
        keys = {name.removeprefix(prefix): key for name, key in keys.items() if name.startswith(prefix)} or keys
    return keys


def _upscaler(tensors: Mapping[str, TensorEntry]) -> Recognized | None:
    """Recognize upscalers of spandrel's architectures and sd-scripts' latent upscaler; None for other files."""
    names = unwrapped(tensors)
    if names.keys() >= LATENT_UPSCALER:
        return "latent_upscaler", None, None, "it has the residual blocks of sd-scripts' latent upscaler"
    for key, name in UPSCALERS.items():
        if key in names:
            return "upscaler", None, name, f"it has the key {key}"
    for start, name in CHAINS.items():
        if f"{start}0.weight" in names and all(key.startswith(start) and key.count(".") == 2 for key in names):
            return "upscaler", None, name, f"all its keys are {start} and a number"
    return None


def _hypernetwork(tensors: Mapping[str, TensorEntry]) -> Recognized | None:
    """Recognize hypernetworks of NovelAI and A1111: their keys start with the input width of the attention layers; None for other files."""
    if tensors and all(name.split(".")[0] in WIDTHS for name in tensors):
        return "hypernetwork", None, None, "its keys are layer widths"
    return None
