"""Tries optimizers on a small net: three steps, a saved state, three more. Optimizers that pass are offered to users."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.optimization.seeded import global_state, seed_globally
from core.record.lazy_torch import torch

STEPS = 3
PAGED_ROWS = 1_600  # bitsandbytes pages the state of a weight from 100,000 numbers on


@dataclass
class Result:
    """The result of a trial. reason: why the optimizer fails, "" if it passes"""

    reason: str = ""
    traits: list[str] = field(default_factory=list)  # "draws": uses random numbers; "averages": schedule-free


class TrialNet:
    """A small net with weights of all trained shapes: a matrix large enough for 8-bit states, a LoRA pair, a convolution, vectors.
    rows: of the large matrix; 96 are enough for 8-bit states, PAGED_ROWS for paged ones"""

    def __init__(self, device: str = "cpu", rows: int = 96):
        draw = torch.Generator().manual_seed(5)

        def make(*shape: int, scale: float = 0.1) -> Any:
            return torch.nn.Parameter((torch.randn(*shape, generator=draw) * scale).to(device))

        self.rows = rows
        self.big, self.down, self.up = make(rows, 64), make(4, 64), make(rows, 4, scale=0.0)
        self.conv, self.bias, self.norm = make(4, 1, 3, 3), make(rows), make(rows, scale=1.0)
        self.groups = [[self.down, self.up], [self.big, self.conv, self.bias, self.norm]]
        self.parameters = [weight for group in self.groups for weight in group]
        self.drew = False  # whether a step used a random generator

    def loss(self, step: int) -> Any:
        """Return the loss of a regression to a fixed random map, 0-d; the inputs differ at each step."""
        draw = torch.Generator().manual_seed(1000 + step)
        device = self.big.device
        x = torch.randn(8, 64, generator=draw).to(device)
        target = torch.randn(8, self.rows, generator=draw).to(device)
        x = torch.nn.functional.conv2d(x.view(8, 1, 8, 8), self.conv, padding=1).mean(1).flatten(1) + x
        y = x @ self.big.T + x @ self.down.T @ self.up.T
        return (y * self.norm + self.bias - target).square().mean()

    def named_groups(self, rate: float, same: bool) -> list[dict[str, Any]]:
        """Return two optimizer groups. same: give both the learning rate `rate`; else the second has half of it"""
        rates = (rate, rate if same else rate / 2)
        return [
            {"name": f"group{i}", "params": params, "lr": r, "initial_lr": r}
            for i, (params, r) in enumerate(zip(self.groups, rates, strict=True))
        ]

    def train(self, optimizer: Any, steps: Sequence[int]) -> None:
        """Train for these steps. The global generators are seeded by the step, as core.optimization.seeded does in a run. Sets `drew` if a
        step used one."""
        for step in steps:
            self.loss(step).backward()
            seed_globally(step)
            state = global_state()
            optimizer.step()
            self.drew = self.drew or global_state() != state
            optimizer.zero_grad(set_to_none=True)


Make = Callable[[list[dict[str, Any]]], Any]


def run_trial(make: Make, rate: float, same_rate: bool = False, device: str = "cpu", rows: int = 96) -> Result:
    """Train with an optimizer, save, resume in a new optimizer, and compare bit for bit. Any failure becomes the result's reason.

    make       (groups) -> the optimizer
    rate       learning rate of the first group; the second has half of it unless `same_rate`
    rows       see `TrialNet`
    """
    try:
        return _run_trial(make, rate, same_rate, device, rows)
    except Exception as error:  # any failure of any library becomes the reason
        return Result(_first_line(error))


def _run_trial(make: Make, rate: float, same_rate: bool, device: str, rows: int) -> Result:
    """Do the work of `run_trial`; errors of the optimizer are raised."""
    from core.optimization.averaging import evaluation_weights, has_evaluation_weights, ready_to_train
    from core.optimization.optimizers import load_state

    net = TrialNet(device, rows)
    optimizer = make(net.named_groups(rate, same_rate))
    ready_to_train(optimizer)
    before = [weight.detach().clone() for weight in net.parameters]
    net.train(optimizer, range(STEPS))
    buffer = io.BytesIO()
    with evaluation_weights(optimizer):
        pass  # saving a file must not change anything
    torch.save(optimizer.state_dict(), buffer)
    copy = TrialNet(device, rows)
    with torch.no_grad():
        for weight, saved in zip(copy.parameters, net.parameters, strict=True):
            weight.copy_(saved)
    resumed = make(copy.named_groups(rate, same_rate))
    ready_to_train(resumed)
    load_state(resumed, torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    net.train(optimizer, range(STEPS, 2 * STEPS))
    copy.train(resumed, range(STEPS, 2 * STEPS))
    traits = [name for name, has in (("draws", net.drew), ("averages", has_evaluation_weights(optimizer))) if has]
    if not all(torch.equal(a, b) for a, b in zip(net.parameters, copy.parameters, strict=True)):
        return Result("a resumed run differs from an unbroken one", traits)
    net.train(optimizer, range(2 * STEPS, 5 * STEPS))  # some start with steps of size 0, such as RAdam
    if not all(bool(torch.isfinite(weight).all()) for weight in net.parameters):
        return Result("its weights are not finite after a few steps", traits)
    if all(torch.equal(weight, initial) for weight, initial in zip(net.parameters, before, strict=True)):
        return Result("it moves nothing", traits)
    return Result("", traits)


def _first_line(error: Exception) -> str:
    """Return the first line of an error, without memory addresses, at most 160 characters."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = re.sub(r"0x[0-9a-f]+", "...", text)
    return text if len(text) <= 160 else text[:157] + "..."
