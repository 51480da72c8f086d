"""The matrix multiplication rate of this machine, the reference for all other numbers."""

from __future__ import annotations

import time

SIZE, SMALL = 2048, 512
REPEATS = 5
PATIENCE = 10.0  # seconds for all products: a processor without fp16 takes 44 s for one of [2048, 2048]


def gemm_rate(dtype: str, device: str, repeats: int = REPEATS) -> float:
    """FLOP/s of a [2048, 2048] x [2048, 2048] product: the best of several runs after a warm-up.

    Where that would take longer than `PATIENCE`, products of [512, 512] are measured instead.
    """
    took = _fastest(SMALL, dtype, device, 1)
    if took * (SIZE / SMALL) ** 3 * (repeats + 1) > PATIENCE:
        return 2 * SMALL**3 / took
    return 2 * SIZE**3 / _fastest(SIZE, dtype, device, repeats)


def _fastest(size: int, dtype: str, device: str, repeats: int) -> float:
    """Seconds of the fastest of `repeats` products after a warm-up."""
    import torch

    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for number in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        torch.mm(a, b)
        wait(device)
        if number:
            best = min(best, time.perf_counter() - started)
    return best


def wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
