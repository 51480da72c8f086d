"""The sources of a step's inputs: latents, cached or encoded at each step, and text states, cached or from trained text encoders."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from core.dataset.caches.encoding import Encode, Posterior, Side
from core.dataset.caches.partners import at_latent_size
from core.dataset.images.opening import BrokenImage, problem_of
from core.dataset.images.views import draw_view
from core.diffusion.text_states import TextStates
from core.record import draws, machine
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, ProblemsError
from core.record.queued import queued
from core.training.loop.batch import Batch, Item

if TYPE_CHECKING:
    import numpy as np

    from core.dataset.buckets.batches import Placed
    from core.dataset.caches.late import LatePosteriors
    from core.dataset.caches.texts import EncodeText, TextCache
    from core.diffusion.noise import Address

VALIDATION_EPOCH = -1  # epoch of validation in the addresses of random numbers; no training epoch has it
DEVICE_BYTES = 2 << 30  # posteriors that need no more than this are held on the device


class DecodedView(NamedTuple):
    """A decoded image of a step, float32.

    pixels    [3, H, W] in [-1, 1]; None if its latents are cached
    mask      [1, H, W] in 0..1; None if the image has none or its latents are cached
    control   control image, [3, H, W] in 0..1; None if the image has none
    """

    pixels: np.ndarray | None = None
    mask: np.ndarray | None = None
    control: np.ndarray | None = None


class ViewLoader:
    """Decodes augmented images and control images in threads, ahead of the steps that use them.

    load    (image, epoch, repeat) -> decoded view; its random numbers are addressed, so the order of calls does not matter
    ahead   maximum number of decoded views that wait in memory
    """

    def __init__(self, load: Callable[[Placed, int, int], DecodedView], threads: int, ahead: int):
        self._load, self._ahead = load, ahead
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")
        self._waiting: OrderedDict[tuple, Future[DecodedView]] = OrderedDict()

    def decode_ahead(self, epoch: int, items: Iterable[Item]) -> None:
        """Start decoding the next views of an epoch, in order, up to the limit."""
        for placed, repeat in items:
            if len(self._waiting) >= self._ahead:
                return
            address = (epoch, placed.key, repeat)
            if address not in self._waiting:
                self._waiting[address] = self._pool.submit(self._load, placed, epoch, repeat)

    def take(self, placed: Placed, epoch: int, repeat: int) -> DecodedView:
        """Return the decoded view of an image, and forget it. Raises ProblemsError for an image that cannot be read."""
        waiting = self._waiting.pop((epoch, placed.key, repeat), None)
        try:
            return waiting.result() if waiting is not None else self._load(placed, epoch, repeat)
        except BrokenImage as error:
            raise ProblemsError([problem_of(placed.image.path, error)]) from error

    def close(self) -> None:
        """Stop the threads and drop the views that were not taken."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._waiting.clear()


