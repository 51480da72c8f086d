"""Detects upscalers, IP-Adapters, T2I-Adapters and hypernetworks by the names and shapes of their tensors."""

from collections.abc import Mapping

from core.formats.tensors.entry import TensorEntry

# (kind, family, variant, evidence), as in `core.formats.detect.ModelKind`.
Recognized = tuple[str, str | None, str | None, str]
# Width of the text encoder states that image prompts are used with.
IMAGE_FAMILY = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
HINT_FAMILY = {192: "sd1", 64: "sd1", 768: "sdxl", 256: "sdxl"}  # channels of a hint of 3 or 1, unshuffled by 8 or 16
WRAPPERS = ("params_ema.", "params.")  # around the weights of upscalers
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


def _upscaler(tensors: Mapping[str, TensorEntry]) -> Recognized | None:
    """Recognize ESRGAN, SwinIR and SRVGG upscalers and sd-scripts' latent upscaler; None for other files."""
    names = set(tensors)
    for prefix in WRAPPERS:
        if any(name.startswith(prefix) for name in tensors):
            names = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
            break
    if {"conv_first.weight", "model.0.weight"} & names and any(".conv5." in name.lower() for name in names):
        return "upscaler", None, None, "it has the dense blocks of ESRGAN"
    if names >= LATENT_UPSCALER:
        return "latent_upscaler", None, None, "it has the residual blocks of sd-scripts' latent upscaler"
    if "conv_first.weight" in names and any(
        name.startswith("layers.0.residual_group.blocks.0.attn.") for name in names
    ):
        return "upscaler", None, "SwinIR", "it has the attention blocks of SwinIR"
    if "body.0.weight" in names and all(name.startswith("body.") and name.count(".") == 2 for name in names):
        return "upscaler", None, "SRVGG", "it has the plain convolutions of Real-ESRGAN's small networks"
    return None


def _hypernetwork(tensors: Mapping[str, TensorEntry]) -> Recognized | None:
    """Recognize hypernetworks of NovelAI and A1111: their keys start with the input width of the attention layers; None for other files."""
    if tensors and all(name.split(".")[0] in WIDTHS for name in tensors):
        return "hypernetwork", None, None, "its keys are layer widths"
    return None
