"""Dataset speed: how fast a folder of many images is scanned, reopened and planned, and the memory used."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.record.draws import python_random
from workshop.bench.measure import json_of

IMAGES, PLANNED = 10_000, 100_000
_SIZES = ((64, 64), (96, 64), (64, 96), (80, 64), (64, 80), (112, 64), (64, 112))


def measure_datasets(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Images per second of scans, seconds to reopen a folder and to plan an epoch, peak memory. Each in its own process, since
    the memory of one would hide that of the next."""
    images, planned = (IMAGES // 10, PLANNED // 10) if quick else (IMAGES, PLANNED)
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        folder, memo = Path(name) / "images", Path(name) / "index.sqlite"
        say(f"creating {images} images with captions")
        make_many(folder, images)
        say("reading the folder")
        warm_up = json_of("datasets", "scan", str(folder), str(Path(name) / "other.sqlite"))  # the system's file cache
        first = json_of("datasets", "scan", str(folder), str(memo))
        say("reopening it")
        again = json_of("datasets", "scan", str(folder), str(memo))
    say(f"planning an epoch of {planned} images")
    plan = json_of("datasets", "plan", str(planned))
    return {
        "images": images,
        "first_scan_images_per_second": images / warm_up["seconds"],
        "scan_images_per_second": images / first["seconds"],
        "reopen_seconds": again["seconds"],
        "memory_bytes": max(first["bytes"], again["bytes"]),
        "planned_images": planned,
        "plan_seconds": plan["seconds"],
        "batches": plan["batches"],
    }


def make_many(folder: Path, count: int) -> None:
    """Small JPEG and PNG files of several shapes in ten subfolders, each with a caption of twenty tags."""
    from PIL import Image

    samples: dict[str, list[bytes]] = {}
    for ending, kind in ((".jpg", "JPEG"), (".png", "PNG")):
        samples[ending] = []
        for width, height in _SIZES:
            noise = python_random(0, "bench image", width, height).randbytes(width * height * 3)
            path = folder.parent / f"sample{ending}"
            Image.frombytes("RGB", (width, height), noise).save(path, kind)
            samples[ending].append(path.read_bytes())
    for number in range(count):
        place = folder / f"part {number % 10}"
        if number < 10:
            place.mkdir(parents=True)
        ending = ".png" if number % 3 == 0 else ".jpg"
        path = place / f"image {number:06d}{ending}"
        path.write_bytes(samples[ending][number % len(_SIZES)])
        tags = ", ".join(f"tag number {(number * step) % 997}" for step in range(1, 21))
        path.with_suffix(".txt").write_text(tags, encoding="utf-8")


def _scan(folder: str, memo_path: str) -> dict[str, Any]:
    import psutil

    from core.dataset.captions.memo import captions_of
    from core.dataset.sources.memo import Memo
    from core.dataset.sources.scan import scan
    from core.settings.dataset.captions import CaptionSettings
    from core.settings.dataset.concepts import concepts
    from core.settings.dataset.dataset import DatasetSettings
    from core.settings.dataset.validation import ValidationSettings

    folders = concepts(DatasetSettings(folder=folder), CaptionSettings(), ValidationSettings())
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    scanned = scan(folders, memo_path=memo_path)
    captions = captions_of(scanned.images, [each.captions for each in folders], Memo(memo_path))
    seconds = time.perf_counter() - start
    assert len(captions) == len(scanned.images)
    return {"seconds": seconds, "bytes": psutil.Process().memory_info().rss - before}


def _plan(count: int) -> dict[str, Any]:
    """Seconds to plan an epoch of images of many shapes in buckets of 1024 pixels at batch size 4, and its number of
    batches."""
    from core.dataset.buckets.aspect_ratio import plan_buckets
    from core.dataset.buckets.batches import Placed
    from core.dataset.buckets.plan import Epochs
    from core.dataset.captions.files import Caption
    from core.dataset.sources.image_info import ImageInfo
    from core.settings.dataset.captions import CaptionSettings
    from core.settings.dataset.concepts import concepts
    from core.settings.dataset.dataset import DatasetSettings
    from core.settings.dataset.validation import ValidationSettings

    dataset = DatasetSettings(folder="images", resolution=1024, train_batch_size=4)
    (concept,) = concepts(dataset, CaptionSettings(), ValidationSettings())
    plan, random = plan_buckets(concept.images), python_random(0, "bench shapes")
    placed = []
    for number in range(count):
        width, height = random.randint(600, 3000), random.randint(600, 3000)
        path = Path(f"{number}.png")
        image = ImageInfo("images", path.name, path, width, height, 1, 1)
        placement = plan.assign(width, height)
        assert placement is not None  # only extremely narrow images have none
        placed.append(Placed(image, placement, Caption("", "words", path), concept))
    start = time.perf_counter()
    batches = Epochs(placed, dataset).batches(0, 0)
    return {"seconds": time.perf_counter() - start, "batches": len(batches)}


def main(arguments: list[str]) -> None:
    """scan FOLDER INDEX, or plan IMAGES: one measurement, printed as JSON."""
    print(json.dumps(_scan(*arguments[1:]) if arguments[0] == "scan" else _plan(int(arguments[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
