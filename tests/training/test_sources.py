"""Views that are made ahead are those that would be made when they are asked for, and there are never too many."""

import threading
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from core.dataset.images.views import View
from core.families.vae import model_latents
from core.settings.dataset.concepts import PLAIN
from core.training.loop import sources
from core.training.loop.sources import DecodedView, Latents, ViewLoader


@dataclass(frozen=True)
class ImageInfo:
    key: tuple
    concept = PLAIN
    placement = None
    image = SimpleNamespace(relative="fox.png", control=None)


FOX, BEAR = ImageInfo(("set", "fox")), ImageInfo(("set", "bear"))


class Loader:
    """Shows each address as an image of one number."""

    def __init__(self):
        self.asked = []
        self.threads = set()

    def __call__(self, placed, epoch, repeat):
        self.asked.append((placed.key, epoch, repeat))
        self.threads.add(threading.current_thread().name)
        value = np.float32(len(placed.key[1]) + epoch * 10 + repeat * 100)
        mask = np.full((1, 16, 16), 0.5, np.float32) if placed == FOX else None
        return DecodedView(np.full((3, 16, 16), value, np.float32), mask)


def pooled(pixels):
    return pixels[:, :1, ::8, ::8], torch.full_like(pixels[:, :1, ::8, ::8], -30.0)


def test_expected_views_are_made_by_other_threads_within_the_room():
    loader = Loader()
    views = ViewLoader(loader, threads=2, ahead=3)
    items = [(FOX, repeat) for repeat in range(5)]
    views.decode_ahead(1, items)
    shown = [views.take(FOX, 1, repeat) for repeat in range(3)]
    assert len(loader.asked) == 3 and threading.current_thread().name not in loader.threads
    assert [float(each.pixels[0, 0, 0]) for each in shown] == [13, 113, 213]
    views.decode_ahead(1, items[3:])
    views.decode_ahead(1, items[3:])
    assert [float(views.take(FOX, 1, repeat).pixels[0, 0, 0]) for repeat in (3, 4)] == [313, 413]
    assert len(loader.asked) == 5, "none was made twice"
    views.close()


def test_a_view_that_nobody_expected_is_the_same():
    views = ViewLoader(Loader(), threads=1, ahead=1)
    views.decode_ahead(2, [(FOX, 0)])
    assert np.array_equal(views.take(FOX, 2, 0).pixels, views.take(FOX, 2, 0).pixels)
    views.close()


def test_a_batch_may_hold_images_of_both_kinds(monkeypatch):
    encoded = []

    def encode(pixels):
        encoded.append(len(pixels))
        return pooled(pixels)

    kept = (torch.full((1, 2, 2), 7.0), torch.full((1, 2, 2), -30.0))
    latents = Latents(
        lambda side: kept,
        seed=1,
        masks={BEAR.key: torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])},
        views=ViewLoader(Loader(), threads=1, ahead=4),
        uncached={FOX.key},
        encode=encode,
        encode_at_once=2,
    )
    latents.into_model = lambda own: own * 2.0
    monkeypatch.setattr(sources, "draw_view", lambda *address: View(None, flip=True))
    batch = latents.batch(0, [(BEAR, 0), (FOX, 0), (FOX, 1), (FOX, 2)])
    drawn, masks = batch.latents, batch.masks
    assert torch.allclose(drawn[:, 0, 0, 0], torch.tensor([14.0, 6, 206, 406]), atol=1e-4)
    assert encoded == [2, 1]
    assert masks[0, 0].tolist() == [[1, 0], [1, 0]], "mirrored with its image"
    assert bool((masks[1:] == 0.5).all())
    latents.close()


def test_without_any_mask_there_is_none():
    kept = (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    latents = Latents(lambda side: kept, seed=1)
    assert latents.batch(0, [(BEAR, 0)]).masks is None


def test_masks_wait_on_the_processor_until_the_step_moves_them():
    """A copy to a GPU at this place would wait for everything that was queued before it."""
    there, masks = torch.zeros(4, 2, 2, device="meta"), {FOX.key: torch.ones(1, 2, 2)}
    held = Latents(lambda side: (there, there), 7, mode="mean", masks=masks, device="meta")
    batch = held.batch(0, [(FOX, 0), (BEAR, 0)])
    assert batch.latents.device.type == "meta"
    assert batch.masks.device.type == "cpu" and batch.masks.shape == (2, 1, 2, 2)


def test_latents_meet_on_the_device_wherever_they_were_kept():
    """Of one batch some may be kept in memory and others come from the VAE on a GPU."""
    places = {FOX.key: torch.zeros(4, 2, 2), BEAR.key: torch.zeros(4, 2, 2, device="meta")}
    held = Latents(lambda side: (places[side.placed.key],) * 2, 7, mode="mean", device="meta")
    assert held.batch(0, [(FOX, 0), (BEAR, 0)]).latents.device.type == "meta"


def test_halved_latents_are_those_that_were_cast_before_they_were_scaled():
    encoded, scale = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 0.18215
    latents = Latents(lambda side: (encoded[0], encoded[0]), 7, mode="mean")
    latents.into_model, latents.rounding_dtype = partial(model_latents, {"scaling_factor": scale}), torch.bfloat16
    theirs = encoded.to(torch.bfloat16) * scale
    assert torch.equal(latents.batch(0, [(BEAR, 0)]).latents, theirs)
    assert not torch.equal((encoded * scale).to(torch.bfloat16), theirs), "rounded once where they round twice"
