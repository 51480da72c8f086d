"""Randomness is addressed, not consumed: each draw has its own generator, keyed by its purpose.

So an image gets the same noise however many workers or processes run, wherever the run was resumed, on CPU or GPU.
"""

from __future__ import annotations

import hashlib
import random

from core.record.lazy_torch import torch


def address(seed: int, purpose: str, *key: object) -> int:
    """Return a 63-bit seed for (seed, purpose, key): the first bytes of the SHA-256 of their text.

    purpose   name of what is drawn, such as "latent"
    key       distinguishes the draws of a purpose: epoch, image, repeat ...
    """
    text = "\x1f".join(str(part) for part in (seed, purpose, *key))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") >> 1


def generator(seed: int, purpose: str, *key: object) -> torch.Generator:
    """Return a new CPU generator seeded with the `address` of (seed, purpose, key), whose arguments it takes."""
    return torch.Generator("cpu").manual_seed(address(seed, purpose, *key))


def normal(shape, seed: int, purpose: str, *key: object) -> torch.Tensor:
    """Return standard normal noise of `shape`, float32 on the CPU, from the `generator` of the other arguments, see `address`."""
    return torch.randn(tuple(shape), generator=generator(seed, purpose, *key), dtype=torch.float32)


def python_random(seed: int, purpose: str, *key: object) -> random.Random:
    """Return a new generator of Python's `random`, seeded with the `address` of its arguments."""
    return random.Random(address(seed, purpose, *key))


def integer(low: int, high: int, seed: int, purpose: str, *key: object) -> int:
    """Draw an integer, low <= value < high, from the `generator` of the other arguments, see `address`."""
    return python_random(seed, purpose, *key).randrange(low, high)


def uniform(seed: int, purpose: str, *key: object) -> float:
    """Draw a number in [0, 1) from the `generator` of its arguments, see `address`."""
    return python_random(seed, purpose, *key).random()
