"""Warns when a GPU's memory is full and steps are slow. On Windows the driver then moves memory to RAM without an error (NVIDIA's CUDA
sysmem fallback), and a step can take ten times as long."""

from __future__ import annotations

import platform
import statistics
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf, prod
from typing import TYPE_CHECKING, NamedTuple

from core.record.lazy_torch import torch
from core.record.problems import Problem
from core.record.units import memory_text
from core.training.memory.advice import out_of_memory_advice

if TYPE_CHECKING:
    from core.dataset.buckets.batches import PlannedBatch
    from core.record.context import JobContext
    from core.settings.job import TrainJob

SLOWER = 2.5  # times the usual seconds of a step
ENOUGH = 5  # slow steps for a warning, and steps for a usual time
RECENT = 50  # steps of a size whose median is its usual time
RECOVERED = 20  # steps at the usual speed that end a slow episode
LOOK_STEPS = 50  # between readings of the memory while no step is slow
FULL = 0.03  # free fraction of a GPU below which it is full
DEFAULT_ADVICE = "turn on gradient checkpointing, lower the batch size or the resolution, or use bf16"

Size = tuple[int, ...]  # width, height and images of a step's largest micro-batch


class Reading(NamedTuple):
    """Memory of a GPU in bytes.

    reserved   by torch's allocator
    retries    number of allocations so far for which torch had to free its cache
    """

    free: int
    total: int
    reserved: int
    retries: int = 0


def read_memory(device: str) -> Reading:
    """Return the GPU's memory as reported by the driver and torch's allocator. Does not wait for the GPU's work."""
    (free, total), stats = torch.cuda.mem_get_info(device), torch.cuda.memory_stats(device)
    return Reading(free, total, stats.get("reserved_bytes.all.current", 0), stats.get("num_alloc_retries", 0))


class SpillGuard:
    """Finds slow episodes while the GPU's memory is full.

    A step is slow if it takes SLOWER times as long per pixel as the median of the run's steps of its size, or of all sizes while there
    are few of its size. The first step of each size warms up and does not count.

    read         returns the GPU's memory; called every LOOK_STEPS steps, and every ENOUGH while steps are slow or torch has reserved
                 more than the GPU has
    advise       returns settings that lower memory as a text, or ""
    empty_cache  frees the memory that torch reserves for batches of other sizes; called after a reading if memory is full. Torch frees
                 it by itself when an allocation fails, but none fails while the driver moves memory to RAM.
    """

    def __init__(self, read: Callable[[], Reading], advise: Callable[[], str], empty_cache: Callable[[], None]):
        self._read, self._advise, self._empty_cache = read, advise, empty_cache
        self._queued: list[tuple[Size, int]] = []  # size and pixels of steps that the GPU may not have finished
        self._seconds = 0.0  # of these
        self._usual: dict[Size, deque[float]] = {}  # seconds per pixel of steps at the usual speed
        self._slow: dict[Size, list[float]] = {}  # and of slow ones since the last of that size at the usual speed
        self._since_reading, self._since_slow = LOOK_STEPS - ENOUGH, 0  # steps
        self._retries, self._over, self._warned = 0, 0, False  # over: readings in a row of more than the GPU has

    def add(self, batches: Sequence[PlannedBatch], seconds: float, finished: int | None) -> Problem | None:
        """Record a step's micro-batches and seconds; return a warning, once for each slow episode, or None.
        finished: number of steps whose losses were read back after this step, which waits for the GPU; None if nothing was read"""
        pixels = [prod(batch.bucket) * len(batch) for batch in batches]
        largest = batches[pixels.index(max(pixels))]
        self._queued.append(((*largest.bucket, len(largest)), sum(pixels)))
        self._seconds += seconds
        if finished is None:
            return None
        steps, rate = self._queued, self._seconds / sum(pixels for _, pixels in self._queued)
        self._queued, self._seconds = [], 0.0
        if len(steps) != finished:  # some were skipped, or finished during a save, which is not measured
            return None
        slow = [step for step in steps if self._is_slow(step[0], rate)]
        self._since_slow = 0 if slow else self._since_slow + len(steps)
        self._since_reading += len(steps)
        self._warned = self._warned and self._since_slow < RECOVERED
        slow = slow if sum(map(len, self._slow.values())) >= ENOUGH else []
        interval = ENOUGH if slow or self._over else LOOK_STEPS
        return self._check_memory(slow) if self._since_reading >= interval else None

    def _is_slow(self, size: Size, rate: float) -> bool:
        """Return whether a step of this size is slow at `rate` seconds per pixel; add the rate to the statistics of the size."""
        if size not in self._usual:
            self._usual[size] = deque(maxlen=RECENT)
            return False
        if rate >= SLOWER * self._usual_rate(size):
            self._slow.setdefault(size, []).append(rate)
            return True
        self._slow.pop(size, None)
        self._usual[size].append(rate)
        return False

    def _usual_rate(self, size: Size) -> float:
        """Return the usual seconds per pixel of steps of this size; infinity while there are too few steps to tell."""
        rates = list(self._usual[size])
        if len(rates) < ENOUGH:
            rates = [rate for each in self._usual.values() for rate in each]
        return statistics.median(rates) if len(rates) >= ENOUGH else inf  # where nothing is slow

    def _check_memory(self, slow: Sequence[tuple[Size, int]]) -> Problem | None:
        """Read the GPU's memory and empty torch's cache if memory is full; return the warning, once for each slow episode, else None.
        slow: (size, pixels) of each slow step since the last reading of losses"""
        reading, self._since_reading = self._read(), 0
        retried, self._retries = reading.retries > self._retries, reading.retries
        self._over = self._over + 1 if reading.reserved > reading.total else 0
        slow_and_full = bool(slow) and (self._over > 0 or retried or reading.free < FULL * reading.total)
        if slow_and_full or self._over:
            self._empty_cache()
        if self._warned or not (slow_and_full or self._over == 2):  # twice: samples may have left a large cache
            return None
        self._warned = True
        reserved, total = memory_text(reading.reserved), memory_text(reading.total)
        what = (
            f"This training uses {reserved} and the GPU has {total}: the driver moves data to RAM, and steps are slow"
        )
        if slow:
            size, pixels = slow[-1]
            now, usual = (pixels * rate for rate in (statistics.median(self._slow[size]), self._usual_rate(size)))
            moves = self._over or sys.platform == "win32" or "microsoft" in platform.release().lower()  # WSL
            what = f"GPU memory is full{', so the driver moves data to RAM' if moves else ''}"
            what += f": a step takes {now:.2f} s instead of {usual:.2f} s"
        advice = self._advise() or DEFAULT_ADVICE
        fix = f"close other programs that use the GPU, or stop and train with less memory: {advice}"
        return Problem(what, "", fix, "warning", code="memory.spill")


def spill_guard(job: TrainJob, context: JobContext) -> SpillGuard | None:
    """Return the spill guard of a run; None on devices other than CUDA, and in processes other than the first."""

    if not (context.device.startswith("cuda") and context.processes.first):
        return None
    advise = partial(out_of_memory_advice, job, context)
    return SpillGuard(partial(read_memory, context.device), advise, torch.cuda.empty_cache)
