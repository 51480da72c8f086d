"""Latents are encoded once for each content, place and VAE; what cannot be encoded is named, what is done is kept."""

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from core.dataset.buckets.aspect_ratio import plan_buckets
from core.dataset.buckets.batches import Placed
from core.dataset.caches.encoding import Side, pixels_of, sides
from core.dataset.caches.late import LatePosteriors
from core.dataset.caches.latents import LatentCache
from core.dataset.caches.store import prune
from core.dataset.captions.files import Caption
from core.dataset.images.look import look_at_all
from core.dataset.images.opening import read_header
from core.dataset.images.pixels import load_pixels
from core.dataset.images.views import View
from core.dataset.sources.image_info import ImageInfo
from core.record.cancel import Cancelled
from core.record.problems import ProblemsError
from core.settings.dataset.concepts import PLAIN
from core.settings.dataset.images import ImageSettings
from core.training.loop.sources import frozen_latent, sample_latent
from tests.damage import zero_tensors
from tests.refusals import refused
from tests.threads import no_thread_left


def pooled(pixels):
    """Stands in for a VAE: 4 channels, an eighth of the size, each sample on its own."""
    mean = torch.nn.functional.avg_pool2d(pixels, 8)
    mean = torch.cat([mean, mean.mean(1, keepdim=True)], 1)
    return mean, mean.abs() - 3


class Encoder:
    """Counts what it encodes."""

    def __init__(self):
        self.batches = []

    def __call__(self, pixels):
        self.batches.append(tuple(pixels.shape))
        return pooled(pixels)

    @property
    def images(self):
        return sum(shape[0] for shape in self.batches)


@pytest.fixture
def place(tmp_path):
    """place(resolution) -> every image of tmp_path/fox in its bucket."""

    def run(resolution=64, **own):
        settings = ImageSettings(resolution=resolution, bucket_reso_steps=16, **own)
        plan, concept = plan_buckets(settings), replace(PLAIN, images=settings)
        placed = []
        for path in sorted((tmp_path / "fox").iterdir()):
            header, found = read_header(path), path.stat()
            image = ImageInfo("fox", path.name, path, header.width, header.height, found.st_size, found.st_mtime_ns)
            where = plan.assign(header.width, header.height)
            placed.append(Placed(image, where, Caption("", "none", path.with_suffix(".txt")), concept))
        return placed

    return run


@pytest.fixture
def cache(tmp_path):
    def make(vae="vae", dtype="fp32", **options):
        return LatentCache(tmp_path / "cache", vae, dtype, memo_path=tmp_path / "index.sqlite", **options)

    return make


def stored(cache, items):
    """{side's key: posterior} of every side."""
    return {side.key: cache.read(side) for placed in items for side in sides(placed)}


def six(add):
    """Six images of three shapes."""
    for index, size in enumerate([(64, 64), (80, 80), (100, 60), (50, 50), (60, 100), (200, 120)]):
        add(f"fox/{'abcdef'[index]}{'x' * index}.png", *size)


def test_every_image_is_encoded_once_in_batches_of_one_size(add, place, cache):
    six(add)
    encoder, told = Encoder(), []
    assert cache().fill(place(), encoder, batch_size=2, progress=lambda *counts: told.append(counts)) == 6
    assert encoder.images == 6 and max(shape[0] for shape in encoder.batches) == 2
    assert len(encoder.batches) == 4  # squares 2 + 1, wide 2, tall 1
    assert told[-1] == (6, 6)
    again = Encoder()
    assert cache().missing(place()) == [] and cache().fill(place(), again) == 0 and not again.batches


def test_what_is_loaded_is_what_was_encoded_bit_for_bit(add, place, cache):
    six(add)
    cache().fill(place(), pooled, batch_size=3, threads=4)
    loaded = stored(cache(), place())
    assert set(loaded) == {(placed.key, False) for placed in place()}
    for placed in place():
        pixels = torch.from_numpy(load_pixels(placed.image.path, View(placed.placement)))[None]
        mean, logvar = pooled(pixels)
        assert torch.equal(loaded[placed.key, False][0], mean[0]) and torch.equal(
            loaded[placed.key, False][1], logvar[0]
        )


