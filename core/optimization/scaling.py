"""Loss scaling for fp16, also for weights that are fp16 themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer


class HalfWeightScaler(torch.amp.GradScaler):
    """A GradScaler that accepts fp16 gradients, as in sd-scripts. torch's refuses them because it expects fp32 weights, which full fp16
    training does not have.
    """

    def _unscale_grads_(
        self, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        """Unscale the gradients as torch does, with fp16 gradients allowed."""
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)


def make_scaler(device: str, weights: torch.dtype) -> Any:
    """Return the GradScaler for a device ("cpu", "cuda:0") and the dtype of the trained weights."""
    kind = HalfWeightScaler if weights == torch.float16 else torch.amp.GradScaler
    return kind(device.partition(":")[0])
