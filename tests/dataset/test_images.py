"""Images as arrays: every mode and rotation comes out as a viewer shows it, at exactly the bucket's size."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from core.dataset.buckets.aspect_ratio import Placement, plan_buckets
from core.dataset.doctor.images import Reading, second_look
from core.dataset.images.look import look_at_all, looks, reasons_of
from core.dataset.images.opening import BrokenImage, open_decoded, open_rgb, read_header
from core.dataset.images.pixels import load_bucketed, load_pixels
from core.dataset.images.resize import area_average, resize
from core.dataset.images.thumbnails import thumbnail
from core.dataset.images.views import View
from core.dataset.sources.image_info import ImageInfo
from core.record.cancel import Cancelled, CancelToken
from core.settings.dataset.dataset import DatasetSettings


def test_an_image_that_a_scanner_holds_for_a_moment_is_opened_and_measured_on_windows(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    images = [ImageInfo("set", "a.png", tmp_path / "a.png", 64, 64, 1, 1)]
    reading = Reading(tmp_path / "memo.sqlite")
    monkeypatch.setattr("core.record.regular.RETRY_SECONDS", 0)
    with monkeypatch.context() as held:
        held.setattr(Image, "open", Mock(side_effect=PermissionError))
        assert second_look(images, reading) == {}
    assert list(second_look(images, reading)) == [("set", "a.png")]  # that it was not to be opened is not stored
    monkeypatch.setattr("core.record.regular.WINDOWS", True)
    monkeypatch.setattr(Image, "open", Mock(side_effect=[PermissionError] * 3 + [Image.open(tmp_path / "a.png")]))
    assert read_header(tmp_path / "a.png").width == 64


# ---- rotation and color


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_comes_out_upright_and_its_header_gave_the_same_size(tmp_path, ending, orientation):
    """Upright: red left of green over blue left of white, 40 x 24. Stored so that the orientation turns it back."""
    upright = Image.new("RGB", (40, 24), "white")
    for box, color in (((0, 0, 20, 12), "red"), ((20, 0, 40, 12), "lime"), ((0, 12, 20, 24), "blue")):
        upright.paste(color, box)
    stored_so = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(stored_so[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    stored.save(
        path, exif=exif, **({"lossless": True} if ending == "webp" else {"quality": 95} if ending != "png" else {})
    )
    image = open_rgb(path)
    header = read_header(path)
    assert image.size == (header.width, header.height) == (40, 24)
    corners = [np.array(image.getpixel(at)) for at in ((8, 5), (32, 5), (8, 19), (32, 19))]
    expected = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    for got, wanted in zip(corners, expected, strict=True):
        assert np.abs(got - wanted).max() <= (3 if ending in ("jpg", "avif") else 0)


def saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def corner(path):
    return open_rgb(path).getpixel((0, 0))


def test_what_is_transparent_becomes_white_and_half_transparent_is_mixed(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200  # hidden red under alpha 0
    assert corner(saved(tmp_path, Image.fromarray(pixels))) == (255, 255, 255)
    pixels[..., 3] = 51  # alpha 0.2: 0.2 * 200 + 0.8 * 255 = 244, 0.8 * 255 = 204
    assert corner(saved(tmp_path, Image.fromarray(pixels))) == (244, 204, 204)


def test_gray_with_alpha_is_composited_too(tmp_path):
    image = Image.merge("LA", (Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 0)))
    assert corner(saved(tmp_path, image)) == (255, 255, 255)


def test_a_palette_image_with_a_transparent_color_is_composited(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    assert corner(saved(tmp_path, image)) == (9, 8, 7)
    assert corner(saved(tmp_path, image, transparency=1)) == (255, 255, 255)


def test_an_rgb_image_with_a_transparent_color_is_composited(tmp_path):
    assert corner(saved(tmp_path, Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))) == (255, 255, 255)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (32768, 128), (65535, 255), (257, 1)])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, value, expected):
    image = Image.fromarray(np.full((4, 4), value, np.uint16))
    for name in ("a.png", "a.tif"):
        assert corner(saved(tmp_path, image, name)) == (expected,) * 3


def test_floating_point_images_of_0_to_1_are_scaled(tmp_path):
    assert corner(saved(tmp_path, Image.fromarray(np.full((4, 4), 0.5, np.float32)), "a.tif")) == (128, 128, 128)


def test_one_bit_and_cmyk_images_are_read(tmp_path):
    assert corner(saved(tmp_path, Image.new("1", (4, 4), 1))) == (255, 255, 255)
    assert corner(saved(tmp_path, Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "a.tif")) == (255, 0, 0)


def profile_with_red_and_green_swapped() -> bytes:
    """An sRGB profile whose rXYZ and gXYZ tags point at each other's values."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    entries = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    red, green = entries[b"rXYZ"] + 4, entries[b"gXYZ"] + 4
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    return bytes(data)


