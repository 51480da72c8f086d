"""Which number types a model computes in, chosen by the machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.families import type_speed
from core.record import machine
from core.settings.memory import MemorySettings
from core.settings.method import MethodSettings

if TYPE_CHECKING:
    import torch


# Below this many bytes of weights a CPU gains nothing from bf16: converting costs what the faster products save.
SMALL_MODEL_BYTES = 200 << 20


@dataclass(frozen=True)
class Precision:
    """compute: type of the frozen weights and activations. scaled: whether losses are scaled against fp16's underflow.
    training: type of the model's parts that train or are read by what does; `compute` with a network, whose weights each
    layer casts itself."""

    name: str
    compute: torch.dtype
    scaled: bool
    trainable: torch.dtype

    def autocast(self, device: str) -> AbstractContextManager[Any]:
        """Inside, fp32 weights that train compute in `compute`; where weights lie in that type, nothing is cast."""
        import torch

        kind = device.partition(":")[0]
        return torch.autocast(kind, self.compute) if self.compute != self.trainable else nullcontext()


def choose_precision(
    settings: MemorySettings,
    device: str,
    weight_bytes: int,
    *,
    trains: bool = True,
    method: MethodSettings | None = None,
    bf16_pays: Callable[[], bool] = type_speed.bf16_pays,
) -> Precision:
    """As asked, or for "auto": on CUDA bf16 while something trains and the GPU has it, else fp16 (more digits than bf16,
    and nothing here overflows it when sampling); on a CPU bf16 for large models where it was measured to be no slower; fp32
    otherwise.

    weight_bytes   of the U-Net as stored       method   the kind of training, where something trains
    bf16_pays      whether a large model computes no slower in bf16 on this CPU
    """
    import torch

    full_size = method is not None and method.traits.full_size
    name = settings.mixed_precision
    if name == "auto" and method is not None and settings.full_precision != "fp32":
        name = settings.full_precision
    elif name == "auto":
        name = "no"
        in_backward = settings.fused_backward_pass or settings.fused_optimizer_groups
        if device.startswith("cuda"):
            name = "bf16" if trains and machine.bf16_is_fast(device) else "fp16"
            name = "no" if full_size and name == "fp16" and in_backward else name  # fp16 has to check the full gradient
        elif device.startswith("cpu") and weight_bytes > SMALL_MODEL_BYTES and bf16_pays():
            name = "bf16"
    types = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    beside_a_network = method is None or method.traits.uses_network
    trainable = types[name if beside_a_network else settings.full_precision]
    return Precision(name, types[name], scaled=name == "fp16" and trains, trainable=trainable)


def vae_type(settings: MemorySettings) -> torch.dtype:
    """What the VAE encodes in: fp32 by default, since 16 bits cost visible precision."""
    import torch

    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return types.get(settings.vae_precision, torch.float32)


def use_tf32(wanted: bool) -> None:
    """Whether fp32 products on an Nvidia GPU are TF32's, in this process from here on. Others take no notice."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted


def use_threads(device: str, weight_bytes: int) -> int:
    """Set the threads torch computes with for a model of this size; returns how many.

    On a CPU a small model is fastest on one thread: its products end sooner than two threads can meet (the starter on 2
    cores: 0.37 s a step on one thread, 0.71 s on two).
    """
    import torch

    count = 1 if device.startswith("cpu") and weight_bytes <= SMALL_MODEL_BYTES else machine.threads()
    torch.set_num_threads(count)
    return count
