"""Where DeepSpeed keeps weights, gradients and optimizer state: bytes by ZeRO stage, processes and device.

Rajbhandari et al. 2020 (arXiv:1910.02054), section 5, with what DeepSpeed holds besides: a gradient in fp32 for the step,
and buffers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.record.processes import launched_processes
from core.settings.sharding import ShardingSettings

if TYPE_CHECKING:
    from core.settings.job import TrainJob

LARGEST_BUCKET = 50_000_000  # numbers that travel at once
DISK_GROUP = 100_000_000  # numbers that come from a disk at once
DISK_BUFFERS = 5  # each of a disk group: weight, gradient, two memories of Adam, one on the way
GATHERED = (
    80_000_000  # numbers of the layers that lie whole at once in stage 3: 50 million ahead, and the largest layer
)
FP32 = 4


@dataclass(frozen=True)
class ToShare:
    """What there is to share. item: bytes of a number that trains, as it computes; model: bytes of all parts of the model
    that take part; states: fp32 numbers that the optimizer keeps for each."""

    trained: int
    item: int
    model: int
    states: float


@dataclass(frozen=True)
class Places:
    """Bytes. weights, gradients, optimizer, gathered, whole: on the GPU of one process; memory, disk: of all processes
    on this machine.

    optimizer   with the fp32 weights that it moves     gathered   layers that a pass has whole at once
    whole       what is there between passes: all weights, as a file or a sample gathers them, what a step takes, or
                what is loaded before it is made narrow
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int = 0
    whole: int = 0
    memory: int = 0
    disk: int = 0


def places(settings: ShardingSettings, given: ToShare, processes: int, here: int) -> Places:
    """With DeepSpeed on. here: how many of the processes this machine has."""
    trained, stage, mine = given.trained, settings.zero_stage, given.trained / processes
    bucket = min(LARGEST_BUCKET, trained) * given.item
    # Stage 3 moves weights that are fp32 already where they lie.
    in_place = stage == 3 and given.item == FP32 and settings.offload_optimizer_device is None
    master = 2 if settings.fp16_master_weights_and_gradients else FP32
    moved = (0 if in_place else master) + FP32 * given.states
    kept = given.item * (trained if stage == 1 else mine)  # gradients, added up until the step
    optimizer, gradients = moved * mine, kept + FP32 * mine + bucket
    memory = disk = 0.0
    if settings.offload_optimizer_device is not None:
        gradients = bucket + (kept if stage == 1 else 0)
        beside = (given.item + (master if settings.offload_optimizer_device == "cpu" else 0)) * mine
        if settings.offload_optimizer_device == "cpu":
            memory += here * (optimizer + beside)
        else:
            memory += here * (beside + DISK_BUFFERS * FP32 * min(mine, DISK_GROUP))
            disk += here * (optimizer + FP32 * mine)
        optimizer = 0
    weights, gathered, whole = float(given.model), 0.0, 0.0
    if stage == 3:
        weights /= processes
        gathered, whole = min(given.model, GATHERED * given.item), given.model
        if settings.offload_param_device == "cpu":
            memory += here * weights
        elif settings.offload_param_device == "nvme":
            memory += here * DISK_BUFFERS * DISK_GROUP * given.item
            disk += here * weights
        weights = 0 if settings.offload_param_device is not None else weights
    return Places(*map(int, (weights, gradients, optimizer, gathered, whole, memory, disk)))


def processes_here(job: TrainJob) -> int:
    """How many of the job's processes run on this machine."""
    if launched_processes() > 1:
        return int(os.environ.get("LOCAL_WORLD_SIZE") or job.memory.num_processes)
    return job.memory.num_processes
