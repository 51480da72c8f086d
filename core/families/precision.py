"""Which number types a model computes in, chosen by the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.record import machine

if TYPE_CHECKING:
    import torch

    from core.settings.memory import MemorySettings

# Below this many bytes of weights a CPU gains nothing from bf16: converting costs what the faster products save.
SMALL_MODEL_BYTES = 200 << 20


@dataclass(frozen=True)
class Precision:
    """compute: type of the frozen weights and activations. scaled: whether losses are scaled against fp16's underflow."""

    name: str
    compute: torch.dtype
    scaled: bool


def choose_precision(settings: MemorySettings, device: str, weight_bytes: int, *, learns: bool = True) -> Precision:
    """As asked, or for "auto": on CUDA bf16 while something learns and the card has it, else fp16 (more digits than bf16,
    and nothing here overflows it when drawing); on a CPU bf16 for large models where it multiplies bf16 in hardware;
    fp32 otherwise.

    weight_bytes   of the U-Net as stored
    """
    import torch

    name = settings.mixed_precision
    if name == "auto":
        name = "no"
        if device.startswith("cuda"):
            name = "bf16" if learns and machine.bf16_is_fast(device) else "fp16"
        elif device.startswith("cpu") and weight_bytes > SMALL_MODEL_BYTES and machine.bf16_is_fast(device):
            name = "bf16"
    compute = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return Precision(name, compute, scaled=name == "fp16" and learns)
