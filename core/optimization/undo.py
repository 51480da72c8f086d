"""Undoes optimizer steps on the device, so that the host need not wait to know whether a step may be taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.optim import Optimizer

MOST = 512 << 20  # bytes of weights and state copied per step; full models have far more
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Slot = tuple[Any, Any]  # a dict or list, and the key of a tensor in it


def can_undo(optimizer: Optimizer, device: torch.device) -> bool:
    """Return whether the optimizer's steps can be undone: all its state is in known tensors of limited size.

    False if weights get their first gradient (ranks of DyLoRA, layers that were dropped out): their state is created in the step
    itself and could not be restored. False for D-Adaptation and Prodigy, which keep their step size on the host and sync with the
    device in each step anyway.
    """
    if not optimizer.state or any(isinstance(group.get("d"), float) for group in optimizer.param_groups):
        return False
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    if any(weight.grad is not None and weight not in optimizer.state for weight in weights):
        return False
    try:
        tensors = [box[key] for box, key in _slots(optimizer)]
    except TypeError:
        return False
    on_device = [tensor for tensor in tensors if tensor.device == device]
    # One number may lie on the host: torch's optimizers count steps there.
    return (
        all(tensor.device == device or tensor.numel() == 1 for tensor in tensors)
        and all(tensor.element_size() in BITS for tensor in on_device)
        and sum(tensor.numel() * tensor.element_size() for tensor in on_device) <= MOST
    )


@torch.no_grad()
def step_or_undo(optimizer: Optimizer, withheld: Tensor) -> None:
    """Call `optimizer.step()`; then, if `withheld` (0-d on the device) is above 0, restore weights and state bit for bit. No sync."""
    slots = [(box, key) for box, key in _slots(optimizer) if box[key].device == withheld.device]
    before = [box[key].detach() for box, key in slots]
    copies = [torch.empty_like(tensor) for tensor in before]
    torch._foreach_copy_(copies, before)
    optimizer.step()
    by_size: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for (box, key), copy in zip(slots, copies, strict=True):
        now = box.get(key) if isinstance(box, dict) else box[key]
        if isinstance(now, Tensor) and (now.shape, now.dtype, now.stride()) == (copy.shape, copy.dtype, copy.stride()):
            new, old = by_size.setdefault(copy.element_size(), ([], []))
            new.append(now.detach().view(BITS[copy.element_size()]))
            old.append(copy.view(BITS[copy.element_size()]))
    for size, (new, old) in by_size.items():
        # As integers: for floats, 0 times NaN would be NaN.
        torch._foreach_mul_(new, (withheld <= 0).to(BITS[size]))
        torch._foreach_mul_(old, (withheld > 0).to(BITS[size]))
        torch._foreach_add_(new, old)


def _slots(optimizer: Optimizer) -> Iterator[Slot]:
    """Yield the slots of the weights and of all tensors in the optimizer's state and groups. Raises TypeError for values of other types,
    which may contain tensors."""
    for group in optimizer.param_groups:
        for index in range(len(group["params"])):
            yield group["params"], index
        yield from _tensors({key: value for key, value in group.items() if key != "params"}, group)
    for state in optimizer.state.values():
        yield from _tensors(state, state)


def _tensors(values: Any, box: Any) -> Iterator[Slot]:
    """Yield the slots of all tensors in `values`, at any depth. Raises TypeError as `_slots`.
    box: the dict or list that a slot refers to: `values` itself, or the group that `values` is a part of"""
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in pairs:
        if isinstance(value, Tensor):
            yield box, key
        elif isinstance(value, (dict, list, tuple)):
            yield from _tensors(value, value)
        elif value is not None and not isinstance(value, (bool, int, float, str, torch.dtype)):
            raise TypeError(f"{type(value).__name__} may contain tensors")
