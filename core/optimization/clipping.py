"""Gradient clipping and the guard against non-finite numbers, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from core.optimization.undo import can_undo, step_or_undo

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

    def __init__(self, device: torch.device | str, allowed: int = 0, undo: bool | None = None):
        """undo: steps are taken and taken back rather than waited for; as a rule where waiting costs, on a card."""
        self.flag = torch.zeros((), dtype=torch.float32, device=device)
        self._skipped = torch.zeros_like(self.flag)
        self._allowed = allowed
        undo = self.flag.device.type != "cpu" if undo is None else undo
        self._undo = undo and allowed == 0  # numbers on the host would count a step that is left out and gone on from

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
        """`optimizer.step()`, unless the flag is set. torch's fused ones read the flag on the device; others take a step
        back there; what does neither makes the host wait, once: see `can_undo`."""
        if _reads_flags(optimizer):
            optimizer.found_inf = self.flag  # type: ignore[attr-defined]
            optimizer.step()
        elif self._undo and can_undo(optimizer, self.flag.device):
            step_or_undo(optimizer, self.flag)
        elif not self.tripped():
            optimizer.step()

    def scaled_step(
        self,
        scaler: torch.amp.GradScaler,
        optimizer: Optimizer,
        parameters: Sequence[nn.Parameter],
        max_norm: float,
        beside: Sequence[nn.Parameter] = (),
    ) -> Tensor:
        """The same with scaled losses: unscale, clip, step unless the gradient overflowed or the flag is set, scale anew.
        Returns the norm before clipping. The scaler itself makes the host wait for any optimizer but torch's fused ones.

        parameters  clipped together       beside  those among them that the optimizer does not hold
        """
        waits = self._allowed > 0 or not _reads_flags(optimizer)
        if not waits:  # what the scaler looks for on the device, for the flag's sake
            held = (parameter for group in optimizer.param_groups for parameter in group["params"])
            gradient = next(parameter.grad for parameter in held if parameter.grad is not None)
            gradient.masked_fill_(self.flag > 0, float("nan"))
        scaler.unscale_(optimizer)
        for parameter in beside:
            if parameter.grad is not None:
                parameter.grad.div_(scaler.get_scale())
        norm = clip_grad_norm(parameters, max_norm)
        if not (waits and self.tripped()):
            scaler.step(optimizer)
            scaler.update()
        return norm

    def tripped(self) -> bool:
        """Whether this step is withheld. Waits for the device."""
        return bool(self.flag.item())


def _reads_flags(optimizer: Optimizer) -> bool:
    """Whether it is one of torch's fused ones, which leave out a step by a flag on the device."""
    return bool(optimizer.defaults.get("fused") and getattr(optimizer, "_step_supports_amp_scaling", False))
