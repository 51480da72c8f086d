"""Which number types a run computes in, chosen by the machine."""

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


def choose_precision(settings: MemorySettings, device: str, weight_bytes: int) -> Precision:
    """As asked, or for "auto": bf16 where the device multiplies it in hardware, fp16 on older cards, else fp32."""
    import torch

    name = settings.mixed_precision
    if name == "auto":
        if device.startswith("cpu"):
            name = "bf16" if machine.bf16_is_fast(device) and weight_bytes > SMALL_MODEL_BYTES else "no"
        else:
            name = "bf16" if machine.bf16_is_fast(device) else "fp16"
    compute = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return Precision(name, compute, scaled=name == "fp16")