def test_the_entry_follows_the_content_and_not_the_name_or_time(tmp_path, add, place, cache):
    path = add("fox/a.png", 64, 64)
    cache().fill(place(), pooled)
    os.rename(path, tmp_path / "fox/other name.png")
    os.utime(tmp_path / "fox/other name.png", ns=(1, 1))
    assert cache().missing(place()) == []
    add("fox/other name.png", 64, 64)  # other noise under the same name and size
    assert len(cache().missing(place())) == 1


def test_another_vae_type_or_size_is_another_entry(add, place, cache):
    six(add)
    cache().fill(place(), pooled)
    assert len(cache(vae="other").missing(place())) == 6
    assert len(cache(dtype="bf16").missing(place())) == 6
    assert len(cache().missing(place(80))) == 6


def test_images_of_one_content_share_an_entry(tmp_path, add, place, cache):
    data = add("fox/a.png", 64, 64).read_bytes()
    (tmp_path / "fox/b.png").write_bytes(data)
    encoder = Encoder()
    cache().fill(place(), encoder)
    assert encoder.images == 1 and len(stored(cache(), place())) == 2


def test_a_damaged_entry_is_encoded_again(tmp_path, add, place, cache):
    six(add)
    cache().fill(place(), pooled)
    before = stored(cache(), place())
    entries = sorted((tmp_path / "cache").rglob("*.safetensors"))
    entries[0].write_bytes(entries[0].read_bytes()[:-7])
    entries[1].write_bytes(b"")
    entries[2].unlink()
    assert len(cache().missing(place())) == 3
    with pytest.raises(ProblemsError, match="missing from the cache"):
        stored(cache(), place())
    cache().fill(place(), pooled)
    after = stored(cache(), place())
    assert all(torch.equal(before[key][0], after[key][0]) for key in before)


def test_an_entry_of_zeros_under_its_own_header_is_encoded_again_and_named(tmp_path, add, place, cache):
    six(add)
    cache().fill(place(), pooled)
    before = stored(cache(), place())
    for entry in sorted((tmp_path / "cache").rglob("*.safetensors"))[:2]:
        zero_tensors(entry)
    with refused("cache.missing-latents"):
        stored(cache(), place())
    told = []
    warned = cache(warn=told.append)
    warned.fill(warned.missing(place()), pooled)
    assert [problem.code for problem in told] == ["cache.damaged"] and told[0].what.startswith("2 ")
    after = stored(cache(), place())
    assert all(torch.equal(before[key][0], after[key][0]) for key in before)


def test_an_entry_that_another_program_has_open_is_encoded_again_and_held_in_memory(
    tmp_path, add, place, cache, monkeypatch
):
    six(add)
    cache().fill(place(), pooled)
    before, (held, *_) = stored(cache(), place()), sorted((tmp_path / "cache").rglob("*.safetensors"))

    def in_use(action, path_index):
        def acted(*arguments, **more):
            if str(arguments[path_index]) == str(held):
                raise PermissionError(13, "Permission denied", str(held))
            return action(*arguments, **more)

        return acted

    monkeypatch.setattr("core.record.regular.RETRY_SECONDS", 0)
    monkeypatch.setattr(os, "open", in_use(os.open, 0))
    monkeypatch.setattr(os, "replace", in_use(os.replace, 1))
    filled = cache()
    assert filled.fill(place(), pooled) == 1
    after = stored(filled, place())
    assert all(torch.equal(before[key][0], after[key][0]) for key in before)


def test_an_entry_of_an_earlier_version_has_no_checksum_and_is_used(tmp_path, add, place, cache):
    add("fox/a.png", 64, 64)
    cache().fill(place(), pooled)
    (entry,) = (tmp_path / "cache").rglob("*.safetensors")
    entry.write_bytes(save(load(entry.read_bytes())))  # as before: nothing in the metadata
    told = []
    assert cache(warn=told.append).missing(place()) == [] and len(stored(cache(), place())) == 1 and not told


