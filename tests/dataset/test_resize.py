"""The filters against closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.dataset.images.resize import area_average, resize

FILTERS = ["auto", "lanczos", "nearest", "bilinear", "bicubic", "area", "box"]


def ramp(width: int, height: int) -> Image.Image:
    """A gray that grows by 2 a pixel from left to right."""
    return Image.fromarray(np.repeat(2 * np.arange(width, dtype=np.uint8)[None], height, 0)).convert("RGB")


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(37, 53), (90, 20), (200, 111), (64, 48)])
def test_a_flat_image_stays_flat_at_exactly_the_size(interpolation, mode, size):
    color = (10, 93, 240) if mode == "RGB" else 93
    out = resize(Image.new(mode, (64, 48), color), size, interpolation)
    assert out.mode == mode and out.size == size
    assert (np.asarray(out) == color).all()


@pytest.mark.parametrize("interpolation", ["lanczos", "bilinear", "bicubic", "area", "box"])
def test_half_the_size_of_a_ramp_is_the_ramp_at_the_new_centers(interpolation):
    """New pixel j is centerd on 2 j + 0.5 of the old ones, where the ramp is 4 j + 1; every symmetric filter gives it."""
    out = np.asarray(resize(ramp(100, 20), (50, 10), interpolation))[5, 5:-5, 0].astype(int)
    assert np.abs(out - (4 * np.arange(5, 45) + 1)).max() <= 1


def test_bilinear_enlarges_by_the_straight_line_between_centers():
    """Centers of the new pixels lie at (j + 0.5) / 2 - 0.5 old ones: a quarter and three quarters between neighbors."""
    image = Image.fromarray(np.array([[0, 100, 200]], np.uint8))
    assert np.asarray(resize(image, (6, 1), "bilinear")).tolist() == [[0, 25, 75, 125, 175, 200]]


def test_area_enlarges_by_shares_too():
    """3 -> 5 pixels: the second covers 0.6 to 1.2, two parts of the first and one of the second."""
    image = Image.fromarray(np.array([[0, 90, 180]], np.uint8))
    assert np.asarray(resize(image, (5, 1), "area")).tolist() == [[0, 30, 90, 150, 180]]


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 60), m=st.integers(1, 60))
def test_nearest_takes_the_pixel_that_the_new_center_falls_into(n, m):
    line = Image.fromarray(np.arange(n, dtype=np.uint8)[None])
    found = np.asarray(resize(line, (m, 1), "nearest"))[0].astype(int)
    twice = (2 * np.arange(m) + 1) * n  # the center, in halves of a new pixel; where two are equally near, either
    assert ((twice >= 2 * m * found) & (twice <= 2 * m * (found + 1))).all()


def test_area_that_enlarges_is_that_of_opencv():
    """cv2.INTER_AREA of 0, 40, 200 to 5 and 7 pixels."""
    line = Image.fromarray(np.array([[0, 40, 200]], np.uint8))
    assert np.asarray(resize(line, (5, 1), "area"))[0].tolist() == [0, 13, 40, 147, 200]
    assert np.asarray(resize(line, (7, 1), "area"))[0].tolist() == [0, 0, 27, 40, 93, 200, 200]


def test_nearest_invents_no_color():
    image = Image.fromarray(np.random.default_rng(0).choice([0, 255], (31, 17, 3)).astype(np.uint8))
    for size in ((64, 64), (9, 13), (17, 5)):
        assert set(np.unique(np.asarray(resize(image, size, "nearest")))) <= {0, 255}


def test_shrinking_a_fine_pattern_by_bilinear_gives_its_mean_and_no_flicker():
    """Columns of 0 and 255 in turn at a quarter of the size: taking single neighbors (OpenCV) gives stripes."""
    columns = np.tile(np.array([0, 255], np.uint8), (40, 40))
    out = np.asarray(resize(Image.fromarray(columns), (20, 10), "bilinear")).astype(int)
    assert np.abs(out[:, 2:-2] - 127.5).max() < 3


def test_auto_is_area_to_shrink_and_lanczos_to_enlarge():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    assert np.array_equal(resize(image, (30, 11)), area_average(np.asarray(image), (30, 11)))
    assert np.array_equal(resize(image, (31, 11)), image.resize((31, 11), Image.Resampling.LANCZOS))
