"""The matrix multiplication rate of this machine, the reference for all other numbers."""

from __future__ import annotations

import time

SIZE = 2048
REPEATS = 5


def gemm_rate(dtype: str, device: str, repeats: int = REPEATS) -> float:
    """FLOP/s of a [2048, 2048] x [2048, 2048] product in "float32" or "bfloat16": the best of several runs after a warm-up."""
    import torch

    kind = getattr(torch, dtype)
    a, b = (torch.randn(SIZE, SIZE, device=device).to(kind) for _ in range(2))
    best = float("inf")
    for number in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        torch.mm(a, b)
        wait(device)
        if number:
            best = min(best, time.perf_counter() - started)
    return 2 * SIZE**3 / best


def wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
