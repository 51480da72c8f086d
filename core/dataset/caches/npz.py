"""sd-scripts' latent caches (.npz) next to the images: read if they fit, and exported for other programs.

They contain one unscaled sample of the posterior, and no hash of the VAE or the image. Layouts (reference:
sections 5.1 and 5.2): `<stem>.npz` with the keys below; `<stem>_<width>x<height>_sd.npz` or `_sdxl.npz`; keys with the
latents' size (`latents_64x48`: height x width); and the oldest, one unnamed array in `<stem>.npz` with the flipped
image's in `<stem>_flip.npz`.
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

from core.dataset.buckets.aspect_ratio import Size
from core.dataset.caches.encoding import Side, sides
from core.dataset.images.views import recorded_crop
from core.dataset.sources.files import printable
from core.record.atomic import open_atomic
from core.record.bounded_zip import DAMAGED, open_zip, read_member
from core.record.lazy_torch import Tensor, torch
from core.record.problems import ProblemsError
from core.record.regular import open_regular
from core.record.stamps import stamp_or_none
from core.record.units import first_of

if TYPE_CHECKING:
    import numpy as np

    from core.dataset.buckets.batches import Placed
    from core.dataset.caches.encoding import Posterior

CHANNELS, LATENT_PIXELS = 4, 8  # of the models whose caches these are
UNNAMED = "arr_0"  # numpy's name of an array without a name
HEADER_BYTES = 4096
NO_VARIANCE = -30.0  # log variance at which sampling returns the mean, to float32's last digits
SHOWN = 5  # names in a line of the log


class Unfit(Exception):
    """An .npz file that cannot be used for an image. The message continues a sentence that starts with the file's name."""


class NpzCaches:
    """Reader of posteriors from .npz files next to images; for `other_programs` of LatentCache.

    items     all images of the dataset: a file whose name fits several of them is not used
    kind      "sd" or "sdxl": suffix of newer file names
    refused   name of an unused file -> reason
    """

    def __init__(self, items: Sequence[Placed], kind: str = "sd"):
        self._kind = kind
        owners: dict[Path, set[Path]] = defaultdict(set)
        for placed in items:
            owners[_stem(placed)].add(placed.image.path)
        self._shared = {stem for stem, paths in owners.items() if len(paths) > 1}
        self._chosen: dict[tuple, Path | None] = {}
        self.refused: dict[str, str] = {}  # name of a file -> why
        self._older: set[str] = set()  # names of used files that were written before their image

    def __call__(self, side: Side) -> Posterior | None:
        """Return a side's cached sample as a posterior without variance, or None without a usable file.

        Which file is used is decided once for each side.
        """
        if side.key not in self._chosen:
            self._chosen[side.key] = self._choose(side)
        path = self._chosen[side.key]
        return None if path is None else _as_posterior(read_latents(path, side))

    def _choose(self, side: Side) -> Path | None:
        """Return the first .npz file with usable latents of all sides of the image, or None. Others are noted in `refused`."""
        for path in self._candidates(side.placed):
            name = printable(path.name)
            try:
                if _stem(side.placed) in self._shared:
                    raise Unfit("belongs to several images of the same name")
                for each in sides(side.placed):  # flip_aug needs the flipped side too
                    read_latents(path, each)
            except Unfit as error:
                self.refused[name] = str(error)
                continue
            stamp = stamp_or_none(path)
            if stamp and stamp[1] < side.placed.image.mtime_ns:
                self._older.add(name)
            return path
        return None

    def _candidates(self, placed: Placed) -> list[Path]:
        """Return the existing .npz files with a name for this image, the old name first, as in sd-scripts."""
        stem, image = _stem(placed), placed.image
        sized = f"{stem.name}_{image.width:04d}x{image.height:04d}_{self._kind}.npz"
        return [path for path in (with_ending(stem, ".npz"), stem.parent / sized) if path.is_file()]

    def log_lines(self) -> list[str]:
        """Return lines for the log about the files that are used, and about those that are not, with the reason."""
        used = {path for path in self._chosen.values() if path is not None}
        lines = []
        if used:
            names = [printable(path.name) for path in sorted(used)]
            lines.append(f"Using cached latents from {len(used)} .npz files: {first_of(names, SHOWN)}")
        if self._older:
            older = first_of(sorted(self._older), SHOWN)
            lines.append(f"Older than their images, which may have changed since: {older}; delete them to encode again")
        if self.refused:
            reasons = [f"{name} {why}" for name, why in self.refused.items()]
            lines.append(f"Ignoring {len(reasons)} .npz files: {first_of(reasons, SHOWN, '; ')}")
        return lines


