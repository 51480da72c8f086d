"""Small image folders for the dataset tests."""

import numpy as np
import pytest
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def add(tmp_path):
    """add("sub/a.png", 64, 48) writes an image of noise below tmp_path and returns its path."""

    def write(name: str, width: int = 64, height: int = 48, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(width, height, seed=len(name)).save(path, **options)
        return path

    return write
