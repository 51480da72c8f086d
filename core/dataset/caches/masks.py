"""Masks at latent size: computed once from the mask's or image's content, cached next to the latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.caches.files import Shapes, Warn, key_of
from core.dataset.caches.partners import PartnerCache
from core.dataset.images.masks import load_mask
from core.dataset.images.views import View

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


class MaskCache(PartnerCache):
    """Masks of images that have one. latent_pixels: see `at_latent_size`."""

    def __init__(
        self,
        folder: Path | str,
        memo_path: Path | str | None = None,
        *,
        writes: bool = True,
        warn: Warn | None = None,
        latent_pixels: int = 8,
    ):
        super().__init__(folder, memo_path, writes=writes, warn=warn)
        self._latent_pixels = latent_pixels

    def load(
        self, items: Sequence[Placed], *, threads: int = 2, check: Callable[[], None] | None = None
    ) -> dict[tuple[str, ...], Tensor]:
        """{image key: [1, h, w] float32 in 0..1} of the items whose mask is not all ones.

        A failed write is ignored: the masks are then computed again next time.
        """
        return {
            placed.key: found["mask"]
            for placed, _, found in self._entries(items, threads, check)
            if bool((found["mask"] < 1).any())
        }

    def _source(self, placed: Placed) -> Path:
        source = mask_source(placed)
        assert source is not None
        return source

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

    def _shapes(self, placed: Placed) -> Shapes:
        width, height = placed.placement.bucket
        return {"mask": (1, height // self._latent_pixels, width // self._latent_pixels)}

    def _make(self, placed: Placed) -> dict[str, Tensor]:
        return {"mask": at_latent_size(plain_mask(placed), self._latent_pixels)}


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
