"""Optimizer steps of 16-bit weights, computed in fp32 and rounded back stochastically, so that small changes count on average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn

from core.optimization.groups import Group, weights_of
from core.record.draws import address

if TYPE_CHECKING:
    from torch.optim import Optimizer


STEP = "rounding_step"  # in the first group, and so in the saved state: steps taken
LOST = "rounding_loss"  # in a weight's state, and so in the saved state: what its rounding left out
LARGEST = 1 << 26  # elements in fp32 at once: 256 MB of weights and as much of gradients
# Elements rounded at a time: few enough for a CPU's cache, many enough to be worth starting its threads;
# a multiple of 4, since random numbers come in fours.
PIECE = 1 << 20
NARROW = (torch.bfloat16, torch.float16)


Shorts = Callable[[int], "Tensor"]  # how many -> integers -32768 to 32767, int16, on the device of the weights


def round_stochastically(values: Tensor, shorts: Shorts) -> Tensor:
    """Round float32 values to values that bfloat16 can hold, returned as float32: to one of the two neighbors, with probabilities that keep
    the mean exact (Zamirai et al. 2020, arXiv:2010.06192). Values that bf16 represents exactly are unchanged.
    shorts: (count) -> random int16 [count]; they are added to the 16 bits that are cut off"""
    # A NaN's bits, incremented, may become a number. On a CPU a sum quickly shows that there is none.
    nan = values.isnan() if values.device.type != "cpu" or not torch.isfinite(values.sum()) else None
    bits = values.contiguous().view(torch.int32).view(-1) + 32768  # since the shorts start at -32768
    bits.add_(shorts(bits.numel())).bitwise_and_(-65536)  # bf16 is the upper half of fp32
    rounded = bits.view(torch.float32).view(values.shape)
    return rounded if nan is None else rounded.masked_fill_(nan, float("nan"))


def draws(seed: int, device: torch.device) -> Shorts:
    """Return a function (count) -> random int16 [count] on the device.

    Each 64-bit random number is split into four, because generating random numbers takes most of the time. On a CPU they are
    numpy's: torch's generator takes ten times as long.
    """
    if device.type == "cpu":
        source = numpy.random.SFC64(seed)
        return lambda count: torch.from_numpy(source.random_raw(-(-count // 4)).view(numpy.int16)[:count])
    generator, low, high = torch.Generator(device).manual_seed(seed), -(2**63), 2**63 - 1

    def draw(count: int) -> Tensor:
        wide = torch.randint(low, high, (-(-count // 4),), dtype=torch.int64, device=device, generator=generator)
        return wide.view(torch.int16)[:count]

    return draw


class WideStep:
    """Replaces `optimizer.step`: 16-bit weights and gradients are fp32 during the step.

    The optimizer's state is then fp32. Weights are upcast part by part; an optimizer that counts steps for all its
    weights together gets them all at once.

    seed         of the random numbers, addressed by step and weight: a resumed run rounds like an uninterrupted one
    stochastic   round bf16 weights stochastically; False rounds to nearest, as always for fp16, which is precise enough
    kahan        round bf16 weights to nearest and add the rounding error at the next step (Kahan 1965)
    by_parts     whether the optimizer keeps its state per weight
    """

    def __init__(self, optimizer: Optimizer, seed: int, *, stochastic: bool, by_parts: bool, kahan: bool = False):
        self._optimizer, self._seed, self._stochastic, self._by_parts = optimizer, seed, stochastic, by_parts
        self._kahan = kahan
        self._original_step = type(optimizer).step
        self._index = {weight: index for index, weight in enumerate(weights_of(optimizer.param_groups))}
        optimizer.param_groups[0].setdefault(STEP, 0)

    def __call__(self, closure: Any = None) -> None:
        """Update all weights that have a gradient; free each gradient as soon as it is used."""
        assert closure is None
        groups = self._optimizer.param_groups
        for part in parts_of(groups) if self._by_parts else [groups]:
            self.step_groups(part)
        self.count()

    def count(self) -> None:
        """Count a finished step, by which random numbers are addressed."""
        self._optimizer.param_groups[0][STEP] += 1

    @torch.no_grad()
    def step_groups(self, groups: Sequence[Group], withheld: Tensor | None = None) -> None:
        """Update only the weights of these groups.
        withheld: 0-d on the device: if it is above 0, the weights stay unchanged; None updates them"""
        on_cpu = withheld is not None and withheld.device.type == "cpu"  # where reading it costs no sync
        weights = [weight for weight in weights_of(groups) if weight.grad is not None]
        before = [weight.data for weight in weights]
        _widen([weight for weight in weights if weight.dtype in NARROW])
        for weight, old in zip(weights, before, strict=True):
            if old.dtype == torch.bfloat16 and LOST in self._optimizer.state.get(weight, {}):
                weight.data += self._optimizer.state[weight][LOST]
        if withheld is not None:
            for weight, old in zip(weights, before, strict=True):
                if old.dtype not in NARROW:
                    weight.data = old.clone()
        _step(self._optimizer, self._original_step, groups)
        for weight, old in zip(weights, before, strict=True):
            weight.grad = None
            new = weight.data
            if new is old:
                continue
            weight.data = old
            if on_cpu and withheld is not None and bool(withheld > 0):
                continue
            shorts = self._random_shorts(weight)
            blocked = None if on_cpu else withheld
            for target, values, *errors in in_pieces(old, new, *self._rounding_errors(weight)):
                rounded = values if shorts is None else round_stochastically(values, shorts)
                _copy_unless_blocked(target, rounded, blocked)
                for error in errors:
                    _copy_unless_blocked(error, values - rounded.to(target.dtype), blocked)

    def _rounding_errors(self, weight: nn.Parameter) -> list[Tensor]:
        """Return [rounding error of this weight so far], bf16, from the optimizer's state; [] without Kahan summation."""
        if weight.dtype != torch.bfloat16 or not self._kahan:
            return []
        return [self._optimizer.state[weight].setdefault(LOST, torch.zeros_like(weight))]

    def _random_shorts(self, weight: nn.Parameter) -> Shorts | None:
        """Return the source of random numbers for rounding this weight; None rounds to nearest."""
        if weight.dtype != torch.bfloat16 or not self._stochastic or self._kahan:
            return None
        step = self._optimizer.param_groups[0][STEP]
        return draws(address(self._seed, "rounding", step, self._index[weight]), weight.device)


