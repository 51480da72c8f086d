"""The dtypes that a model computes and trains in, by settings and device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from core.families import type_speed
from core.record import machine
from core.record.lazy_torch import torch
from core.settings.memory import MemorySettings
from core.settings.method import MethodSettings

# Below this many bytes of weights a CPU gains nothing from bf16: converting costs what the faster products save.
SMALL_MODEL_BYTES = 200 << 20


@dataclass(frozen=True)
class Precision:
    """The dtypes of a job.

    name       "no", "fp32", "bf16" or "fp16": the name of `compute` ("no" is float32)
    compute    of frozen weights and activations
    scaled     whether losses are scaled against fp16 underflow
    trainable  of model weights in full training; equals `compute` for a network, whose layers cast their weights themselves
    """

    name: str
    compute: torch.dtype
    scaled: bool
    trainable: torch.dtype

    def autocast(self, device: str) -> AbstractContextManager[Any]:
        """Return a context manager in which fp32 weights compute in `compute`; without effect if they are stored in that dtype."""
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
    """Return the precision that the settings mean on this device.

    "auto" is on CUDA bf16 for training if it is fast on the GPU, else fp16 (more digits than bf16, and sampling does not overflow it); on a
    CPU bf16 for large models if it is not slower; otherwise fp32.

    weight_bytes   of the U-Net as stored
    trains         True for training, False for generation
    method         of a training; None for generation
    bf16_pays      () -> whether bf16 is about as fast as fp32 on this CPU
    """
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
    weights_are_frozen = method is None or method.traits.uses_network
    trainable = types[name if weights_are_frozen else settings.full_precision]
    return Precision(name, types[name], scaled=name == "fp16" and trains, trainable=trainable)


def vae_type(settings: MemorySettings) -> torch.dtype:
    """Return the dtype that the VAE encodes in: fp32 by default, since 16 bits visibly reduce quality."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return types.get(settings.vae_precision, torch.float32)


def use_tf32(enabled: bool) -> None:
    """Turn TF32 for fp32 matrix products and convolutions on Nvidia GPUs on or off, for the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = enabled


def use_threads(device: str, weight_bytes: int) -> int:
    """Set torch's number of CPU threads for a model with `weight_bytes` of weights, and return it.

    A small model on a CPU is fastest with one thread, since synchronizing costs more than its products (the starter model on 2 cores:
    0.37 s per step with one thread, 0.71 s with two).
    """
    count = 1 if device.startswith("cpu") and weight_bytes <= SMALL_MODEL_BYTES else machine.threads()
    torch.set_num_threads(count)
    return count
