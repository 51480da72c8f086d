"""Copies to the training device, queued in the order of its work."""

from __future__ import annotations

from core.record.lazy_torch import Tensor, torch


def queued(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return `tensor` on `device`. A copy from CPU to CUDA is queued without waiting for it.

    A plain copy to a GPU waits for everything queued before it, and so may one from pageable memory, which the driver
    copies through a staging buffer. So it goes through pinned memory, which torch caches and reuses.
    """
    if tensor.device.type == "cpu" and str(device).startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
