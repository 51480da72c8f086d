"""Near-copies of training images: generated images whose latents are nearer to one than unrelated images of the set are.

A perceptual hash picks the candidates; the distance of latents over shifts and flips decides. The limit is the prediction bound of the
distances that images of the set have to their nearest others, so that its rate of false alarms is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from core.assess.statistics import lower_bound
from core.dataset.doctor.images import Limits
from core.dataset.images.look import difference_hash
from core.record import atomic

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from core.assess.bench import Bench, Subject

RATE = 0.01  # of false alarms, for all images of a checkpoint together
LEAST = 4  # images of the set
CANDIDATES = 4  # by hash, whose latents are compared
COMPARED = 32  # images of the set whose nearest others are found
SHIFTS = 4  # half latent pixels in each direction
FOLDER = "assess"  # in the run folder, for the images


def measure(bench: Bench, subject: Subject) -> dict[str, Any]:
    from core.assess.bench import load

    target, placed = bench.target, bench.target.images.training
    if len(placed) < LEAST:
        return {"why": f"it needs {LEAST} training images"}
    kept: dict[str, Gallery] = bench.kept
    if "gallery" not in kept:
        kept["gallery"] = Gallery(len(placed), lambda number: load(placed[number], target.size), subject.encoded)
    gallery = kept["gallery"]
    if len(gallery.typical) < LEAST:
        return {"why": f"it needs {LEAST} training images that are not near duplicates"}
    limit = lower_bound(gallery.typical, RATE / len(subject.images))
    found = [(*gallery.nearest(made.image), made) for made in subject.images]
    near, number, made = min(found, key=lambda each: each[0])
    assert subject.checkpoint is not None
    stem = subject.checkpoint.path.stem
    files = {f"{FOLDER}/{stem}.png": made.image, f"{FOLDER}/{stem}-training.png": gallery.load(number)}
    for name, image in files.items():
        atomic.make_folders(target.run.path / FOLDER)
        with atomic.open_atomic(target.run.path / name) as path:
            image.save(path, format="PNG")
    values = {"distance": near, "limit": limit, "typical": median(gallery.typical)}
    return {name: round(value, 4) for name, value in values.items()} | {
        "near": sum(distance < limit for distance, _, _ in found),
        "images": len(found),
        "name": placed[number].image.relative,
        "prompt": bench.prompts[made.prompt],
        "files": list(files),
    }


@dataclass
class Gallery:
    """The training images. load: number -> image; encode: image -> latents

    typical   distances of images of the set to their nearest others, without near duplicates
    """

    count: int
    load: Callable[[int], Image]
    encode: Callable[[Image], Tensor]
    hashes: list[str] = field(init=False)
    typical: list[float] = field(init=False)
    _latents: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hashes = [difference_hash(self.load(number)) for number in range(self.count)]
        numbers = sorted({number * self.count // COMPARED for number in range(COMPARED)})
        found = [self.nearest(self.load(number), number) for number in numbers]
        self.typical = [distance for distance, other in found if other >= 0 and distance > 0]

    def nearest(self, image: Image, left_out: int = -1) -> tuple[float, int]:
        """(distance, number) of the nearest training image; (inf, -1) for none. left_out: the image itself, with its near duplicates"""
        from PIL import Image as pillow

        sides = [image, image.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)]
        hashes = [int(difference_hash(side), 16) for side in sides]
        bits = {
            number: min((int(own, 16) ^ each).bit_count() for each in hashes) for number, own in enumerate(self.hashes)
        }
        if left_out >= 0:
            bits = {
                number: each for number, each in bits.items() if each > Limits().near_distance and number != left_out
            }
        latents = [self.encode(side) for side in sides]
        candidates = sorted(bits, key=lambda number: (bits[number], number))[:CANDIDATES]
        distances = [(min(distance(side, self._of(number)) for side in latents), number) for number in candidates]
        return min(distances, default=(float("inf"), -1))

    def _of(self, number: int) -> Tensor:
        if number not in self._latents:
            self._latents[number] = self.encode(self.load(number))
        return self._latents[number]


def spread_apart(one: Tensor, other: Tensor) -> float:
    """The mean squared difference of two images' latents [C, h, w] over the sum of their spatial variances: 0 for equal images,
    about 1 for unrelated ones."""
    return float((one - other).square().mean() / _contrast(one, other))


def distance(one: Tensor, other: Tensor) -> float:
    """The root of `spread_apart` at the best of shifts by up to SHIFTS half latent pixels, over the overlap."""
    from torch.nn.functional import interpolate

    contrast = _contrast(one, other)
    one, other = (interpolate(each[None], scale_factor=2, mode="bilinear")[0] for each in (one, other))
    steps = range(-SHIFTS, SHIFTS + 1)
    least = min(float((_cut(one, y, x) - _cut(other, -y, -x)).square().mean()) for y in steps for x in steps)
    return (least / contrast) ** 0.5


def _contrast(one: Tensor, other: Tensor) -> float:
    return max(sum(float(each.var(dim=(1, 2)).mean()) for each in (one, other)), 1e-6)


def _cut(latents: Tensor, down: int, right: int) -> Tensor:
    """The part of [C, h, w] that overlaps with another one shifted down and right."""
    _, height, width = latents.shape
    return latents[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]


def brief(data: Mapping[str, Any]) -> str:
    return f"{data['distance']:.2f}{' COPY' if data['near'] else ''}"


def sentence(data: Mapping[str, Any]) -> str:
    scale = f"training images are {data['typical']:.2f} from their nearest others, and below {data['limit']:.2f} is a near-copy"
    scale += f" with {RATE:.0%} false alarms per checkpoint"
    nearest = f"{data['name']} at distance {data['distance']:.2f}"
    if data["near"]:
        return f"{data['near']} of {data['images']} images nearly copy a training image, {nearest}: {scale}."
    return f"None of {data['images']} images is a near-copy; the nearest is {nearest}: {scale}."


def warning(data: Mapping[str, Any]) -> str:
    return f"nearly copies a training image ({data['name']})" if data["near"] else ""
