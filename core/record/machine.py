"""The machine: devices, memory, CPU features. Imports torch only where needed, so that the page starts fast."""

import os
import re
import sys
from functools import cache
from pathlib import Path

import psutil

from core.record.lazy_torch import torch
from core.record.problems import ProblemsError

# Bytes of torch, its libraries and the driver's context; the share of memory that the allocator cuts off.
RUNTIME_BYTES = {"cuda": 600 << 20, "cpu": 550 << 20}
CUT_OFF = 0.03


def default_device() -> str:
    """Return "cuda", "mps" or "cpu", the best device that torch can use."""
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def check_device(device: str, *, exists: bool = True) -> None:
    """Raise ProblemsError if `device` is not a valid name; with `exists` also if torch does not have it."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", device):
        what = f"'{device}' is not a device"
        raise ProblemsError.one(what, "--device", "use cpu, cuda, cuda:1 or mps, or leave it out", "device.unknown")
    if not exists or device == "cpu":
        return
    kind, _, number = device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
    if int(number or 0) >= count:
        available = f"torch found {count}" if count else "torch found none"
        what = f"The device '{device}' does not exist ({available})"
        raise ProblemsError.one(what, "--device", "leave it out, or use cpu", "device.missing")


def threads() -> int:
    """Return the number of CPU threads to compute with: the first number in OMP_NUM_THREADS, else the available cores."""
    match = re.match(r"\s*([1-9]\d{0,3})\b", os.environ.get("OMP_NUM_THREADS", ""))
    return int(match[1]) if match else cores()


def cores() -> int:
    """Return the number of CPU cores available to this process."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def device_title(device: str) -> str:
    """Return a display name: "CPU, 2 cores", "Apple GPU", or a CUDA GPU's model name once torch is loaded (else `device`)."""
    if device.startswith("cpu"):
        return f"CPU, {cores()} cores"
    if device.startswith("cuda") and "torch" in sys.modules:
        return torch.cuda.get_device_name(device)
    return {"mps": "Apple GPU"}.get(device, device)


@cache
def bf16_is_fast(device: str) -> bool:
    """Whether bf16 runs in hardware: AMX or AVX-512 bf16 on a CPU, compute capability 8 and up on CUDA."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    if not device.startswith("cpu"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def memory(device: str) -> tuple[int, int]:
    """Return (bytes used, total bytes): VRAM of a CUDA device once torch is loaded; otherwise this process's resident memory and the
    machine's RAM."""
    if device.startswith("cuda") and "torch" in sys.modules:
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    return psutil.Process().memory_info().rss, psutil.virtual_memory().total


def available_memory(device: str) -> int:
    """Return the bytes available to a job: free VRAM plus torch's unused cache on CUDA, else available RAM."""
    if device.startswith("cuda"):
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def synchronize(device: str) -> None:
    """Wait until a CUDA device has finished its queued work, so that it can be timed; does nothing for other devices."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def gpu_memory(device: str) -> int:
    """Return the total VRAM of a GPU in bytes (of an Apple GPU, which shares it: the machine's RAM); 0 for a CPU."""
    return 0 if device.startswith("cpu") else memory(device)[1]


def free_disk(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return psutil.disk_usage(str(folder)).free
