"""Measures whether this CPU computes faster in fp32 or bf16, once for each CPU, number of threads and version of torch.

CPU flags do not tell: some CPUs support bf16, but are slower with it. The result is stored in a file.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from core.record import atomic, machine
from core.record.bounded_json import read_json_object
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError
from core.record.secrets import keys_file

ROUNDS = 5
HOPELESS = 3.0  # a type that is this many times slower in the first round is not measured again
EQUAL = 1.05  # bf16 may be this many times slower, since it needs half the memory


def speeds_file() -> Path:
    """Return the path of the file of measured speeds, next to the file of keys: both belong to the machine, not to a project."""
    return keys_file().with_name("speeds.json")


def bf16_pays() -> bool:
    """Return whether a large model's matrix products and convolutions are about as fast in bf16 as in fp32 on this CPU."""
    return _bf16_pays(f"{_processor()}, {machine.threads()} threads, torch {_torch_version()}")


@cache
def _bf16_pays(key: str) -> bool:
    """Return `bf16_pays` for the CPU, threads and torch version that `key` names; measured once and stored in a file."""
    try:
        known = read_json_object(speeds_file())
    except (ProblemsError, OSError):
        known = {}
    seconds = known.get(key)
    if not (isinstance(seconds, dict) and all(isinstance(seconds.get(name), float) for name in ("fp32", "bf16"))):
        seconds = measure()
        with suppress(OSError):  # a folder that cannot be written to: measured again next time
            atomic.write_json(speeds_file(), known | {key: seconds})
    return seconds["bf16"] <= EQUAL * seconds["fp32"]


def measure() -> dict[str, float]:
    """Return {"fp32" and "bf16": seconds for the same work}. Takes about a second.

    The minimum of a few alternating rounds, since other load on the machine disturbs single ones.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(machine.threads())
    try:
        work = {"fp32": _work(torch.float32), "bf16": _work(torch.bfloat16)}
        for compute in work.values():  # the first call of each also sets things up
            compute()
        seconds = {name: _seconds(compute) for name, compute in work.items()}
        for _ in range(ROUNDS - 1 if seconds["bf16"] < HOPELESS * seconds["fp32"] else 0):
            seconds = {name: min(seconds[name], _seconds(compute)) for name, compute in work.items()}
        return seconds
    finally:
        torch.set_num_threads(before)


def _work(dtype: torch.dtype) -> Callable[[], object]:
    """Return a function that computes a matrix product and a convolution of a U-Net at 256 px, 5.2 GFLOP in total."""
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    rows, weight, image, kernel = random(1024, 1280), random(1280, 1280), random(1, 320, 32, 32), random(320, 320, 3, 3)
    return lambda: (F.linear(rows, weight), F.conv2d(image, kernel, padding=1))


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds that one call of `work` takes, without gradients."""
    start = time.perf_counter()
    with torch.no_grad():
        work()
    return time.perf_counter() - start


@cache  # a forecast asks for each of its candidates, and the list is long where there are many cores
def _processor() -> str:
    """Return the CPU's name, with whether it has bf16 in hardware, as a part of the key of measured speeds."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                # One name may stand for several processors.
                kinds = "bf16 in hardware" if machine.bf16_is_fast("cpu") else "no bf16"
                return f"{line.partition(':')[2].strip()} ({kinds})"
    return platform.processor() or platform.machine()


def _torch_version() -> str:
    return str(torch.__version__)
