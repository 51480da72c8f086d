"""LoRA files as .ckpt and .pt: torch.save of {kohya key: tensor}, as sd-scripts writes them, without metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from core.formats.models.overflow import kept_wide, not_finite, overflowing, refuse_no_numbers
from core.formats.tensors.writer import save_pickle
from core.record import atomic
from core.record.problems import Problem

if TYPE_CHECKING:
    import torch


def write_lora_pickle(path: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> list[Problem]:
    """Complete or not at all, readable with `torch.load(weights_only=True)`. Weights too large for `dtype` stay float32: advice."""
    import torch

    refuse_no_numbers(not_finite(tensors), path)
    matrices = {name: value for name, value in tensors.items() if not name.endswith(".alpha")}
    wide = overflowing(matrices, dtype)
    kinds = {name: torch.float32 if wide or name not in matrices else dtype for name in tensors}
    ready = {name: value.detach().to("cpu", kinds[name]).contiguous().clone() for name, value in tensors.items()}
    with atomic.open_atomic(path) as temporary:
        save_pickle(ready, temporary)
    return [kept_wide(wide, dtype, path)] if wide else []
