"""Every picture decoded whole, once: which cannot be read, and what the others look like; remembered by file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.colours import WHITE
from core.dataset.look import FACT, Look, from_text, measure, to_text
from core.dataset.memo import Memo
from core.dataset.opening import BrokenPicture, UnreachablePicture, open_picture
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
    also when a cancel ends the work early; not so what may change while the file does not (rights, memory, readers).
    progress is called with (done, all).
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
            facts: dict[Path, str] = {}
            for picture, (look, lasting) in zip(part, pool.map(_look_at, part), strict=True):
                known[picture.path] = to_text(look)
                if lasting:
                    facts[picture.path] = known[picture.path]
            memo.remember(FACT, facts, part)
            done += len(part)
            if progress:
                progress(done, len(pictures))
    return {picture.key: from_text(known[picture.path]) for picture in pictures}


def _look_at(picture: Picture) -> tuple[Look, bool]:
    """Decode one picture; what is wrong with it is in the result. Whether that lasts as long as the file does."""
    try:
        opened = open_picture(picture.path)
        if opened.colours.size != (picture.width, picture.height):
            return Look("has another size than its header says"), True
        return measure(opened.on(WHITE), transparent=opened.alpha is not None), True
    except BrokenPicture as error:
        return Look(str(error)), not isinstance(error, UnreachablePicture)


def reasons_of(seen: Mapping[PictureKey, Look]) -> dict[PictureKey, str]:
    """{picture key: reason} of those that cannot be decoded."""
    return {key: look.reason for key, look in seen.items() if look.reason}