def test_a_cancel_keeps_what_was_encoded_and_the_rest_follows(tmp_path, add, place, cache):
    six(add)

    def check():
        if any((tmp_path / "cache").rglob("*.safetensors")):
            raise Cancelled

    seen = []

    def slow(pixels):
        seen.append(pixels)
        while len(seen) == 3 and not any((tmp_path / "cache").rglob("*.safetensors")):
            time.sleep(0.01)  # the first was given to the thread that writes
        return pooled(pixels)

    with no_thread_left(), pytest.raises(Cancelled):
        cache().fill(place(), slow, check=check)
    rest = cache().missing(place())
    assert 0 < len(rest) < 6
    encoder = Encoder()
    cache().fill(place(), encoder)
    assert encoder.images == len(rest)
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


def test_an_image_whose_result_is_not_finite_is_tried_again_and_then_named(add, place, cache):
    six(add)
    bad = next(placed for placed in place() if placed.key[1] == "bx.png")
    pixels = torch.from_numpy(load_pixels(bad.image.path, View(bad.placement)))

    def overflowing(batch):
        mean, logvar = pooled(batch)
        for index in range(len(batch)):
            if torch.equal(batch[index], pixels):
                mean[index, 0, 0, 0] = torch.nan
        return mean, logvar

    with pytest.raises(ProblemsError) as error:
        cache().fill(place(), overflowing, batch_size=2)
    (problem,) = error.value.problems
    assert "NaN" in problem.what and "bx.png" in problem.what
    assert [placed.key for placed in cache().missing(place())] == [bad.key]  # the others are stored
    tried = []
    cache().fill(place(), overflowing, retry=lambda batch: tried.append(tuple(batch.shape)) or pooled(batch))
    assert tried == [(1, 3, 64, 64)] and cache().missing(place()) == []
    assert torch.isfinite(stored(cache(), place())[bad.key, False][0]).all()


def test_an_image_that_breaks_after_the_scan_is_named_and_the_rest_is_stored(tmp_path, add, place, cache):
    six(add)
    items = place()
    path = items[1].image.path
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ProblemsError, match="bx") as error:
        cache().fill(items, pooled)
    assert len(error.value.problems) == 1
    assert len(cache().missing([items[0], *items[2:]])) == 0


def test_too_little_space_is_said_before_anything_is_encoded(add, place, cache, monkeypatch):
    six(add)
    monkeypatch.setattr("core.record.machine.free_disk", lambda _: 1000)
    encoder = Encoder()
    with pytest.raises(ProblemsError, match="6 images") as error:
        cache().fill(place(), encoder)
    assert error.value.codes == ["disk.space"] and not encoder.batches


def test_a_disk_that_fills_up_while_caching_is_said(add, place, cache, monkeypatch):
    six(add)
    items = place()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.record.atomic.replace", full)
    with pytest.raises(ProblemsError, match="The disk is full"):
        cache().fill(items, pooled)


def test_a_warm_start_reads_no_image(add, place, cache, monkeypatch):
    six(add)
    cache().fill(place(), pooled)

    def never(*_):
        raise AssertionError("an image was read")

    monkeypatch.setattr("core.dataset.caches.contents._sha256", never)
    monkeypatch.setattr("core.dataset.caches.encoding.load_pixels", never)
    warm = cache()
    assert warm.missing(place()) == [] and len(stored(warm, place())) == 6


def test_what_the_pixels_depend_on_is_part_of_the_name(add, place, cache):
    add("fox/a.png", 64, 80)
    cache().fill(place(), pooled)
    for other in ({"alpha_color": "#000000"}, {"resize_interpolation": "nearest"}):
        assert len(cache().missing(place(**other))) == 1, other
    assert cache().missing(place(alpha_color="#FFFFFF")) == []


