"""Caching speed: encoding camera-size images into the latent cache, compared with the VAE alone on the same pixels."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.machine_check.random_model import random_state
from core.record import machine
from core.record.draws import python_random

if TYPE_CHECKING:
    import torch

    from core.dataset.buckets.batches import Placed

IMAGES = 24
RESOLUTION = 256
_SIZES = ((1200, 900), (1600, 1200), (1200, 1600), (2400, 1600))  # 1 to 4 million pixels
ROUNDS = 3


def measure_caching(device: str, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Images per second, as a training fills a cache and by the VAE alone: the best of several rounds; and their ratio."""
    from core.dataset.caches.encoding import pixels_of
    from core.families.sd1 import FAMILY as sd1
    from core.training.building.latents import decode_threads

    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        say("creating images of 1 to 4 million pixels")
        placed = sorted(_placed(folder / "images", IMAGES // (3 if quick else 1)), key=lambda each: each.bucket)
        pixels = [pixels_of(each) for each in placed]
        vae = random_vae(device)

        def encode(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return sd1.encode_image_latents(vae, batch)

        _alone(pixels[:1], encode, device)  # the first call sets up memory and kernels
        alone, filled = float("inf"), float("inf")
        for number in range(ROUNDS):
            say(f"encoding them, round {number + 1} of {ROUNDS}")
            alone = min(alone, _alone(pixels, encode, device))
            filled = min(filled, _filled(folder / f"cache {number}", placed, encode, decode_threads(device)))
    return {
        "what": f"{len(placed)} JPEG images of 1 to 4 megapixels at {RESOLUTION} px, SD 1.5's VAE in fp32, one at a time",
        "vae_images_per_second": len(placed) / alone,
        "cache_images_per_second": len(placed) / filled,
        "share_of_the_vae": alone / filled,
    }


def random_vae(device: str) -> Any:
    """SD 1.5's VAE with random weights, in fp32."""
    import torch

    from core.families import family
    from core.families.part_shapes import make_empty

    config = family("sd1").layout.config("vae")
    vae = make_empty("vae", config)
    vae.load_state_dict(random_state("vae", config, torch.float32), assign=True)
    return vae.eval().to(device)


def _placed(folder: Path, count: int) -> list[Placed]:
    """Images with photographic detail, placed in buckets."""
    from PIL import Image

    from core.dataset.buckets.aspect_ratio import plan_buckets
    from core.dataset.buckets.batches import Placed
    from core.dataset.captions.files import Caption
    from core.dataset.sources.image_info import ImageInfo
    from core.settings.dataset.concepts import PLAIN
    from core.settings.dataset.images import ImageSettings

    folder.mkdir()
    settings = ImageSettings(resolution=RESOLUTION)
    plan, concept = plan_buckets(settings), replace(PLAIN, images=settings)
    result = []
    for number in range(count):
        width, height = _SIZES[number % len(_SIZES)]
        path = folder / f"{number:03d}.jpg"
        noise = python_random(0, "bench image", number).randbytes(width // 4 * (height // 4) * 3)
        drawing = Image.frombytes("RGB", (width // 4, height // 4), noise)
        drawing.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        status, where = path.stat(), plan.assign(width, height)
        assert where is not None
        image = ImageInfo("bench", path.name, path, width, height, status.st_size, status.st_mtime_ns)
        result.append(Placed(image, where, Caption("", "none", path.with_suffix(".txt")), concept))
    return result


def _alone(pixels: Sequence[Any], encode: Callable[[Any], Any], device: str) -> float:
    """Seconds of the VAE for all these images, already decoded."""
    import torch

    machine.synchronize(device)
    started = time.perf_counter()
    for each in pixels:
        mean, logvar = encode(torch.from_numpy(each)[None])
        mean.cpu(), logvar.cpu()
    return time.perf_counter() - started


def _filled(folder: Path, placed: Sequence[Placed], encode: Callable[[Any], Any], threads: int) -> float:
    """Seconds from image files to cache entries on disk."""
    from core.dataset.caches.latents import LatentCache

    started = time.perf_counter()
    LatentCache(folder, "bench").fill(placed, encode, threads=threads)
    return time.perf_counter() - started


def caching_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("cached", result["what"]),
        ("the VAE alone", f"{result['vae_images_per_second']:.2f} images/s"),
        (
            "into the latent cache",
            f"{result['cache_images_per_second']:.2f} images/s, {result['share_of_the_vae']:.0%} of the VAE alone",
        ),
    ]
