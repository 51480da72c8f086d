"""Masks and conditioning images stay on their image through rotation, resizing, crop and mirror."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.dataset.buckets.aspect_ratio import plan_buckets
from core.dataset.buckets.batches import Placed
from core.dataset.captions.pipeline import Caption
from core.dataset.images.masks import load_control, load_mask
from core.dataset.images.opening import BrokenImage, read_header
from core.dataset.images.pixels import load_pixels
from core.dataset.images.views import View, draw_view
from core.dataset.sources.image_info import ImageInfo
from core.settings.dataset.concepts import PLAIN
from core.settings.dataset.images import ImageSettings

FILTERS = ["auto", "lanczos", "nearest", "bilinear", "bicubic", "area", "box"]


def placed(path: Path, conditioning: Path | None = None, **given) -> Placed:
    images = ImageSettings(**{"resolution": 64, "bucket_reso_steps": 8, **given})
    header = read_header(path)
    placement = plan_buckets(images).assign(header.width, header.height)
    image = ImageInfo("fox", path.name, path, header.width, header.height, 1, 1, conditioning=conditioning)
    return Placed(image, placement, Caption("", None, "none"), replace(PLAIN, images=images))


def red_where(shape: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3], red where the mask is 255, black elsewhere."""
    pixels = np.zeros((*shape.shape, 3), np.uint8)
    pixels[..., 0] = shape
    return pixels


def blob(width: int, height: int) -> np.ndarray:
    """uint8 [H, W] of 0 and 255, like nothing mirrored or turned."""
    y, x = np.mgrid[:height, :width]
    return (((x - 0.3 * width) ** 2 + (y - 0.6 * height) ** 2 < (0.25 * width) ** 2) * 255).astype(np.uint8)


def assert_same(mask: np.ndarray, pixels: np.ndarray) -> None:
    """The mask is the red of the image. pixels: of load_pixels, in [-1, 1]."""
    assert mask.dtype == np.float32 and mask.shape == (1, *pixels.shape[1:])
    assert np.abs(mask[0] - (pixels[0] + 1) / 2).max() < 1e-6
    assert 0.02 < mask.mean() < 0.98  # it shows something of both


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(150, 100), (40, 90)])  # shrunk; enlarged
def test_a_mask_covers_exactly_what_it_was_painted_on_in_every_view(tmp_path, interpolation, size):
    shape = blob(*size)
    Image.fromarray(red_where(shape)).save(tmp_path / "a.png")
    Image.fromarray(shape).save(tmp_path / "mask.png")
    each = placed(
        tmp_path / "a.png",
        tmp_path / "mask.png",
        masked_loss=True,
        flip_aug=True,
        random_crop=True,
        resize_interpolation=interpolation,
    )
    drawn = {draw_view(each, 3, 0, repeat) for repeat in range(12)}
    assert {view.flip for view in drawn} == {True, False}
    for view in drawn:
        assert_same(load_mask(each, view), load_pixels(each.image.path, view, images=each.concept.images))


def test_a_control_image_is_cut_and_flipped_as_its_image(tmp_path):
    colors = np.random.default_rng(1).integers(0, 256, (100, 150, 3), np.uint8)
    for name in ("a.png", "control.png"):
        Image.fromarray(colors).save(tmp_path / name)
    each = placed(tmp_path / "a.png", flip_aug=True, random_crop=True)
    assert load_control(each, View(each.placement)) is None
    each = replace(each, image=replace(each.image, control=tmp_path / "control.png"))
    drawn = {draw_view(each, 3, 0, repeat) for repeat in range(12)}
    assert {view.flip for view in drawn} == {True, False}
    for view in drawn:
        control, pixels = load_control(each, view), load_pixels(each.image.path, view, images=each.concept.images)
        assert control.dtype == np.float32 and np.abs(control - (pixels + 1) / 2).max() < 1e-6


