"""Memory of weights, gradients and optimizer state with DeepSpeed, by ZeRO stage, number of processes and offload device.

Rajbhandari et al. 2020 (arXiv:1910.02054), section 5, plus an fp32 gradient during the step, and buffers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.record.processes import launched_processes
from core.settings.sharding import ShardingSettings

if TYPE_CHECKING:
    from core.settings.job import TrainJob

LARGEST_BUCKET = 50_000_000  # numbers reduced at once
DISK_GROUP = 100_000_000  # numbers read from disk at once
DISK_BUFFERS = 5  # of a disk group: weight, gradient, two states of Adam, one in transfer
GATHERED = 80_000_000  # numbers of the layers that stage 3 gathers at once: 50 million ahead, and the largest layer
FP32 = 4


@dataclass(frozen=True)
class TrainedSizes:
    """Sizes of a training before sharding.

    trained   number of trained weights
    item      bytes of a trained weight in the compute dtype
    model     bytes of all loaded parts of the model
    states    fp32 values of optimizer state for each trained weight
    """

    trained: int
    item: int
    model: int
    states: float


@dataclass(frozen=True)
class ProcessSizes:
    """Bytes on the GPU of one process.

    optimizer        optimizer state and fp32 master weights
    gathered         layers that a pass gathers at once
    between_passes   extra bytes between passes: all weights, gathered for a file or sample; the temporary tensors of an optimizer
                     step; or a model before it is cast to fp8
    memory, disk     offloaded to RAM and disk, of all processes on this machine
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int = 0
    between_passes: int = 0
    memory: int = 0
    disk: int = 0


def process_sizes(
    settings: ShardingSettings, sizes: TrainedSizes, processes: int, local_processes: int
) -> ProcessSizes:
    """Return the bytes of one process with DeepSpeed.

    processes         number of all processes
    local_processes   number of processes on this machine
    """
    trained, stage, shard = sizes.trained, settings.zero_stage, sizes.trained / processes
    bucket = min(LARGEST_BUCKET, trained) * sizes.item
    # Stage 3 updates fp32 weights in place.
    in_place = stage == 3 and sizes.item == FP32 and settings.offload_optimizer_device is None
    master = 2 if settings.fp16_master_weights_and_gradients else FP32
    updated = (0 if in_place else master) + FP32 * sizes.states
    summed = sizes.item * (trained if stage == 1 else shard)  # gradients, accumulated until the step
    optimizer, gradients = updated * shard, summed + FP32 * shard + bucket
    memory = disk = 0.0
    if settings.offload_optimizer_device is not None:
        gradients = bucket + (summed if stage == 1 else 0)
        in_ram = (sizes.item + (master if settings.offload_optimizer_device == "cpu" else 0)) * shard
        if settings.offload_optimizer_device == "cpu":
            memory += local_processes * (optimizer + in_ram)
        else:
            memory += local_processes * (in_ram + DISK_BUFFERS * FP32 * min(shard, DISK_GROUP))
            disk += local_processes * (optimizer + FP32 * shard)
        optimizer = 0
    weights, gathered, between_passes = float(sizes.model), 0.0, 0.0
    if stage == 3:
        weights /= processes
        gathered, between_passes = min(sizes.model, GATHERED * sizes.item), sizes.model
        if settings.offload_param_device == "cpu":
            memory += local_processes * weights
        elif settings.offload_param_device == "nvme":
            memory += local_processes * DISK_BUFFERS * DISK_GROUP * sizes.item
            disk += local_processes * weights
        weights = 0 if settings.offload_param_device is not None else weights
    return ProcessSizes(*map(int, (weights, gradients, optimizer, gathered, between_passes, memory, disk)))


def processes_here(job: TrainJob) -> int:
    """Return the number of the job's processes on this machine."""
    if launched_processes() > 1:
        return int(os.environ.get("LOCAL_WORLD_SIZE") or job.memory.num_processes)
    return job.memory.num_processes
