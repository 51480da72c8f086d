"""Which noise level an image is trained at."""

from __future__ import annotations

from core.record.draws import integer

from .noise import ImageInfo


def draw_timestep(low: int, high: int, seed: int, epoch: int, image: ImageInfo, repeat: int) -> int:
    """A timestep from [low, high), every one as likely, or `high` where low is not below it, as in sd-scripts 0.10;
    addressed like the noise (see `noise.py`)."""
    if low >= high:
        return high
    return integer(low, high, seed, "timestep", epoch, image, repeat)
