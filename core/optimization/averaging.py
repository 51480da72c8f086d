"""Evaluation weights of schedule-free optimizers, which train one set of weights and evaluate with their average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from core.optimization.groups import weights_of
from core.optimization.rounding import NARROW
from core.record.lazy_torch import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer


def has_evaluation_weights(optimizer: Optimizer) -> bool:
    """Return whether an optimizer has a second set of weights for evaluation: schedule-free ones (Defazio et al. 2024, arXiv:2405.15682)
    and similar ones."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def ready_to_train(optimizer: Optimizer) -> None:
    """Switch a schedule-free optimizer to its training weights; call before the first step."""
    if has_evaluation_weights(optimizer):
        schedule_free: Any = optimizer
        schedule_free.train()


@contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """A context with the averaged weights in place, for saving, sampling and validation; unchanged weights for other optimizers.

    Afterwards the training weights are restored from a copy in RAM, not by the optimizer's own `train()`, which computes them: rounding
    would change the result of runs that sample more often.
    """
    if not has_evaluation_weights(optimizer):
        yield
        return
    with torch.no_grad():
        copies = [(weight, weight.detach().to("cpu", copy=True)) for weight in weights_of(optimizer.param_groups)]
        modes = [group.get("train_mode") for group in optimizer.param_groups]
    try:
        with torch.no_grad():
            _set_mode(optimizer, "eval")
        yield
    finally:
        with torch.no_grad():
            _set_mode(optimizer, "train")
            for group, mode in zip(optimizer.param_groups, modes, strict=True):
                if mode is not None:
                    group["train_mode"] = mode
            for weight, copy in copies:
                weight.copy_(copy)


def _set_mode(optimizer: Optimizer, mode: str) -> None:
    """Call `optimizer.eval()` or `optimizer.train()`, as `mode` says; 16-bit weights are fp32 meanwhile, like the optimizer's second
    set."""
    narrow = [(weight, weight.data) for weight in weights_of(optimizer.param_groups) if weight.dtype in NARROW]
    try:
        for weight, old in narrow:
            weight.data = old.float()
        getattr(optimizer, mode)()
    finally:  # memory may run out in between
        for weight, old in narrow:
            weight.data = old.copy_(weight.data)
