"""Fused backward pass: updates weights while gradients are still being computed, so that all gradients never exist at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.optimization.groups import Group
from core.optimization.rounding import WideStep, wide_norm

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from core.optimization.clipping import NonFiniteGuard


@dataclass
class Part:
    """Weights that are updated together.

    group     index of their optimizer group, as loading a state replaces the groups themselves
    waiting   weights whose gradients are still missing in this step
    """

    group: int
    weights: list[nn.Parameter]
    waiting: set[nn.Parameter] = field(default_factory=set)


class FusedBackward:
    """Updates each part of the weights as soon as all its gradients are computed, and frees the gradients.

    The result equals the plain step, except that clipping acts on each tensor alone: the whole gradient never exists at
    once. One backward pass per step. A non-finite value sets the guard's flag: later parts and steps change nothing.

    wide           steps 16-bit weights in fp32
    by_tensor      one part per tensor, for optimizers that keep all their state with the weight (AdaFactor);
                   otherwise the optimizer's groups are the parts: see `split_groups`
    max_grad_norm  maximum gradient norm of a tensor; 0 does not clip
    """

    def __init__(
        self, optimizer: Optimizer, wide: WideStep, guard: NonFiniteGuard, max_grad_norm: float, *, by_tensor: bool
    ):
        self._wide, self._guard, self._max_norm = wide, guard, max_grad_norm
        self._optimizer, self._by_tensor = optimizer, by_tensor
        self._parts: dict[nn.Parameter, Part] = {}
        for index, group in enumerate(optimizer.param_groups):
            parts = [[weight] for weight in group["params"]] if by_tensor else [list(group["params"])]
            for weights in parts:
                part = Part(index, weights)
                self._parts.update(dict.fromkeys(weights, part))
        self._norms: list[Tensor] = []
        self._hooks = [weight.register_post_accumulate_grad_hook(self._on_gradient) for weight in self._parts]

    def begin(self, loss: Tensor) -> None:
        """Prepare for a backward pass; call before `loss.backward()`."""
        self._guard.watch(loss)
        self._norms = []
        for part in self._distinct_parts():
            part.waiting = {weight for weight in part.weights if weight.requires_grad}

    def end(self) -> Tensor:
        """Complete a step; call after `loss.backward()`. Updates the parts of which only some tensors got a gradient. Returns the L2 norm
        of all gradients before clipping, 0-d; 0 without gradients."""
        for part in self._distinct_parts():
            if part.waiting and any(weight.grad is not None for weight in part.weights):
                self._step_part(part)
        self._wide.count()
        return torch.stack(self._norms).norm() if self._norms else torch.zeros_like(self._guard.flag)

    def release(self) -> None:
        """Remove the hooks from the weights."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._parts = [], {}

    def _distinct_parts(self) -> list[Part]:
        """Return all parts, once each."""
        return list({id(part): part for part in self._parts.values()}.values())

    @torch.no_grad()
    def _on_gradient(self, weight: Any) -> None:
        """Clip a weight's gradient; update its part if no other gradient of the part is missing. Called by torch."""
        part = self._parts[weight]
        self._clip(weight)
        part.waiting.discard(weight)
        if not part.waiting:
            self._step_part(part)

    def _clip(self, weight: nn.Parameter) -> None:
        """Clip a weight's gradient by its own norm; record the norm and watch it for non-finite values."""
        assert weight.grad is not None
        norm = wide_norm(weight.grad)
        self._guard.watch(norm)
        self._norms.append(norm)
        if self._max_norm > 0:
            weight.grad.mul_((self._max_norm / (norm + 1e-6)).clamp(max=1.0).to(weight.grad.dtype))

    def _step_part(self, part: Part) -> None:
        """Update the weights of a part, unless the guard's flag is set."""
        # A group that is a part is passed as it is: some optimizers count their steps in it.
        group = self._optimizer.param_groups[part.group]
        if self._by_tensor:
            group = {**group, "params": part.weights}
        self._wide.step_groups([group], withheld=self._guard.flag)


def split_groups(groups: Sequence[Group], count: int) -> list[Group]:
    """Split optimizer groups into groups of at most ceil(number of tensors / count) tensors, each of one rate, in order, as in
    sd-scripts."""
    size = ceil(sum(len(group["params"]) for group in groups) / count)
    return [
        {**group, "params": group["params"][start : start + size]}
        for group in groups
        for start in range(0, len(group["params"]), size)
    ]
