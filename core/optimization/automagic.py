"""Automagic (ostris' ai-toolkit, MIT): AdaFactor's update with learning rates that rise while the signs of updates agree and fall while
they change."""

from collections.abc import Callable, Iterator
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

HISTORY = {8: torch.uint8, 31: torch.int32}  # longest sign history: the integers that hold it, a bit for each step
RATES = 1e-8, 1e3  # limits of Automagic3's rate


class FactoredOptimizer(Optimizer):
    """Base of Automagic and Automagic3: step, update by factored second moments, and average learning rates.

    The rates of a group's weights start at its `initial_lr`; the learning rate scheduler multiplies them by `lr / initial_lr`.
    """

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            self._step_group(group, [weight for weight in group["params"] if weight.grad is not None])
        return loss

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        """Update the weights of a group of `param_groups`, whose options it reads by name; all weights have a gradient."""

    def _update(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """Return a weight's update, fp32: the gradient over the root of its second moment, scaled down to an RMS of at most
        group["clip_threshold"]. Of the group it also reads "beta2" and "eps".

        The moment of matrices and convolutions is factored into the means over the last two dimensions (Shazeer and Stern 2018,
        arXiv:1804.04235).
        """
        assert weight.grad is not None
        gradient, state, new_share = weight.grad.float(), self.state[weight], 1 - group["beta2"]
        if not state:
            for name, shape in _moments(weight):
                state[name] = torch.zeros(shape, dtype=torch.float32, device=weight.device)
        squares = gradient.square().add_(group["eps"])
        if weight.ndim > 1:
            row = state["exp_avg_sq_row"].lerp_(squares.mean(-1), new_share)
            column = state["exp_avg_sq_col"].lerp_(squares.mean(-2), new_share)
            factor = (row / row.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1) * column.rsqrt().unsqueeze(-2)
        else:
            factor = state["exp_avg_sq"].lerp_(squares, new_share).rsqrt()
        update = factor.mul_(gradient)
        rms = update.norm() / update.numel() ** 0.5
        return update.div_((rms / group["clip_threshold"]).clamp_(min=1.0))

    def average_rates(self) -> dict[str, float]:
        """Return {group name: mean learning rate of its weights}, without groups that took no step yet. Waits for the device."""
        averages = {}
        for group in self.param_groups:
            rates = [self.state[weight]["rate"].abs() for weight in group["params"] if self.state.get(weight)]
            if rates:
                total = torch.stack([rate.sum() for rate in rates]).sum()
                averages[group["name"]] = (
                    total.item() / sum(rate.numel() for rate in rates) * abs(_schedule_factor(group))
                )
        return averages


class Automagic(FactoredOptimizer):
    """Each weight element has a learning rate within min_lr and max_lr. It rises by `lr_bump` if the element's update has the same sign as
    its last one, else it falls by `lr_bump`; the first step does not change it."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-6,
        min_lr: float = 1e-7,
        max_lr: float = 1e-3,
        lr_bump: float = 1e-6,
        eps: float = 1e-30,
        clip_threshold: float = 1.0,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
    ):
        if not 0 <= min_lr <= max_lr:
            raise ValueError(f"min_lr {min_lr} and max_lr {max_lr} are not in order")
        names = ("lr", "min_lr", "max_lr", "lr_bump", "eps", "clip_threshold", "beta2", "weight_decay")
        values = (lr, min_lr, max_lr, lr_bump, eps, clip_threshold, beta2, weight_decay)
        super().__init__(params, dict(zip(names, values, strict=True)))

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        """Update the weights of a group, each element with its own learning rate."""
        low, high, bump = group["min_lr"], group["max_lr"], group["lr_bump"]
        for weight in weights:
            update, state = self._update(weight, group), self.state[weight]
            rises = update > 0
            if "rate" not in state:
                rate = torch.full_like(update, _start_rate(group)).clamp_(low, high)
                state["rate"] = torch.empty_like(rate)
            else:
                agrees = torch.signbit(state["rate"]) != rises
                rate = state["rate"].abs().add_(torch.where(agrees, bump, -bump)).clamp_(low, high)
            state["rate"].copy_(torch.where(rises, rate, -rate))  # its sign is the update's
            update.add_(weight, alpha=group["weight_decay"])
            weight.sub_(update.mul_(rate), alpha=_schedule_factor(group))


class Automagic3(FactoredOptimizer):
    """Each group has one learning rate. Its elements vote on it, weighted by the size of their updates: up if the last `polarity_history`
    updates have the same sign, down if each has the opposite sign of the one before."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-6,
        beta2: float = 0.999,
        eps: float = 1e-30,
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        polarity_history: int = 8,
    ):
        if not 2 <= polarity_history <= max(HISTORY):
            raise ValueError(f"polarity_history {polarity_history} is not within 2 and {max(HISTORY)}")
        names = ("lr", "beta2", "eps", "clip_threshold", "weight_decay", "polarity_history")
        values = (lr, beta2, eps, clip_threshold, weight_decay, polarity_history)
        super().__init__(params, dict(zip(names, values, strict=True)))

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        """Update the weights of a group with its learning rate, then change the rate by their votes."""
        limit, votes, sizes = group["clip_threshold"], [], []
        for weight in weights:
            update, state = self._update(weight, group).clamp_(-limit, limit), self.state[weight]
            if "rate" not in state:
                dtype = next(dtype for longest, dtype in HISTORY.items() if group["polarity_history"] <= longest)
                state["signs"] = torch.zeros_like(weight, dtype=dtype)
                state["rate"] = torch.full((), _start_rate(group), dtype=torch.float32, device=weight.device)
                state["step"] = 0
            state["step"] += 1
            signs = state["signs"].mul_(2).add_(update > 0)  # the oldest bit falls out
            if state["step"] >= group["polarity_history"]:
                size = update.abs()
                votes.append((_vote(signs, group["polarity_history"]) * size).sum())
                sizes.append(size.sum())
            update.add_(weight, alpha=group["weight_decay"])
            weight.sub_(update.mul_(state["rate"]), alpha=_schedule_factor(group))
        if votes:
            factor = torch.exp(torch.stack(votes).sum() / torch.stack(sizes).sum().clamp_(min=1e-30))
            for rate in (self.state[weight]["rate"] for weight in group["params"] if self.state.get(weight)):
                rate.mul_(factor).clamp_(*RATES)


