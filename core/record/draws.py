"""Randomness is addressed, not consumed: each draw has its own generator, keyed by its purpose.

So an image gets the same noise however many workers or processes run, wherever the run was resumed, on CPU or GPU.
"""

from __future__ import annotations

import hashlib
import random

from core.record.lazy_torch import torch


def address(seed: int, purpose: str, *key: object) -> int:
    """A 63-bit number that identifies (seed, purpose, key): the first bytes of SHA-256 of the joined words."""
    text = "\x1f".join(str(part) for part in (seed, purpose, *key))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") >> 1


def generator(seed: int, purpose: str, *key: object) -> torch.Generator:
    """A fresh CPU generator for this address."""
    return torch.Generator("cpu").manual_seed(address(seed, purpose, *key))


def normal(shape, seed: int, purpose: str, *key: object) -> torch.Tensor:
    """Standard normal draws, float32 on the CPU, of `shape`."""
    return torch.randn(tuple(shape), generator=generator(seed, purpose, *key), dtype=torch.float32)


def python_random(seed: int, purpose: str, *key: object) -> random.Random:
    """Python's generator for this address: shuffles, choices, single numbers."""
    return random.Random(address(seed, purpose, *key))


def integer(low: int, high: int, seed: int, purpose: str, *key: object) -> int:
    """One integer, low <= value < high."""
    return python_random(seed, purpose, *key).randrange(low, high)


def uniform(seed: int, purpose: str, *key: object) -> float:
    """One number in [0, 1)."""
    return python_random(seed, purpose, *key).random()