def test_a_color_profile_is_applied_also_under_alpha(tmp_path):
    profile = profile_with_red_and_green_swapped()
    solid = Image.new("RGB", (4, 4), (255, 0, 0))
    red, green, blue = corner(saved(tmp_path, solid, icc_profile=profile))
    assert green > 250 and red < 5 and blue < 5
    solid.putalpha(255)
    red, green, blue = corner(saved(tmp_path, solid, icc_profile=profile))
    assert green > 250 and red < 5 and blue < 5


def test_a_damaged_color_profile_is_passed_over(tmp_path):
    assert corner(saved(tmp_path, Image.new("RGB", (4, 4), (255, 0, 0)), icc_profile=b"no profile")) == (255, 0, 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_image_as_stored(tmp_path):
    image = Image.new("RGB", (40, 24), "red")
    path = saved(tmp_path, image, "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert open_rgb(path).size == (40, 24)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        options = {"lossless": True} if name == "a.webp" else {}
        path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
        assert corner(path) == (255, 0, 0) and read_header(path).animated


# ---- sizes


def coverage(n: int, m: int) -> np.ndarray:
    """[m, n] share of pixel i that lies in new pixel j, divided by the new pixel's size."""
    edges = np.arange(n)
    low, high = np.arange(m)[:, None] * n / m, (np.arange(m)[:, None] + 1) * n / m
    return (np.minimum(edges + 1, high) - np.maximum(edges, low)).clip(0) * m / n


@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 50), w=st.integers(1, 50), data=st.data())
def test_shrinking_is_the_mean_over_the_covered_area(h, w, data):
    new_h, new_w = data.draw(st.integers(1, h)), data.draw(st.integers(1, w))
    pixels = np.random.default_rng(h * 51 + w).integers(0, 256, (h, w, 3), dtype=np.uint8)
    exact = np.einsum("jh,hwc,iw->jic", coverage(h, new_h), pixels.astype(float), coverage(w, new_w))
    # float32 sums of at most 50 * 255 are good to 1e-3; rounding to whole numbers adds a half
    assert np.abs(area_average(pixels, (new_w, new_h)) - exact).max() <= 0.5 + 2e-3


def test_whole_ratios_are_block_means_and_a_flat_image_stays_flat():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    blocks = pixels.reshape(2, 2, 3, 2, 3).mean(axis=(1, 3))
    assert np.array_equal(area_average(pixels, (3, 2)), np.rint(blocks).astype(np.uint8))
    flat = np.full((377, 211, 3), 93, np.uint8)
    assert (area_average(flat, (100, 333)) == 93).all()


def test_growing_on_either_side_uses_lanczos():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for size in ((40, 40), (40, 10)):
        assert np.array_equal(resize(image, size), image.resize(size, Image.Resampling.LANCZOS))
    assert resize(image, (30, 20)) is image


def test_pixels_are_the_crop_of_the_resized_image_from_minus_one_to_one(tmp_path, add):
    path = add("a.png", 100, 150)
    placement = plan_buckets(DatasetSettings(resolution=64, bucket_reso_steps=16)).assign(100, 150)
    (left, top), (width, height) = placement.crop, placement.bucket
    whole = np.asarray(resize(open_rgb(path), placement.resized), np.float32)
    expected = whole[top : top + height, left : left + width].transpose(2, 0, 1) / 127.5 - 1
    pixels = load_pixels(path, View(placement))
    assert pixels.dtype == np.float32 and pixels.shape == (3, height, width) and pixels.flags.c_contiguous
    assert np.allclose(pixels, expected, atol=1e-6)
    assert np.array_equal(load_pixels(path, View(placement, True)), pixels[:, :, ::-1])
    assert load_bucketed(path, placement).size == placement.bucket


def test_black_is_minus_one_and_white_is_one(tmp_path):
    same = Placement((8, 8), (8, 8), (8, 8), (0, 0))
    for color, value in (("black", -1), ("white", 1)):
        assert (load_pixels(saved(tmp_path, Image.new("RGB", (8, 8), color)), View(same)) == value).all()


