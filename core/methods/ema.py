"""The exponential moving average (EMA) of trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from core.settings.method import MethodSettings


class WeightAverage:
    """Exponential moving average of weights, in fp32, on their device or in RAM.

    After each `update_every` steps: average = keep * average + (1 - keep) * weights, keep = decay ** update_every, so that
    it looks back equally far however often it is taken.
    """

    def __init__(self, weights: Mapping[str, Tensor], settings: MethodSettings):
        self._weights, self._settings = dict(weights), settings
        self.steps = 0
        self.average = {name: self._place(weight.detach()).clone() for name, weight in self._weights.items()}

    def keep(self) -> float:
        """The EMA decay at this step; with warmup (1 + n) / (10 + n) while that is less, with n the number of updates
        (diffusers, EMAModel)."""
        every = self._settings.ema_update_every
        decay = self._settings.ema_decay**every
        updates = self.steps // every
        return min(decay, (1 + updates) / (10 + updates)) if self._settings.ema_warmup else decay

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the average after a step."""
        self.steps += 1
        if self.steps % self._settings.ema_update_every:
            return
        share = 1 - self.keep()
        weights = [self._weights[name].detach() for name in self.average]
        if all(self._place(weight) is weight for weight in weights):  # fp32 on this device: one kernel for all
            torch._foreach_lerp_(list(self.average.values()), weights, share)
            return
        for average, weight in zip(self.average.values(), weights, strict=True):  # never a second model in memory
            average.lerp_(self._place(weight), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context with the average in place of the weights; afterwards the weights are restored bit for bit."""
        weights = {name: weight.detach().to("cpu", copy=True) for name, weight in self._weights.items()}
        try:
            self._put(self.average)
            yield
        finally:
            self._put(weights)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average | {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, average in self.average.items():
                average.copy_(tensors[name])
        self.steps = int(tensors["steps"])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])

    def _place(self, weight: Tensor) -> Tensor:
        device = weight.device if self._settings.ema_device == "device" else "cpu"
        return weight.to(device, torch.float32)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by prefixed name: `ema.` + name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names have the prefix, by name without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