def test_transparent_parts_of_a_control_image_are_black_and_with_compatibility_keep_their_color(tmp_path):
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    Image.new("RGBA", (96, 96), (200, 100, 50, 0)).save(tmp_path / "control.png")
    each = placed(tmp_path / "a.png")
    each = replace(each, image=replace(each.image, control=tmp_path / "control.png"))
    assert not load_control(each, View(each.placement)).any()
    for fit in ("stretched", "area"):
        theirs = replace(each, concept=replace(each.concept, control_fit=fit))
        found = load_control(theirs, View(each.placement))[:, 0, 0] * 255
        assert found.round().tolist() == [200, 100, 50]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_its_transparency_and_its_mask_are_turned_alike(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    shape = blob(90, 60)
    rgba = np.dstack([red_where(shape), np.where(shape, 255, 128).astype(np.uint8)])
    rgba[..., 0] = shape
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(shape).save(tmp_path / "mask.png", exif=exif)
    header = read_header(tmp_path / "a.png")
    assert (header.width, header.height) == ((60, 90) if orientation >= 5 else (90, 60))
    each = placed(tmp_path / "a.png", tmp_path / "mask.png", masked_loss=True, alpha_color="#000000")
    for view in (View(each.placement), View(each.placement, flip=True)):
        pixels = load_pixels(each.image.path, view, images=each.concept.images)
        assert_same(load_mask(each, view), pixels)
        of_alpha = replace(each, concept=replace(PLAIN, images=ImageSettings(alpha_mask=True)))
        alpha = load_mask(of_alpha, view)
        assert alpha.min() == pytest.approx(128 / 255, abs=0.02) and alpha.max() == pytest.approx(1, abs=0.02)
        inside = pixels[0] > 0.99
        assert (alpha[0][inside] > 0.98).all() and (alpha[0][pixels[0] < -0.99] < 0.53).all()


def test_transparency_is_the_mask_and_the_image_stands_on_its_color(tmp_path):
    shape = blob(64, 64)
    rgba = np.dstack([np.full((64, 64, 3), 200, np.uint8), shape])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    each = placed(tmp_path / "a.png", alpha_mask=True, alpha_color="#0000ff")
    view = View(each.placement)
    assert np.array_equal(load_mask(each, view)[0], shape / np.float32(255))
    pixels = load_pixels(each.image.path, view, images=each.concept.images)
    assert np.allclose(pixels[:, shape == 0], [[-1], [-1], [1]])
    assert np.allclose(pixels[:, shape == 255], 200 / 127.5 - 1)


def test_a_mask_of_another_size_shows_the_same_frame(tmp_path):
    shape = blob(200, 120)
    Image.fromarray(red_where(shape)).save(tmp_path / "a.png")
    small = Image.fromarray(shape).resize((100, 60), Image.Resampling.BOX)
    small.save(tmp_path / "mask.png")
    each = placed(tmp_path / "a.png", tmp_path / "mask.png", masked_loss=True)
    mask = load_mask(each, View(each.placement))
    red = (load_pixels(each.image.path, View(each.placement))[0] + 1) / 2
    assert mask.shape[1:] == red.shape
    assert np.abs(mask[0] - red).mean() < 0.02  # only the pixels on the edge differ


def test_the_mask_file_comes_before_transparency_and_only_when_it_is_asked_for(tmp_path):
    Image.fromarray(np.full((64, 64, 4), 102, np.uint8)).save(tmp_path / "a.png")  # alpha 0.4
    Image.new("L", (64, 64), 51).save(tmp_path / "mask.png")  # 0.2
    for given, expected in (
        ({"masked_loss": True, "alpha_mask": True}, 0.2),
        ({"alpha_mask": True}, 0.4),
        ({"masked_loss": True}, 0.2),
        ({}, None),
    ):
        each = placed(tmp_path / "a.png", tmp_path / "mask.png", **given)
        mask = load_mask(each, View(each.placement))
        assert mask is None if expected is None else np.allclose(mask, expected)


def test_an_image_without_mask_counts_as_a_whole(tmp_path):
    Image.new("RGBA", (64, 64), "red").save(tmp_path / "a.png")
    each = placed(tmp_path / "a.png", masked_loss=True, alpha_mask=True)
    assert load_mask(each, View(each.placement)) is None


def test_a_mask_may_be_of_any_kind_and_its_numbers_are_taken_as_they_are(tmp_path):
    Image.new("RGB", (64, 64), "white").save(tmp_path / "a.png")
    kinds = {
        "bit.png": (Image.new("1", (64, 64), 1), 1.0),
        "palette.gif": (
            Image.new("RGB", (64, 64), (128, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE),
            128 / 255,
        ),
        "sixteen.png": (Image.fromarray(np.full((64, 64), 51 * 257, np.uint16)), 0.2),
        "blue.png": (Image.new("RGB", (64, 64), (0, 0, 255)), 0.0),  # red is the channel that counts
        "clear.png": (Image.new("RGBA", (64, 64), (255, 255, 255, 0)), 0.0),  # transparent does not count
    }
    for name, (image, expected) in kinds.items():
        image.save(tmp_path / name)
        each = placed(tmp_path / "a.png", tmp_path / name, masked_loss=True)
        assert np.allclose(load_mask(each, View(each.placement)), expected), name


def test_what_is_wrong_with_a_mask_is_said_of_its_image(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "mask.png").write_bytes(b"x")
    each = placed(tmp_path / "a.png", tmp_path / "mask.png", masked_loss=True)
    with pytest.raises(BrokenImage, match=r"has a mask, mask\.png, that is not a supported image"):
        load_mask(each, View(each.placement))
