"""Posteriors of a training: each is read from the cache, or encoded where it lacks one, when the first step needs it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.caches.encoding import (
    Encode,
    Posterior,
    Progress,
    Side,
    SideKey,
    batches_of,
    encode_pixels,
    not_finite,
    of_side,
    pixels_of,
    posteriors_of,
)
from core.dataset.caches.files import tell_damaged
from core.dataset.caches.latents import LatentCache
from core.dataset.images.opening import BrokenImage, problem_of
from core.dataset.sources.files import printable
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.queued import queued

if TYPE_CHECKING:
    import numpy as np

    from core.dataset.buckets.batches import Placed


def nothing() -> None:
    """Called where nobody listens."""


class Posteriors:
    """By side. What the cache lacks is encoded in the batches in which `LatentCache.fill` would encode all of it before the
    training, so posteriors and entries are the same to the bit, whatever comes first and however often a run is killed.

    place       where they are held from their first use on; None: they are read each time
    todo        what the cache lacks; an entry that proves damaged or gone is encoded too
    threads     decode images of the next steps ahead, of which `ahead` may wait in memory
    settle      called before encoding begins; waits for the device, so that `seconds` leaves out its earlier work
    progress    called with (encoded, of how many)
    finished    called when nothing is left to encode
    seconds     spent on encoding so far
    """

    def __init__(
        self,
        cache: LatentCache,
        encode: Encode,
        todo: Sequence[Side] = (),
        *,
        place: str | None = None,
        batch_size: int = 1,
        threads: int = 2,
        ahead: int = 8,
        retry: Encode | None = None,
        settle: Callable[[], None] = nothing,
        progress: Progress | None = None,
        finished: Callable[[], None] = nothing,
    ):
        self.seconds = 0.0
        self._cache, self._encode, self._retry, self._place, self._ahead = cache, encode, retry, place, ahead
        self._settle, self._progress, self._finished = settle, progress, finished
        self._waiting = {cache.file(side): batch for batch in batches_of(todo, batch_size) for side in batch}
        self._total = len(self._waiting)
        self._held: dict[SideKey, Posterior] = {}
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")
        self._decoding: dict[tuple[str, ...], Future[np.ndarray]] = {}
        self._told: set[str] = set()

    @property
    def waiting(self) -> int:
        """Sides that are not encoded yet."""
        return len(self._waiting)

    def expect(self, sides: Iterable[Side]) -> None:
        """Begin to decode what has to be encoded of these, in their order, as far as there is room."""
        for side in sides:
            for each in self._waiting.get(self._cache.file(side), ()):
                if len(self._decoding) >= self._ahead:
                    return
                if each.placed.key not in self._decoding:
                    self._decoding[each.placed.key] = self._pool.submit(pixels_of, each.placed)

    def of(self, side: Side) -> Posterior:
        """ProblemsError names an image that cannot be read or encoded."""
        held = self._held.get(side.key)
        if held is not None:
            return held
        found = self._found(side)
        if self._place is not None:
            found = (queued(found[0], self._place), queued(found[1], self._place))
            self._held[side.key] = found
        return found

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._decoding.clear()

    def _found(self, side: Side) -> Posterior:
        batch = self._waiting.get(self._cache.file(side))
        if batch is not None:
            self._encode_now(batch)
        damaged: list[Path] = []
        found = self._cache.find(side, damaged)
        if found is not None:
            return found
        if "cache.damaged" not in self._told:
            tell_damaged(damaged, self._tell)
        self._encode_now([side])
        return self._cache.read(side)

    def _encode_now(self, batch: Sequence[Side]) -> None:
        self._settle()
        started = time.monotonic()
        images = {side.placed.key: side.placed for side in batch}  # each is decoded once
        decoded = {key: self._pixels(placed) for key, placed in images.items()}
        shown = [(side, of_side(side, decoded[side.placed.key])) for side in batch]
        problems = []
        for side, posterior in posteriors_of(shown, *encode_pixels(shown, self._encode), self._retry):
            self._waiting.pop(self._cache.file(side), None)
            if posterior is None:
                problems.append(not_finite(side.placed))
            else:
                self._keep(side, posterior)
        raise_if_errors(problems)
        self.seconds += time.monotonic() - started
        if self._progress and self._total:
            self._progress(self._total - self.waiting, self._total)
        if not self._waiting:
            self._finished()

    def _pixels(self, placed: Placed) -> np.ndarray:
        decoding = self._decoding.pop(placed.key, None)
        try:
            return decoding.result() if decoding is not None else pixels_of(placed)
        except BrokenImage as error:
            raise ProblemsError([problem_of(placed.image.path, error)]) from error

    def _keep(self, side: Side, posterior: Posterior) -> None:
        """An entry of the cache; in memory for this run if it cannot be written, or would not be of the file that was hashed."""
        if is_changed(side.placed):
            what = "An image changed after the training started; the new one is used"
            where = printable(side.placed.image.path)
            self._tell(Problem(what, where, "start again if all steps should see it", "advice", code="image.changed"))
            self._cache.keep(side, *posterior, writes=False)
            return
        try:
            self._cache.keep(side, *posterior)
        except ProblemsError as error:
            (problem,) = error.problems
            what, fix = (
                f"{problem.what}: some latents are not cached",
                f"{problem.fix}; the next run encodes them again",
            )
            self._tell(replace(problem, what=what, fix=fix, level="advice"))
            self._cache.keep(side, *posterior, writes=False)

    def _tell(self, problem: Problem) -> None:
        """Each kind once: what is wrong with a disk or a folder is wrong with many files."""
        if problem.code not in self._told and self._cache.warn is not None:
            self._cache.warn(problem)
        self._told.add(problem.code)


def is_changed(placed: Placed) -> bool:
    """Whether the file is another than the one that was scanned."""
    try:
        now = os.stat(placed.image.path)
    except OSError:
        return True
    return (now.st_size, now.st_mtime_ns) != (placed.image.bytes, placed.image.mtime_ns)