def test_an_image_that_changed_its_size_since_the_scan_is_named(tmp_path, add):
    path = add("a.png", 80, 64)
    with pytest.raises(BrokenImage, match=r"was 64 x 64 pixels .* is 80 x 64 now"):
        load_pixels(path, View(Placement((64, 64), (64, 64), (64, 64), (0, 0))))


# ---- thumbnails


def test_a_thumbnail_is_made_once_for_each_state_of_the_image(tmp_path, add):
    path = add("a.png", 640, 480)
    small = thumbnail(path, 128, tmp_path / "thumbs")
    assert Image.open(small).size == (128, 96)
    written = small.stat().st_mtime_ns
    assert thumbnail(path, 128, tmp_path / "thumbs") == small and small.stat().st_mtime_ns == written
    os.utime(path, ns=(1, 1))
    assert thumbnail(path, 128, tmp_path / "thumbs") != small
    assert not [each for each in (tmp_path / "thumbs").rglob("*") if each.name.startswith(".tmp")]


def test_a_thumbnail_that_cannot_be_kept_is_made_again_each_time(tmp_path, add):
    (tmp_path / "thumbs").write_bytes(b"a file is in the way, or the disk is full")
    for _ in range(2):
        small = thumbnail(add("a.png", 640, 480), 128, tmp_path / "thumbs")
        assert isinstance(small, bytes) and Image.open(BytesIO(small)).size == (128, 96)


def test_a_thumbnail_of_a_large_jpeg_keeps_its_shape(tmp_path, add):
    assert Image.open(thumbnail(add("a.jpg", 1600, 400), 100, tmp_path / "t")).size == (100, 25)


