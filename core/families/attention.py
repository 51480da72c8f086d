"""The attention implementation of a U-Net, gradient checkpointing by block, divisions by 1, and problems of memory settings."""

from importlib.util import find_spec
from typing import Any

from core.families.compiling import compile_problems
from core.record.problems import Problem
from core.settings.memory import MemorySettings

SLICE = "auto"  # diffusers' name for half of the heads at a time
# Attributes by which diffusers divides what an attention or residual block returns
FACTORS = "rescale_output_factor", "output_scale_factor"


class NoDivision:
    """Stands for a factor of 1: dividing a tensor by it returns the tensor itself, without an operation, forward or backward."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0]


def skip_divisions(module: Any) -> None:
    """Skip divisions by a factor of 1, which all Stable Diffusion models have; results are the same to the bit."""
    for block in module.modules():
        for name in FACTORS:
            if getattr(block, name, None) == 1:
                setattr(block, name, NoDivision())


def set_attention(unet: Any, implementation: str) -> None:
    """Set the U-Net's attention implementation.

    implementation  "auto" and "sdpa": torch's scaled_dot_product_attention, diffusers' default; "xformers"; "plain": matrix products
            without a fused kernel; "sliced": the same for half of the heads at a time
    """
    if implementation == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    elif implementation == "sliced":
        unet.set_attention_slice(SLICE)
    elif implementation == "plain":
        from diffusers.models.attention_processor import AttnProcessor

        unet.set_attn_processor(AttnProcessor())


def memory_problems(settings: MemorySettings, device: str) -> list[Problem]:
    """Return problems of memory settings that this device does not support, for training."""
    return device_problems(settings, device) + compile_problems(settings, device)


def device_problems(settings: MemorySettings, device: str) -> list[Problem]:
    """Return problems of memory settings that this device does not support, without torch.compile, which generation does not use."""
    problems = []
    if settings.attention == "xformers" and find_spec("xformers") is None:
        what, fix = "xFormers is not installed", "use sdpa, which is as fast"
        problems.append(Problem(what, "memory.attention", fix, code="memory.no-xformers"))
    elif settings.attention == "xformers" and not device.startswith("cuda"):
        what = f"xFormers does not support the device '{device}'"
        problems.append(Problem(what, "memory.attention", "use sdpa", code="memory.xformers-device"))
    if device.startswith("cpu") and settings.mixed_precision == "fp16":
        what = "fp16 is for GPUs: on a CPU it is slower than fp32, and small gradients are lost"
        problems.append(
            Problem(what, "memory.mixed_precision", "use auto or fp32", "advice", code="memory.fp16-on-cpu")
        )
    if device.startswith("mps") and settings.narrow_unet:
        what = "Apple GPUs do not support fp8"
        problems.append(Problem(what, "memory.fp8_base, fp8_base_unet", "turn it off", code="memory.fp8-on-mps"))
    return problems


def checkpoint_unet(unet: Any, blocks: str = "all") -> None:
    """Enable gradient checkpointing in a U-Net's blocks.
    blocks: "all", "outer" (the blocks at the two highest resolutions) or "inner" (all others)"""
    unet.enable_gradient_checkpointing()
    if blocks != "all":
        outer = {*unet.down_blocks[:2], *unet.up_blocks[-2:]}
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            if (block in outer) == (blocks == "outer"):
                continue
            for module in block.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.gradient_checkpointing = False
    unet.train()  # checkpointing is skipped in eval mode; U-Nets have no dropout that this would enable


def checkpoint_text_encoder(encoder: Any) -> None:
    """Enable gradient checkpointing in all layers of a text encoder."""
    encoder.gradient_checkpointing_enable({"use_reentrant": False})
    encoder.train()
