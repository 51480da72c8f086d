"""Changes of color compare with their definitions."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from core.dataset.buckets.aspect_ratio import Placement
from core.dataset.images.pixels import apply_gamma, change_colors, load_pixels, shift_hue
from core.dataset.images.views import View

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.float32)
PIXELS[0, :8] = [[0, 0, 0], [255, 255, 255], [9, 9, 9], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [7, 7, 8]]


@pytest.mark.parametrize("hue", [-8, -0.37, 0.01, 3, 8, 90, 179])
def test_the_hue_turns_as_in_pythons_own_hsv(hue):
    expected = np.empty_like(PIXELS)
    for at in np.ndindex(16, 16):
        h, s, v = colorsys.rgb_to_hsv(*(float(part) / 255 for part in PIXELS[at]))
        expected[at] = np.array(colorsys.hsv_to_rgb((h + hue / 180) % 1, s, v)) * 255
    assert np.abs(shift_hue(PIXELS, hue) - expected).max() < 2e-3  # float32 of numbers up to 255


def test_a_whole_turn_and_no_turn_leave_the_image():
    assert np.abs(shift_hue(PIXELS, 180) - PIXELS).max() < 2e-3
    assert np.array_equal(change_colors(PIXELS, 0.0, 1.0), PIXELS)


@pytest.mark.parametrize("gamma", [0.95, 1.0, 1.05])
def test_values_are_raised_to_a_power_and_clipped(gamma):
    expected = np.minimum(PIXELS.astype(np.float64) ** gamma, 255)
    assert np.abs(apply_gamma(PIXELS, gamma) - expected).max() < 1e-3
    assert apply_gamma(np.float32([0, 128, 255]), 1.05).round().tolist() == [0, 163, 255]


def test_a_draw_changes_the_colors_after_the_crop_and_before_the_mirror(tmp_path):
    image = Image.fromarray(PIXELS.astype(np.uint8))
    image.save(tmp_path / "a.png")
    placement = Placement((16, 16), (8, 8), (16, 16), (2, 5))
    for hue, gamma in ((5.0, 1.0), (0.0, 1.04)):
        pixels = load_pixels(tmp_path / "a.png", View(placement, True, hue, gamma))
        cropped = PIXELS[5:13, 2:10]
        expected = change_colors(cropped, hue, gamma)[:, ::-1].transpose(2, 0, 1) / 127.5 - 1
        assert pixels.dtype == np.float32 and np.abs(pixels - expected).max() < 1e-5
        assert pixels.min() >= -1 - 1e-5 and pixels.max() <= 1 + 1e-5
