"""VAE encoding of images: threads decode images ahead, the VAE encodes batches of one size, results are checked for NaN."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from core.dataset.images.opening import BrokenImage, problem_of
from core.dataset.images.pixels import load_pixels
from core.dataset.images.views import View
from core.dataset.sources.files import printable
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, raise_if_errors

if TYPE_CHECKING:
    import numpy as np

    from core.dataset.buckets.batches import Placed

# pixels [B, 3, H, W] float32 in [-1, 1] -> mean, logvar [B, C, H/8, W/8]
Encode = Callable[[Tensor], "tuple[Tensor, Tensor]"]
Progress = Callable[[int, int], None]
SideKey = tuple[tuple[str, ...], bool]
Posterior = tuple[Tensor, Tensor]  # mean, logvar: float32 [C, h, w]
T = TypeVar("T")
WRITES_WAITING = 64


@dataclass(frozen=True, slots=True)
class Side:
    """A side of an image: plain or flipped horizontally. Each has an entry in the latent cache."""

    placed: Placed
    flipped: bool = False

    @property
    def key(self) -> SideKey:
        return (self.placed.key, self.flipped)


def sides(placed: Placed) -> tuple[Side, ...]:
    """Return the unflipped side of an image and, with random flips on, the flipped one."""
    plain = Side(placed)
    return (plain, Side(placed, True)) if placed.concept.images.flip_aug else (plain,)


def encode_sides(
    todo: Sequence[Side],
    encode: Encode,
    keep: Callable[[Side, Tensor, Tensor], None],
    *,
    batch_size: int = 1,
    threads: int = 2,
    retry: Encode | None = None,
    check: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> int:
    """Encode image sides (plain or flipped) and pass the results to `keep`, on a separate thread; return their number.

    keep        called with (side, mean, log variance), float32 [C, h, w] on the CPU
    threads     decode images ahead; at most threads + 2 * batch_size images wait in memory
    retry       encodes one image again, in fp32, if the first result is not finite (fp16 VAEs overflow)
    check       called between batches; may raise to cancel; results passed to `keep` so far stay
    progress    called with (done, total)

    Raises ProblemsError at the end with every image that could not be read or encoded; `keep` has got all others.
    """
    problems: list[Problem] = []
    done = 0
    with ThreadPoolExecutor(max(1, threads)) as decoders, ThreadPoolExecutor(1) as writer:
        results = _Results(writer, keep, retry, problems)
        try:
            decoded = _decoded_ahead(_by_image(todo), decoders, threads + 2 * batch_size, problems)
            for batch in _batched(decoded, batch_size, lambda each: each[0]):
                if check:
                    check()
                results.put(batch, *encode_pixels(batch, encode))
                done += len(batch)
                if progress:
                    progress(done, len(todo))
            results.finish()
        finally:
            decoders.shutdown(wait=True, cancel_futures=True)
            writer.shutdown(wait=True)
    raise_if_errors(problems)
    return done


def _by_image(todo: Sequence[Side]) -> list[list[Side]]:
    """Group sides by image, so that each is decoded once, and sort the groups by bucket."""
    groups: dict[tuple, list[Side]] = {}
    for side in todo:
        groups.setdefault(side.placed.key, []).append(side)
    return sorted(groups.values(), key=lambda group: group[0].placed.placement.bucket)


def _decoded_ahead(
    images: Iterable[list[Side]], pool: ThreadPoolExecutor, ahead: int, problems: list[Problem]
) -> Iterator[tuple[Side, np.ndarray]]:
    """Yield (side, its pixels [3, H, W]) in order. Images that fail are appended to `problems`.

    images   the sides of each image
    ahead    number of images that are decoded or decoding in `pool`
    """
    waiting: deque[tuple[list[Side], Future]] = deque()
    remaining = iter(images)
    while True:
        while len(waiting) < ahead and (group := next(remaining, None)) is not None:
            waiting.append((group, pool.submit(pixels_of, group[0].placed)))
        if not waiting:
            return
        group, future = waiting.popleft()
        try:
            pixels = future.result()
        except BrokenImage as error:
            problems.append(problem_of(group[0].placed.image.path, error))
            continue
        for side in group:
            yield side, side_pixels(side, pixels)


def side_pixels(side: Side, pixels: np.ndarray) -> np.ndarray:
    """Return the pixels [3, H, W] of an image side: those of the image, flipped horizontally if the side is."""
    return pixels[..., ::-1] if side.flipped else pixels


def pixels_of(placed: Placed) -> np.ndarray:
    """Decode an image and fit it to its bucket, without random augmentation: float32 [3, H, W] in [-1, 1]."""
    return load_pixels(placed.image.path, View(placed.placement), placed.concept.images)


def batches_of(todo: Sequence[Side], size: int) -> list[list[Side]]:
    """Return the batches in which `encode_sides` encodes these sides if all images can be read."""
    ordered = (side for group in _by_image(todo) for side in group)
    return list(_batched(ordered, size, lambda side: side))


def _batched(items: Iterable[T], size: int, side_of: Callable[[T], Side]) -> Iterator[list[T]]:
    """Yield batches of consecutive items with the same bucket, at most `size` each.
    side_of: returns the side of an item"""
    for _, run in groupby(items, key=lambda each: side_of(each).placed.placement.bucket):
        batch: list[T] = []
        for each in run:
            batch.append(each)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch


def encode_pixels(batch: Sequence[tuple[Side, np.ndarray]], encode: Encode) -> tuple[Tensor, Tensor]:
    """Encode sides with their pixels; return (mean, log variance) [B, C, h, w] on the VAE's device."""
    import numpy as np

    return encode(torch.from_numpy(np.stack([pixels for _, pixels in batch])))