def _stem(placed: Placed) -> Path:
    """Return the image's path without its extension."""
    return placed.image.path.with_suffix("")


def with_ending(stem: Path, ending: str) -> Path:
    """Append an extension to a path without one; with_suffix would cut a name such as `fox.v2`."""
    return stem.parent / (stem.name + ending)


# ---- reading


def read_latents(path: Path, side: Side) -> np.ndarray:
    """Return the sample of an image side (plain or flipped), unscaled float32 [4, h, w].

    Raises Unfit if the file does not fit the image and bucket.
    """
    placed = side.placed
    width, height = (length // LATENT_PIXELS for length in placed.placement.bucket)
    try:
        with open_regular(path) as handle, open_zip(handle, path) as file:
            names = {member.removesuffix(".npy") for member in file.namelist()}
            if names == {UNNAMED}:
                return _unnamed_array(path, side, (width, height))
            suffix = _key_suffix(names, (width, height))
            _check_size(file, f"original_size{suffix}", placed)
            name = ("latents_flipped" if side.flipped else "latents") + suffix
            if name not in names:
                raise Unfit("lacks the flipped image" if side.flipped else "contains no latents")
            return _array(file, name, (width, height))
    except (*DAMAGED, ProblemsError) as error:
        raise Unfit("cannot be read") from error


def _key_suffix(names: set[str], size: Size) -> str:
    """Return the suffix of the keys for latents of `size` (width, height): "_HEIGHTxWIDTH", or "" if the file has no such keys."""
    width, height = size
    return next((end for end in (f"_{height}x{width}", "") if f"latents{end}" in names), "")


def _unnamed_array(path: Path, side: Side, size: Size) -> np.ndarray:
    """Read a side's latents [4, h, w] from the oldest layout: one array per file. size: (w, h). Raises Unfit."""
    where = with_ending(path.with_suffix(""), "_flip.npz") if side.flipped else path
    if not where.is_file():
        raise Unfit(f"lacks the flipped image ({printable(where.name)})")
    with open_regular(where) as handle, open_zip(handle, where) as file:
        return _array(file, UNNAMED, size)


def _array(file: zipfile.ZipFile, name: str, size: Size) -> np.ndarray:
    """Read latents from an array of the .npz file, float32 [4, h, w]. size: (w, h).

    Raises Unfit for another size or values that are not finite.
    """
    import numpy as np

    width, height = size
    other = f"was made for another size than {width * LATENT_PIXELS} x {height * LATENT_PIXELS}"
    if file.getinfo(f"{name}.npy").file_size > CHANNELS * width * height * 8 + HEADER_BYTES:
        raise Unfit(other)
    array = _numeric_array(file, name, CHANNELS * width * height * 8 + HEADER_BYTES)
    if array.shape != (CHANNELS, height, width):
        raise Unfit(other)
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise Unfit("contains NaN or infinity")
    return array


def _numeric_array(file: zipfile.ZipFile, name: str, max_bytes: int) -> np.ndarray:
    """Read a numeric array from an .npz file. Raises ValueError for others.

    max_bytes   limit of its size
    The header is validated first, because numpy allocates whatever size a header claims.
    """
    import numpy as np

    data = read_member(file, file.getinfo(f"{name}.npy"), max_bytes)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of version {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read_header(stream, max_header_size=HEADER_BYTES)
    except Exception as error:  # the header is a Python expression; parsing it can raise TokenError, MemoryError ...
        raise ValueError("an array with a damaged header") from error
    if dtype.kind not in "fiu" or prod(shape) * dtype.itemsize > len(data) or any(side < 0 for side in shape):
        raise ValueError("an array longer than the file, or not numeric")
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False, max_header_size=HEADER_BYTES)


def _check_size(file: zipfile.ZipFile, name: str, placed: Placed) -> None:
    """Raise Unfit if array `name` of the file gives another original size than the image's; files without that array pass."""
    if f"{name}.npy" not in file.namelist():
        return
    lengths = _numeric_array(file, name, HEADER_BYTES).reshape(-1)[:2]
    if lengths.size != 2:
        raise ValueError("the image size is not a pair")
    was = tuple(int(length) for length in lengths)
    image = placed.image
    if was == (image.width, image.height) and not (image.rotated and was[0] == was[1]):
        return
    if image.rotated:  # sd-scripts ignores EXIF
        raise Unfit("was made before the image was rotated by EXIF")
    raise Unfit(f"was made from an image of {was[0]} x {was[1]} pixels, which is {image.width} x {image.height} now")


def _as_posterior(sample: np.ndarray) -> Posterior:
    """Return a posterior (mean, log variance) whose samples are `sample` itself."""
    mean = torch.from_numpy(sample)
    return mean, torch.full_like(mean, NO_VARIANCE)


# ---- writing


@dataclass
class Exported:
    """Result of an export.

    written   number of files
    skipped   names of files that were not written, because they exist or belong to several images
    """

    written: int = 0
    skipped: list[str] = field(default_factory=list)


def export_npz(
    items: Sequence[Placed],
    sample: Callable[[Side], Tensor],
    mask: Callable[[Placed], np.ndarray],
    check: Callable[[], None] | None = None,
) -> Exported:
    """Write `<stem>.npz` next to each image, for sd-scripts and tools that read its caches.

    Existing files, and files that two images would share, are skipped. More resolutions of an image go into the same file under
    keys with their size.

    sample   returns the latents of a side, float32 [4, h, w], not scaled
    mask     returns an image's loss mask, [1, H, W] in 0..1 at bucket size; called with alpha_mask on
    check    called before each file; may raise to cancel

    Raises ProblemsError for a failed write.
    """
    done = Exported()
    files: dict[Path, list[Placed]] = defaultdict(list)
    for placed in items:
        files[with_ending(_stem(placed), ".npz")].append(placed)
    for path, group in files.items():
        if check:
            check()
        if path.exists() or len({placed.image.path for placed in group}) > 1:
            done.skipped.append(printable(path.name))
            continue
        arrays: dict[str, Any] = {}
        for placed in group:
            width, height = (length // LATENT_PIXELS for length in placed.placement.bucket)
            end = f"_{height}x{width}" if placed.variant else ""
            arrays |= {name + end: value for name, value in _arrays(placed, sample, mask).items()}
        try:
            write_npz(path, arrays)
        except OSError as error:
            what = f"An .npz cache cannot be written ({error.strerror or error})"
            fix = "free some space, or make the folder writable; files written so far are complete"
            raise ProblemsError.one(what, printable(path), fix, code="npz.unwritten") from error
        done.written += 1
    return done


def _arrays(placed: Placed, sample: Callable[[Side], Tensor], mask: Callable[[Placed], np.ndarray]) -> dict[str, Any]:
    """Return {sd-scripts' key: array} of one image at one size.

    Keys are "latents", "original_size" and "crop_ltrb", with flip_aug "latents_flipped", and with alpha_mask "alpha_mask".
    """
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
    """Write arrays to an .npz file, atomically and uncompressed, as sd-scripts does."""
    import numpy as np

    with open_atomic(path) as temporary, open(temporary, "wb") as out:
        np.savez(out, **arrays)
        out.flush()
        os.fsync(out.fileno())
