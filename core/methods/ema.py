"""The exponential moving average (EMA) of trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from core.methods import Method, Use
    from core.settings.method import MethodSettings

EMA = "ema."  # in front of the names of averaged weights in a training state


class WeightAverage:
    """Exponential moving average of weights, in fp32, on their device or in RAM.

    After each `update_every` steps: average = w * average + (1 - w) * weights, with w = decay ** update_every, so that the average
    covers equally many steps for any `update_every`.
    """

    def __init__(self, weights: Mapping[str, Tensor], settings: MethodSettings):
        self._weights, self._settings = dict(weights), settings
        self.steps = 0
        self.average = {
            name: self._to_average_device(weight.detach()).clone() for name, weight in self._weights.items()
        }

    def old_weight(self) -> float:
        """Return the weight of the old average in this update."""
        return self._settings.old_ema_weight(self.steps // self._settings.ema_update_every)

    @torch.no_grad()
    def after_step(self) -> None:
        """Count a step; update the average if `update_every` steps have passed."""
        self.steps += 1
        if self.steps % self._settings.ema_update_every:
            return
        share = 1 - self.old_weight()
        weights = [self._weights[name].detach() for name in self.average]
        if all(self._to_average_device(weight) is weight for weight in weights):  # fp32 on this device: one kernel
            torch._foreach_lerp_(list(self.average.values()), weights, share)
            return
        for average, weight in zip(self.average.values(), weights, strict=True):  # never a second model in memory
            average.lerp_(self._to_average_device(weight), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context with the average in place of the weights; afterwards the weights are restored bit for bit."""
        weights = {name: weight.detach().to("cpu", copy=True) for name, weight in self._weights.items()}
        try:
            self._set_weights(self.average)
            yield
        finally:
            self._set_weights(weights)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average | {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors of `state_dict`. For {}, from a run without EMA, the average starts at the present weights."""
        saved = tensors or self._weights
        with torch.no_grad():
            for name, average in self.average.items():
                average.copy_(saved[name])
        self.steps = int(tensors["steps"]) if tensors else 0

    def replaces(self, use: Use) -> bool:
        """Return whether the settings use the average in place of the weights. use: "files" (saved ones) or "samples" (and validation)"""
        return self._settings.ema_use in ("all", use)

    @torch.no_grad()
    def _set_weights(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the weights, in place."""
        for name, weight in self._weights.items():
            weight.copy_(values[name])

    def _to_average_device(self, weight: Tensor) -> Tensor:
        """Return the weight in fp32 on the average's device, without a copy if it is there already."""
        device = weight.device if self._settings.ema_device == "device" else "cpu"
        return weight.to(device, torch.float32)


def average_of(method: Method, weights: Sequence[Tensor], settings: MethodSettings) -> WeightAverage | None:
    """Return the EMA of a method's trained weights, named as in the method's state; None if EMA is off."""
    if not settings.ema:
        return None
    names = {tensor.data_ptr(): name for name, tensor in method.state_dict().items()}
    return WeightAverage({names.get(each.data_ptr(), str(n)): each for n, each in enumerate(weights)}, settings)


def with_average(tensors: Mapping[str, Tensor], average: WeightAverage | None) -> dict[str, Tensor]:
    """Return a method's state with the EMA's tensors added, their names prefixed with EMA."""
    averaged = average.state_dict() if average is not None else {}
    return {**tensors, **{EMA + name: tensor for name, tensor in averaged.items()}}


def split_average(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (a method's state, the EMA's state) from the tensors of `with_average`."""
    averaged = {name.removeprefix(EMA): each for name, each in tensors.items() if name.startswith(EMA)}
    return {name: each for name, each in tensors.items() if not name.startswith(EMA)}, averaged
