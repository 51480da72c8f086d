"""OpenPose (Cao et al. 2017, arXiv:1611.08050): heat maps of keypoints, and part affinity fields along limbs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.control.hints.models import HEAT_MAPS, PART_FIELDS
from core.control.hints.one_image import Size, letterboxed, normalized
from core.control.hints.pose.drawing import LIMBS
from core.control.hints.pose.finding import PoseModel
from core.control.hints.pose.person import Person

# (value - 128) / 256, as OpenPose and Lightweight OpenPose, in the profile's words
USUAL = {"channels": "BGR", "mean": (128 / 255,) * 3, "std": (256 / 255,) * 3, "size": 368, "multiple": 8}
PAD_LEVEL = 128
MAX_OUTPUTS = 32
MATCHED = (*LIMBS, (2, 16), (5, 17))
FIELDS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)  # of a limb: x here, y in the next
PARTS = 18
LOWEST_PEAK, LOWEST_FIELD = 0.1, 0.05
SAMPLES, ENOUGH = 10, 8  # along a limb; more of them than this must be along the field
MAX_PEAKS = 64  # of a part: the best
FEWEST_PARTS, LOWEST_SCORE = 4, 0.4  # of a person; the score is a mean over its parts


class OpenPose(PoseModel):
    """An OpenPose model: finds the bodies of all people in one forward pass."""

    defaults = USUAL

    def prepare(self) -> None:
        """Raise ProblemsError if the model has too many outputs."""
        if len(self.outputs) > MAX_OUTPUTS:
            raise self.refused(f"returns {len(self.outputs)} outputs, more than {MAX_OUTPUTS}")

    def find(self, image: np.ndarray) -> list[Person]:
        """Return the people in an image, RGB uint8 [H, W, 3], with keypoints in its pixels. Raises ProblemsError."""
        height, width = image.shape[:2]
        size = self.size_for(width, height, self.profile)
        pixels, scale = letterboxed(image, size, PAD_LEVEL)
        heat, fields = self.run(normalized(pixels, self.profile), self.outputs, self._maps)
        inner = (max(1, int(width * scale)), max(1, int(height * scale)))
        peaks = [peaks_of(part, size, inner) for part in heat[:PARTS]]
        return [Person((body + 0.5) / scale - 0.5) for body in bodies_of(peaks, fields, size, inner[1])]

    def _maps(self, shapes: Sequence[Sequence[int]]) -> list[int]:
        """Select the heat maps and the part affinity fields, of several stages the last (a `Pick` function).

        Raises ProblemsError if there are no outputs with their numbers of channels.
        """
        indices = []
        for channels in (HEAT_MAPS, PART_FIELDS):
            fitting = [number for number, shape in enumerate(shapes) if [*shape[:2]] == [self.batch, channels]]
            if not fitting or len(shapes[fitting[-1]]) != 4 or not all(shapes[fitting[-1]]):
                listed = ", ".join(str([*shape]) for shape in shapes)[:200]
                raise self.refused(f"returns {listed}, not maps of {HEAT_MAPS} and {PART_FIELDS} channels")
            indices.append(fitting[-1])
        return indices


def peaks_of(heat: np.ndarray, size: Size, inner: Size) -> np.ndarray:
    """Return the peaks of a keypoint's heat map [h, w]: (x, y, value) [P, 3], in pixels of the model's input, highest first.

    size    (width, height) of the input
    inner   (width, height) of the upper left part of the input that shows the image; peaks outside are left out

    Networks are trained with Gaussians about one cell wide: the logarithms of the three cells around a peak are a
    parabola, which gives its position between cells and its height.
    """
    padded = np.pad(heat, 1, constant_values=-np.inf)
    rows, columns = heat.shape
    is_peak = heat > LOWEST_PEAK / 2
    for down, right in ((1, 1), (1, 0), (1, -1), (0, 1)):  # of equal cells the first is the peak
        before = padded[1 - down : 1 - down + rows, 1 - right : 1 - right + columns]
        after = padded[1 + down : 1 + down + rows, 1 + right : 1 + right + columns]
        is_peak &= (heat > before) & (heat >= after)
    y, x = np.nonzero(is_peak)
    value = heat[y, x]
    floor = value / 10  # a peak narrower than the Gaussian is not taken for a far higher one
    log_value = np.log(value)
    height = log_value.copy()
    positions = []
    for cell, low, top in ((x, padded[y + 1, x], padded[y + 1, x + 2]), (y, padded[y, x + 1], padded[y + 2, x + 1])):
        first, last = np.log(np.maximum(low, floor)), np.log(np.maximum(top, floor))
        curvature = first + last - 2 * log_value
        offset = np.divide(first - last, 2 * curvature, out=np.zeros_like(curvature), where=curvature < 0)
        height += (last - first) * offset / 4
        positions.append(cell + offset)
    across, down = (
        (cell + 0.5) * side / count - 0.5 for cell, side, count in zip(positions, size, (columns, rows), strict=True)
    )
    value = np.exp(height)
    inside = (value > LOWEST_PEAK) & (across < inner[0]) & (down < inner[1])
    peaks = np.stack([across, down, value], axis=1)[inside]
    return peaks[np.argsort(-peaks[:, 2], kind="stable")][:MAX_PEAKS]


@dataclass
class _Body:
    """A person while limbs are joined.

    parts   keypoint index -> index of the peak
    score   sum of the scores of the peaks and limbs
    """

    parts: dict[int, int]
    score: float


def bodies_of(peaks: Sequence[np.ndarray], fields: np.ndarray, size: Size, height: int) -> Iterator[np.ndarray]:
    """Join limbs into people; yield the keypoints [18, 2] of each in pixels of the model's input, NaN for missing ones.

    peaks    for each keypoint, (x, y, value) [P, 3]
    fields   part affinity fields [38, h, w]
    size     (width, height) of the input
    height   of the part of the input that shows the image
    """
    bodies: list[_Body] = []
    for number, (first, second) in enumerate(MATCHED):
        field = fields[FIELDS[number] : FIELDS[number] + 2]
        for start, end, score in _limbs(peaks[first], peaks[second], field, size, height):
            with_end = score + float(peaks[second][end, 2])
            matches = [each for each in bodies if each.parts.get(first) == start or each.parts.get(second) == end]
            if len(matches) > 1 and not matches[0].parts.keys() & matches[1].parts.keys():
                matches[0].parts |= matches[1].parts
                matches[0].score += matches[1].score + score
                bodies.remove(matches[1])
            elif matches and matches[0].parts.get(second) != end:
                matches[0].parts[second] = end
                matches[0].score += with_end
            elif not matches and number < len(LIMBS):  # ears alone do not start a person
                bodies.append(_Body({first: start, second: end}, with_end + float(peaks[first][start, 2])))
    for body in bodies:
        if len(body.parts) >= FEWEST_PARTS and body.score >= LOWEST_SCORE * len(body.parts):
            points = np.full((PARTS, 2), np.nan)
            for part, peak in body.parts.items():
                points[part] = peaks[part][peak, :2]
            yield points


def _limbs(
    starts: np.ndarray, ends: np.ndarray, field: np.ndarray, size: Size, height: int
) -> Iterator[tuple[int, int, float]]:
    """Yield the limbs between two keypoints, best first: (index in `starts`, index in `ends`, score).

    Each peak is in at most one limb.

    starts, ends   peaks of the two keypoints, (x, y, value) [P, 3]
    field          part affinity field of the limb [2, h, w]
    size, height   see `bodies_of`
    """
    if not len(starts) or not len(ends):
        return
    vectors = ends[None, :, :2] - starts[:, None, :2]
    length = np.maximum(np.hypot(vectors[..., 0], vectors[..., 1]), 1e-3)
    points = starts[:, None, None, :2] + vectors[:, :, None] * np.linspace(0, 1, SAMPLES)[:, None]
    alignment = (_sampled(field, points, size) * (vectors / length[..., None])[:, :, None]).sum(axis=-1)
    scores = alignment.mean(axis=-1) + np.minimum(0.5 * height / length - 1, 0)  # very long limbs are unlikely
    fits = ((alignment > LOWEST_FIELD).sum(axis=-1) > ENOUGH) & (scores > 0)
    free_starts, free_ends = {*range(len(starts))}, {*range(len(ends))}
    for index in np.argsort(-scores, axis=None, kind="stable"):
        start, end = divmod(int(index), len(ends))
        if fits[start, end] and start in free_starts and end in free_ends:
            free_starts.remove(start)
            free_ends.remove(end)
            yield start, end, float(scores[start, end])


def _sampled(field: np.ndarray, points: np.ndarray, size: Size) -> np.ndarray:
    """Sample a field [2, h, w] bilinearly at `points` [..., 2], pixels of the model's input of `size` (width, height): [..., 2]."""
    high, wide = field.shape[1:]
    position = ((points + 0.5) * (wide / size[0], high / size[1]) - 0.5).clip(0, (wide - 1, high - 1))
    low = position.astype(int)
    next_x, next_y = np.minimum(low[..., 0] + 1, wide - 1), np.minimum(low[..., 1] + 1, high - 1)
    share = position - low
    upper = field[:, low[..., 1], low[..., 0]] * (1 - share[..., 0]) + field[:, low[..., 1], next_x] * share[..., 0]
    lower = field[:, next_y, low[..., 0]] * (1 - share[..., 0]) + field[:, next_y, next_x] * share[..., 0]
    return np.moveaxis(upper * (1 - share[..., 1]) + lower * share[..., 1], 0, -1)
