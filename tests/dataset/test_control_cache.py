"""Cached control images: the same to the bit as decoded ones, made once for each content and place, and never in the way."""

import random
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from core.dataset.buckets.aspect_ratio import Placement
from core.dataset.caches import partners as controls
from core.dataset.caches.partners import ControlCache, packed, unpacked
from core.dataset.images.masks import load_control
from core.dataset.images.views import View
from core.record import machine
from core.record.problems import ProblemsError
from tests.damage import zero_tensors

FILTERS = ("auto", "lanczos", "nearest", "bilinear", "bicubic", "area", "box")


@pytest.fixture
def cache(tmp_path):
    return lambda **options: ControlCache(tmp_path / "controls", memo_path=tmp_path / "index.sqlite", **options)


@pytest.fixture
def hint(tmp_path):
    """hint("a.png", width, height, mode) -> a control image of this mode, noise with a transparent corner where there is alpha."""

    def write(name="a.png", width=150, height=110, mode="RGB", seed=0, **options):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
        pixels[height // 2 :, :, 3], pixels[: height // 2, : width // 2, 3] = 255, 0
        path = tmp_path / "hints" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path, **options)
        return path

    return write


@pytest.fixture
def pair(add, place, hint):
    """An image of 300 x 220 with a control image of half its sides, in its bucket."""
    return lambda **own: place(add("fox/a.png", 300, 220), control=hint(), **own)


def entries(tmp_path):
    return sorted((tmp_path / "controls").rglob("*.safetensors"))


def drawn_case(draw, number, add, place, hint):
    """An image of any size and its control image of the same aspect ratio or nearly, with any settings that place it."""
    bucketed, fit = draw.random() < 0.7, draw.choice(("aligned", "stretched", "area"))
    size = draw.randint(64, 200), draw.randint(64, 200)
    scale = draw.choice((0.4, 0.7, 1.0, 1.6))
    own = {
        "enable_bucket": bucketed,
        "resize_interpolation": draw.choice(FILTERS),
        "control_interpolation": draw.choice((None, *FILTERS)),
    }
    mode = draw.choice(("RGB", "L", "RGBA", "P"))
    shown = hint(f"{number}.png", round(size[0] * scale), round(size[1] * scale), mode, seed=number)
    return place(add(f"fox/{number}.png", *size), control=shown, fit=fit, **own)


def test_cached_control_images_are_those_that_are_decoded(add, place, hint, cache, monkeypatch):
    """For every size, crop, flip, fit and interpolation; just made, held in memory, and read from the disk."""
    draw = random.Random(3)
    items = [drawn_case(draw, number, add, place, hint) for number in range(60)]
    views = [(placed, View(placed.placement, flip)) for placed in items for flip in (False, True)]
    expected = [load_control(*view) for view in views]
    assert {(want.dtype.name, want.shape[0]) for want in expected} == {("float32", 3)}
    decoded = []
    monkeypatch.setattr(controls, "load_control", lambda *view: decoded.append(view) or load_control(*view))
    for each in (cache(), cache(), cache(writes=False), cache(held_bytes=0)):
        each.fill(items)
        assert all(np.array_equal(each.load(*view), want) for view, want in zip(views, expected, strict=True))
    assert len(decoded) < 0.1 * 4 * len(views), "only those that nothing resizes"


def test_a_control_image_is_resized_once_and_then_read(tmp_path, pair, cache, monkeypatch):
    placed = pair()
    want = load_control(placed, View(placed.placement, True))
    cache().fill([placed])
    assert len(entries(tmp_path)) == 1
    monkeypatch.setattr(controls, "control_pixels", lambda *_: pytest.fail("it was cached"))
    monkeypatch.setattr(controls, "load_control", lambda *_: pytest.fail("it was cached"))
    for held in (0, 1 << 20):
        again = cache(held_bytes=held)
        again.fill([placed])
        assert np.array_equal(again.load(placed, View(placed.placement, True)), want)


def test_what_changes_a_control_image_is_another_entry(tmp_path, add, place, hint, cache):
    image, shown = add("fox/a.png", 300, 220), hint()
    own = [{}, {"fit": "stretched"}, {"fit": "area"}, {"control_interpolation": "nearest"}, {"resolution": 128}]
    own += [{"enable_bucket": False}, {"resize_interpolation": "lanczos"}]
    for number, settings in enumerate(own, start=1):
        cache().fill([place(image, control=shown, **settings)])
        assert len(entries(tmp_path)) == number
    cache().fill([place(image, control=shown, resize_interpolation="area", control_interpolation="nearest")])
    assert len(entries(tmp_path)) == len(own), "the images' own filter does not reach them then"
    cache().fill([place(image, control=hint(seed=1))])
    assert len(entries(tmp_path)) == len(own) + 1, "an edited file"
    cache().fill([place(add("fox/b.png", 300, 220), control=hint("b.png", seed=1))])
    assert len(entries(tmp_path)) == len(own) + 1, "the same content under another name"


def test_another_crop_and_stretching_without_buckets_are_entries_of_their_own(add, place, hint, cache):
    """Without buckets each side of the hint is compared with the other one of the bucket, so the filter is another."""
    image, shown = add("fox/a.png", 300, 220), hint(width=90, height=60)
    where = Placement((300, 220), (80, 48), (80, 60), (0, 0))
    whole = replace(place(image, control=shown), placement=where)
    low = replace(whole, placement=replace(where, crop=(0, 12)))
    stretched, plain = (
        replace(place(image, control=shown, fit="stretched", enable_bucket=on), placement=where) for on in (True, False)
    )
    for one, other in ((whole, low), (stretched, plain)):
        wanted = [load_control(each, View(each.placement)) for each in (one, other)]
        assert not np.array_equal(*wanted)
        for each, want in zip((one, other), wanted, strict=True):
            own = cache()
            own.fill([each])
            assert np.array_equal(own.load(each, View(each.placement)), want)


