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


def use_threads(device: str, weight_bytes: int) -> int:
    """Set the threads torch computes with for a model of this size; returns how many.

    On a CPU a small model is fastest on one thread: its products end sooner than two threads can meet (the starter on 2
    cores: 0.37 s a step on one thread, 0.71 s on two).
    """
    import torch

    count = 1 if device.startswith("cpu") and weight_bytes <= SMALL_MODEL_BYTES else machine.threads()
    torch.set_num_threads(count)
    return count
