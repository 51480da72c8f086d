"""The preprocessors, by their formulas and against what OpenCV makes."""

import hashlib
import math

import numpy as np
import pytest
from PIL import Image

from core.control.hints import make_hint, preprocessors, unused_settings
from core.control.hints.edges import canny
from core.control.hints.random_parts import random_mask
from core.settings.hints import HintSettings

OTHER = {
    "edge_low": 20, "edge_high": 60, "edge_blur": 4.0, "edge_gain": 1.0, "line_width": 9, "blur_radius": 2.0,
    "tile_factor": 9.0, "mask_share": 0.6, "hint_seed": 5,
}  # fmt: skip


def gray_image(height=97, width=131):
    """Blocks whose steps are of every contrast, over slopes."""
    rows, columns = np.mgrid[0:height, 0:width]
    blocks = (columns // 9 * 37 + rows // 11 * 59 + columns // 9 * (rows // 11) * 23) % 151
    return (blocks + abs(columns - rows) // 2 + 20).astype(np.uint8)


def rgb_image(height=97, width=131):
    gray = gray_image(height, width)
    return np.stack([gray, gray[::-1], 255 - gray], axis=2)


def made(name, image, **own):
    return make_hint(image, HintSettings(preprocessor=name, **own))


def as_gray_rgb(gray):
    return np.repeat(gray[..., None], 3, axis=2)


@pytest.mark.parametrize("name", [*preprocessors()])
@pytest.mark.parametrize("size", [(97, 131), (64, 64), (1, 1), (1, 40), (3, 2)])
def test_each_makes_an_rgb_image_of_the_same_size_and_leaves_its_input(name, size):
    image = rgb_image(*size)
    before = image.copy()
    hint = made(name, image)
    assert (hint.dtype, hint.shape) == (np.uint8, (*size, 3)) and np.array_equal(image, before)
    assert np.array_equal(hint, made(name, image))


@pytest.mark.parametrize("name", [*preprocessors()])
def test_each_reads_the_settings_that_it_says_and_no_others(name):
    image = rgb_image()
    usual, unused = made(name, image), unused_settings({"preprocessor": name})
    assert set(OTHER) == set(HintSettings.model_fields) - {"preprocessor"}
    for setting, value in OTHER.items():
        assert np.array_equal(made(name, image, **{setting: value}), usual) == (setting in unused), setting


# What cv2.Canny of OpenCV 5.0 makes of `gray_image`: number of pixels, SHA-256 of the packed bits.
OPENCV = {
    (100, 200): (1635, "ac6af3dfc29c711c"),
    (63, 191): (1901, "072a89fc51797fcf"),
    (32, 224): (1992, "732824d74d2f11a5"),
    (10, 30): (2009, "948426650d894dba"),
}


@pytest.mark.parametrize("thresholds", OPENCV)
def test_canny_edges_are_those_of_opencv_white_on_black(thresholds):
    low, high = thresholds
    hint = made("canny", as_gray_rgb(gray_image()), edge_low=low, edge_high=high)
    assert set(np.unique(hint)) == {0, 255} and np.array_equal(hint[..., 0], hint[..., 2])
    edges = hint[..., 0] > 0
    bits = hashlib.sha256(np.packbits(edges).tobytes()).hexdigest()[:16]
    assert (int(edges.sum()), bits) == OPENCV[thresholds]


def test_edges_of_a_square_are_its_outline():
    gray = np.zeros((40, 40), np.float32)
    gray[10:30, 10:30] = 200
    edges = canny(gray, 32, 224)
    rows, columns = np.nonzero(edges)
    assert rows.min() in (9, 10) and rows.max() in (29, 30) and columns.min() in (9, 10) and columns.max() in (29, 30)
    assert 70 <= edges.sum() <= 80 and not edges[12:28, 12:28].any()  # one pixel wide


def test_weak_edges_count_only_where_a_strong_one_leads_to_them():
    gray = np.zeros((20, 60), np.float32)
    gray[10:] = np.linspace(10, 100, 60, dtype=np.float32)  # the step grows from left to right: 4 x 10 to 4 x 100
    assert canny(gray, 32, 350).sum() > 50
    assert canny(gray[:, :45], 32, 350).sum() == 0
    assert canny(gray[:, :45], 32, 200).sum() > 40


@pytest.mark.parametrize(("step", "gain", "blur"), [(100, 1, 2.0), (60, 2, 3.0), (40, 4, 1.5)])
def test_a_soft_edge_is_as_bright_as_its_step_times_the_strength(step, gain, blur):
    gray = np.full((40, 80), 50, np.uint8)
    gray[:, 40:] += step
    line = made("soft_edges", as_gray_rgb(gray), edge_gain=gain, edge_blur=blur)[20, :, 0].astype(float)
    # the mean rise over the two pixels that the kernel spans, centered half a pixel off the step, over the highest rise
    share = (math.erf(1.5 / blur / math.sqrt(2)) + math.erf(0.5 / blur / math.sqrt(2))) / 4
    assert line.max() == pytest.approx(step * gain * share * blur * math.sqrt(2 * math.pi), rel=0.02)  # sampled
    assert np.array_equal(line[1:-1], line[1:-1][::-1]) and line[0] == 0


def test_lines_of_a_scribble_have_the_width():
    gray = np.zeros((60, 60), np.uint8)
    gray[:, 30:] = 255
    for width in (1, 3, 7, 12):
        hint = made("scribble", as_gray_rgb(gray), line_width=width)
        assert (hint[30, :, 0] > 0).sum() == width // 2 * 2 + 1 and set(np.unique(hint)) == {0, 255}


def test_grayscale_has_the_weights_of_television_and_inverting_twice_changes_nothing():
    image = rgb_image()
    gray = made("grayscale", image)
    assert abs(gray[..., 0] - image @ np.array([0.299, 0.587, 0.114])).max() <= 0.51  # rounded
    assert np.array_equal(gray[..., 0], gray[..., 1]) and np.array_equal(gray[..., 0], gray[..., 2])
    assert np.array_equal(made("invert", made("invert", image)), image) and (made("invert", image) + image == 255).all()


def test_a_blurred_point_is_a_gaussian():
    image = np.zeros((61, 61, 3), np.uint8)
    image[30, 30] = (255, 128, 0)
    hint = made("blur", image, blur_radius=1.2)
    along = np.exp(-0.5 * (np.arange(-30, 31) / 1.2) ** 2)
    wanted = np.outer(along, along) / along.sum() ** 2
    for channel, level in enumerate((255, 128, 0)):
        assert abs(hint[..., channel] - wanted * level).max() <= 0.51
    assert (made("blur", np.full((9, 9, 3), 77, np.uint8), blur_radius=50) == 77).all()


def test_a_tile_is_the_mean_of_its_area_enlarged():
    blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = np.kron(blocks, np.ones((16, 16, 1), np.uint8))
    enlarged = Image.fromarray(blocks).resize((128, 128), Image.Resampling.BICUBIC)
    assert np.array_equal(made("tile", image, tile_factor=16), np.asarray(enlarged))
    assert np.array_equal(made("tile", image, tile_factor=1), image)


def test_a_shuffle_moves_colors_and_makes_none():
    image = np.zeros((300, 300, 3), np.uint8)
    image[:150, :, 0] = image[150:, :, 2] = 200
    hint = made("shuffle", image)
    assert not hint[..., 1].any() and abs(hint[..., 0].astype(int) + hint[..., 2] - 200).max() <= 1
    assert 0.1 < (hint[..., 0] > 100).mean() < 0.9
    assert not np.array_equal(hint, image) and not np.array_equal(hint, made("shuffle", image, hint_seed=1))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_a_random_mask_covers_its_share_and_leaves_the_rest(share):
    image = np.full((80, 120, 3), 9, np.uint8)
    hint = made("inpaint", image, mask_share=share, hint_seed=3)
    masked = random_mask(80, 120, share, 3)
    assert share <= masked.mean() < 1 and np.array_equal((hint == 0).all(axis=2), masked) and (hint[~masked] == 9).all()