def posteriors_of(
    batch: Sequence[tuple[Side, np.ndarray]], mean: Tensor, logvar: Tensor, retry: Encode | None = None
) -> Iterator[tuple[Side, Posterior | None]]:
    """Yield each side with its posterior, float32 on the CPU; None if it is not finite, even after `retry`."""
    mean, logvar = mean.detach().float().cpu(), logvar.detach().float().cpu()
    for index, each in enumerate(batch):
        posterior = (mean[index].clone(), logvar[index].clone())
        if _finite(posterior):
            yield each[0], posterior
        elif retry is None:
            yield each[0], None
        else:
            yield from posteriors_of([each], *encode_pixels([each], retry))


class _Results:
    """Passes encoded batches to `keep`, one batch late: the device already has the next batch while the CPU waits."""

    def __init__(
        self,
        writer: ThreadPoolExecutor,
        keep: Callable[[Side, Tensor, Tensor], None],
        retry: Encode | None,
        problems: list[Problem],
    ):
        """Start without results.

        writer     thread on which `keep` runs
        keep       called with (side, mean, log variance), float32 [C, h, w]
        retry      encodes one image again, in fp32, if its result is not finite; None for no second attempt
        problems   list to which images without a finite result are appended
        """
        self._writer, self._keep, self._retry, self._problems = writer, keep, retry, problems
        self._pending: tuple | None = None
        self._writes: deque[Future] = deque()

    def put(self, batch: Sequence[tuple[Side, np.ndarray]], mean: Tensor, logvar: Tensor) -> None:
        """Pass on the batch of the last call, and hold `batch` (sides with pixels) with its mean and log variance [B, C, h, w]."""
        self._settle()
        self._pending = (batch, mean, logvar)

    def finish(self) -> None:
        """Pass on the last batch, and wait until `keep` has returned for all sides. Raises errors of `keep`."""
        self._settle()
        while self._writes:
            self._writes.popleft().result()

    def _settle(self) -> None:
        """Check the pending batch and pass finite posteriors to `keep`; re-raise errors of earlier calls of `keep`."""
        if self._pending is None:
            return
        (batch, mean, logvar), self._pending = self._pending, None
        for side, posterior in posteriors_of(batch, mean, logvar, self._retry):
            if posterior is None:
                self._problems.append(not_finite_problem(side.placed))
            else:
                self._writes.append(self._writer.submit(self._keep, side, *posterior))
        while len(self._writes) > WRITES_WAITING or (self._writes and self._writes[0].done()):
            self._writes.popleft().result()  # raises errors of `keep`, such as a full disk


def _finite(parts: Iterable[Tensor]) -> bool:
    """Return whether all values of all tensors are finite."""
    return all(bool(part.isfinite().all()) for part in parts)


def not_finite_problem(placed: Placed) -> Problem:
    """Return the problem of an image whose posterior has NaN or infinite values."""
    name = printable(placed.image.relative)
    what = f"The VAE returns NaN or infinity for the image {name}"
    return Problem(what, printable(placed.image.path), "remove the image, or choose another VAE", code="image.vae-nan")
