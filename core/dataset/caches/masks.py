"""Masks at latent size: computed once from the mask's or image's content, cached next to the latents."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.caches.contents import content_hashes
from core.dataset.caches.files import Warn, file_of, key_of, read_tensors, tell_damaged, write_tensors
from core.dataset.images.masks import load_mask
from core.dataset.images.opening import BrokenImage, problem_of
from core.dataset.images.views import View
from core.dataset.sources.image_info import ImageInfo
from core.record.problems import Problem, ProblemsError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from core.dataset.buckets.batches import Placed

CODE_VERSION = 1


def mask_source(placed: Placed) -> Path | None:
    """The file that an image's mask comes from: its mask image, else its own alpha channel; None without a mask."""
    settings = placed.concept.images
    if settings.masked_loss and placed.image.conditioning is not None:
        return placed.image.conditioning
    return placed.image.path if settings.alpha_mask else None


class MaskCache:
    """folder: the cache folder; memo_path: cached hashes of files; writes False: nothing is written; warn: told of damaged
    entries, which are computed again; latent_pixels: see `at_latent_size`."""

    def __init__(
        self,
        folder: Path | str,
        memo_path: Path | str | None = None,
        *,
        writes: bool = True,
        warn: Warn | None = None,
        latent_pixels: int = 8,
    ):
        self._latent_pixels = latent_pixels
        self._folder, self._memo_path, self._writes, self._warn = Path(folder), memo_path, writes, warn
        self._damaged: list[Path] = []

    def load(
        self, items: Sequence[Placed], *, threads: int = 2, check: Callable[[], None] | None = None
    ) -> dict[tuple[str, ...], Tensor]:
        """{image key: [1, h, w] float32 in 0..1} of the items whose mask is not all ones.

        A failed write is ignored: the masks are then computed again next time.
        """
        files = self._files(items, check)
        result: dict[tuple[str, ...], Tensor] = {}
        problems: list[Problem] = []
        remaining = iter(zip(items, files, strict=True))
        with ThreadPoolExecutor(max(1, threads)) as pool:
            while part := list(islice(remaining, 8 * threads)):
                if check:
                    check()
                for (placed, _), mask in zip(part, pool.map(lambda pair: self._one(*pair), part), strict=True):
                    if isinstance(mask, BrokenImage):
                        problems.append(problem_of(mask_source(placed) or placed.image.path, mask))
                    elif bool((mask < 1).any()):
                        result[placed.key] = mask
        tell_damaged(self._damaged, self._warn)
        if problems:
            raise ProblemsError(problems)
        return result

    def _one(self, placed: Placed, path: Path) -> Tensor | BrokenImage:
        width, height = placed.placement.bucket
        shape = (1, height // self._latent_pixels, width // self._latent_pixels)
        tensors = read_tensors(path, {"mask": shape}, self._damaged)
        if tensors is not None:
            return tensors["mask"]
        try:
            mask = at_latent_size(plain_mask(placed), self._latent_pixels)
        except BrokenImage as error:
            return error
        if self._writes:
            try:
                write_tensors(path, {"mask": mask})
            except ProblemsError:
                self._writes = False
        return mask

    def _files(self, items: Sequence[Placed], check: Callable[[], None] | None) -> list[Path]:
        sources = [_source_as_file(placed) for placed in items]
        unique = {file.path: file for file in sources}
        hashes = {
            file.path: content
            for file in unique.values()
            for content in content_hashes([file], self._memo_path, check).values()
        }
        return [
            file_of(self._folder, self._key(placed, hashes[file.path]))
            for placed, file in zip(items, sources, strict=True)
        ]

    def _key(self, placed: Placed, content: str) -> str:
        where, settings = placed.placement, placed.concept.images
        kind = "alpha" if mask_source(placed) == placed.image.path else "mask"
        return key_of(
            "mask",
            CODE_VERSION,
            content,
            kind,
            where.resized,
            where.crop,
            where.bucket,
            settings.resize_interpolation,
            self._latent_pixels,
        )


def _source_as_file(placed: Placed) -> ImageInfo:
    """The mask's file, in the form that the hashing takes."""
    source = mask_source(placed)
    assert source is not None
    if source == placed.image.path:
        return placed.image
    try:
        found = os.stat(source)
    except OSError as error:
        raise ProblemsError([problem_of(source, BrokenImage("is missing or a broken link"))]) from error
    return replace(placed.image, path=source, bytes=found.st_size, mtime_ns=found.st_mtime_ns)


def plain_mask(placed: Placed) -> np.ndarray:
    """The image's loss mask in its bucket, [1, H, W] in 0..1; ones without a mask."""
    import numpy as np

    mask = load_mask(placed, View(placed.placement))
    width, height = placed.placement.bucket
    return np.ones((1, height, width), np.float32) if mask is None else mask


def at_latent_size(mask: np.ndarray, latent_pixels: int = 8) -> Tensor:
    """[1, H, W] -> [1, h, w]: the mean over the pixels of each latent pixel.

    latent_pixels   of the image along a side of each
    """
    import torch
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(torch.from_numpy(mask).float()[None], latent_pixels)[0]
