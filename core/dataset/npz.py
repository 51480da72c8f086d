"""Latent caches of sd-scripts beside the images: read where they fit, written for other programs.

They hold one sample of the posterior, not multiplied by the VAE's factor, and say neither which VAE made them nor what
the image looked like. Layouts (reference: sections 5.1 and 5.2): `<stem>.npz` with the keys below; `<stem>_<width>x
<height>_sd.npz` or `_sdxl.npz`; keys with the latents' size (`latents_64x48`: height x width); and the oldest, one bare
array in `<stem>.npz` with the mirrored image's in `<stem>_flip.npz`.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.buckets import LATENT_PIXELS, Size
from core.dataset.encoding import Side, sides
from core.dataset.files import printable
from core.dataset.views import recorded_crop
from core.record.atomic import open_atomic
from core.record.bounded_zip import DAMAGED, open_zip, read_member
from core.record.problems import ProblemsError
from core.record.regular import open_regular

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from core.dataset.batches import Placed
    from core.dataset.latent_cache import Posterior

CHANNELS = 4
BARE = "arr_0"  # what numpy calls an array without a name
HEADER_BYTES = 4096
NO_SPREAD = -30.0  # log-variance at which a draw is the sample itself, to float32's last digits
SHOWN = 5


class Unfit(Exception):
    """Why a file is not used. Its text follows the file's name."""


class NpzCaches:
    """Posteriors from .npz files beside images, for LatentCache's `others`.

    kind   "sd" or "sdxl": the family's ending in newer names
    """

    def __init__(self, items: Sequence[Placed], kind: str = "sd"):
        self._kind = kind
        owners: dict[Path, set[Path]] = defaultdict(set)
        for placed in items:
            owners[_stem(placed)].add(placed.image.path)
        self._shared = {stem for stem, paths in owners.items() if len(paths) > 1}
        self._found: dict[tuple, Path | None] = {}
        self.refused: dict[str, str] = {}  # name of a file -> why

    def __call__(self, side: Side) -> Posterior | None:
        """The sample as a posterior without spread; None where no file fits. Decided once for each side."""
        if side.key not in self._found:
            self._found[side.key] = self._choose(side)
        path = self._found[side.key]
        return None if path is None else _as_posterior(read_latents(path, side))

    def _choose(self, side: Side) -> Path | None:
        for path in self._candidates(side.placed):
            name = printable(path.name)
            try:
                if _stem(side.placed) in self._shared:
                    raise Unfit("stands for several images of one name")
                for each in sides(side.placed):  # a file without the mirrored side is of no use to flip_aug
                    read_latents(path, each)
            except Unfit as error:
                self.refused[name] = str(error)
                continue
            return path
        return None

    def _candidates(self, placed: Placed) -> list[Path]:
        """The old name first, as sd-scripts does."""
        stem, image = _stem(placed), placed.image
        sized = f"{stem.name}_{image.width:04d}x{image.height:04d}_{self._kind}.npz"
        return [path for path in (beside(stem, ".npz"), stem.parent / sized) if path.is_file()]

    def said(self) -> list[str]:
        """For the log: how many were used, and which were not and why."""
        used = {path for path in self._found.values() if path is not None}
        lines = []
        if used:
            names = [printable(path.name) for path in sorted(used)]
            lines.append(f"Latents of {len(used)} .npz caches are used: {shortened(names)}")
        if self.refused:
            reasons = [f"{name} {why}" for name, why in self.refused.items()]
            lines.append(f"{len(reasons)} .npz caches are not used: {shortened(reasons, '; ')}")
        return lines


def shortened(names: Sequence[str], between: str = ", ") -> str:
    """The first few of many."""
    more = f"{between}and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + more


def _stem(placed: Placed) -> Path:
    """The image's path without its ending."""
    return placed.image.path.with_suffix("")


def beside(stem: Path, ending: str) -> Path:
    """with_suffix would cut a name such as `fox.v2` again."""
    return stem.parent / (stem.name + ending)


# ---- reading


