"""Backward pass and optimizer step if each process holds all trained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from core.methods.ema import split_average, with_average
from core.optimization.averaging import evaluation_weights
from core.optimization.clipping import NonFiniteGuard, clip_grad_norm
from core.record.lazy_torch import Tensor, nn, torch
from core.record.problems import ProblemsError

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from core.methods import Method, Use
    from core.methods.ema import WeightAverage
    from core.optimization.fused import FusedBackward
    from core.record.processes import Processes

T = TypeVar("T")
DEEPSPEED_FIX = "turn DeepSpeed on or off as in the run that saved it, or start from its final checkpoint"


class Stepper:
    """Does backward passes and optimizer steps. Each process holds all trained weights; gradients are summed over processes once a step.

    clipped           weights whose gradients are clipped together; None clips those of the trained weights
    keeps_clipped_gradients
                      keep the gradients of clipped weights that do not train from step to step, and do not unscale them in fp16, as in
                      sd-scripts, whose optimizer does not hold these weights
    counts_overflows  count the steps skipped by an fp16 overflow, in which the learning rate scheduler waits; reads the device each step
    overflow_steps    number of these steps
    average           EMA of the trained weights; None without
    """

    overflow_steps = 0
    average: WeightAverage | None = None

    def __init__(
        self,
        method: Method,
        parameters: Sequence[nn.Parameter],
        optimizer: Optimizer,
        guard: NonFiniteGuard,
        processes: Processes,
        *,
        scaler: torch.amp.GradScaler | None,
        fused: FusedBackward | None,
        max_grad_norm: float,
        clipped: Sequence[nn.Parameter] | None = None,
        keeps_clipped_gradients: bool = False,
        counts_overflows: bool = False,
    ):
        self._method, self._parameters = method, parameters
        self.optimizer = optimizer  # that updates the weights
        self._guard, self._processes = guard, processes
        self._scaler, self._fused, self._max_grad_norm = scaler, fused, max_grad_norm
        self._counts_overflows, self._adds_up = counts_overflows, keeps_clipped_gradients
        self._clipped = parameters if clipped is None else clipped
        trainable, together = set(parameters), set(self._clipped)
        self._clipped_only = [weight for weight in self._clipped if weight not in trainable]
        self._unclipped = [weight for weight in parameters if weight not in together]
        for weight in self._clipped_only:
            weight.requires_grad_(True)

    # -- a step

    def begin(self) -> None:
        """Begin a step: count the non-finite flag of the last one."""
        self._guard.begin()

    def placeholder_items(self, items: Sequence[T]) -> Sequence[T]:
        """Return the images to compute without effect in a process for which a short batch has none: none here. items: of the batch"""
        return ()

    def backward(self, losses_of: Callable[[], Tensor], images: float, last: bool) -> Tensor:
        """Compute the losses [B] of a micro-batch and accumulate the gradient of their sum / `images`; return the losses, detached.

        images   number of images of the whole step; infinity for images without effect
        last     whether it is the last micro-batch of the step
        """
        losses_B = losses_of()
        loss = losses_B.sum() / images
        if self._fused is not None:
            self._fused.begin(loss)
        if loss.requires_grad:  # not where module dropout leaves out every layer
            (self._scaler.scale(loss) if self._scaler is not None else loss).backward()
        return losses_B.detach()

    def step(self, loss: Tensor) -> Tensor:
        """Sum and clip the gradients and update the weights, unless the loss or gradient is non-finite. Returns the gradient norm before
        clipping, 0-d on the device.
        loss: of the whole step, 0-d"""
        measured = [*self._parameters, *self._clipped_only]
        self._processes.sum_gradients(measured, steady=self._method.steady_gradients)
        norm = self._update(loss)
        self.optimizer.zero_grad(set_to_none=True)
        for weight in self._clipped_only:
            weight.grad = self._carried_over(weight.grad, norm) if self._adds_up else None
        return norm

    def after_update(self) -> dict[str, Tensor]:
        """Complete a step: the method's own work on the new weights, then the EMA. Returns {logged name: number, 0-d} from the method."""
        numbers = self._method.after_update()
        if self.average is not None:
            self.average.after_step()
        return numbers

    def _carried_over(self, gradient: Tensor | None, norm: Tensor) -> Tensor | None:
        """Return the gradient that the next step adds to: this process's share of the sum, or 0 after a non-finite gradient norm; None if
        `gradient` is None."""
        if gradient is None:
            return None
        return gradient.div_(self._processes.count).masked_fill_(~norm.isfinite(), 0.0)

    def _update(self, loss: Tensor) -> Tensor:
        """Clip the gradients and update the weights; return the gradient norm before clipping, 0-d."""
        if self._fused is not None:  # the backward pass has updated the weights
            return self._fused.end()
        if all(weight.grad is None for weight in self._parameters):
            return torch.zeros_like(loss)
        if self._scaler is None:
            norm = clip_grad_norm(self._clipped, self._max_grad_norm)
            self._guard.watch(loss, norm)
            if self._unclipped:
                self._guard.watch(clip_grad_norm(self._unclipped, 0.0))
            self._guard.step(self.optimizer)
            return norm
        self._guard.watch(loss)
        scale = self._scaler.get_scale() if self._counts_overflows else 0.0
        unscaled = () if self._adds_up else self._clipped_only
        norm = self._guard.scaled_step(self._scaler, self.optimizer, self._clipped, self._max_grad_norm, unscaled)
        self.overflow_steps += bool(self._counts_overflows and self._scaler.get_scale() < scale)
        return norm

    def weight_norm(self) -> Tensor:
        """L2 norm of all trained weights, 0-d on the device."""
        with torch.no_grad():
            norms = torch._foreach_norm(list(self._parameters))
            return torch.stack([norm.float() for norm in norms]).norm()

    # -- training state

    def state_dict(self) -> dict[str, Any]:
        """Return the part of a training state that steps change, for `load`.

        weights           {name: tensor} of the method, with the EMA
        optimizer         state of the optimizer
        optimizer_class   its class name
        scaler            state of the loss scaler; None without one
        paused            `overflow_steps`
        beside            gradients that accumulate from step to step; [] if none do
        """
        return {
            "weights": with_average(self._method.state_dict(), self.average),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_class": type(self.optimizer).__name__,
            "scaler": self._scaler.state_dict() if self._scaler is not None else None,
            "paused": self.overflow_steps,
            "beside": [weight.grad for weight in self._clipped_only] if self._adds_up else [],
        }

    def write_parts(self, folder: Path) -> None:
        """Write the files of all processes next to the training state's file: none here."""

    def load(self, content: Mapping[str, Any], folder: Path) -> None:
        """Load a training state. Raises ProblemsError if its weights or optimizer state do not fit.

        content   entries of the state's file
        folder    of the state, for other files and for messages
        """
        from core.optimization.optimizers import load_state

        if "sharded" in content:
            what = "This training state was saved with DeepSpeed"
            raise ProblemsError.one(what, str(folder), DEEPSPEED_FIX, code="state.with-deepspeed")
        try:
            weights, average = split_average(content["weights"])
            self._method.load_state_dict(weights)
            if self.average is not None:
                self.average.load_state_dict(average)
        except (KeyError, RuntimeError, TypeError, AttributeError):  # a missing weight, or one of another shape
            what = "The weights in this training state do not fit this run"
            fix = "use the method, the model and the settings of the run that saved it"
            raise ProblemsError.one(what, str(folder), fix, code="state.other-weights") from None
        saved, used = content.get("optimizer_class"), type(self.optimizer).__name__  # earlier states name none
        if saved not in (None, used):
            what = f"The training state was saved with another optimizer: {saved}, not {used}"
            fix = f"choose {saved}, or start from the checkpoint alone (network.network_weights)"
            raise ProblemsError.one(what, str(folder), fix, "state.other-optimizer")
        try:
            load_state(self.optimizer, content["optimizer"])
            if self._scaler is not None and content["scaler"] is not None:
                self._scaler.load_state_dict(content["scaler"])
        except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, IndexError) as error:
            what = f"The optimizer state does not fit this run: {error}"
            fix = "use the optimizer and the network of the run that saved it"
            raise ProblemsError.one(what, str(folder), fix, "state.other-optimizer") from None
        self.overflow_steps = content.get("paused", 0)  # states of earlier versions have none
        for weight, gradient in zip(self._clipped_only, content.get("beside", ())):
            weight.grad = None if gradient is None else gradient.to(weight)

    def ready(self) -> None:
        """Complete loading; called when all processes have loaded their state."""

    # -- between steps

    @contextmanager
    def weights_for(self, use: Use) -> Iterator[None]:
        """A context in which the weights are gathered and, if the settings say so for this use, averaged. Called by the first process."""
        with self._averaged_for(use):
            yield

    def _averaged_for(self, use: Use) -> AbstractContextManager[None]:
        """Return a context in which averaged weights replace the trained ones: the EMA, if the settings use it for this use, or without an
        EMA the average of a schedule-free optimizer."""
        if self.average is None:
            return evaluation_weights(self.optimizer)
        return self.average.in_place() if self.average.replaces(use) else nullcontext()

    def tasks_done(self) -> None:
        """Tell the other processes to go on; called by the first one when saves, samples and validation of a step are done."""

    def follow(self) -> None:
        """Wait for `tasks_done`, and gather weights if the first process needs them; called by the other processes."""

    def release(self) -> None:
        """Remove the hooks of a fused backward pass."""
        if self._fused is not None:
            self._fused.release()
