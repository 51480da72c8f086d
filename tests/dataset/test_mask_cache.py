"""Masks at latent size: computed once for each content and place, mirrored and averaged as the image is."""

import numpy as np
import pytest
import torch
from PIL import Image

from core.dataset.caches.partners import MaskCache, at_latent_size, mask_source
from core.record.problems import ProblemsError
from tests.damage import zero_tensors


@pytest.fixture
def cache(tmp_path):
    return lambda **options: MaskCache(tmp_path / "masks cache", memo_path=tmp_path / "index.sqlite", **options)


def half(path, side="left", size=(64, 64)):
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]) if side == "left" else (size[0] // 2, 0, *size))
    path.parent.mkdir(exist_ok=True)
    mask.save(path)
    return path


def test_a_mask_is_averaged_to_latent_size_and_kept(tmp_path, add, place, cache, monkeypatch):
    placed = place(add("fox/a.png", 64, 64), half(tmp_path / "m/a.png"), masked_loss=True)
    mask = cache().load([placed])[placed.key]
    expected = torch.zeros(1, 8, 8)
    expected[..., :4] = 1
    assert torch.equal(mask, expected)
    monkeypatch.setattr("core.dataset.caches.partners.load_mask", lambda *_: pytest.fail("it was kept"))
    assert torch.equal(cache().load([placed])[placed.key], expected)


def test_a_mask_of_zeros_under_its_own_header_is_computed_again_and_named(tmp_path, add, place, cache):
    placed = place(add("fox/a.png", 64, 64), half(tmp_path / "m/a.png"), masked_loss=True)
    whole = cache().load([placed])[placed.key]
    (entry,) = (tmp_path / "masks cache").rglob("*.safetensors")
    zero_tensors(entry)
    told = []
    assert torch.equal(cache(warn=told.append).load([placed])[placed.key], whole)
    assert [problem.code for problem in told] == ["cache.damaged"]


def test_an_edited_mask_is_read_anew(tmp_path, add, place, cache):
    image = add("fox/a.png", 64, 64)
    before = place(image, half(tmp_path / "m/a.png"), masked_loss=True)
    first = cache().load([before])[before.key]
    after = place(image, half(tmp_path / "m/a.png", "right"), masked_loss=True)
    assert torch.equal(cache().load([after])[after.key], 1 - first)


def test_transparency_is_the_mask_where_the_folder_says_so(tmp_path, place, cache):
    path = tmp_path / "a.png"
    pixels = np.full((64, 64, 4), 255, np.uint8)
    pixels[:32, :, 3] = 0
    Image.fromarray(pixels).save(path)
    assert mask_source(place(path)) is None
    placed = place(path, alpha_mask=True)
    mask = cache().load([placed])[placed.key]
    assert mask[0, :4].sum() == 0 and bool((mask[0, 4:] == 1).all())
    both = place(path, half(tmp_path / "m/a.png"), alpha_mask=True, masked_loss=True)
    assert mask_source(both) == both.image.conditioning, "a mask image wins"
    assert bool((cache().load([both])[both.key][0, :4, :4] == 1).all())


def test_a_mask_that_leaves_nothing_out_is_none(add, place, cache):
    opaque = place(add("fox/a.png", 64, 64), alpha_mask=True)
    assert cache().load([opaque]) == {}


def test_nothing_is_written_where_nothing_may_be_or_can_be(tmp_path, add, place, cache, monkeypatch):
    placed = place(add("fox/a.png", 64, 64), half(tmp_path / "m/a.png"), masked_loss=True)
    assert placed.key in cache(writes=False).load([placed])
    assert not (tmp_path / "masks cache").exists()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.record.atomic.replace", full)
    assert placed.key in cache().load([placed])
    assert not list((tmp_path / "masks cache").rglob("*.safetensors"))


def test_masks_that_cannot_be_read_are_named(tmp_path, add, place, cache):
    broken = half(tmp_path / "m/a.png")
    broken.write_bytes(broken.read_bytes()[:40])
    placed = place(add("fox/a.png", 64, 64), broken, masked_loss=True)
    with pytest.raises(ProblemsError, match=r"a\.png"):
        cache().load([placed])


def test_the_mean_of_a_mirrored_mask_is_the_mirrored_mean():
    mask = np.random.default_rng(0).random((1, 64, 48), np.float32)
    assert torch.allclose(at_latent_size(mask[..., ::-1].copy()), at_latent_size(mask).flip(-1))
