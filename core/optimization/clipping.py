"""Gradient clipping and the guard against non-finite numbers, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients together so that their norm is at most `max_norm` (0: leave them); returns the norm before.

    The L2 norm is 0-d and stays on the device. A non-finite one leaves non-finite gradients: `NonFiniteGuard` then
    withholds the update.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in with_gradient if parameter.grad is not None])
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm


class NonFiniteGuard:
    """A flag on the device that a non-finite loss or gradient sets, so that its step moves no weight.

    Once there were more than `allowed` such steps it stays set: the host may read it steps later and the run still stops
    at the true step, the weights being those before it.
    """

    def __init__(self, device: torch.device | str, allowed: int = 0):
        self.flag = torch.zeros((), dtype=torch.float32, device=device)
        self._skipped = torch.zeros_like(self.flag)
        self._allowed = allowed

    def begin(self) -> None:
        """A new step: what an earlier one set counts, and holds only when there were too many. Nothing waits."""
        self._skipped.add_(self.flag)
        self.flag.copy_(self._skipped > self._allowed)

    def watch(self, *values: Tensor) -> None:
        """Set the flag if any of these (losses, gradient norms) is NaN or infinite."""
        for value in values:
            bad = torch.logical_not(torch.isfinite(value.detach()).all())
            self.flag.copy_(torch.maximum(self.flag, bad.to(self.flag)))

    def step(self, optimizer: Optimizer) -> None:
        """`optimizer.step()`, unless the flag is set. torch's fused ones read the flag on the device; any other makes
        the host wait for it, once."""
        if optimizer.defaults.get("fused") and getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = self.flag  # type: ignore[attr-defined]
            optimizer.step()
        elif not self.tripped():
            optimizer.step()

    def tripped(self) -> bool:
        """Whether this step is withheld. Waits for the device."""
        return bool(self.flag.item())
