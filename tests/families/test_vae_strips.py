"""A VAE in strips makes what it makes as a whole, to rounding: no seam, whatever the height and the number of strips."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import interpolate

from core.families import family
from core.families.counting import config_key, decoding_bytes
from core.families.vae import decode_latents, encode_image_latents
from core.families.vae_strips import Strips, can_use_strips, in_strips
from core.record.workspace import PROJECT
from tests.models import shipped_config

OFF = 1e-3 / 255  # of rounding: a thousandth of a gray level


@pytest.fixture(scope="module")
def starter():
    return family("sd1").load(PROJECT / "models" / "starter", parts=("vae",)).vae


@pytest.fixture(scope="module")
def published():
    """Random weights of SD 1.5's sizes."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL.from_config(shipped_config("vae")).eval().requires_grad_(False)


def latents(vae, high, wide):
    """Of an enlarged image of the starter's own, so that they are not noise."""
    x = torch.linspace(-1, 1, 64)
    small = torch.stack([x[:, None] * x, x[:, None].expand(64, 64), (7 * x).sin().expand(64, 64)])[None]
    pixels = interpolate(small, (high, wide), mode="bicubic").clamp(-1, 1)
    return pixels, encode_image_latents(vae, pixels)[0] * vae.config.scaling_factor


@pytest.mark.parametrize(("size", "slices"), [((128, 96), 2), ((104, 64), 3), ((64, 64), 8), ((72, 120), 64)], ids=str)
def test_images_and_latents_are_the_same(starter, size, slices):
    pixels, given = latents(starter, *size)
    whole = decode_latents(starter, given), *encode_image_latents(starter, pixels)
    with torch.no_grad(), in_strips(starter, lambda pixels: slices):
        strips = decode_latents(starter, given), *encode_image_latents(starter, pixels)
    assert (strips[0] - whole[0]).abs().max() / 2 < OFF
    for one, other in zip(strips[1:], whole[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert torch.equal(decode_latents(starter, given), whole[0]), "afterwards it is as before"


@pytest.mark.slow
def test_the_same_at_the_published_sizes_with_a_batch(published):
    given = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    whole = decode_latents(published, given)
    with in_strips(published, lambda pixels: 3):
        strips = decode_latents(published, given)
    assert (strips - whole).abs().max() / 2 < 10 * OFF


def test_a_norm_that_saw_its_strip_alone_would_be_seen(starter, monkeypatch):
    _, given = latents(starter, 128, 128)
    whole = decode_latents(starter, given)
    monkeypatch.setattr(Strips, "normalized", lambda self, norm, x, act: lambda strip: act(norm(strip)))
    with in_strips(starter, lambda pixels: 4):
        assert (decode_latents(starter, given) - whole).abs().max() / 2 > 10 / 255


def test_memory_that_runs_out_is_tried_again_in_strips_and_told(starter, monkeypatch):
    _, given = latents(starter, 64, 64)
    whole, told = decode_latents(starter, given), []

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(type(starter.decoder), "forward", full)
    with in_strips(starter, lambda pixels: 1, told.append):
        strips = decode_latents(starter, given)
    assert told == [8] and (strips - whole).abs().max() / 2 < OFF
    monkeypatch.setattr(Strips, "decoder", full)
    with pytest.raises(torch.OutOfMemoryError), in_strips(starter, lambda pixels: 1, told.append):
        decode_latents(starter, given)
    assert told == [8, 8, 32]


def test_only_what_is_built_of_known_blocks_is_cut(starter):
    assert can_use_strips(starter)
    assert not can_use_strips(SimpleNamespace(decoder=torch.nn.Identity(), encoder=torch.nn.Identity()))


def test_the_pixels_of_an_image_decide(starter):
    asked = []
    with in_strips(starter, lambda pixels: asked.append(pixels) or 1):
        _, given = latents(starter, 64, 96)
        decode_latents(starter, given)
    assert asked == [64 * 96, 64 * 96]


def test_the_count_of_a_decoding_is_three_maps_of_the_widest_level():
    one = 512 * 512 * 256 * 4  # bytes: the first block at the image's size begins with 256 channels
    assert decoding_bytes("sd1", config_key(shipped_config("vae")), 512 * 512, torch.float32) == pytest.approx(
        3 * one, rel=0.01
    )