def test_a_damaged_entry_is_made_again_and_named(tmp_path, pair, cache):
    placed = pair()
    view, told = View(placed.placement), []
    want = load_control(placed, view)
    cache().fill([placed])
    zero_tensors(*entries(tmp_path))
    mended = cache(warn=told.append)
    mended.fill([placed])
    assert np.array_equal(mended.load(placed, view), want) and [each.code for each in told] == ["cache.damaged"]
    told.clear()
    cache(warn=told.append).fill([placed])
    assert not told


def test_an_entry_that_goes_away_while_it_trains_is_decoded(tmp_path, pair, cache):
    placed, own = pair(), cache(held_bytes=0)
    view = View(placed.placement, True)
    own.fill([placed])
    (entry,) = entries(tmp_path)
    want = own.load(placed, view)
    for spoil in (zero_tensors, type(entry).unlink):
        spoil(entry)
        assert np.array_equal(own.load(placed, view), want)


def test_nothing_is_written_where_nothing_may_be(tmp_path, pair, cache, monkeypatch):
    placed = pair()
    own = cache(writes=False)
    own.fill([placed])
    assert not (tmp_path / "controls").exists()
    monkeypatch.setattr(controls, "load_control", lambda *_: pytest.fail("it is held in memory"))
    assert own.load(placed, View(placed.placement)) is not None


@pytest.mark.parametrize("code", ["disk.full", "disk.space"])
def test_a_full_disk_is_told_once_and_costs_time_alone(code, tmp_path, add, place, hint, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    if code == "disk.full":
        monkeypatch.setattr("core.record.atomic.replace", full)
    else:
        monkeypatch.setattr(machine, "free_disk", lambda folder: 100_000_000)
    items = [place(add(f"fox/{name}", 300, 220), control=hint(name, seed=5)) for name in ("a.png", "b.png")]
    told = []
    own = cache(warn=told.append, held_bytes=0)
    own.fill(items)
    assert [each.code for each in told] == [code] and not entries(tmp_path)
    view = View(items[1].placement, True)
    assert np.array_equal(own.load(items[1], view), load_control(items[1], view))


def test_those_that_nothing_resizes_and_other_crops_are_read_from_their_own_files(tmp_path, add, place, hint, cache):
    image = add("fox/a.png", 300, 220)
    resized = place(image).placement.resized
    own = cache()
    own.fill([place(image, control=hint(width=resized[0], height=resized[1]))])
    assert not entries(tmp_path)
    placed = place(image, control=hint("b.png"))
    own.fill([placed])
    assert len(entries(tmp_path)) == 1
    where = placed.placement
    other = Placement(where.image, where.bucket, (where.resized[0] + 9, where.resized[1] + 5), (4, 2))
    for view in (View(other), View(other, True)):
        assert np.array_equal(own.load(placed, view), load_control(placed, view))


def test_control_images_that_cannot_be_read_are_named_all(add, place, hint, cache):
    good, broken, gone = (hint(f"{name}.png") for name in "abc")
    items = [place(add(f"fox/{each.name}", 300, 220), control=each) for each in (good, broken, gone)]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ProblemsError) as refused:
        cache().fill(items[:2])
    (problem,) = refused.value.problems
    assert problem.where == str(items[1].image.path) and broken.name in problem.what
    gone.unlink()
    with pytest.raises(ProblemsError) as refused:
        cache().fill(items)
    assert [each.where for each in refused.value.problems] == [str(gone)]


def test_filling_can_be_cancelled_and_goes_on_where_it_was(tmp_path, add, place, hint, cache):
    items = [place(add(f"fox/{n}.png", 300, 220), control=hint(f"{n}.png", seed=n)) for n in range(12)]
    seen = []

    def progress(done, total):
        seen.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache().fill(items, threads=1, progress=progress)
    assert seen == [(8, 12)] and len(entries(tmp_path)) == 8
    cache().fill(items, threads=1, check=lambda: seen.append("checked"), progress=lambda *at: seen.append(at))
    assert len(entries(tmp_path)) == 12 and seen[-1] == (12, 12) and "checked" in seen


def test_gray_images_take_one_channel_and_nothing_else_is_unpacked():
    colored = np.random.default_rng(0).integers(0, 256, (3, 16, 24), np.uint8)
    gray = np.repeat(colored[:1], 3, axis=0)
    assert np.array_equal(unpacked(packed(colored), (24, 16)), colored)
    assert np.array_equal(unpacked(packed(gray), (24, 16)), gray[:1])
    assert len(packed(gray)) < 0.4 * len(packed(colored))
    for bad in (b"", b"x" * 40, packed(colored)[:-9], packed(colored[:, :8]), zlib.compress(bytes(1 << 24))):
        assert unpacked(bad, (24, 16)) is None


def test_what_the_memory_does_not_hold_and_no_disk_has_is_decoded(pair, cache, tmp_path):
    placed, own = pair(), cache(writes=False, held_bytes=0)
    own.fill([placed])
    view = View(placed.placement, True)
    assert np.array_equal(own.load(placed, view), load_control(placed, view)) and entries(tmp_path) == []