def _vote(signs: Tensor, history: int) -> Tensor:
    """Return 1 where the last `history` signs are equal, -1 where they alternate, else 0; float32. signs: integers, a bit for each step"""
    all_ones, alternating = 2**history - 1, sum(1 << bit for bit in range(0, history, 2))
    window = signs & all_ones
    same = (window == 0) | (window == all_ones)
    return same.float() - ((window == alternating) | (window == all_ones - alternating)).float()


def _moments(weight: Tensor) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (state name, shape) of each tensor of a weight's second moment."""
    shape = tuple(weight.shape)
    if len(shape) > 1:
        yield "exp_avg_sq_row", shape[:-1]
        yield "exp_avg_sq_col", (*shape[:-2], shape[-1])
    else:
        yield "exp_avg_sq", shape


def _start_rate(group: dict[str, Any]) -> float:
    """Return the learning rate at which a group's rates start: the absolute value of its "initial_lr", else of "lr"."""
    return abs(float(group.get("initial_lr", group["lr"])))


def _schedule_factor(group: dict[str, Any]) -> float:
    """Return the scheduler's factor of the group's rates, group["lr"] over `_start_rate`, 0 for a start at 0; negative for a negative
    learning rate, with which the model unlearns."""
    start = _start_rate(group)
    return float(group["lr"]) / start if start else 0.0
