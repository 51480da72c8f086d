"""Posteriors of images during training: read from the cache, or encoded at the first step that needs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from core.dataset.caches.encoding import (
    Encode,
    Posterior,
    Progress,
    Side,
    SideKey,
    batches_of,
    encode_pixels,
    not_finite_problem,
    pixels_of,
    posteriors_of,
    side_pixels,
)
from core.dataset.caches.latents import LatentCache, changed_advice, is_changed
from core.dataset.images.opening import BrokenImage, problem_of
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.queued import queued

if TYPE_CHECKING:
    import numpy as np

    from core.dataset.buckets.batches import Placed


class LatePosteriors:
    """Posteriors of image sides, encoded on demand.

    Sides are encoded in the same batches as `LatentCache.fill` would use before the training, so posteriors and cache entries
    are bitwise equal, whatever the order of steps and however often the run is killed.

    todo          sides that are not cached; a cached side that proves damaged or deleted is encoded as well
    device        where posteriors are held after their first use; None reads them from disk each time
    threads       decode images of the next steps; at most `ahead` decoded images wait in memory
    retry         encodes one image again, in fp32, if its posterior is not finite
    synchronize   waits for the device before encoding is timed
    progress      called with (encoded, total) sides
    finished      called when all sides are encoded
    seconds       time spent on encoding so far
    """

    def __init__(
        self,
        cache: LatentCache,
        encode: Encode,
        todo: Sequence[Side] = (),
        *,
        device: str | None = None,
        batch_size: int = 1,
        threads: int = 2,
        ahead: int = 8,
        retry: Encode | None = None,
        synchronize: Callable[[], None] = lambda: None,
        progress: Progress | None = None,
        finished: Callable[[], None] = lambda: None,
    ):
        self.seconds = 0.0
        self._cache, self._encode, self._retry, self._device, self._ahead = cache, encode, retry, device, ahead
        self._synchronize, self._progress, self._finished = synchronize, progress, finished
        self._batches = {cache.file(side): batch for batch in batches_of(todo, batch_size) for side in batch}
        self._total = len(self._batches)
        self._held: dict[SideKey, Posterior] = {}
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")
        self._decoding: dict[tuple[str, ...], Future[np.ndarray]] = {}
        self._reported: set[str] = set()

    @property
    def waiting(self) -> int:
        """Number of image sides (plain or flipped) not encoded yet."""
        return len(self._batches)

    def decode_ahead(self, sides: Iterable[Side]) -> None:
        """Start decoding the images of the batches that these sides will be encoded in, in order, at most `ahead`."""
        for side in sides:
            for each in self._batches.get(self._cache.file(side), ()):
                if len(self._decoding) >= self._ahead:
                    return
                if each.placed.key not in self._decoding:
                    self._decoding[each.placed.key] = self._pool.submit(pixels_of, each.placed)

    def get(self, side: Side) -> Posterior:
        """Return the posterior of an image side (plain or flipped), encoding it if necessary.

        Raises ProblemsError if the image cannot be read or encoded.
        """
        held = self._held.get(side.key)
        if held is not None:
            return held
        posterior = self._read_or_encode(side)
        if self._device is not None:
            posterior = (queued(posterior[0], self._device), queued(posterior[1], self._device))
            self._held[side.key] = posterior
        return posterior

    def close(self) -> None:
        """Stop decoding; posteriors can no longer be encoded ahead."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._decoding.clear()

    def _read_or_encode(self, side: Side) -> Posterior:
        """Encode the side's batch if it is not encoded yet, and return the cached posterior.

        A side whose cache entry is damaged or deleted is encoded alone.
        """
        batch = self._batches.get(self._cache.file(side))
        if batch is not None:
            self._encode_batch(batch)
        posterior = self._cache.find(side)
        if posterior is not None:
            return posterior
        self._cache.report_damaged(once=True)
        self._encode_batch([side])
        return self._cache.read(side)

    def _encode_batch(self, batch: Sequence[Side]) -> None:
        """Encode sides, store their posteriors and report progress. Raises ProblemsError for posteriors that are not finite."""
        self._synchronize()
        started = time.monotonic()
        images = {side.placed.key: side.placed for side in batch}  # both sides of an image share one decode
        decoded = {key: self._pixels(placed) for key, placed in images.items()}
        pixels = [(side, side_pixels(side, decoded[side.placed.key])) for side in batch]
        problems = []
        for side, posterior in posteriors_of(pixels, *encode_pixels(pixels, self._encode), self._retry):
            self._batches.pop(self._cache.file(side), None)
            if posterior is None:
                problems.append(not_finite_problem(side.placed))
            else:
                self._store(side, posterior)
        raise_if_errors(problems)
        self.seconds += time.monotonic() - started
        if self._progress and self._total:
            self._progress(self._total - self.waiting, self._total)
        if not self._batches:
            self._finished()

    def _pixels(self, placed: Placed) -> np.ndarray:
        """Return an image's pixels [3, H, W], decoded ahead or now. Raises ProblemsError if it cannot be read."""
        decoding = self._decoding.pop(placed.key, None)
        try:
            return decoding.result() if decoding is not None else pixels_of(placed)
        except BrokenImage as error:
            raise ProblemsError([problem_of(placed.image.path, error)]) from error

    def _store(self, side: Side, posterior: Posterior) -> None:
        """Write a cache entry. Hold it in memory if writing fails, or if the image file changed after it was hashed."""
        if is_changed(side.placed):
            self._warn(changed_advice(side.placed))
            self._cache.store(side, *posterior, writes=False)
            return
        try:
            self._cache.store(side, *posterior)
        except ProblemsError as error:
            self._warn(self._cache.not_cached(error.problems[0]))
            self._cache.store(side, *posterior, writes=False)

    def _warn(self, problem: Problem) -> None:
        """Report a problem, only once for each code: a faulty disk affects many files."""
        if problem.code not in self._reported and self._cache.warn is not None:
            self._cache.warn(problem)
        self._reported.add(problem.code)
