"""The latent cache: VAE posteriors of images, encoded once, on disk by content and in memory during a run.

Entries are named by the image's content, so a stale entry is never used, whatever the image or its folder is called. Mean and
log variance are cached, not a sample: each epoch samples again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.buckets.aspect_ratio import Size
from core.dataset.caches.contents import decoded_hashes
from core.dataset.caches.encoding import Encode, Posterior, Progress, Side, encode_sides, sides
from core.dataset.caches.store import LATENTS, Shapes, Store, write_tensors
from core.dataset.images.look import looks
from core.dataset.sources.files import printable
from core.record.lazy_torch import Tensor
from core.record.problems import Problem, ProblemsError
from core.record.space import require_space
from core.record.stamps import stamp_or_none
from core.settings.dataset.images import ImageSettings

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed

Check = Callable[[], None]

NO_COLOR = ImageSettings().alpha_color  # used in the key of opaque images, whatever the background color


def sd_latent_shape(size: Size) -> tuple[int, int, int]:
    """Return Stable Diffusion's latent shape (channels, height, width) for an image of `size` (width, height) pixels."""
    width, height = size
    return 4, height // 8, width // 8


@dataclass(eq=False)
class LatentCache(Store):
    """Cache of the posteriors of images under one VAE. Posteriors that are not written to disk are held in memory.

    vae_id     hash of the VAE's weights
    dtype      dtype in which the VAE computes, such as "fp32"
    other_programs     reads a side's posterior from another program's cache, tried first; None if it has none
    shape_of   (width, height) of an image -> (C, h, w) of its latents
    """

    vae_id: str
    dtype: str = "fp32"
    _: KW_ONLY
    other_programs: Callable[[Side], Posterior | None] | None = None
    shape_of: Callable[[Size], tuple[int, int, int]] = sd_latent_shape

    row = LATENTS

    def __post_init__(self) -> None:
        self._hashes: dict[tuple, str] = {}
        self._opaque: set[tuple] = set()
        self._held: dict[Path, Posterior] = {}  # encoded in this run and not written

    def missing(self, items: Sequence[Placed], check: Check | None = None) -> list[Placed]:
        """Return images of which a side (plain or flipped) is not cached or damaged; of equal content and crop, only the first."""
        return list({side.placed.key: side.placed for side in self.missing_sides(items, check)}.values())

    def missing_sides(self, items: Sequence[Placed], check: Check | None = None, *, reads: bool = True) -> list[Side]:
        """Return the image sides (plain or flipped) that are not cached; of equal content and crop, only the first.
        reads: read every entry, so that damaged ones are included and reported; False only tests whether files exist"""
        missing = self._missing_sides(items, check, reads)
        self.report_damaged()
        return list(missing.values())

    def fill(
        self,
        items: Sequence[Placed],
        encode: Encode,
        *,
        batch_size: int = 1,
        threads: int = 2,
        retry: Encode | None = None,
        check: Check | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Encode and store the missing entries; return their number.

        After an interruption the next call continues, because stored entries stay. Other arguments and errors are those of
        `encode_sides`; raises ProblemsError if the disk has too little space.
        """
        todo = list(self._missing_sides(items, check).values())
        self._damaged.clear()  # `missing` reports them
        changed_images: list[Placed] = []  # images that are no longer those that were hashed
        self.require_room(todo)

        def keep(side: Side, mean: Tensor, logvar: Tensor) -> None:
            changed = is_changed(side.placed)
            if changed:
                changed_images.append(side.placed)
            try:
                self.store(side, mean, logvar, writes=not changed)
            except ProblemsError:
                if not self.file(side).is_file():
                    raise
                self.store(side, mean, logvar, writes=False)  # another program has the entry open

        try:
            return encode_sides(
                todo,
                encode,
                keep,
                batch_size=batch_size,
                threads=threads,
                retry=retry,
                check=check,
                progress=progress,
            )
        finally:
            if changed_images and self.warn is not None:
                self.warn(changed_advice(changed_images[0]))

    def read(self, side: Side) -> Posterior:
        """Return the posterior of an image side like `find`. Raises ProblemsError if it is not cached or damaged."""
        posterior = self.find(side)
        if posterior is None:
            what = "The latents of an image are missing from the cache, damaged or held by another program"
            fix = "start again; it is encoded again if necessary"
            raise ProblemsError.one(what, printable(side.placed.image.path), fix, "cache.missing-latents")
        return posterior

    def find(self, side: Side) -> Posterior | None:
        """Return the posterior of an image side (plain or flipped): mean and log variance, float32 [C, h, w].

        None if it is not cached or damaged.
        """
        if self.other_programs is not None and (posterior := self.other_programs(side)) is not None:
            return posterior
        path = self.file(side)
        if path in self._held:
            return self._held[path]
        tensors = self.read_entry(path, self._shapes(side.placed))
        return None if tensors is None else (tensors["mean"], tensors["logvar"])

    def store(self, side: Side, mean: Tensor, logvar: Tensor, *, writes: bool = True) -> None:
        """Store the posterior of an image side (plain or flipped): mean and log variance [C, h, w].
        writes: False holds it in memory even if the cache writes to disk"""
        path = self.file(side)
        if self.writes and writes:
            write_tensors(path, {"mean": mean, "logvar": logvar})
        else:
            self._held[path] = (mean, logvar)

    def file(self, side: Side) -> Path:
        """Return the path of the cache file of an image side (plain or flipped). Sides of equal content and crop share a file."""
        ((_, path),) = self._files_of([side], None)
        return path

    def _missing_sides(self, items: Sequence[Placed], check: Check | None, reads: bool = True) -> dict[Path, Side]:
        """Return {cache file: side} of the sides that are not cached; arguments as in `missing_sides`."""
        missing: dict[Path, Side] = {}
        cached = set(self._held)
        for side, path in self._files_of([side for placed in items for side in sides(placed)], check):
            if (
                path in missing
                or path in cached
                or (self.other_programs is not None and self.other_programs(side) is not None)
            ):
                continue
            if check:
                check()
            if path.is_file() and (not reads or self.read_entry(path, self._shapes(side.placed)) is not None):
                cached.add(path)
            else:
                missing[path] = side
        return missing

    def _files_of(self, image_sides: Sequence[Side], check: Check | None) -> list[tuple[Side, Path]]:
        """Return each image side with the path of its cache file. Each image is hashed once; with a memo, once for all runs."""
        unread = {_file_state(side.placed): side.placed.image for side in image_sides}
        unread = {state: image for state, image in unread.items() if state not in self._hashes}
        hashes = decoded_hashes(list(unread.values()), self.memo_path, check) if unread else {}
        self._hashes |= {state: hashes[image.path] for state, image in unread.items()}
        measured = looks(list(unread.values()), self.memo_path) if unread else {}
        solid = {key for key, look in measured.items() if not look.reason and not look.transparent}
        self._opaque |= {state for state, image in unread.items() if image.key in solid}
        return [(side, self._entry_path(side)) for side in image_sides]

    def _entry_path(self, side: Side) -> Path:
        """Return the path of an image side's cache file; the image must be hashed already."""
        images, state = side.placed.concept.images, _file_state(side.placed)
        return self.path_of(
            self._hashes[state],
            *side.placed.placement.pixel_key,
            "mirrored" if side.flipped else "as it is",
            images.resize_interpolation,
            NO_COLOR if state in self._opaque else images.alpha_color.lower(),
            self.vae_id,
            self.dtype,
        )

    def _shapes(self, placed: Placed) -> Shapes:
        """Return the expected shapes of an entry's tensors by name."""
        return dict.fromkeys(("mean", "logvar"), self.shape_of(placed.placement.bucket))

    def bytes_of(self, placed: Placed) -> int:
        """Return the size in bytes of the posterior of one side: mean and log variance in float32."""
        return prod(self.shape_of(placed.placement.bucket)) * 4 * 2

    def require_room(self, todo: Sequence[Side]) -> None:
        """Raise ProblemsError if the disk has too little space for the entries of these sides."""
        if not self.writes:
            return
        need = sum(self.bytes_of(side.placed) for side in todo)
        self.folder.mkdir(parents=True, exist_ok=True)
        if todo:
            fix = "free some space, start with --outputs on another disk, or set the latent cache to 'in memory'"
            require_space(self.folder, need, f"Caching {len(todo)} images", fix)


def _file_state(placed: Placed) -> tuple:
    """Return the identity of an image file when it was scanned: (key, path, bytes, modification time in ns)."""
    image = placed.image
    return (image.key, image.path, image.bytes, image.mtime_ns)


def is_changed(placed: Placed) -> bool:
    """Return whether an image file is gone, or differs from the scanned one in size or modification time."""
    return stamp_or_none(placed.image.path) != (placed.image.bytes, placed.image.mtime_ns)


def changed_advice(placed: Placed) -> Problem:
    """Return advice about an image that changed after it was hashed: its posterior is used but not cached."""
    what, where = "An image changed after the dataset was read; the new one is used", printable(placed.image.path)
    return Problem(what, where, "start again if all steps should see it", "advice", code="image.changed")
