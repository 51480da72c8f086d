"""Images opened by threads that are ahead of the model that looks at them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from core.dataset.images.opening import BrokenImage
from core.dataset.sources.files import printable
from core.record.problems import Problem


def decoded_ahead(
    images: Iterable[Path], prepare: Callable[[Path], Any], threads: int, batch_size: int
) -> Iterator[Any | Problem]:
    """What `prepare` makes of each image, in order, or why it cannot be read; threads are at most two batches ahead."""
    waiting: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        for path in images:
            waiting.append(pool.submit(_prepared, path, prepare))
            if len(waiting) >= threads + 2 * batch_size:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepared(path: Path, prepare: Callable[[Path], Any]) -> Any | Problem:
    try:
        return prepare(path)
    except BrokenImage as error:
        what = f"The image {printable(path.name)} {error}"
        return Problem(what, printable(path), "replace or remove it", "advice", code="image.unreadable")


def batches(each: Iterable[Any], size: int) -> Iterator[Sequence[Any]]:
    """Lists of so many, the last with what is left."""
    rest = iter(each)
    while batch := list(islice(rest, size)):
        yield batch