class Latents:
    """Builds batches of latents, sampled from cached posteriors or from images encoded at each step.

    posterior_of     (side) -> posterior (mean, log variance); a side is an image, plain or flipped, that is encoded once
    late_posteriors  the source of `posterior_of`, if sides are still encoded during training; else None
    mode             "sample": a random sample for each (epoch, image, repeat); "mean"; "frozen": one sample for the whole run
    masks            {image key: [1, h, w] in 0..1 at latent size} of the images whose mask is not all ones
    views            loads control images and the images that are encoded at each step
    uncached         keys of the images that are encoded at each step
    encode           (pixels) -> posterior of the uncached images, up to `encode_at_once` together
    latent_pixels    image pixels per latent, along a side
    device           of the batch's latents
    into_model       converts the VAE's latents to the model's; set when the model is loaded
    rounding_dtype   dtype to which the VAE's latents are rounded before `into_model`; None keeps float32
    """

    def __init__(
        self,
        posterior_of: Callable[[Side], Posterior],
        seed: int,
        *,
        late_posteriors: LatePosteriors | None = None,
        mode: str = "sample",
        masks: Mapping[tuple[str, ...], Tensor] | None = None,
        views: ViewLoader | None = None,
        uncached: Collection[tuple[str, ...]] = (),
        encode: Encode | None = None,
        encode_at_once: int = 1,
        latent_pixels: int = 8,
        validation_seed: int | None = None,
        device: str = "cpu",
    ):
        self.into_model: Callable[[Tensor], Tensor] = lambda latents: latents
        self.rounding_dtype: torch.dtype | None = None
        self._device = device
        self._posterior_of, self._late_posteriors, self._seed, self._mode = posterior_of, late_posteriors, seed, mode
        self._validation_seed = seed if validation_seed is None else validation_seed
        self._masks = masks or {}
        self._views, self._uncached, self._encode, self._at_once = views, frozenset(uncached), encode, encode_at_once
        self._latent_pixels = latent_pixels

    def decode_ahead(self, epoch: int, items: Iterable[Item]) -> None:
        """Start decoding the images of the next batches, in order."""
        items = list(items)
        if self._views is not None:
            self._views.decode_ahead(epoch, (item for item in items if self._decodes(item[0])))
        if self._late_posteriors is not None and self._late_posteriors.waiting:
            cached = [(placed, repeat) for placed, repeat in items if placed.key not in self._uncached]
            self._late_posteriors.decode_ahead(self._side(placed, epoch, repeat) for placed, repeat in cached)

    def batch(
        self, epoch: int, items: Sequence[Item], addresses: Sequence[Address] = (), captions: Sequence[str] = ()
    ) -> Batch:
        """Return the batch of these images, which must have one size.

        epoch       a training epoch, or VALIDATION_EPOCH
        items       (image, number of its repeat)
        addresses   of the noise of each image, for the Batch
        captions    text of each image, for the Batch
        """
        views = [draw_view(placed, self.seed_of(epoch), epoch, repeat) for placed, repeat in items]
        decoded = [self._decoded(placed, epoch, repeat) for placed, repeat in items]
        uncached = self._encoded(decoded)
        latents: list[Tensor] = []
        masks: list[Tensor | None] = []
        for index, (placed, repeat) in enumerate(items):
            if index in uncached:
                posterior, mask = uncached[index]
                flipped = False  # a view's pixels are flipped already
            else:
                flipped = views[index].flip
                posterior = self._posterior_of(Side(placed, flipped))
                mask = self._masks.get(placed.key)
                mask = mask.flip(-1) if mask is not None and flipped else mask
            sampled = self._sampled(posterior, placed, epoch, repeat, flipped)
            latents.append(self.into_model(queued(sampled, self._device).to(self.rounding_dtype or torch.float32)))
            masks.append(mask)
        stacked = torch.stack(latents)
        ones = torch.ones(1, *stacked.shape[-2:])
        unmasked = all(mask is None for mask in masks)
        batch_masks = None if unmasked else torch.stack([ones if mask is None else mask for mask in masks])
        controls = [torch.from_numpy(each.control) for each in decoded if each.control is not None]
        assert len(controls) in (0, len(items)), "the scan refuses images without a control image"
        control = torch.stack(controls) if controls else None
        return Batch(items, views, addresses, captions, stacked, batch_masks, control)

    def close(self) -> None:
        """Stop the threads that decode images."""
        for part in (self._views, self._late_posteriors):
            if part is not None:
                part.close()

    @property
    def encodes_later(self) -> bool:
        """Whether images remain that the steps encode and cache."""
        return self._late_posteriors is not None and self._late_posteriors.waiting > 0

    @property
    def encodes_each_step(self) -> bool:
        """Whether images are encoded at each step that uses them."""
        return bool(self._uncached)

    @property
    def encoding_seconds(self) -> float:
        """Seconds spent in steps so far on encoding images that are then cached."""
        return self._late_posteriors.seconds if self._late_posteriors is not None else 0.0

    def _side(self, placed: Placed, epoch: int, repeat: int) -> Side:
        """Return the side, plain or flipped, that this use of the image needs."""
        return Side(placed, draw_view(placed, self.seed_of(epoch), epoch, repeat).flip)

    def seed_of(self, epoch: int) -> int:
        """Return the seed of the random numbers of an epoch; validation has its own."""
        return self._validation_seed if epoch == VALIDATION_EPOCH else self._seed

    def _sampled(self, posterior: Posterior, placed: Placed, epoch: int, repeat: int, flipped: bool) -> Tensor:
        """Return an image's latent by `mode`, float32 [C, h, w], not scaled."""
        mean, logvar = posterior
        if self._mode == "mean":
            return mean.float()
        if self._mode == "frozen":
            return frozen_latent(mean, logvar, self.seed_of(epoch), placed.key, flipped)
        return sample_latent(mean, logvar, self.seed_of(epoch), epoch, placed.key, repeat)

    def _decodes(self, placed: Placed) -> bool:
        """Return whether the image itself or its control image is decoded at each step."""
        return placed.key in self._uncached or placed.image.control is not None

    def _decoded(self, placed: Placed, epoch: int, repeat: int) -> DecodedView:
        """Return the decoded view of an image; an empty one if neither image nor control image is decoded at each step."""
        if self._views is None or not self._decodes(placed):
            return DecodedView()
        return self._views.take(placed, epoch, repeat)

    def _encoded(self, views: Sequence[DecodedView]) -> dict[int, tuple[Posterior, Tensor | None]]:
        """Return {index in the batch: (posterior, mask at latent size or None)} of the images that are encoded at each step."""
        import numpy as np

        pixels = {index: view.pixels for index, view in enumerate(views) if view.pixels is not None}
        indices = list(pixels)
        encoded: dict[int, tuple[Posterior, Tensor | None]] = {}
        for start in range(0, len(indices), self._at_once):
            assert self._encode is not None
            part = indices[start : start + self._at_once]
            mean, logvar = self._encode(torch.from_numpy(np.stack([pixels[index] for index in part])))
            for row, index in enumerate(part):
                mask = views[index].mask
                encoded[index] = (
                    (mean[row], logvar[row]),
                    None if mask is None else at_latent_size(mask, self._latent_pixels),
                )
        return encoded


