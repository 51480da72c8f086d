"""Addressed random numbers for optimizers, so that a resumed run draws the same."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from core.record.draws import address
from core.record.lazy_torch import torch

if TYPE_CHECKING:
    from torch.optim import Optimizer

STEP = "draws_step"  # in the first group, and so in the saved state: steps taken


def seed_steps(optimizer: Optimizer, seed: int) -> None:
    """Make every optimizer step seed the process's random generators by (seed, step) and restore them afterwards. For libraries that use
    the global generators; all other random numbers are addressed (core/record/draws.py)."""
    optimizer.param_groups[0].setdefault(STEP, 0)
    snapshots: list[Any] = []

    def before(optimizer: Optimizer, *_: Any) -> None:
        snapshots[:] = [_snapshot()]
        seed_globally(address(seed, "optimizer", optimizer.param_groups[0][STEP]) % 2**32)

    def after(optimizer: Optimizer, *_: Any) -> None:
        optimizer.param_groups[0][STEP] += 1
        _restore(snapshots.pop())

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def seed_globally(seed: int) -> None:
    """Seed the generators of torch on every device, Python and numpy. seed: 0 to 2**32 - 1"""
    import numpy

    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)


def global_state() -> tuple[bytes, Any, str]:
    """Return the states of torch's CPU generator, Python's and numpy's, to detect whether one was used."""
    import numpy

    return bytes(torch.get_rng_state().numpy()), random.getstate(), str(numpy.random.get_state())


def _snapshot() -> tuple[Any, ...]:
    """Return the states of all global random generators, for `_restore`."""
    import numpy

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state(), cuda


def _restore(state: tuple[Any, ...]) -> None:
    import numpy

    torch.set_rng_state(state[0])
    random.setstate(state[1])
    numpy.random.set_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state_all(state[3])
