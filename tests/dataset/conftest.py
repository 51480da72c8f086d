"""Small image folders for the dataset tests."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from core.dataset.buckets.aspect_ratio import plan_buckets
from core.dataset.buckets.batches import Placed
from core.dataset.captions.files import Caption
from core.dataset.images.opening import read_header
from core.dataset.sources.image_info import ImageInfo
from core.settings.dataset.concepts import PLAIN
from core.settings.dataset.images import ImageSettings


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


@pytest.fixture
def place():
    """place(path, conditioning, control, fit, variant, **settings of its folder) -> the image in its bucket of 64 px."""

    def run(path, conditioning=None, control=None, fit="aligned", variant="", **own):
        settings = ImageSettings(**{"resolution": 64, "bucket_reso_steps": 16} | own)
        header, found = read_header(path), path.stat()
        image = ImageInfo(
            "fox",
            path.name,
            path,
            header.width,
            header.height,
            found.st_size,
            found.st_mtime_ns,
            rotated=header.rotated,
            conditioning=conditioning,
            control=control,
        )
        where = plan_buckets(settings).assign(header.width, header.height)
        caption = Caption("", "none", path.with_suffix(".txt"))
        return Placed(image, where, caption, replace(PLAIN, images=settings, control_fit=fit), variant)

    return run
