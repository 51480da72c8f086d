"""DeepSpeed's partitions of the trained weights, with one interface for ZeRO stages 1 and 2, stage 3, and offloading to disk.

A partition is a flat tensor of fp32 master weights with its optimizer state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from core.record.lazy_torch import Tensor, torch

if TYPE_CHECKING:
    from torch.optim import Optimizer

    State = Mapping[str, Any]


class Shards:
    """Partitions of ZeRO stages 1 and 2: each process holds all weights, and the master weights of its partition.
    zero: DeepSpeed's ZeRO optimizer"""

    def __init__(self, zero: Any, optimizer: Optimizer):
        self._zero, self._optimizer = zero, optimizer

    @property
    def masters(self) -> Sequence[Tensor]:
        """Flat fp32 master weights of this process's partition, one tensor for each parameter group."""
        groups: Sequence[Tensor] = self._zero.single_partition_of_fp32_groups
        return groups

    @contextmanager
    def _loaded(self, number: int) -> Iterator[Tensor]:
        """A context that provides partition `number`, loaded to memory; changes to it are kept."""
        yield self.masters[number]

    def each(self) -> Iterator[Tensor]:
        """Yield the master weights of each partition, loaded to memory only while it is used."""
        for number in range(len(self.masters)):
            with self._loaded(number) as master:
                yield master

    def state_dict(self) -> list[dict[str, Any]]:
        """Return {"master": master weights, "memory": optimizer state} of each partition, copied to the CPU."""
        parts = []
        for master in self.each():
            memory = {name: _copy(value) for name, value in self._optimizer.state.get(master, {}).items()}
            parts.append({"master": _copy(master), "memory": memory})
        return parts

    def load(self, parts: Sequence[State]) -> None:
        """Load the partitions of `state_dict`; `push` then updates the weights. Raises ValueError if sizes differ."""
        if len(parts) != len(self.masters):
            raise ValueError(f"it has {len(parts)} groups of weights, and this run {len(self.masters)}")
        for number, part in enumerate(parts):
            with self._loaded(number) as master:
                if master.shape != part["master"].shape:
                    raise ValueError(f"group {number + 1} has {part['master'].numel()} numbers, not {master.numel()}")
                master.data.copy_(part["master"])
                memory = part["memory"].items()
                self._optimizer.state[master] = {name: self._placed(value, master) for name, value in memory}

    def push(self) -> None:
        """Copy the master weights to the model's weights. All processes must call it together."""
        self._zero.update_lp_params()

    def _placed(self, value: Any, master: Tensor) -> Any:
        """Return a copy of a value of the optimizer state on the device of `master`; values that are no tensors unchanged.

        A 0-d tensor (a step count) is copied to the CPU, unless the optimizer is fused.
        """
        if not isinstance(value, torch.Tensor):
            return value
        counts = value.dim() == 0 and not self._optimizer.defaults.get("fused")
        return value.detach().clone().to("cpu" if counts else master.device)


class SharedWeights(Shards):
    """Partitions of ZeRO stage 3, which partitions the weights too and may offload partitions to disk."""

    @property
    def masters(self) -> Sequence[Tensor]:
        """Flat fp32 master weights of this process's partition, one tensor for each sub-group of stage 3."""
        groups: Sequence[Tensor] = self._zero.fp32_partitioned_groups_flat
        return groups

    @contextmanager
    def _loaded(self, number: int) -> Iterator[Tensor]:
        """A context that provides partition `number`; if it is offloaded to disk, it is read before and written back after."""
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
        """Copy the master weights to the model's weights and gather those that each process keeps whole."""
        zero = self._zero
        zero._partition_all_parameters()
        for number in range(len(self.masters)):
            with self._loaded(number):
                zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _copy(value: Any) -> Any:
    """Return a copy of a tensor on the CPU, other values unchanged."""
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
