"""Decodes images in threads while the model processes earlier ones."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from core.dataset.images.opening import BrokenImage
from core.dataset.sources.files import printable
from core.record.problems import Problem

T = TypeVar("T")


def decoded_ahead(
    images: Iterable[Path], prepare: Callable[[Path], T], threads: int, batch_size: int
) -> Iterator[tuple[Path, T | Problem]]:
    """Yield (image, result of `prepare`), in order; a Problem for an unreadable image.

    At most `threads` + 2 * `batch_size` images are decoded ahead.
    """
    waiting: deque[tuple[Path, Future[T | Problem]]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        for path in images:
            waiting.append((path, pool.submit(_prepared, path, prepare)))
            if len(waiting) >= threads + 2 * batch_size:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepared(path: Path, prepare: Callable[[Path], T]) -> T | Problem:
    """Return the result of `prepare`, or a Problem if it raises BrokenImage."""
    try:
        return prepare(path)
    except BrokenImage as error:
        what = f"The image {printable(path.name)} {error}"
        return Problem(what, printable(path), "replace or remove it", "advice", code="image.unreadable")


def batches(prepared: Iterable[tuple[Path, T | Problem]], size: int) -> Iterator[list[tuple[Path, T | Problem]]]:
    """Yield lists of (image, data) with `size` readable images each, fewer in the last. Unreadable images (a Problem) are kept in
    between."""
    batch: list[tuple[Path, T | Problem]] = []
    for each in prepared:
        batch.append(each)
        if sum(not isinstance(values, Problem) for _, values in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
