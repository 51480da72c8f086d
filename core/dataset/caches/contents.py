"""SHA-256 of image files, read once and cached: the part of cache keys that identifies the image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.sources.files import printable
from core.dataset.sources.memo import Memo
from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    from core.dataset.sources.image_info import ImageInfo

_CHUNK = 1 << 20


def content_hashes(
    images: Sequence[ImageInfo],
    memo_path: Path | str | None = None,
    check: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 4,
) -> dict[tuple[str, str], str]:
    """{image key: SHA-256 of the file's bytes, hex}. Files of unchanged size and time are not read again.

    check   called between chunks of files; may raise to cancel; hashes so far are kept

    Raises ProblemsError with the files that cannot be read.
    """
    memo = Memo(memo_path)
    known = memo.known("sha256", images)
    unread = [image for image in images if image.path not in known]
    problems: list[Problem] = []
    remaining, done = iter(unread), len(images) - len(unread)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        while part := list(islice(remaining, 16 * threads)):
            if check:
                check()
            found: dict[Path, str] = {}
            for image, said in zip(part, pool.map(_sha256, part), strict=True):
                if isinstance(said, OSError):
                    what, fix = f"The image cannot be read ({said.strerror})", "restore it, or scan the dataset again"
                    problems.append(Problem(what, printable(image.path), fix, code="image.unreadable"))
                else:
                    found[image.path] = said
            memo.remember("sha256", found, part)
            known.update(found)
            done += len(part)
            if progress:
                progress(done, len(images))
    if problems:
        raise ProblemsError(problems)
    return {image.key: known[image.path] for image in images}


def _sha256(image: ImageInfo) -> str | OSError:
    digest = hashlib.sha256()
    try:
        with open(image.path, "rb") as handle:
            while chunk := handle.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        return error
    return digest.hexdigest()