def _copy_unless_blocked(target: Tensor, values: Tensor, blocked: Tensor | None) -> None:
    """Copy values into the target. blocked: 0-d, above 0 leaves the target unchanged; None copies"""
    target.copy_(values if blocked is None else torch.where(blocked > 0, target, values.to(target.dtype)))


def _widen(weights: Sequence[Any]) -> None:
    """Convert 16-bit weights and their gradients to fp32, in place: with two operations on a GPU, not two for each weight."""
    if not weights:
        return
    narrow = [weight.data for weight in weights], [weight.grad for weight in weights]
    wide = [[torch.empty_like(tensor, dtype=torch.float32) for tensor in tensors] for tensors in narrow]
    for new, old in zip(wide, narrow, strict=True):
        torch._foreach_copy_(new, old)
    for weight, values, gradient in zip(weights, *wide, strict=True):
        weight.grad = None
        weight.data, weight.grad = values, gradient


def in_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views [PIECE] of tensors of one shape, in parallel; the whole tensors on a GPU, or if one is not contiguous."""
    if any(each.device.type != "cpu" or not each.is_contiguous() for each in tensors):
        yield tensors
        return
    flat = [each.view(-1) for each in tensors]
    for start in range(0, max(flat[0].numel(), 1), PIECE):
        yield tuple(each[start : start + PIECE] for each in flat)


def wide_norm(values: Tensor) -> Tensor:
    """Return the L2 norm of a tensor, 0-d, computed in fp32 even for 16-bit values."""
    if values.device.type != "cpu":
        return torch.linalg.vector_norm(values, dtype=torch.float32)
    parts = [torch.linalg.vector_norm(piece.float()) for (piece,) in in_pieces(values)]
    return torch.stack(parts).norm() if len(parts) > 1 else parts[0]


def parts_of(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield parts of the groups, each a list of one group with at most LARGEST elements; a larger weight is a part of its own."""
    for group in groups:
        params: list[Any] = []
        size = 0
        for weight in group["params"]:
            if params and size + weight.numel() > LARGEST:
                yield [{**group, "params": params}]
                params, size = [], 0
            params.append(weight)
            size += weight.numel()
        if params:
            yield [{**group, "params": params}]


def widen_steps(optimizer: Optimizer, seed: int, *, stochastic: bool, by_parts: bool, kahan: bool = False) -> WideStep:
    """Make `optimizer.step()` update 16-bit weights in fp32; fp32 weights are updated as before. Arguments: see `WideStep`."""
    wide = WideStep(optimizer, seed, stochastic=stochastic, by_parts=by_parts, kahan=kahan)
    if any(weight.dtype in NARROW for weight in weights_of(optimizer.param_groups)):
        vars(optimizer)["step"] = wide
    return wide


def _step(optimizer: Optimizer, original_step: Any, groups: Sequence[Group]) -> None:
    """Call the optimizer's original step with only these groups; its state is keyed by weight, so the other groups are not needed.
    original_step: `step` of the optimizer's class"""
    all_groups = optimizer.param_groups
    optimizer.param_groups = list(groups)
    try:
        original_step(optimizer)
    finally:
        optimizer.param_groups = all_groups
