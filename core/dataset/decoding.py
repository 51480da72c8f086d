"""Every picture decoded whole, once: which cannot be read, and what the others look like; remembered by file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.colours import WHITE
from core.dataset.look import FACT, Look, from_text, looks, measure, to_text
from core.dataset.memo import Memo
from core.dataset.opening import BrokenPicture, open_picture
from core.record.cancel import CancelToken

if TYPE_CHECKING:
    from core.dataset.scan import Picture

PictureKey = tuple[str, str]


def look_at_all(
    pictures: Sequence[Picture],
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
    memo_path: Path | str | None = None,
    threads: int = 4,
) -> dict[PictureKey, Look]:
    """Decode every picture that is not known yet; {picture key: what it looks like, or why it is broken} of all.

    A header can be right where the rest is cut off. Each finding is remembered by path, size and time in `memo_path`,
    also when a cancel ends the work early. progress is called with (done, all).
    """
    memo = Memo(memo_path)
    known = memo.known(FACT, pictures)
    open_questions = [picture for picture in pictures if picture.path not in known]
    done = len(pictures) - len(open_questions)
    remaining = iter(open_questions)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        while part := list(islice(remaining, 8 * threads)):
            if cancel:
                cancel.check()
            seen = pool.map(look_at, part)
            found = {picture.path: to_text(look) for picture, look in zip(part, seen, strict=True)}
            memo.remember(FACT, found, part)
            known.update(found)
            done += len(part)
            if progress:
                progress(done, len(pictures))
    return {picture.key: from_text(known[picture.path]) for picture in pictures}


def look_at(picture: Picture) -> Look:
    """Decode one picture; what is wrong with it is in the result."""
    try:
        opened = open_picture(picture.path)
        if opened.colours.size != (picture.width, picture.height):
            return Look("has another size than its header says")
        return measure(opened.on(WHITE), transparent=opened.alpha is not None)
    except BrokenPicture as error:
        return Look(str(error))


def check_decodes(
    pictures: Sequence[Picture],
    cancel: CancelToken | None = None,
    progress: Callable[[int, int], None] | None = None,
    memo_path: Path | str | None = None,
    threads: int = 4,
) -> dict[PictureKey, str]:
    """{picture key: reason} of those that cannot be decoded; see `look_at_all`."""
    return _reasons(look_at_all(pictures, cancel, progress, memo_path, threads))


def known_broken(pictures: Sequence[Picture], memo_path: Path | str | None) -> dict[PictureKey, str]:
    """{picture key: reason} of those that an earlier decoding found broken; decodes nothing."""
    return _reasons(looks(pictures, memo_path))


def _reasons(seen: dict[PictureKey, Look]) -> dict[PictureKey, str]:
    return {key: look.reason for key, look in seen.items() if look.reason}
