"""Decode every image once: which cannot be read, and measurements of the others, cached by file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

from core.dataset.images.colors import BLACK, WHITE
from core.dataset.images.look import FACT, MEASURED_SIDE, Look, known_looks, measure, to_text
from core.dataset.images.opening import BrokenImage, UnreachableImage, open_decoded, remarks
from core.dataset.sources.image_info import ImageInfo
from core.dataset.sources.memo import Memo
from core.record.cancel import CancelToken

MOST_REMARK = 200  # letters
ImageKey = tuple[str, str]
_TURN = threading.Lock()


def look_at_all(
    images: Sequence[ImageInfo],
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
    memo_path: Path | str | None = None,
    threads: int = 4,
) -> dict[ImageKey, Look]:
    """Decode every image that is not cached yet; {image key: its measurements, or why it is broken} of all.

    A header can be valid where the rest is truncated. Results are cached by path, size and time in `memo_path`, also
    after a cancel, except errors that may pass while the file stays the same (permissions, memory, missing decoders).
    progress is called with (done, total).
    """
    memo = Memo(memo_path)
    known = known_looks(memo, images)
    unread = [image for image in images if image.path not in known]
    remaining, done = iter(unread), len(images) - len(unread)
    if progress and unread:
        progress(done, len(images))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        while part := list(islice(remaining, 8 * threads)):
            with _alone(cancel):
                known |= known_looks(memo, part)  # another thread may have decoded these meanwhile
                facts: dict[Path, str] = {}
                for image, look, lasting in _decoded([each for each in part if each.path not in known], pool, cancel):
                    known[image.path] = look
                    if lasting:
                        facts[image.path] = to_text(look)
                    if progress:
                        progress(done + sum(each.path in known for each in part), len(images))
                memo.remember(FACT, facts, part)
            if cancel:
                cancel.check()
            done += len(part)
            if progress:
                progress(done, len(images))
    return {image.key: known[image.path] for image in images}


@contextmanager
def _alone(cancel: CancelToken | None) -> Iterator[None]:
    """One decoding at a time in this process, part by part, so that two tabs and a start decode each image once."""
    while not _TURN.acquire(timeout=0.1):
        if cancel:
            cancel.check()
    try:
        yield
    finally:
        _TURN.release()


def _decoded(
    images: Sequence[ImageInfo], pool: Executor, cancel: CancelToken | None
) -> Iterator[tuple[ImageInfo, Look, bool]]:
    """Results as they complete; after a cancel only those already started."""

    def decode(image: ImageInfo) -> tuple[ImageInfo, Look, bool] | None:
        return None if cancel and cancel.wanted else (image, *_look_at(image))

    for future in as_completed([pool.submit(decode, image) for image in images]):
        if found := future.result():
            yield found


def _look_at(image: ImageInfo) -> tuple[Look, bool]:
    """Decode one image: its measurements or error, and whether that is valid as long as the file is unchanged."""
    try:
        with remarks() as said:
            opened = open_decoded(image.path, enough=(2 * MEASURED_SIDE, 2 * MEASURED_SIDE))
        if opened.size != (image.width, image.height):
            return Look("has a different size than its header states"), True
        red = opened.on(BLACK).getchannel("R")
        found = measure(opened.on(WHITE), transparent=opened.alpha is not None)
        opaque = 255 if opened.alpha is None else int(opened.alpha.getextrema()[1])  # type: ignore[arg-type]
        remark = said[0].strip()[:MOST_REMARK] if said else ""
        return replace(found, brightest=int(red.getextrema()[1]), opaque=opaque, remark=remark), True  # type: ignore[arg-type]
    except BrokenImage as error:
        return Look(str(error)), not isinstance(error, UnreachableImage)


def reasons_of(seen: Mapping[ImageKey, Look]) -> dict[ImageKey, str]:
    """{image key: reason} of those that cannot be decoded."""
    return {key: look.reason for key, look in seen.items() if look.reason}
