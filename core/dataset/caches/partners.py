"""Caches of masks at latent size and of control images at bucket size, by the content of their files."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.dataset.buckets.aspect_ratio import Placement, Size
from core.dataset.caches.contents import decoded_hashes
from core.dataset.caches.store import CONTROLS, MASKS, Shapes, Store, read_tensors
from core.dataset.images.masks import (
    as_control,
    control_filter,
    control_pixels,
    is_resized,
    load_control,
    load_mask,
)
from core.dataset.images.opening import BrokenImage, problem_of
from core.dataset.images.views import View
from core.dataset.sources.memo import Memo
from core.dataset.sources.walk import file_at, headers
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, raise_if_errors

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed

Check = Callable[[], None]

MEMORY_BYTES = 256 << 20  # limit of the compressed control images in memory if they are also on disk
UNWRITTEN_BYTES = 2 << 30  # limit if they are only in memory: the rest is decoded at each step
ZLIB_LEVEL = 1  # PNG and lossless WebP take down to half the space, and 1.3 to 2.7 times as long to read
SHAPES: Shapes = {"control": (None,)}


@dataclass(eq=False)
class PartnerCache(Store, ABC):
    """Base class of the caches of masks and control images, the files that belong to training images."""

    @abstractmethod
    def _key_parts(self, placed: Placed) -> tuple[object, ...]:
        """Return the parts of an entry's key other than the hash of its file: settings and placement that change the content."""

    @abstractmethod
    def _shapes(self, placed: Placed) -> Shapes:
        """Return the expected shapes of an entry's tensors by name."""

    @abstractmethod
    def _compute(self, placed: Placed) -> dict[str, Tensor]:
        """Return the tensors of an image's entry, by name. Raises BrokenImage for a file that cannot be read."""

    def _entries(
        self,
        pairs: Sequence[tuple[Placed, Path]],
        threads: int,
        check: Check | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[Placed, Path, dict[str, Tensor]]]:
        """Yield (image, path of the entry, tensors of the entry), read or computed by `threads` threads.

        pairs      (image, its mask or control image file)
        progress   called with (done, total)
        Raises ProblemsError at the end with every file that cannot be read.
        """
        files, problems, done = self._files(pairs, check), list[Problem](), 0
        remaining = iter(zip((placed for placed, _ in pairs), files, strict=True))
        with ThreadPoolExecutor(max(1, threads)) as pool:
            while part := list(islice(remaining, 8 * threads)):
                if check:
                    check()
                for (placed, path), entry in zip(part, pool.map(lambda pair: self._entry(*pair), part), strict=True):
                    if isinstance(entry, BrokenImage):
                        problems.append(problem_of(placed.image.path, entry))
                    else:
                        yield placed, path, entry
                done += len(part)
                if progress:
                    progress(done, len(pairs))
        self.report_damaged()
        raise_if_errors(problems)

    def _entry(self, placed: Placed, path: Path) -> dict[str, Tensor] | BrokenImage:
        """Return the tensors of an entry, computed and written if not cached, or the error of a file that cannot be read."""
        tensors = self.read_entry(path, self._shapes(placed))
        if tensors is not None:
            return tensors
        try:
            tensors = self._compute(placed)
        except BrokenImage as error:
            return error
        self.try_write(path, tensors)
        return tensors

    def _files(self, pairs: Sequence[tuple[Placed, Path]], check: Check | None) -> list[Path]:
        """Return the path of each pair's cache entry. Raises ProblemsError with masks or control images that are gone."""
        sources = {path: file_at(path, path.name) for _, path in pairs}
        gone = [problem_of(path, BrokenImage(file.unreadable)) for path, file in sources.items() if file.unreadable]
        raise_if_errors(gone)
        hashes = decoded_hashes(list(sources.values()), self.memo_path, check)
        return [self.path_of(hashes[path], *self._key_parts(placed)) for placed, path in pairs]


