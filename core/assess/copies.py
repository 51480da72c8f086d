"""Near-copies of training images: generated images whose latents are closer to a training image than unrelated images are.

An image hash selects candidates; the distance of latents, minimized over shifts and flips, decides. The limit is a lower prediction
bound with a known rate of false alarms. It is estimated from the distances between training images, and from those of the base
model's images of the same captions, which cannot be copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any

from core.assess.statistics import NotMeasured, lower_bound
from core.dataset.doctor.images import NEAR_DISTANCE
from core.dataset.images.look import difference_hash
from core.record import atomic
from core.record.lazy_torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

RATE = 0.01  # of false alarms, for all images of a checkpoint together
MIN_IMAGES = 4  # training images
CANDIDATES = 8  # by hash, whose latents are compared
COMPARED = 32  # training images whose distances to others are measured
SHIFTS = 4  # half latent pixels in each direction
FOLDER = "assess"  # in the run folder, for images


def measure(bench: Any, subject: Any) -> dict[str, Any]:
    """Compare the checkpoint's generated images with the training images, and write the closest pair to the run folder.

    Returns {distance, limit, typical: latent distances; near: number of images below the limit; images: number of images; name: the
    nearest training image; prompt; files: the pair's paths in the run folder}. Raises NotMeasured.
    """
    from core.assess.bench import load

    placed, run = bench.target.training, bench.target.run
    memo = bench.memo
    if "gallery" not in memo:
        memo["gallery"] = Gallery(len(placed), lambda number: load(placed[number], bench.target.size), subject.encoded)
        memo["typical"] = memo["gallery"].typical_distances()
        memo["base"] = [memo["gallery"].nearest_images(image)[0][0] for image, _ in bench.base.images]
    images, typical_distances = memo["gallery"], memo["typical"]
    images.encode = subject.encoded
    if len(typical_distances) < MIN_IMAGES:
        raise NotMeasured(f"it needs {MIN_IMAGES} training images that are not near duplicates")
    limit = limit_of(typical_distances, memo["base"], len(subject.images))
    distances = [(*images.nearest_images(image)[0], index) for index, (image, _) in enumerate(subject.images)]
    nearest, number, index = min(distances)
    image, prompt = subject.images[index]
    files = [f"{FOLDER}/{subject.checkpoint.path.stem}{end}.png" for end in ("", "-training")]
    atomic.make_folders(run.path / FOLDER)
    for name, saved_image in zip(files, (image, images.load(number)), strict=True):
        with atomic.open_atomic(run.path / name) as path:
            saved_image.save(path, format="PNG")
    values = {"distance": round(nearest, 4), "limit": round(limit, 4), "typical": round(median(typical_distances), 4)}
    counts = {"near": sum(distance < limit for distance, _, _ in distances), "images": len(distances)}
    return values | counts | {"name": placed[number].image.relative, "prompt": prompt, "files": files}


def limit_of(pair_distances: Sequence[float], base_distances: Sequence[float], image_count: int) -> float:
    """Return the distance that all of `image_count` generated images exceed with probability 1 - RATE if none is a copy.

    pair_distances   distances of training images to their hash candidates
    base_distances   distances of the base model's images to the nearest training image
    """
    return min(
        lower_bound(pair_distances, RATE / (image_count * CANDIDATES)), lower_bound(base_distances, RATE / image_count)
    )


class Gallery:
    """The training images, searched by image hash and then by latents. `load`: index -> image; `encode`: image -> latents [C, h, w]."""

    def __init__(self, count: int, load: Callable[[int], Image], encode: Callable[[Image], Tensor]):
        """`count`: the number of training images."""
        self.load, self.encode = load, encode
        self._hashes = [int(difference_hash(load(number)), 16) for number in range(count)]
        self._latents = cache(lambda number: self.encode(load(number)))

    def typical_distances(self) -> list[float]:
        """Return the distances between COMPARED training images and their hash candidates, without near duplicates."""
        count, pairs = len(self._hashes), dict[frozenset[int], float]()
        for number in sorted({number * count // COMPARED for number in range(COMPARED)}):
            nearest_images = self.nearest_images(self.load(number), NEAR_DISTANCE)
            pairs |= {frozenset((number, other)): distance for distance, other in nearest_images}
        return list(pairs.values())

    def nearest_images(self, image: Image, above_bits: int = -1) -> list[tuple[float, int]]:
        """Return [(distance, index)] of the CANDIDATES training images with the nearest hashes, sorted by distance.

        The image and its mirror image are both compared. `above_bits`: hashes that differ in at most this many bits are left out.
        """
        from PIL.Image import Transpose

        views = [image, image.transpose(Transpose.FLIP_LEFT_RIGHT)]
        hashes = [int(difference_hash(view), 16) for view in views]
        bits = [min((reference ^ each).bit_count() for each in hashes) for reference in self._hashes]
        order = sorted((each, number) for number, each in enumerate(bits) if each > above_bits)
        latents = [self.encode(view) for view in views]
        return sorted((min(distance(view, self._latents(at)) for view in latents), at) for _, at in order[:CANDIDATES])


def latent_difference(first: Tensor, second: Tensor) -> float:
    """Return the mean squared difference of two images' latents [C, h, w] over the sum of their spatial variances.

    0 for equal images, about 1 for unrelated ones.
    """
    return float((first - second).square().mean()) / _contrast(first, second)


def distance(first: Tensor, second: Tensor) -> float:
    """Return the root of `latent_difference`, minimized over shifts of up to SHIFTS half latent pixels and taken over the overlap."""
    from torch.nn.functional import interpolate

    upscaled = [interpolate(each[None], scale_factor=2, mode="bilinear")[0] for each in (first, second)]
    steps = range(-SHIFTS, SHIFTS + 1)
    shifts = ((_overlap(upscaled[0], y, x), _overlap(upscaled[1], -y, -x)) for y in steps for x in steps)
    return (min(float((a - b).square().mean()) for a, b in shifts) / _contrast(first, second)) ** 0.5


def _contrast(first: Tensor, second: Tensor) -> float:
    """Return the sum of both latents' spatial variances (mean over channels), at least 1e-6."""
    return max(sum(float(each.var(dim=(1, 2)).mean()) for each in (first, second)), 1e-6)


def _overlap(latents: Tensor, down: int, right: int) -> Tensor:
    """Return the part of `latents` [C, h, w] that remains after a shift by `down` and `right`: its overlap with the unshifted latents."""
    _, height, width = latents.shape
    return latents[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]


def brief(data: Mapping[str, Any]) -> str:
    """Return the distance to the nearest training image, marked if it is a copy, for a table cell."""
    return f"{data['distance']:.2f}{' COPY' if data['near'] else ''}"


def sentence(data: Mapping[str, Any]) -> str:
    """Return the report's sentence for data of `measure`: the number of near-copies and the nearest pair."""
    nearest = f"{data['name']} at distance {data['distance']:.2f}"
    scale = f"below {data['limit']:.2f} is a near-copy (at most {RATE:.0%} false alarms), unrelated images are at {data['typical']:.2f}"
    if data["near"]:
        return f"{data['near']} of {data['images']} images nearly copy a training image, {nearest}: {scale}."
    return f"None of {data['images']} images; the nearest to a training image is {nearest}: {scale}."


def warning(data: Mapping[str, Any]) -> str:
    """Return the warning of a near-copy; "" if there is none."""
    return f"nearly copies a training image ({data['name']})" if data["near"] else ""