def read_latents(path: Path, side: Side) -> np.ndarray:
    """The sample of one side, float32 [4, h, w]. Unfit says why the file does not fit this image at this size."""
    placed = side.placed
    width, height = (length // LATENT_PIXELS for length in placed.placement.bucket)
    try:
        with open_regular(path) as handle, open_zip(handle, path) as file:
            names = {member.removesuffix(".npy") for member in file.namelist()}
            if names == {BARE}:
                return _bare(path, side, (width, height))
            end = _ending(names, (width, height))
            _check_size(file, f"original_size{end}", placed)
            name = ("latents_flipped" if side.mirrored else "latents") + end
            if name not in names:
                raise Unfit("lacks the mirrored image" if side.mirrored else "holds no latents")
            return _array(file, name, (width, height))
    except (*DAMAGED, ProblemsError) as error:
        raise Unfit("cannot be read") from error


def _ending(names: set[str], size: Size) -> str:
    """Of the keys for this size: with the latents' height x width, or without any."""
    width, height = size
    return next((end for end in (f"_{height}x{width}", "") if f"latents{end}" in names), "")


def _bare(path: Path, side: Side, size: Size) -> np.ndarray:
    """The oldest layout: one array a file."""
    where = beside(path.with_suffix(""), "_flip.npz") if side.mirrored else path
    if not where.is_file():
        raise Unfit(f"lacks the mirrored image ({printable(where.name)})")
    with open_regular(where) as handle, open_zip(handle, where) as file:
        return _array(file, BARE, size)


def _array(file: zipfile.ZipFile, name: str, size: Size) -> np.ndarray:
    import numpy as np

    width, height = size
    other = f"was made for another size than {width * LATENT_PIXELS} x {height * LATENT_PIXELS}"
    if file.getinfo(f"{name}.npy").file_size > CHANNELS * width * height * 8 + HEADER_BYTES:
        raise Unfit(other)
    array = _numbers(file, name, CHANNELS * width * height * 8 + HEADER_BYTES)
    if array.shape != (CHANNELS, height, width):
        raise Unfit(other)
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise Unfit("holds numbers that are not finite (NaN)")
    return array


def _numbers(file: zipfile.ZipFile, name: str, max_bytes: int) -> np.ndarray:
    """An array of numbers. Its header is checked before it is believed: numpy makes room for whatever it claims."""
    import numpy as np

    data = read_member(file, file.getinfo(f"{name}.npy"), max_bytes)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, kind = read(stream, max_header_size=HEADER_BYTES)
    except Exception as error:  # a header is an expression, and Python's parser raises TokenError, MemoryError ...
        raise ValueError("an array with a damaged header") from error
    if kind.kind not in "fiu" or prod(shape) * kind.itemsize > len(data) or any(side < 0 for side in shape):
        raise ValueError("an array that is longer than the file, or of no numbers")
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False, max_header_size=HEADER_BYTES)


def _check_size(file: zipfile.ZipFile, name: str, placed: Placed) -> None:
    """The size of the image that it was made of, where the file says it."""
    if f"{name}.npy" not in file.namelist():
        return
    lengths = _numbers(file, name, HEADER_BYTES).reshape(-1)[:2]
    if lengths.size != 2:
        raise ValueError("the image's size is no pair")
    was = tuple(int(length) for length in lengths)
    image = placed.image
    if was == (image.width, image.height) and not (image.rotated and was[0] == was[1]):
        return
    if image.rotated:  # sd-scripts does not look at EXIF
        raise Unfit("shows the image before its rotation")
    raise Unfit(f"was made of an image of {was[0]} x {was[1]} pixels; it has {image.width} x {image.height} now")


def _as_posterior(sample: np.ndarray) -> Posterior:
    import torch

    mean = torch.from_numpy(sample)
    return mean, torch.full_like(mean, NO_SPREAD)


# ---- writing


@dataclass
class Exported:
    """What an export did. kept: files that were there already, or stand for several images; nothing is overwritten."""

    written: int = 0
    kept: list[str] = field(default_factory=list)


def export_npz(
    items: Sequence[Placed],
    sample: Callable[[Side], Tensor],
    mask: Callable[[Placed], np.ndarray],
    check: Callable[[], None] | None = None,
) -> Exported:
    """Write `<stem>.npz` beside each image, for sd-scripts and tools that read its caches.

    sample   the latents of a side, float32 [4, h, w], not scaled
    mask     what counts of an image, [1, H, W] in 0..1 at its bucket's size; asked where transparency is a mask

    Further resolutions of an image go into the same file under keys with their size.
    """
    done = Exported()
    files: dict[Path, list[Placed]] = defaultdict(list)
    for placed in items:
        files[beside(_stem(placed), ".npz")].append(placed)
    for path, group in files.items():
        if check:
            check()
        if path.exists() or len({placed.image.path for placed in group}) > 1:
            done.kept.append(printable(path.name))
            continue
        arrays: dict[str, Any] = {}
        for placed in group:
            width, height = (length // LATENT_PIXELS for length in placed.placement.bucket)
            end = f"_{height}x{width}" if placed.variant else ""
            arrays |= {name + end: value for name, value in _arrays(placed, sample, mask).items()}
        try:
            write_npz(path, arrays)
        except OSError as error:
            what = f"An .npz cache cannot be written ({error.strerror or error})."
            fix = "Free some space, or allow writing in the folder; those that are written are whole."
            raise ProblemsError.one(what, printable(path), fix) from error
        done.written += 1
    return done


def _arrays(placed: Placed, sample: Callable[[Side], Tensor], mask: Callable[[Placed], np.ndarray]) -> dict[str, Any]:
    """The arrays of one image at one size, by sd-scripts' names."""
    import numpy as np

    arrays: dict[str, Any] = {
        "latents": sample(Side(placed)).cpu().numpy().astype(np.float32),
        "original_size": np.array([placed.image.width, placed.image.height]),
        "crop_ltrb": np.array(recorded_crop(placed.placement.bucket, placed.placement.image)),
    }
    if placed.concept.images.flip_aug:
        arrays["latents_flipped"] = sample(Side(placed, True)).cpu().numpy().astype(np.float32)
    if placed.concept.images.alpha_mask:
        arrays["alpha_mask"] = mask(placed)[0].astype(np.float32)
    return arrays


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Whole or absent. Uncompressed, as sd-scripts writes them."""
    import numpy as np

    with open_atomic(path) as temporary, open(temporary, "wb") as out:
        np.savez(out, **arrays)
        out.flush()
        os.fsync(out.fileno())