# ---- masks


def mask_source(placed: Placed) -> Path | None:
    """Return the file with an image's mask: its mask image, or the image itself for its alpha channel; None without a mask."""
    settings = placed.concept.images
    if settings.masked_loss and placed.image.conditioning is not None:
        return placed.image.conditioning
    return placed.image.path if settings.alpha_mask else None


@dataclass(eq=False)
class MaskCache(PartnerCache):
    """Cache of loss masks at latent size.
    latent_pixels: image pixels along a side of a latent pixel"""

    latent_pixels: int = field(default=8, kw_only=True)

    row = MASKS

    def load(
        self, items: Sequence[Placed], *, threads: int = 2, check: Check | None = None
    ) -> dict[tuple[str, ...], Tensor]:
        """Return {image key: mask, float32 [1, h, w] in 0..1} for the images whose mask is not all ones.

        A failed write is ignored: the mask is computed again next time.
        """
        pairs = [(placed, source) for placed in items if (source := mask_source(placed))]
        entries = self._entries(pairs, threads, check)
        return {placed.key: entry["mask"] for placed, _, entry in entries if bool((entry["mask"] < 1).any())}

    def _key_parts(self, placed: Placed) -> tuple[object, ...]:
        """Return what a mask at latent size depends on besides its file: alpha or mask image, crop, resize filter, latent size."""
        kind = "alpha" if mask_source(placed) == placed.image.path else "mask"
        return kind, *placed.placement.pixel_key, placed.concept.images.resize_interpolation, self.latent_pixels

    def _shapes(self, placed: Placed) -> Shapes:
        """Return {"mask": (1, h, w)}, at latent size."""
        width, height = placed.placement.bucket
        return {"mask": (1, height // self.latent_pixels, width // self.latent_pixels)}

    def _compute(self, placed: Placed) -> dict[str, Tensor]:
        """Return {"mask": the image's loss mask at latent size, float32 [1, h, w]}. Raises BrokenImage."""
        return {"mask": at_latent_size(plain_mask(placed), self.latent_pixels)}


def plain_mask(placed: Placed) -> np.ndarray:
    """Return an image's loss mask in its bucket, float32 [1, H, W] in 0..1; all ones for an image without a mask."""
    mask = load_mask(placed, View(placed.placement))
    width, height = placed.placement.bucket
    return np.ones((1, height, width), np.float32) if mask is None else mask


def at_latent_size(mask: np.ndarray, latent_pixels: int = 8) -> Tensor:
    """Average a mask [1, H, W] over each latent pixel: [1, h, w].
    latent_pixels: image pixels along a side of a latent pixel"""
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(torch.from_numpy(mask).float()[None], latent_pixels)[0]


# ---- control images


@dataclass(eq=False)
class ControlCache(PartnerCache):
    """Losslessly compressed control images of images with a fixed crop. Call `fill`, then `load` from any thread.

    held_bytes   limit of the entries in memory; None for a default, which is lower if entries are also on disk (`writes`)

    Control images that are not resized have no entry: it would save 5 to 20 ms of decoding a PNG, and nothing of a JPEG.
    """

    held_bytes: int | None = field(default=None, kw_only=True)
    _entry_paths: dict[tuple[str, ...], tuple[Placement, Path]] = field(default_factory=dict, init=False)
    _held: dict[Path, bytes] = field(default_factory=dict, init=False)

    row = CONTROLS

    def __post_init__(self) -> None:
        self._room_bytes = memory_limit(self.writes) if self.held_bytes is None else self.held_bytes

    def fill(
        self,
        items: Sequence[Placed],
        *,
        threads: int = 2,
        check: Check | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute and store missing entries. Raises ProblemsError with the control images that cannot be read.

        progress   called with (done, total)
        A failed write is reported to `warn`: entries without a file or room in memory are decoded at each step.
        """
        for placed, path, entry in self._entries(self._resized(items), threads, check, progress):
            self._entry_paths[placed.key] = (placed.placement, path)
            self._hold(path, entry["control"])
        if self.unwritten and self.warn:
            self.warn(self.not_cached(self.unwritten))

    def load(self, placed: Placed, view: View) -> np.ndarray | None:
        """Return the control image of a view as `load_control` does, from the cache if it has an entry."""
        pixels = self._cached(placed, view)
        if pixels is None:
            return load_control(placed, view)
        return as_control(pixels[..., ::-1] if view.flip else pixels)

    def _cached(self, placed: Placed, view: View) -> np.ndarray | None:
        """Return the cached control image, unflipped uint8 [1 or 3, H, W]; None without an entry or for another crop."""
        placement, path = self._entry_paths.get(placed.key, (None, None))
        if path is None or placement != view.placement:
            return None
        data = self._held.get(path)
        if data is None:
            entry = read_tensors(path, SHAPES, dtypes=self.row.dtypes)
            data = entry["control"].numpy().tobytes() if entry else b""  # gone or damaged since `fill`: not unpacked
        return unpacked(data, view.placement.bucket)

    def _resized(self, items: Sequence[Placed]) -> list[tuple[Placed, Path]]:
        """Return (image, control image file) for control images that must be resized or whose header cannot be read."""
        pairs = [(placed, path) for placed in items if (path := placed.image.control)]
        files = {path: file_at(path, path.name) for _, path in pairs}
        results = headers(list(files.values()), Memo(self.memo_path))
        sizes = {file.path: (header.width, header.height) for file, header in results if not isinstance(header, str)}
        return [pair for pair in pairs if pair[1] not in sizes or is_resized(sizes[pair[1]], pair[0])]

    def _hold(self, path: Path, entry: Tensor) -> None:
        """Hold an entry's bytes in memory if there is room for them."""
        if path not in self._held and entry.nbytes <= self._room_bytes:
            self._held[path] = entry.numpy().tobytes()
            self._room_bytes -= entry.nbytes

    def _key_parts(self, placed: Placed) -> tuple[object, ...]:
        """Return what a control image in its bucket depends on besides its file: crop, fit and resize filter."""
        concept = placed.concept  # `enable_bucket`: stretched ones are compared with the bucket by it
        fit = (concept.control_fit, control_filter(concept), concept.images.enable_bucket)
        return *placed.placement.pixel_key, *fit

    def _shapes(self, placed: Placed) -> Shapes:
        """Return {"control": (None,)}: compressed bytes of any length."""
        return SHAPES

    def _compute(self, placed: Placed) -> dict[str, Tensor]:
        """Return {"control": the compressed control image in its bucket, uint8 [bytes]}. Raises BrokenImage."""
        pixels = control_pixels(placed, View(placed.placement))
        assert pixels is not None
        return {"control": torch.frombuffer(bytearray(packed(pixels)), dtype=torch.uint8)}


def memory_limit(writes: bool) -> int:
    """Return the default limit in bytes of entries in memory. writes: whether entries are on disk too"""
    return MEMORY_BYTES if writes else UNWRITTEN_BYTES


def packed(pixels: np.ndarray) -> bytes:
    """Compress an image, uint8 [3, H, W]; one channel if it is gray."""
    gray = bool((pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all())
    return zlib.compress(np.ascontiguousarray(pixels[:1] if gray else pixels), ZLIB_LEVEL)


def unpacked(data: bytes, size: Size) -> np.ndarray | None:
    """Decompress the result of `packed`: uint8 [1 or 3, H, W]; None if damaged or not of `size` (width, height)."""
    width, height = size
    try:
        values = zlib.decompressobj().decompress(data, 3 * width * height + 1)
    except zlib.error:
        return None
    channels = len(values) // (width * height)
    if channels not in (1, 3) or len(values) != channels * width * height:
        return None
    return np.frombuffer(values, np.uint8).reshape(channels, height, width)
