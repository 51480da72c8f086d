"""Several processes that train as one: on several GPUs or machines, started by `accelerate launch`.

Each process computes its share of every batch; gradients are summed once per step. As all random draws are addressed by
image, N processes with batch size B train like one with batch size N x B. The first process owns the run folder: it
writes files, generates samples and reads commands; the others follow.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import psutil

from core.record.lazy_torch import Tensor, torch
from core.record.problems import ProblemsError

T = TypeVar("T")
SUPERVISED = "ATELIER_SUPERVISED"  # set for processes launched by a page, which holds the output folder's lock
PERSON = "ATELIER_PERSON"  # set with it: whose job this is
LOOK_SECONDS = 0.5
LAUNCHED = "TORCHELASTIC_RUN_ID"  # set by accelerate launch and torchrun, which stay the parent of what they start
LAUNCHER_GONE = (
    "\nThe program that launched this training has ended, so the training stops. Resume the run to continue.\n"
)
STEP_MINUTES = 30  # timeout of a step's exchange
WAIT_DAYS = 30  # timeout for the first process, which may be paused or generating samples


def launched_processes() -> int:
    """Return how many processes were launched together, from the environment; 1 for a plain start. Needs no torch."""
    return max(int(os.environ.get("WORLD_SIZE", "1") or 1), 1)


def is_follower() -> bool:
    """Whether this is one of several launched processes but not the first, which alone logs and checks. Needs no torch."""
    return launched_processes() > 1 and os.environ.get("RANK", "0") != "0"


def check_launch() -> None:
    """Raise ProblemsError if `accelerate launch` was to start several processes but started one.

    Without --multi_gpu it does so silently on a CPU or a single GPU: it sets only the group's address in the environment.
    """
    alone = "WORLD_SIZE" not in os.environ
    if alone and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        what = "accelerate launch started only one of several processes"
        fix = "add --multi_gpu to accelerate launch, also on a CPU, or leave out --num_processes"
        raise ProblemsError.one(what, "command line", fix, "launch.one-process")


class Processes:
    """Communication between the processes of a training: here of a single one, which exchanges nothing. `Together` is for several."""

    rank, count = 0, 1
    first = True

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of a batch. Parts differ by at most one image; the last may be empty."""
        return items

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor in place by its sum over all processes."""

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], steady: bool = True) -> None:
        """Replace each parameter's gradient by its sum over all processes; a process without that gradient adds zeros.
        steady: whether the same parameters get gradients at every step, so that which ones do is exchanged only once"""

    def broadcast(self, value: T) -> T:
        """Return the first process's value in every process."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order of rank, in every process."""
        return [value]

    def agree(self, flag: bool) -> bool:
        """Return the first process's flag in every process, which waits for it. Cheap enough for every step."""
        return flag

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Context whose body the first process runs before the others, for files that they share."""
        yield

    def close(self) -> None:
        """Leave the process group."""


class Together(Processes):
    """Communication between several processes. Gradients are exchanged by the device's backend; flags and other values through the CPU, so
    that they do not wait for the GPU. step_minutes: timeout of an exchange of gradients"""

    def __init__(self, step_minutes: float = STEP_MINUTES):
        from accelerate import PartialState

        end_with_launcher()
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=step_minutes))
        self.rank, self.count = state.process_index, state.num_processes
        self.first = self.rank == 0
        self.device = str(state.device)
        self._cpu_group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=WAIT_DAYS))
        self._used: list[bool] | None = None  # whether any process has a gradient of each parameter

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """As in `Processes`; the first processes get the larger parts."""
        size, larger = divmod(len(items), self.count)  # the first `larger` processes get one more
        begin = self.rank * size + min(self.rank, larger)
        return items[begin : begin + size + (self.rank < larger)]

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        _by_type(tensors, self._all_reduce)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], steady: bool = True) -> None:
        """As in `Processes`; gradients that no process has stay None."""
        if self._used is None or not steady:  # gradients that no process has stay None
            has_gradient = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
            self._all_reduce_on_cpu(has_gradient)
            self._used = [bool(count > 0) for count in has_gradient]
        used = [parameter for parameter, is_used in zip(parameters, self._used, strict=True) if is_used]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        _by_type([parameter.grad for parameter in used if parameter.grad is not None], self._all_reduce)

    def broadcast(self, value: T) -> T:
        values: list[Any] = [value if self.first else None]
        torch.distributed.broadcast_object_list(values, src=0, group=self._cpu_group)
        return values[0]

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value, group=self._cpu_group)
        return values

    def agree(self, flag: bool) -> bool:
        tensor = torch.tensor([flag], dtype=torch.uint8)
        torch.distributed.broadcast(tensor, src=0, group=self._cpu_group)
        return bool(tensor.item())

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        if not self.first:
            torch.distributed.barrier(group=self._cpu_group)
        try:
            yield
        finally:
            if self.first:
                torch.distributed.barrier(group=self._cpu_group)

    def close(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _all_reduce(self, flat: Tensor) -> None:
        torch.distributed.all_reduce(flat)

    def _all_reduce_on_cpu(self, flat: Tensor) -> None:
        torch.distributed.all_reduce(flat, group=self._cpu_group)


def _by_type(tensors: Sequence[Tensor], reduce: Callable[[Tensor], None]) -> None:
    """Call `reduce` on one flat tensor per dtype and device, which it changes in place, and copy the results back into `tensors`. Each
    exchange costs a round trip, so there are as few as possible."""
    types = dict.fromkeys((tensor.dtype, tensor.device) for tensor in tensors)
    for dtype, device in types:
        group = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == (dtype, device)]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        reduce(flat)
        sizes = [tensor.numel() for tensor in group]
        torch._foreach_copy_(group, [part.view_as(like) for part, like in zip(flat.split(sizes), group, strict=True)])


# ---- a killed launcher notifies no one

_launchers: list[psutil.Process | None] = []  # of this process: its launcher, and the page that launched it


def end_with_launcher() -> None:
    """Start a thread that ends this process once its launcher, or the page that launched it, is gone.

    It ends as by `kill -9`: files are complete or absent, and the newest state can be resumed.
    """
    pids = [os.getppid()] if LAUNCHED in os.environ else []
    if page := os.environ.get(SUPERVISED):
        pids.append(int(page))
    if pids:
        _launchers[:] = _processes_of(pids)
        threading.Thread(target=_watch, args=(_launchers,), name="launcher", daemon=True).start()


def end_if_launcher_gone() -> None:
    """End this process if its launcher is gone. Called when another process of the group is lost, which may have noticed that earlier."""
    if any(_gone(process) for process in _launchers):
        _end()


def _processes_of(pids: Sequence[int]) -> list[psutil.Process | None]:
    """Return a psutil.Process for each pid; None for a process that no longer exists."""
    processes: list[psutil.Process | None] = []
    for pid in pids:
        try:
            processes.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            processes.append(None)
    return processes


def _watch(processes: Sequence[psutil.Process | None]) -> None:
    """Wait until one of `processes` is gone, then end this process."""
    while not any(_gone(process) for process in processes):
        time.sleep(LOOK_SECONDS)
    _end()


def _end() -> None:
    """End this process at once with code 1; the first of a group prints why."""
    if not is_follower():
        os.write(2, LAUNCHER_GONE.encode())
    os._exit(1)


def _gone(process: psutil.Process | None) -> bool:
    """Whether a process has ended; True for None."""
    try:
        return process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
