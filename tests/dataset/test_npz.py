"""Latent caches of sd-scripts: every layout that is about is read where it fits; what does not fit is named."""

import os

import numpy as np
import pytest
import torch

from core.dataset.caches.encoding import Side
from core.dataset.caches.latents import LatentCache
from core.dataset.caches.npz import NpzCaches, export_npz
from core.dataset.images.views import recorded_crop
from core.record.problems import ProblemsError
from core.training.loop.sources import sample_latent


def latents(placed, seed=0):
    width, height = placed.placement.bucket
    return np.random.default_rng(seed).normal(size=(4, height // 8, width // 8)).astype(np.float32)


def whole(placed, **more):
    """The arrays that v0.9 writes."""
    size = np.array([placed.image.width, placed.image.height])
    return {"latents": latents(placed), "original_size": size, "crop_ltrb": np.zeros(4)} | more


def layouts(placed):
    """Every way in which the same latents are found: {what: [(name, arrays)]}."""
    width, height = (length // 8 for length in placed.placement.bucket)
    suffixed = {f"{name}_{height}x{width}": value for name, value in whole(placed).items()}
    other = {f"{name}_9x9": value for name, value in whole(placed, latents=np.zeros((4, 9, 9), np.float32)).items()}
    return {
        "v0.9": [("a.npz", whole(placed))],
        "a bare array": [("a.npz", {"arr_0": latents(placed)})],
        "0.10's name": [("a_0100x0060_sd.npz", whole(placed))],
        "keys with sizes": [("a_0100x0060_sd.npz", suffixed | other)],
        "the second name where the first does not fit": [
            ("a.npz", whole(placed, latents=np.zeros((4, 9, 9), np.float32))),
            ("a_0100x0060_sd.npz", whole(placed)),
        ],
    }


@pytest.mark.parametrize(
    "layout",
    ["v0.9", "a bare array", "0.10's name", "keys with sizes"] + ["the second name where the first does not fit"],
)
def test_every_layout_is_read_as_a_sample_without_spread(add, place, layout):
    placed = place(add("fox/a.png", 100, 60))
    for name, arrays in layouts(placed)[layout]:
        np.savez(placed.image.path.with_name(name), **arrays)
    caches = NpzCaches([placed])
    mean, logvar = caches(Side(placed))
    assert torch.equal(mean, torch.from_numpy(latents(placed)))
    assert torch.allclose(sample_latent(mean, logvar, 1, 2, placed.key, 0), mean, atol=3e-6)  # 3e-7 times normal draws
    used = layouts(placed)[layout][-1][0]
    assert "1 .npz files" in caches.log_lines()[0] and used in caches.log_lines()[0]
    assert list(caches.refused) == [name for name, _ in layouts(placed)[layout][:-1]]


@pytest.mark.parametrize("seconds", [-1, 1])
def test_a_file_that_is_older_than_its_image_is_named(add, place, seconds):
    placed = place(add("fox/a.png", 100, 60))
    path = placed.image.path.with_name("a.npz")
    np.savez(path, **whole(placed))
    written = placed.image.mtime_ns + seconds * 10**9
    os.utime(path, ns=(written, written))
    caches = NpzCaches([placed])
    assert caches(Side(placed)) is not None
    assert [line for line in caches.log_lines() if line.startswith("Older") and "a.npz" in line] == caches.log_lines()[
        1:
    ]
    assert len(caches.log_lines()) == (2 if seconds < 0 else 1)


def test_the_mirrored_side_is_read_from_its_key_or_file(add, place):
    placed = place(add("fox/a.png", 100, 60), flip_aug=True)
    flipped = latents(placed, seed=1)
    path = placed.image.path.with_suffix(".npz")
    np.savez(path, **whole(placed, latents_flipped=flipped))
    assert torch.equal(NpzCaches([placed])(Side(placed, True))[0], torch.from_numpy(flipped))
    np.savez(path, latents(placed))
    caches = NpzCaches([placed])
    assert caches(Side(placed, True)) is None and caches(Side(placed)) is None, "half of an image is of no use"
    assert "lacks the flipped image (a_flip.npz)" in caches.refused["a.npz"]
    np.savez(path.with_name("a_flip.npz"), flipped)
    assert torch.equal(NpzCaches([placed])(Side(placed, True))[0], torch.from_numpy(flipped))


REFUSED = {
    "another size": (lambda placed: whole(placed, latents=np.zeros((4, 9, 9), np.float32)), "for another size"),
    "a huge array": (lambda placed: whole(placed, latents=np.zeros((4, 200, 200), np.float32)), "for another size"),
    "another image": (lambda placed: whole(placed, original_size=np.array([640, 480])), "640 x 480"),
    "NaN": (lambda placed: whole(placed, latents=np.full_like(latents(placed), np.nan)), "NaN"),
    "no latents": (lambda placed: {"original_size": np.array([100, 60])}, "contains no latents"),
    "objects": (lambda placed: {"latents": np.array([{}], dtype=object)}, "cannot be read"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_with_its_name_and_reason(add, place, what):
    make, reason = REFUSED[what]
    placed = place(add("fox/a.png", 100, 60))
    np.savez(placed.image.path.with_suffix(".npz"), **make(placed))
    caches = NpzCaches([placed])
    assert caches(Side(placed)) is None
    (line,) = caches.log_lines()
    assert "a.npz" in line and reason in line


def test_a_damaged_file_is_refused(add, place):
    placed = place(add("fox/a.png", 100, 60))
    placed.image.path.with_suffix(".npz").write_bytes(b"PK\x03\x04 and no more")
    caches = NpzCaches([placed])
    assert caches(Side(placed)) is None and caches.refused == {"a.npz": "cannot be read"}


def test_one_file_for_two_images_is_for_none(add, place):
    both = [place(add(f"fox/{name}", 100, 60)) for name in ("a.png", "a.jpg")]
    np.savez(both[0].image.path.with_suffix(".npz"), **whole(both[0]))
    caches = NpzCaches(both)
    assert [caches(Side(placed)) for placed in both] == [None, None]
    assert "several images" in caches.refused["a.npz"]


def test_an_image_that_is_turned_by_exif_is_not_taken_from_a_cache_that_is_not(add, place):
    from PIL import Image

    path = add("fox/a.jpg", 100, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    placed = place(path)
    assert (placed.image.width, placed.image.height) == (60, 100)
    np.savez(path.with_suffix(".npz"), **whole(placed, original_size=np.array([100, 60])))
    caches = NpzCaches([placed])
    assert caches(Side(placed)) is None and "before the image was rotated" in caches.refused["a.npz"]


def test_the_latent_cache_encodes_only_what_no_file_has(tmp_path, add, place):
    with_file, without = place(add("fox/a.png", 100, 60)), place(add("fox/bb.png", 100, 60))
    np.savez(with_file.image.path.with_suffix(".npz"), **whole(with_file))
    cache = LatentCache(tmp_path / "cache", "vae", other_programs=NpzCaches([with_file, without]))
    assert [placed.key for placed in cache.missing([with_file, without])] == [without.key]
    assert torch.equal(cache.read(Side(with_file))[0], torch.from_numpy(latents(with_file)))


def test_what_is_written_is_read_again(add, place):
    placed = place(add("fox/a.png", 100, 60), flip_aug=True, alpha_mask=True)
    larger = place(placed.image.path, variant="96x96", resolution=96, flip_aug=True)
    mask = np.linspace(0, 1, 100 * 60, dtype=np.float32)[: 64 * 48].reshape(1, 48, 64)

    def sample(side):
        return torch.from_numpy(latents(side.placed, seed=int(side.flipped)))

    done = export_npz([placed, larger], sample, lambda _: mask)
    path = placed.image.path.with_suffix(".npz")
    assert done.written == 1 and done.skipped == []
    with np.load(path) as file:
        assert {"latents", "latents_flipped", "original_size", "crop_ltrb", "alpha_mask"} <= set(file.files)
        assert file["original_size"].tolist() == [100, 60] and file["alpha_mask"].shape == (48, 64)
        assert file["latents"].dtype == np.float32
    caches = NpzCaches([placed, larger])
    for each in (placed, larger):
        for flipped in (False, True):
            assert torch.equal(caches(Side(each, flipped))[0], sample(Side(each, flipped)))


def test_nothing_is_overwritten(add, place):
    images = [place(add(f"fox/{name}", 100, 60)) for name in ("a.png", "b.png", "b.jpg")]
    path = images[0].image.path.with_suffix(".npz")
    path.write_bytes(b"theirs")
    done = export_npz(images, lambda side: torch.from_numpy(latents(side.placed)), lambda placed: None)
    assert done.written == 0 and sorted(done.skipped) == ["a.npz", "b.npz"] and path.read_bytes() == b"theirs"


def test_the_recorded_crop_is_sd_scripts_own():
    left, top, right, bottom = recorded_crop((832, 1216), (1000, 1500))  # the reference's example, section 3.7
    assert (left, top) == (10, 0) and right == pytest.approx(10 + 1216 / 1.5) and bottom == 1216


def test_on_a_full_disk_a_file_is_whole_or_absent_and_named(tmp_path, add, place, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    placed = place(add("fox/a.png", 100, 60))
    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(ProblemsError, match="No space") as error:
        export_npz([placed], lambda side: torch.from_numpy(latents(side.placed)), lambda _: None)
    assert error.value.problems[0].where.endswith("a.npz")
    assert [path.name for path in (tmp_path / "fox").iterdir()] == ["a.png"]
