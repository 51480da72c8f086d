"""Which noise level a picture is trained at."""

from __future__ import annotations

from core.record.draws import integer

from .noise import Picture


def draw_timestep(low: int, high: int, seed: int, epoch: int, picture: Picture, repeat: int) -> int:
    """A timestep from [low, high), every one as likely; addressed like the noise (see `noise.py`)."""
    return integer(low, high, seed, "timestep", epoch, picture, repeat)