def test_a_thumbnail_of_a_broken_image_says_why(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(BrokenImage, match="not a supported image"):
        thumbnail(tmp_path / "a.png", 64, tmp_path / "t")
    with pytest.raises(BrokenImage, match="missing"):
        thumbnail(tmp_path / "b.png", 64, tmp_path / "t")


# ---- full decode


def found_in(folder) -> list[ImageInfo]:
    """What a scan finds: size by the header, length and time by the file."""
    images = []
    for path in sorted(folder.iterdir()):
        header, state = read_header(path), path.stat()
        size = (header.width, header.height)
        images.append(ImageInfo(folder.name, path.name, path, *size, state.st_size, state.st_mtime_ns))
    return images


def cut_off(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def test_a_full_decode_names_the_images_whose_headers_looked_right(tmp_path, add):
    for name in ("good.png", "cut.png", "cut.jpg", "cut.webp", "cut.bmp"):
        path = add(f"fox/{name}", 200, 150)
        if name.startswith("cut") and name != "cut.webp":
            cut_off(path)
    found = found_in(tmp_path / "fox")
    cut_off(tmp_path / "fox/cut.webp")  # WebP is refused by its header already, so it is cut after the scan
    seen = []
    reasons = reasons_of(look_at_all(found, progress=lambda done, total: seen.append((done, total))))
    assert {key[1] for key in reasons} == {"cut.png", "cut.jpg", "cut.webp", "cut.bmp"}
    assert "truncated" in reasons["fox", "cut.jpg"]
    assert seen[-1] == (5, 5)


def test_a_checksum_error_in_a_png_is_found(tmp_path, add):
    path = add("fox/a.png", 64, 64)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    found = found_in(tmp_path / "fox")
    assert "damaged" in reasons_of(look_at_all(found))["fox", "a.png"]


def test_findings_are_remembered_until_the_file_changes(tmp_path, add, monkeypatch):
    good, bad = add("fox/a.png", 64, 64), add("fox/b.png", 64, 64)
    cut_off(bad)
    memo = tmp_path / "private" / "index.sqlite"
    first = reasons_of(look_at_all(found_in(tmp_path / "fox"), memo_path=memo))
    opened = []
    real = open_decoded
    monkeypatch.setattr("core.dataset.images.look.open_decoded", lambda path, **more: opened.append(path) or real(path))
    assert reasons_of(look_at_all(found_in(tmp_path / "fox"), memo_path=memo)) == first and not opened
    os.utime(good, ns=(5, 5))
    reasons_of(look_at_all(found_in(tmp_path / "fox"), memo_path=memo))
    assert opened == [good]


def test_a_damaged_memory_costs_only_the_memory(tmp_path, add):
    add("fox/a.png")
    memo = tmp_path / "index.sqlite"
    memo.write_bytes(b"this is no database " * 100)
    images = found_in(tmp_path / "fox")
    assert reasons_of(look_at_all(images, memo_path=memo)) == {}
    assert reasons_of(look_at_all(images, memo_path=tmp_path / "fox" / "a.png" / "impossible.sqlite")) == {}


def test_a_cancelled_check_keeps_what_it_found(tmp_path, add, monkeypatch):
    for index in range(20):
        add(f"fox/{index:02}.png")
    images = found_in(tmp_path / "fox")
    token = CancelToken()
    with pytest.raises(Cancelled):
        look_at_all(images, token, lambda done, total: done and token.cancel(), tmp_path / "i.sqlite", threads=1)
    kept = len(looks(images, tmp_path / "i.sqlite"))
    opened = []
    real = open_decoded
    monkeypatch.setattr("core.dataset.images.look.open_decoded", lambda path, **more: opened.append(path) or real(path))
    assert reasons_of(look_at_all(images, memo_path=tmp_path / "i.sqlite")) == {}
    assert 1 <= kept <= 8 and len(opened) == 20 - kept


def test_two_that_read_the_same_images_at_once_decode_each_once(tmp_path, add, monkeypatch):
    for index in range(40):
        add(f"fox/{index:02}.png")
    images, opened, real = found_in(tmp_path / "fox"), [], open_decoded
    monkeypatch.setattr("core.dataset.images.look.open_decoded", lambda path, **more: opened.append(path) or real(path))
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(look_at_all, images, memo_path=tmp_path / "i.sqlite", threads=1) for _ in range(2)]
    assert both[0].result() == both[1].result() and len(both[0].result()) == 40
    assert sorted(opened) == sorted(image.path for image in images)


def test_an_image_too_large_for_memory_is_named(tmp_path, add, monkeypatch):
    path = add("a.png")

    def no_room(*_):
        raise MemoryError

    monkeypatch.setattr("core.dataset.images.opening.to_srgb", no_room)
    with pytest.raises(BrokenImage, match="64 x 48 pixels does not fit in memory"):
        open_rgb(path)


def test_a_very_large_image_is_reduced_as_its_smaller_copy_would_be(tmp_path, monkeypatch):
    """Of every mode: the mean of blocks, and the size of the file; smaller images are left as they are."""
    from core.dataset.images import opening

    monkeypatch.setattr(opening, "_STRIP_PIXELS", 3000)  # several strips, the last one shorter
    noise = Image.effect_noise((403, 302), 90)
    for mode in ("L", "RGB", "RGBA", "P", "1", "LA", "I;16", "CMYK"):
        path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
        noise.convert("RGB").convert("I").point(lambda value: value * 256).convert("I;16").save(
            path
        ) if mode == "I;16" else noise.convert("RGB").convert(mode).save(path)
        whole = opening.open_decoded(path, enough=(100, 100))
        assert whole.whole is None and whole.colors.size == (403, 302)
        with monkeypatch.context() as patch:
            patch.setattr(opening, "LARGE_PIXELS", 1000)
            small = opening.open_decoded(path, enough=(100, 100))
        assert small.size == (403, 302) and small.colors.size == (135, 101)
        block = np.asarray(whole.colors)[3:6, 6:9].mean(axis=(0, 1))
        assert np.abs(block - np.asarray(small.colors)[1, 2]).max() <= 3


def test_a_very_large_image_that_nothing_reduces_keeps_its_pixels(tmp_path, monkeypatch):
    """RGB in its own size was handed out closed: resizing a photo of 36 million pixels on Tools failed."""
    from core.dataset.images import opening

    noise = Image.effect_noise((60, 50), 90).convert("RGB")
    noise.save(tmp_path / "a.png")
    monkeypatch.setattr(opening, "LARGE_PIXELS", 1000)
    for enough in (None, (60, 50), (40, 40)):
        found = opening.open_decoded(tmp_path / "a.png", enough=enough)
        assert found.size == (60, 50) and np.array_equal(np.asarray(found.colors), np.asarray(noise))


MANY_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
import psutil
from core.dataset.images.opening import open_decoded
before = psutil.Process().memory_info().rss
with ThreadPoolExecutor(4) as threads:
    kept = list(threads.map(lambda _: open_decoded(sys.argv[1], enough=(64, 64)), range(4)))
print((psutil.Process().memory_info().rss - before) // 1_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the room is given back by glibc's own call")
@pytest.mark.slow
def test_threads_keep_no_room_of_very_large_images(tmp_path):
    """One image takes 134 MB while it is decoded; without giving it back, each of four threads kept as much."""
    Image.new("RGB", (6000, 5600)).save(tmp_path / "a.png", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", MANY_THREADS, str(tmp_path / "a.png")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 80
