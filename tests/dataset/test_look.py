"""The measures of an image against images of which they are known."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from core.dataset.images.look import (
    Look,
    border_share,
    difference_hash,
    from_text,
    laplacian_variance,
    look_at_all,
    looks,
    measure,
    reasons_of,
    to_text,
)
from core.dataset.images.opening import read_header
from core.dataset.sources.image_info import ImageInfo
from core.dataset.sources.memo import Memo


def hash_distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def scene(seed: int, width=400, height=300) -> Image.Image:
    """A smooth image of large spots with a little grain, so that it has both shapes and detail."""
    rng = np.random.default_rng(seed)
    spots = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 12, (height, width, 1))
    return Image.fromarray((np.asarray(spots) + grain).clip(0, 255).astype(np.uint8))


def test_the_hash_is_whether_each_pixel_is_darker_than_its_right_neighbor():
    rising = np.repeat(np.arange(9, dtype=np.uint8)[None] * 20, 8, 0)
    assert difference_hash(Image.fromarray(rising)) == "f" * 16
    assert difference_hash(Image.fromarray(rising[:, ::-1].copy())) == "0" * 16
    half = rising.copy()
    half[4:] = half[4:, ::-1]
    assert difference_hash(Image.fromarray(half)) == "ffffffff00000000"
    assert difference_hash(Image.new("RGB", (50, 40), "red")) == "0" * 16


def test_copies_have_near_hashes_and_different_images_far_ones(tmp_path):
    image = scene(1)
    image.save(tmp_path / "a.jpg", quality=60)
    copies = [Image.open(tmp_path / "a.jpg").convert("RGB"), image.resize((200, 150)), image.resize((1000, 750))]
    own = measure(image).dhash
    assert all(hash_distance(own, measure(copy).dhash) <= 6 for copy in copies)
    others = [hash_distance(own, measure(scene(seed)).dhash) for seed in range(2, 12)]
    assert min(others) >= 15  # of 64 bits, where chance gives 32


def test_the_laplacian_of_a_checkerboard_is_known():
    """Each inner pixel of 0 or c against four of the other: +4 c or -4 c, so the variance is 16 c c."""
    board = np.indices((20, 20)).sum(0) % 2 * np.float32(10)
    assert laplacian_variance(board) == pytest.approx(1600)
    ramp = np.arange(20, dtype=np.float32)[None].repeat(20, 0)
    assert laplacian_variance(ramp) == 0
    assert laplacian_variance(ramp[:2]) == 0  # too small for any inner pixel


def test_blur_lowers_the_measure_and_size_does_not():
    sharp = scene(3, 1024, 768)
    assert measure(sharp.filter(ImageFilter.GaussianBlur(8))).blur < measure(sharp).blur / 3
    board = Image.fromarray((np.indices((256, 256)).sum(0) // 16 % 2 * 255).astype(np.uint8)).convert("RGB")
    larger = board.resize((1024, 1024), Image.Resampling.NEAREST)
    assert measure(larger).blur == pytest.approx(measure(board).blur)  # both are measured at 256 pixels


def test_the_border_is_the_share_of_even_rows_and_columns_at_the_edges():
    inside = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    assert border_share(inside) == 0
    bars = inside.copy()
    bars[:10] = bars[-10:] = 0
    assert border_share(bars) == pytest.approx(0.2)
    frame = bars.copy()
    frame[:, :20] = (250, 0, 0)  # another color than the bars, which it crosses
    assert border_share(frame) == pytest.approx(1 - 80 * 180 / 20000)
    assert border_share(np.zeros((5, 4, 3), np.uint8)) == 1
    sky = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[:, None, None], 200, 1).repeat(3, 2)
    assert border_share(np.concatenate([sky, inside])) < 0.05  # rows of one color each, but not of one together


def test_a_very_long_image_is_measured_too():
    assert measure(Image.new("RGB", (3000, 2), "red")).border == 1


def test_a_look_comes_back_from_its_text():
    look = Look("", True, "00ff00ff00ff00ff", 123.25, 0.5)
    assert from_text(to_text(look)) == look


# ---- one decoding for all of it


def listed(folder) -> list[ImageInfo]:
    images = []
    for path in sorted(folder.iterdir()):
        header, state = read_header(path), path.stat()
        images.append(ImageInfo("fox", path.name, path, header.width, header.height, state.st_size, state.st_mtime_ns))
    return images


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "fox"
    folder.mkdir()
    scene(0).save(folder / "a.png")
    clear = scene(1).convert("RGBA")
    clear.putpixel((5, 5), (0, 0, 0, 0))
    clear.save(folder / "b.png")
    scene(2).save(folder / "c.png")
    data = (folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(data[: len(data) // 2])
    return folder


def test_one_decoding_tells_what_is_broken_and_what_the_others_look_like(folder, tmp_path):
    images, memo = listed(folder), tmp_path / "index.sqlite"
    assert looks(images, memo) == {}
    found = look_at_all(images, memo_path=memo)
    assert looks(images, memo) == looks(images, Memo(memo)) == found
    assert [found["fox", name].transparent for name in ("a.png", "b.png", "c.png")] == [False, True, False]
    assert found["fox", "a.png"] == measure(scene(0))
    assert "truncated" in found["fox", "c.png"].reason and not found["fox", "c.png"].dhash
    assert reasons_of(found) == reasons_of(looks(images, memo))
    assert list(reasons_of(found)) == [("fox", "c.png")]


def test_a_look_is_forgotten_with_the_file_it_was_of(folder, tmp_path):
    images, memo = listed(folder), tmp_path / "index.sqlite"
    look_at_all(images, memo_path=memo)
    assert set(looks([replace(images[0], mtime_ns=1), images[1]], memo)) == {("fox", "b.png")}
    assert looks(images, None) == {}


def test_what_may_change_while_the_file_does_not_is_found_anew(folder, tmp_path, monkeypatch):
    images, memo = listed(folder), tmp_path / "index.sqlite"

    def no_room(_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("core.dataset.images.opening.to_srgb", no_room)
        assert "does not fit in memory" in reasons_of(look_at_all(images, memo_path=memo))["fox", "a.png"]
    assert reasons_of(looks(images, memo)).keys() == {("fox", "c.png")}  # cut off, and so it stays
    assert reasons_of(look_at_all(images, memo_path=memo)).keys() == {("fox", "c.png")}