def test_another_color_behind_transparency_encodes_only_images_that_let_it_through(tmp_path, add, place, cache):
    add("fox/a.png")
    clear = Image.new("RGBA", (64, 48), (200, 10, 10, 255))
    clear.save(tmp_path / "fox" / "b.png")  # it could be seen through, and is not
    clear.putpixel((3, 3), (0, 0, 0, 0))
    clear.save(tmp_path / "fox" / "c.png")
    look_at_all([placed.image for placed in place()], memo_path=tmp_path / "index.sqlite")
    cache().fill(place(), pooled)
    other = place(alpha_color="#000000")
    assert [placed.image.path.name for placed in cache().missing(other)] == ["c.png"]
    found = cache()
    found.fill(other, pooled)
    for (key, _), (mean, _) in stored(found, other).items():
        (placed,) = [placed for placed in other if placed.key == key]
        pixels = load_pixels(placed.image.path, View(placed.placement), images=placed.concept.images)
        assert torch.allclose(mean, pooled(torch.from_numpy(pixels)[None])[0][0])


def test_only_images_that_are_decoded_otherwise_than_by_an_earlier_version_are_encoded_again(
    tmp_path, add, place, cache, monkeypatch
):
    add("fox/a.png")
    add("fox/b.tif")
    Image.new("I;16", (64, 48), 99).save(tmp_path / "fox/c.tif")
    Image.new("I", (64, 48), 99).save(tmp_path / "fox/d.tif")
    with monkeypatch.context() as earlier:
        earlier.setattr("core.dataset.caches.contents.decoding_of", lambda _: "")
        earlier.setattr("core.dataset.caches.contents.DECODINGS", "unknown to the earlier version")
        cache().fill(place(), pooled)
    for _ in range(2):  # the second time from the memo
        assert [placed.image.path.name for placed in cache().missing(place())] == ["d.tif"]


