"""What a run trained on, for its dataset.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.dataset.buckets.batches import Placed
from core.dataset.caches.contents import content_hashes
from core.dataset.sources.files import printable
from core.record.cancel import CancelToken


def dataset_fingerprint(
    placed: Sequence[Placed],
    *,
    hashes: bool = True,
    memo_path: Path | str | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, Any]:
    """What a run trained on, for its dataset.json: every image with its caption, bucket and content hash.

    hashes   also the SHA-256 of each file's bytes, read once and then cached in `memo_path`
    """
    check = cancel.check if cancel else None
    found = content_hashes([each.image for each in placed], memo_path, check) if hashes else {}
    images = [
        {
            "source": each.image.source,
            "path": printable(each.image.relative),
            "width": each.image.width,
            "height": each.image.height,
            "bytes": each.image.bytes,
            "sha256": found.get(each.image.key),
            "repeats": each.repeats,
            "caption": each.caption.whole,
            "caption_source": each.caption.source,
            "bucket": list(each.placement.bucket),
        }
        for each in placed
    ]
    return {"v": 1, "count": len(images), "images": images}