def sample_latent(
    mean: Tensor, logvar: Tensor, seed: int, epoch: int | str, key: Sequence[str], repeat: int | str
) -> Tensor:
    """Return a sample of an image's posterior, float32 [C, h, w], not scaled: mean + exp(logvar / 2) * noise.

    The noise is addressed by (seed, epoch, image key, repeat) and drawn on the CPU: the same for every device. The
    log variance is clamped as in the VAE of latent diffusion (Rombach et al. 2022, arXiv:2112.10752).
    """
    noise = queued(draws.normal(mean.shape, seed, "latent", epoch, *key, repeat), mean.device)
    return mean.float() + logvar.float().clamp(-30.0, 20.0).mul(0.5).exp() * noise


def frozen_latent(mean: Tensor, logvar: Tensor, seed: int, key: Sequence[str], flipped: bool = False) -> Tensor:
    """Return the posterior sample that is used in the whole run, float32 [C, h, w], not scaled, as sd-scripts caches it. The plain and the
    flipped image have different noise."""
    return sample_latent(mean, logvar, seed, "every", key, "mirrored" if flipped else "as it is")


class FrozenText:
    """Text states of frozen text encoders. Each caption variant is encoded once; encoders are loaded only when needed.

    release           called when the encoders may be freed
    progress          called with (number encoded, total) if steps encode captions
    encodes_in_steps  captions are encoded at the first step that needs them; set before the first step
    seconds           time spent on encoding so far
    """

    def __init__(
        self,
        cache: TextCache,
        encode: EncodeText,
        release: Callable[[], None],
        device: str,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        self.encodes_in_steps, self.seconds = False, 0.0
        self._cache, self._encode, self._release, self._device = cache, encode, release, device
        self._progress = progress
        self._expected: Sequence[str] | None = None
        self._total = self._encoded = 0

    def count_missing(self, captions: Sequence[str]) -> int:
        """Return the number of captions that are not cached."""
        return len(self._cache.missing(captions))

    def need(self, captions: Sequence[str]) -> None:
        """Prepare for `states` of these captions: encode those that are not cached, and release the encoders. With `encodes_in_steps`,
        leave the encoding to `states`."""
        if not self.encodes_in_steps:
            if self._cache.ensure(captions, self._encode_timed):
                self._release()
        elif captions is not self._expected:
            waiting, self._expected = self._cache.waiting, captions
            self._cache.expect(captions)
            if self._cache.waiting > waiting:
                self._total = self._cache.waiting

    def encode(self, captions: Sequence[str]) -> None:
        """Encode the captions that are not cached."""
        if missing := self._cache.missing(captions):
            self._cache.get(missing, self._encode_timed)

    @property
    def unwritten(self) -> Problem | None:
        """The problem that prevented writing to the cache; None without one."""
        return self._cache.unwritten

    def states(self, captions: Sequence[str]) -> TextStates:
        """Return the text states of the captions, in order, on the device."""
        before = self._encoded
        states = self._cache.get(captions, self._encode_timed)
        if self._encoded > before and self.encodes_in_steps:
            self._progress(self._total - self._cache.waiting, self._total)
        if self._encoded > before and not self._cache.waiting:
            self._release()
        return states.each(lambda tensor: queued(tensor, self._device))

    def _encode_timed(self, captions: Sequence[str]) -> TextStates:
        """Return the text states of captions on the CPU; add the time to `seconds`."""
        machine.synchronize(self._device)
        started = time.monotonic()
        states = self._encode(captions).each(lambda tensor: tensor.detach().cpu())
        self.seconds += time.monotonic() - started
        self._encoded += 1
        return states


class TrainedText:
    """Text states of trained text encoders: computed at every step, with gradients."""

    seconds = 0.0  # encoding is part of the step

    def __init__(self, encode: EncodeText):
        self._encode = encode

    def need(self, captions: Sequence[str]) -> None:
        """Do nothing: `states` encodes."""
        return

    def states(self, captions: Sequence[str]) -> TextStates:
        """Return the text states of the captions, in order, with gradients."""
        return self._encode(captions)


Text = FrozenText | TrainedText
