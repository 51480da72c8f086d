"""Control images: decoding and resizing large ones, compared with reading them from their cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from core.record.draws import python_random

if TYPE_CHECKING:
    from PIL.Image import Image

    from core.dataset.buckets.batches import Placed

SIDE = 2048  # of the files
SIZES = (512, 1024)  # that they are trained at
ROUNDS = 9
LINES = 400


def measure_controls(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds for each kind of control image and size, of one thread's CPU time, so that other programs do not count:
    medians."""
    rows, rounds = [], 3 if quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        for kind, image, ending in _images():
            for size in SIZES[:1] if quick else SIZES:
                say(f"reading {kind} at {size} px")
                rows.append({"kind": kind, "size": size} | _measured(Path(name), image, ending, size, rounds))
    return {"side": SIDE, "images": rows}


def _images() -> list[tuple[str, Image, str]]:
    """(kind, image, extension): thin lines, a smooth gray image as of depth, and one with photographic detail."""
    from PIL import Image, ImageDraw

    draw, size = python_random(0, "bench control"), (SIDE, SIDE)
    lines = Image.new("RGB", size)
    for _ in range(LINES):
        ends = [draw.randrange(SIDE) for _ in range(4)]
        ImageDraw.Draw(lines).line(ends, "white", 2)
    depth = Image.frombytes("L", (16, 16), draw.randbytes(256)).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    photo = Image.frombytes("RGB", (SIDE // 4, SIDE // 4), draw.randbytes(SIDE * SIDE * 3 // 16))
    photo = photo.resize(size, Image.Resampling.BICUBIC)
    return [("lines", lines, ".png"), ("depth", depth, ".png"), ("a photo", photo, ".jpg")]


def _measured(folder: Path, image: Image, ending: str, size: int, rounds: int) -> dict[str, Any]:
    from core.dataset.caches.partners import ControlCache, packed, unpacked
    from core.dataset.images.masks import as_control, control_pixels, load_control
    from core.dataset.images.views import View

    large = _placed(folder, image, ending, size)
    view = View(large.placement)
    cache = ControlCache(folder / "cache", held_bytes=0)
    cache.fill([large])
    small = _placed(folder, image.resize((size, size)), ending, size)
    resized, same = control_pixels(large, view), control_pixels(small, view)
    assert resized is not None and same is not None
    entry = packed(same)

    def from_entry() -> np.ndarray:
        plain = unpacked(entry, (size, size))
        assert plain is not None
        return as_control(plain)

    return {
        "decoded_ms": _ms(lambda: load_control(large, view), rounds),
        "cached_ms": _ms(lambda: cache.load(large, view), rounds),
        "cached_bytes": len(packed(resized)),
        "small_decoded_ms": _ms(lambda: load_control(small, view), rounds),
        "small_from_entry_ms": _ms(from_entry, rounds),
    }


def _placed(folder: Path, image: Image, ending: str, size: int) -> Placed:
    """A control image of this many pixels, in a square bucket."""
    from core.dataset.buckets.aspect_ratio import fit_to_bucket
    from core.dataset.buckets.batches import Placed
    from core.dataset.captions.files import Caption
    from core.dataset.sources.image_info import ImageInfo

    path = folder / f"{image.width}{ending}"
    image.save(path, quality=90)  # of a JPEG
    status = path.stat()
    info = ImageInfo("bench", path.name, path, *image.size, status.st_size, status.st_mtime_ns, control=path)
    return Placed(info, fit_to_bucket(image.size, (size, size)), Caption("", "none", path))


def _ms(work: Callable[[], object], rounds: int) -> float:
    times: list[float] = []
    for _ in range(rounds):
        started = time.thread_time()
        work()
        times.append(1000 * (time.thread_time() - started))
    return median(times)


def control_rows(result: dict[str, Any]) -> Sequence[tuple[str, str]]:
    return [
        (
            f"{each['kind']} of {result['side']} px at {each['size']} px",
            f"decoded {each['decoded_ms']:.1f} ms, cached {each['cached_ms']:.1f} ms ({each['cached_bytes'] / 1000:.0f} kB); "
            f"saved at {each['size']} px: decoded {each['small_decoded_ms']:.1f} ms, as a cache entry {each['small_from_entry_ms']:.1f} ms",
        )
        for each in result["images"]
    ]