def test_two_resolutions_of_one_folder_never_meet(add, place, cache):
    six(add)
    small, large = place(64), [replace(placed, variant="96x96") for placed in place(96)]
    encoder = Encoder()
    assert cache().fill([*small, *large], encoder) == 12 and encoder.images == 12
    loaded = stored(cache(), [*small, *large])
    for placed in [*small, *large]:
        width, height = placed.placement.bucket
        assert loaded[placed.key, False][0].shape == (4, height // 8, width // 8)


def test_images_of_one_stem_never_meet(add, place, cache):
    add("fox/a.png", 64, 64)
    add("fox/a.jpg", 64, 64)
    cache().fill(place(), pooled)
    loaded = stored(cache(), place())
    png, jpg = (loaded[("fox", name), False][0] for name in ("a.png", "a.jpg"))
    assert not torch.equal(png, jpg)


def test_an_edited_image_of_the_same_size_is_encoded_anew(tmp_path, add, place, cache):
    path = add("fox/a.png", 64, 64)
    cache().fill(place(), pooled)
    before = stored(cache(), place())[("fox", "a.png"), False][0]
    data = bytearray(path.read_bytes())
    path.write_bytes(add("fox/a longer name.png", 64, 64).read_bytes())
    (tmp_path / "fox/a longer name.png").unlink()
    assert path.read_bytes() != data
    assert cache().fill(place(), pooled) == 1
    assert not torch.equal(stored(cache(), place())[("fox", "a.png"), False][0], before)


def test_a_mirrored_side_is_encoded_from_the_mirrored_image(add, place, cache):
    six(add)
    cache().fill(place(), pooled)
    encoder = Encoder()
    assert cache().fill(place(flip_aug=True), encoder) == 6, "the sides as they are were there"
    loaded = stored(cache(), place(flip_aug=True))
    assert len(loaded) == 12
    for placed in place():
        pixels = torch.from_numpy(load_pixels(placed.image.path, View(placed.placement, True)))[None]
        assert torch.equal(loaded[placed.key, True][0], pooled(pixels)[0][0])


def test_kept_in_memory_nothing_is_written(tmp_path, add, place, cache):
    six(add)
    held = cache(writes=False)
    assert held.fill(place(), pooled) == 6 and held.missing(place()) == []
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    cache().fill(place(), pooled)
    written = stored(cache(), place())
    assert all(torch.equal(mean, written[key][0]) for key, (mean, _) in stored(held, place()).items())


KILLED = """
import os, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import test_latent_cache as here
folder = Path(sys.argv[3])
place = here.place.__wrapped__(folder)
cache = here.cache.__wrapped__(folder)
done = []
def encode(pixels):
    done.append(1)
    if len(done) == 4:
        while not list(folder.rglob("*.safetensors")):
            time.sleep(0.01)
        os._exit(9)
    return here.pooled(pixels)
cache().fill(place(), encode)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_whole_entries_and_the_next_goes_on(tmp_path, add, place, cache):
    six(add)
    here = Path(__file__).parent
    words = [sys.executable, "-c", KILLED, str(here.parents[1]), str(here), str(tmp_path)]
    killed = subprocess.run(words, capture_output=True, timeout=600)
    assert killed.returncode == 9, killed.stderr
    rest = cache().missing(place())
    assert 0 < len(rest) < 6
    encoder = Encoder()
    assert cache().fill(place(), encoder) == encoder.images == len(rest)
    assert len(stored(cache(), place())) == 6


def test_pruning_leaves_what_was_used_last(tmp_path, add, place, cache):
    six(add)
    cache().fill(place(), pooled)
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    for path in files:
        os.utime(path, (1000, 1000))
    used = place()[:2]
    stored(cache(), used)
    size = sum(path.stat().st_size for path in files)
    freed = prune(tmp_path / "cache", size // 2)
    assert size - freed <= size // 2 and cache().missing(used) == []
    assert prune(tmp_path / "cache", size) == 0
    prune(tmp_path / "cache", 0)
    assert len(cache().missing(place())) == 6


# ---- encoded while training


def together(pixels):
    """As `pooled`, but what is encoded together changes the result, as it does in the last bits of a VAE's."""
    mean, logvar = pooled(pixels)
    return mean + pixels.mean(), logvar


def written(tmp_path):
    """{name of an entry: its bytes}."""
    return {path.name: path.read_bytes() for path in (tmp_path / "cache").rglob("*.safetensors")}


@pytest.fixture
def late(request):
    """late(cache, items, encode) -> posteriors of what the cache lacks, encoded when they are asked for."""

    def make(cache, items, encode=pooled, *, reads=True, **options):
        made = LatePosteriors(cache, encode, cache.missing_sides(items, reads=reads), **options)
        request.addfinalizer(made.close)
        return made

    return make


@pytest.mark.parametrize("batch_size", [1, 3])
def test_in_any_order_the_entries_are_those_that_filling_the_cache_writes(
    tmp_path, add, place, cache, late, batch_size
):
    six(add)
    items = place(flip_aug=True)
    cache().fill(items, together, batch_size=batch_size)
    at_once = written(tmp_path)
    known = stored(cache(), items)
    shutil.rmtree(tmp_path / "cache")
    every = [side for placed in items for side in sides(placed)]
    for killed_after in (5, len(every)):  # the second life goes on where the first one was killed
        later = late(cache(), items, together, batch_size=batch_size)
        found = {side.key: later.get(side) for side in every[::-1][:killed_after]}
        assert all(torch.equal(one, known[key][part]) for key, both in found.items() for part, one in enumerate(both))
    assert written(tmp_path) == at_once


def test_only_what_is_asked_for_is_encoded_and_only_once(add, place, cache, late):
    six(add)
    items, encoder, told, ends = place(flip_aug=True), Encoder(), [], []
    later = late(
        cache(), items, encoder, device="cpu", progress=lambda *at: told.append(at), finished=lambda: ends.append(1)
    )
    assert later.waiting == 12 and not encoder.images
    for _ in range(2):
        later.get(Side(items[2]))
    assert encoder.images == 1 and later.waiting == 11 and told == [(1, 12)] and not ends
    assert cache().missing_sides(items) and Side(items[2]) not in cache().missing_sides(items), (
        "it is on the disk at once"
    )
    for placed in items:
        for side in sides(placed):
            later.get(side)
    assert encoder.images == 12 and told[-1] == (12, 12) and ends == [1]
    assert late(cache(), items).waiting == 0


def test_posteriors_are_held_from_their_first_use_on_or_read_each_time(tmp_path, add, place, cache, late):
    six(add)
    (first, *_) = items = place()
    cache().fill(items, pooled)
    encoder = Encoder()
    held, read = late(cache(), items, encoder, device="cpu"), late(cache(), items, encoder)
    before = held.get(Side(first))
    assert torch.equal(read.get(Side(first))[0], before[0])
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(held.get(Side(first))[0], before[0]) and not encoder.images
    assert torch.equal(read.get(Side(first))[0], before[0]) and encoder.images == 1, "gone: encoded again"


def test_images_of_one_content_are_encoded_once_whichever_comes_first(tmp_path, add, place, cache, late):
    (tmp_path / "fox").mkdir(exist_ok=True)
    data = add("fox/a.png", 64, 64).read_bytes()
    (tmp_path / "fox/b.png").write_bytes(data)
    encoder = Encoder()
    later = late(cache(), place(), encoder)
    assert all(torch.equal(*pair) for pair in zip(*(later.get(Side(each)) for each in place()[::-1]), strict=True))
    assert encoder.images == 1 and not later.waiting


def test_images_of_the_next_steps_are_decoded_ahead_by_other_threads(add, place, cache, late, monkeypatch):
    six(add)
    items, threads = place(), {}

    def noted(placed):
        threads.setdefault(placed.key, []).append(threading.current_thread() is threading.main_thread())
        return pixels_of(placed)

    monkeypatch.setattr("core.dataset.caches.late.pixels_of", noted)
    later = late(cache(), items, ahead=2)
    for _ in range(2):
        later.decode_ahead(Side(placed) for placed in items[:3])
    for placed in items[:3]:
        later.get(Side(placed))
    assert list(threads.values()) == [[False], [False], [True]], "each once, two of them ahead"


def test_a_damaged_entry_is_found_when_it_is_needed_and_encoded_again(tmp_path, add, place, cache, late):
    six(add)
    items = place()
    cache().fill(items, pooled)
    before, told = stored(cache(), items), []
    for entry in sorted((tmp_path / "cache").rglob("*.safetensors"))[:2]:
        zero_tensors(entry)
    later = late(cache(warn=told.append), items, reads=False)
    assert not later.waiting and not told
    assert all(torch.equal(later.get(Side(placed))[0], before[placed.key, False][0]) for placed in items)
    assert [problem.code for problem in told] == ["cache.damaged"]
    assert not cache().missing_sides(items)


def test_an_image_that_breaks_before_its_turn_is_named_and_the_others_are_encoded(add, place, cache, late):
    six(add)
    items = place()
    later = late(cache(), items)
    broken = items[1].image.path
    broken.write_bytes(broken.read_bytes()[:3000])
    with refused("image.unreadable", str(broken)):
        later.get(Side(items[1]))
    assert later.get(Side(items[0])) and later.waiting == 5


def replaced(add, item):
    """Write another image in place of this one; returns the bytes of the old one."""
    before, other = item.image.path.read_bytes(), add("fox/a longer name.png", 64, 64)
    item.image.path.write_bytes(other.read_bytes())
    other.unlink()
    return before


def test_an_image_edited_before_its_turn_never_becomes_the_entry_of_the_old_one(tmp_path, add, place, cache, late):
    six(add)
    items, told = place(), []
    later = late(cache(warn=told.append), items)
    before = replaced(add, items[0])
    for _ in range(2):
        later.get(Side(items[0]))
    assert [problem.code for problem in told] == ["image.changed"] and not written(tmp_path)
    assert len(cache().missing_sides(place())) == 6

    at_once = cache(warn=told.append)
    items[0].image.path.write_bytes(before)
    items = place()
    assert len(at_once.missing(items)) == 6, "hashes them"
    replaced(add, items[0])
    assert at_once.fill(items, pooled) == 6
    assert [problem.code for problem in told] == ["image.changed"] * 2
    assert torch.equal(at_once.read(Side(items[0]))[0], pooled(torch.from_numpy(pixels_of(items[0]))[None])[0][0])
    items[0].image.path.write_bytes(before)
    assert [each.key for each in cache().missing(place())] == [items[0].key], "the old one is not cached as the new one"


def test_a_disk_that_fills_up_ends_no_training(tmp_path, add, place, cache, late, monkeypatch):
    six(add)
    items, told, encoder = place(), [], Encoder()
    later = late(cache(warn=told.append), items, encoder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.record.atomic.replace", full)
    found = {placed.key: later.get(Side(placed)) for placed in items for _ in range(2)}
    assert [(problem.code, problem.level) for problem in told] == [("disk.full", "advice")]
    assert encoder.images == 6 and not written(tmp_path)
    monkeypatch.undo()
    cache().fill(items, pooled)
    assert all(torch.equal(found[placed.key][0], cache().read(Side(placed))[0]) for placed in items)


def test_a_result_that_is_not_finite_is_tried_again_on_the_way_too(add, place, cache, late):
    add("fox/a.png", 64, 64)
    (item,) = place()

    def overflows(pixels):
        mean, logvar = pooled(pixels)
        return mean * torch.nan, logvar

    with refused("image.vae-nan"):
        late(cache(), [item], overflows).get(Side(item))
    assert torch.isfinite(late(cache(), [item], overflows, retry=pooled).get(Side(item))[0]).all()


# ---- draws


def test_a_draw_is_mean_plus_deviation_times_addressed_noise():
    mean, logvar = torch.full((4, 64, 64), 2.0), torch.full((4, 64, 64), 2 * torch.log(torch.tensor(3.0)).item())
    drawn = sample_latent(mean, logvar, 1, 2, ("fox", "a.png"), 0)
    # 16384 normal numbers: 4 standard errors are 0.03 deviations for the mean, 0.022 for the deviation
    assert drawn.mean().item() == pytest.approx(2, abs=3 * 0.032)
    assert drawn.std().item() == pytest.approx(3, rel=0.023)
    assert torch.equal(drawn, sample_latent(mean, logvar, 1, 2, ("fox", "a.png"), 0))
    for other in (
        (2, 2, ("fox", "a.png"), 0),
        (1, 3, ("fox", "a.png"), 0),
        (1, 2, ("fox", "b.png"), 0),
        (1, 2, ("fox", "a.png"), 1),
    ):
        assert not torch.equal(drawn, sample_latent(mean, logvar, *other))


def test_without_variance_a_draw_is_the_mean():
    mean = torch.randn(4, 8, 8)
    drawn = sample_latent(mean, torch.full_like(mean, -100.0), 1, 1, ("fox", "a.png"), 0)
    assert torch.allclose(drawn, mean, atol=2e-6)  # clamped at -30: a deviation of 3e-7


def test_a_frozen_draw_is_one_for_each_side_of_an_image():
    mean, logvar = torch.zeros(4, 8, 8), torch.zeros(4, 8, 8)
    frozen = frozen_latent(mean, logvar, 1, ("fox", "a.png"))
    assert torch.equal(frozen, frozen_latent(mean, logvar, 1, ("fox", "a.png")))
    for other in ((2, ("fox", "a.png")), (1, ("fox", "b.png")), (1, ("fox", "a.png"), True)):
        assert not torch.equal(frozen, frozen_latent(mean, logvar, *other))
