"""Control images in their bucket: resized and cropped once, cached next to the latents and flipped when they are read."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.dataset.buckets.sizes import Placement, Size
from core.dataset.caches.files import BYTES, Shapes, Warn, key_of, read_tensors
from core.dataset.caches.partners import PartnerCache
from core.dataset.images.masks import as_control, control_filter, control_pixels, is_resized, load_control
from core.dataset.images.views import View
from core.dataset.sources.memo import Memo
from core.dataset.sources.walk import file_at, headers

if TYPE_CHECKING:
    from torch import Tensor

    from core.dataset.buckets.batches import Placed

CODE_VERSION = 1
HELD_BYTES = 256 << 20  # compressed entries that lie on the disk too: up to here they are held in memory
ALONE_BYTES = 2 << 30  # the same of those that lie nowhere else: others are decoded at each step
LEVEL = 1  # of zlib: PNG and lossless WebP take down to half the space, and 1.3 to 2.7 times as long to read
SHAPES: Shapes = {"control": (None,)}


class ControlCache(PartnerCache):
    """Control images of images whose crop is fixed, compressed without loss: `fill`, then `load` by any thread.

    held_bytes   of the entries that are held in memory: by default fewer of those on disk than without `writes`

    Those that nothing resizes are left out: an entry would save 5 to 20 ms of decoding a PNG, and nothing of a JPEG.
    """

    dtypes = BYTES

    def __init__(
        self,
        folder: Path | str,
        memo_path: Path | str | None = None,
        *,
        writes: bool = True,
        warn: Warn | None = None,
        held_bytes: int | None = None,
    ):
        super().__init__(folder, memo_path, writes=writes, warn=warn)
        self._room = most_held(writes) if held_bytes is None else held_bytes
        self._places: dict[tuple[str, ...], tuple[Placement, Path]] = {}
        self._held: dict[Path, bytes] = {}
        self._held_bytes = 0

    def fill(
        self,
        items: Sequence[Placed],
        *,
        threads: int = 2,
        check: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Make what is missing. Raises ProblemsError with the control images that cannot be read.

        What cannot be written is decoded at each step; `warn` is told.
        """
        for placed, path, found in self._entries(self._resized(items), threads, check, progress):
            self._places[placed.key] = (placed.placement, path)
            self._hold(path, found["control"])
        if self.unwritten and self._warn:
            what = f"{self.unwritten.what}: some control images are not cached"
            fix = f"{self.unwritten.fix}; they are decoded at each step"
            self._warn(replace(self.unwritten, what=what, fix=fix, level="advice"))

    def load(self, placed: Placed, view: View) -> np.ndarray | None:
        """As `load_control` gives it, from the cache where it is there."""
        pixels = self._cached(placed, view)
        if pixels is None:
            return load_control(placed, view)
        return as_control(pixels[..., ::-1] if view.flip else pixels)

    def _cached(self, placed: Placed, view: View) -> np.ndarray | None:
        placement, path = self._places.get(placed.key, (None, None))
        if path is None or placement != view.placement:
            return None
        data = self._held.get(path)
        if data is None:
            found = read_tensors(path, SHAPES, dtypes=BYTES)
            data = found["control"].numpy().tobytes() if found else b""  # gone or damaged since `fill`: not unpacked
        return unpacked(data, view.placement.bucket)

    def _resized(self, items: Sequence[Placed]) -> list[Placed]:
        files = {path: file_at(path, path.name) for placed in items if (path := placed.image.control)}
        seen = headers(list(files.values()), Memo(self._memo_path))
        sizes = {file.path: (found.width, found.height) for file, found in seen if not isinstance(found, str)}
        return [
            placed
            for placed in items
            if (path := placed.image.control) and (path not in sizes or is_resized(sizes[path], placed))
        ]

    def _hold(self, path: Path, entry: Tensor) -> None:
        if path in self._held or self._held_bytes + entry.nbytes > self._room:
            return
        self._held[path] = entry.numpy().tobytes()
        self._held_bytes += entry.nbytes

    def _source(self, placed: Placed) -> Path:
        assert placed.image.control is not None
        return placed.image.control

    def _key(self, placed: Placed, content: str) -> str:
        where, concept = placed.placement, placed.concept
        return key_of(
            "control",
            CODE_VERSION,
            content,
            where.resized,
            where.crop,
            where.bucket,
            concept.control_fit,
            control_filter(concept),
            concept.images.enable_bucket,  # stretched ones are compared with the bucket by it
        )

    def _shapes(self, placed: Placed) -> Shapes:
        return SHAPES

    def _make(self, placed: Placed) -> dict[str, Tensor]:
        import torch

        pixels = control_pixels(placed, View(placed.placement))
        assert pixels is not None
        return {"control": torch.frombuffer(bytearray(packed(pixels)), dtype=torch.uint8)}


def most_held(writes: bool) -> int:
    """Bytes of entries in memory at most. writes: they lie on the disk too"""
    return HELD_BYTES if writes else ALONE_BYTES


def packed(pixels: np.ndarray) -> bytes:
    """uint8 [3, H, W], compressed; of a gray image one channel."""
    gray = bool((pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all())
    return zlib.compress(np.ascontiguousarray(pixels[:1] if gray else pixels), LEVEL)


def unpacked(data: bytes, size: Size) -> np.ndarray | None:
    """uint8 [1 or 3, H, W] of what `packed` made of an image of this size; None for anything else."""
    width, height = size
    try:
        plain = zlib.decompressobj().decompress(data, 3 * width * height + 1)
    except zlib.error:
        return None
    channels = len(plain) // (width * height)
    if channels not in (1, 3) or len(plain) != channels * width * height:
        return None
    return np.frombuffer(plain, np.uint8).reshape(channels, height, width)
