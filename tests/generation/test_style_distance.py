"""The number that tells a style: closed forms on flat images."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.style_distance import colorfulness, style_distance


def flat(*color: int, side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), color)


def test_equal_sets_are_at_distance_zero_whatever_their_sizes_and_order():
    a = [flat(255, 0, 0), flat(0, 0, 0, side=20)]
    b = [flat(0, 0, 0), flat(255, 0, 0, side=3)]
    assert style_distance(a, b) == pytest.approx(0, abs=1e-9)


def test_gray_images_differ_by_their_lightness_alone():
    assert style_distance([flat(200, 200, 200)], [flat(50, 50, 50)]) == pytest.approx(150)


def test_red_against_black_is_chroma_255_and_luminance_76():
    assert style_distance([flat(255, 0, 0)], [flat(0, 0, 0)]) == pytest.approx(255 + 76)
    assert colorfulness([flat(255, 0, 0), flat(9, 9, 9)]) == pytest.approx(127.5)


def test_contrast_counts_though_the_mean_is_the_same():
    assert style_distance([flat(0, 0, 0), flat(200, 200, 200)], [flat(100, 100, 100)]) == pytest.approx(100)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="no style"):
        style_distance([], [flat(0, 0, 0)])
