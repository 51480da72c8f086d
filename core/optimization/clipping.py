"""Gradient clipping, loss scaling for fp16, and the guard against non-finite values, without a device sync."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.optimization.undo import can_undo, step_or_undo

if TYPE_CHECKING:
    from torch.optim import Optimizer


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients together to an L2 norm of at most `max_norm` (0: unchanged); return the norm before, 0-d on the device.

    If the norm is non-finite, so are the gradients: `NonFiniteGuard` then skips the step.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in with_gradient if parameter.grad is not None])
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm


class NonFiniteGuard:
    """Skips steps with a non-finite loss or gradient, by a flag on the device that the host need not read at once.

    After more than `allowed` such steps the flag stays set and no step changes a weight: the host may read it steps later, and the run
    still stops with the weights before the first of these steps.

    undo   do steps and undo them instead of waiting; None: on a GPU, where waiting is expensive
    """

    def __init__(self, device: torch.device | str, allowed: int = 0, undo: bool | None = None):
        self.flag = torch.zeros((), dtype=torch.float32, device=device)
        self._skipped = torch.zeros_like(self.flag)
        self._allowed = allowed
        undo = self.flag.device.type != "cpu" if undo is None else undo
        self._undo = undo and allowed == 0  # counters on the host would include a skipped step

    def begin(self) -> None:
        """Begin a new step: count the last step's flag, and leave the flag set only if too many were counted. No sync."""
        self._skipped.add_(self.flag)
        self.flag.copy_(self._skipped > self._allowed)

    def watch(self, *values: Tensor) -> None:
        """Set the flag if any of the tensors (losses, gradient norms) contains NaN or infinity. No sync."""
        for value in values:
            non_finite = torch.logical_not(torch.isfinite(value.detach()).all())
            self.flag.copy_(torch.maximum(self.flag, non_finite.to(self.flag)))

    def step(self, optimizer: Optimizer) -> None:
        """Call `optimizer.step()` unless the flag is set. torch's fused optimizers read the flag on the device; steps of others are undone
        on the device if `can_undo`; otherwise the host waits once."""
        if _reads_flags(optimizer):
            vars(optimizer)["found_inf"] = self.flag
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
        unstepped: Sequence[nn.Parameter] = (),
    ) -> Tensor:
        """Do `step` with scaled losses: unscale, clip, step unless the gradient overflowed or the flag is set, update the scale. Returns
        the gradient norm before clipping, 0-d. The host waits for optimizers other than torch's fused ones.

        parameters  clipped together
        unstepped   the clipped parameters that the optimizer does not have, to be unscaled too
        """
        waits = self._allowed > 0 or not _reads_flags(optimizer)
        if not waits:  # the scaler's own check on the device, for the flag
            stepped = (parameter for group in optimizer.param_groups for parameter in group["params"])
            gradient = next(parameter.grad for parameter in stepped if parameter.grad is not None)
            gradient.masked_fill_(self.flag > 0, float("nan"))
        scaler.unscale_(optimizer)
        for parameter in unstepped:
            if parameter.grad is not None:
                parameter.grad.div_(scaler.get_scale())
        norm = clip_grad_norm(parameters, max_norm)
        if not (waits and self.tripped()):
            scaler.step(optimizer)
        scaler.update()  # also after a step that was skipped: it ends this step for the scaler
        return norm

    def tripped(self) -> bool:
        """Return whether this step is skipped. Waits for the device."""
        return bool(self.flag.item())


def _reads_flags(optimizer: Optimizer) -> bool:
    """Return whether the optimizer is one of torch's fused ones, which skip a step if the flag `found_inf` on the device is set."""
    return bool(optimizer.defaults.get("fused") and getattr(optimizer, "_step_supports_amp_scaling", False))


class HalfWeightScaler(torch.amp.GradScaler):
    """A GradScaler that accepts fp16 gradients, as in sd-scripts. torch's refuses them because it expects fp32 weights, which full fp16
    training does not have."""

    def _unscale_grads_(
        self, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        """Unscale the gradients as torch does, with fp16 gradients allowed."""
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)


def make_scaler(device: str, weights: torch.dtype) -> Any:
    """Return the GradScaler for a device ("cpu", "cuda:0") and the dtype of the trained weights."""
    kind = HalfWeightScaler if weights == torch.float16 else torch.amp.GradScaler
    return kind(device.partition(":")[0])
