"""DeepSpeed's parts of what trains, with one interface for stages 1 and 2, for stage 3, and for parts on disk.

A part is a flat tensor of fp32 master weights, with its optimizer state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    State = Mapping[str, Any]


class Shards:
    """Of stages 1 and 2: every process holds all weights, and the masters of its part."""

    def __init__(self, zero: Any, optimizer: Optimizer):
        self._zero, self._optimizer = zero, optimizer

    @property
    def masters(self) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self._zero.single_partition_of_fp32_groups
        return found

    @contextmanager
    def _here(self, number: int) -> Iterator[Tensor]:
        """Inside, this part is in memory, and what is written to it stays."""
        yield self.masters[number]

    def each(self) -> Iterator[Tensor]:
        """One part after the other, in memory while it is looked at."""
        for number in range(len(self.masters)):
            with self._here(number) as master:
                yield master

    def state_dict(self) -> list[dict[str, Any]]:
        """Copies of every part: its masters and their optimizer state."""
        found = []
        for master in self.each():
            memory = {name: _copy(value) for name, value in self._optimizer.state.get(master, {}).items()}
            found.append({"master": _copy(master), "memory": memory})
        return found

    def load(self, parts: Sequence[State]) -> None:
        """Take over such parts; ValueError where their sizes differ. The weights follow with `push`."""
        if len(parts) != len(self.masters):
            raise ValueError(f"it has {len(parts)} groups of weights, and this run {len(self.masters)}")
        for number, part in enumerate(parts):
            with self._here(number) as master:
                if master.shape != part["master"].shape:
                    raise ValueError(f"group {number + 1} has {part['master'].numel()} numbers, not {master.numel()}")
                master.data.copy_(part["master"])
                memory = part["memory"].items()
                self._optimizer.state[master] = {name: self._placed(value, master) for name, value in memory}

    def push(self) -> None:
        """Make the weights from the masters; all processes at once."""
        self._zero.update_lp_params()

    def _placed(self, value: Any, master: Tensor) -> Any:
        """The optimizer state, on its part's device; counts of steps lie in RAM unless a step is one kernel."""
        import torch

        if not isinstance(value, torch.Tensor):
            return value
        counts = value.dim() == 0 and not self._optimizer.defaults.get("fused")
        return value.detach().clone().to("cpu" if counts else master.device)


class SharedWeights(Shards):
    """Of stage 3: the weights are in parts too. Parts may lie on a disk."""

    @property
    def masters(self) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self._zero.fp32_partitioned_groups_flat
        return found

    @contextmanager
    def _here(self, number: int) -> Iterator[Tensor]:
        zero = self._zero
        on_disk = zero._swappable_optimizer_subgroup(number)
        if on_disk:
            zero._optimizer_states_and_gradient_swap_in(number)
        try:
            yield self.masters[number]
        finally:
            if on_disk:
                zero._optimizer_states_and_gradient_swap_out(number)

    def push(self) -> None:
        zero = self._zero
        zero._partition_all_parameters()
        for number in range(len(self.masters)):
            with self._here(number):
                zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _copy(value: Any) -> Any:
    import torch

    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
