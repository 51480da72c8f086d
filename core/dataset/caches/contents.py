"""SHA-256 hashes of image files, which are part of cache keys, and the fingerprint of a run's dataset."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from core.dataset.buckets.batches import Placed
from core.dataset.caches.store import key_of
from core.dataset.captions.pipeline import plain_caption
from core.dataset.images.opening import DECODINGS, BrokenImage, decoding_of
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import ImageInfo
from core.dataset.sources.memo import FileFacts, Memo
from core.record.cancel import CancelToken
from core.record.problems import Problem, raise_if_errors
from core.record.regular import retry_open


def content_hashes(
    images: Sequence[ImageInfo],
    memo_path: Path | str | None = None,
    check: Callable[[], None] | None = None,
) -> dict[tuple[str, str], str]:
    """Return {image key: SHA-256 of the file's bytes, hex}; arguments and errors as in `file_hashes`."""
    hashes = file_hashes(images, memo_path, check)
    return {image.key: hashes[image.path] for image in images}


def file_hashes(
    files: Sequence[FileFacts],
    memo_path: Path | str | None = None,
    check: Callable[[], None] | None = None,
) -> dict[Path, str]:
    """Return {path: SHA-256 of the file's bytes, hex}.

    memo_path   where hashes are stored: files with unchanged size and time are not read again; None stores nothing
    check       called between groups of files; may raise to cancel; hashes computed so far stay stored

    Raises ProblemsError with the files that cannot be read.
    """
    hashes = Memo(memo_path).facts("sha256", files, _sha256, check)
    fix = "restore it, or scan the dataset again"
    problems = [
        Problem(f"The image cannot be read ({result.strerror})", printable(path), fix, code="image.unreadable")
        for path, result in hashes.items()
        if isinstance(result, OSError)
    ]
    raise_if_errors(problems)
    return hashes


def decoded_hashes(
    files: Sequence[FileFacts],
    memo_path: Path | str | None = None,
    check: Callable[[], None] | None = None,
) -> dict[Path, str]:
    """Return {path: hash of what a file's pixels depend on: its bytes and, where that changed, how it is decoded (`decoding_of`)}.

    Arguments and errors as in `file_hashes`.
    """
    hashes = file_hashes(files, memo_path, check)
    decodings = Memo(memo_path).facts(DECODINGS, files, _decoding, check)
    return {path: key_of(sha256, decodings[path]) if decodings[path] else sha256 for path, sha256 in hashes.items()}


def _decoding(file: FileFacts) -> str | None:
    """Return the last change in how a file is decoded; None for a broken image, which has no pixels."""
    try:
        return decoding_of(file.path)
    except BrokenImage:
        return None


def _sha256(file: FileFacts) -> str | OSError:
    """Return the SHA-256 of a file's bytes in hex, or the error of a file that cannot be read."""
    try:
        with retry_open(lambda: open(file.path, "rb")) as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        return error


def dataset_fingerprint(
    placed: Sequence[Placed],
    *,
    memo_path: Path | str | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, Any]:
    """Return the content of a run's dataset.json: {"v": version, "count", "images": [{"source", "path", "width", "height", "bytes",
    "sha256": of the file, "repeats", "caption", "caption_source", "bucket": [width, height]}]}. Raises ProblemsError with the files that
    cannot be read.
    memo_path: where hashes are stored; None for nowhere"""
    hashes = content_hashes([each.image for each in placed], memo_path, cancel.check if cancel else None)
    images = [
        {
            "source": each.image.source,
            "path": printable(each.image.relative),
            "width": each.image.width,
            "height": each.image.height,
            "bytes": each.image.bytes,
            "sha256": hashes[each.image.key],
            "repeats": each.repeats,
            "caption": _caption(each),
            "caption_source": each.caption.source,
            "bucket": list(each.placement.bucket),
        }
        for each in placed
    ]
    return {"v": 1, "count": len(images), "images": images}


def _caption(placed: Placed) -> str:
    """Return the caption as written, or filled into the first caption template if templates replace captions."""
    caption, settings = placed.caption, placed.concept.captions
    templated = settings.caption_template != "none"
    return plain_caption(caption.text, settings, placed.image.class_tokens) if templated else caption.whole
