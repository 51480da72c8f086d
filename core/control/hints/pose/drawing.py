"""Drawing of poses as the ControlNets' authors draw them (lllyasviel/ControlNet-v1-1, annotator/openpose), on black."""

import math
from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb

import numpy as np
from PIL import Image, ImageDraw

from core.control.hints.pose.person import Person

Color = tuple[int, int, int]
SIDE = 512  # pixels of the shorter side, for which the widths are given
# Of a limb's ellipse; radii; width of a line: OpenCV draws 3 pixels for a width of 2.
HALF_WIDTH, JOINT, FACE_DOT, FINGER = 4, 4, 3, 3
LIMBS = (  # pairs of keypoints, in the order of COLORS; those from shoulders to ears are matched, but not drawn
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0), (0, 14),
    (14, 16), (0, 15), (15, 17),
)  # fmt: skip
COLORS: tuple[Color, ...] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
LIMB_COLORS = [(red * 3 // 5, green * 3 // 5, blue * 3 // 5) for red, green, blue in COLORS]
FINGERS = [(0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21)]  # five chains of four from the wrist
HAND_DOT, FACE_COLOR = (0, 0, 255), (255, 255, 255)
POINTS = 72  # of an ellipse


def draw(people: Sequence[Person], size: tuple[int, int]) -> np.ndarray:
    """Draw people on black in an image of `size` (width, height): bodies, with hands and faces on top; RGB uint8 [H, W, 3]."""
    image = Image.new("RGB", size)
    canvas, factor = ImageDraw.Draw(image), min(size) / SIDE
    for limb, color in zip(LIMBS, LIMB_COLORS, strict=False):  # a limb of everybody before the next
        for person in people:
            for start, end in _visible_pairs(person.body, [limb]):
                canvas.polygon(_ellipse(start, end, max(HALF_WIDTH * factor, 0.5)), fill=color)
    for number, color in enumerate(COLORS):
        for person in people:
            _dots(canvas, person.body[number : number + 1], JOINT * factor, color)
    for hand in (hand for person in people for hand in person.hands):
        for number, edge in enumerate(FINGERS):
            red, green, blue = (round(255 * level) for level in hsv_to_rgb(number / len(FINGERS), 1, 1))
            for start, end in _visible_pairs(hand, [edge]):
                width = max(1, round(FINGER * factor))
                canvas.line([tuple(start), tuple(end)], fill=(red, green, blue), width=width)
        _dots(canvas, hand, JOINT * factor, HAND_DOT)
    for face in (person.face for person in people if person.face is not None):
        _dots(canvas, face, FACE_DOT * factor, FACE_COLOR)
    return np.asarray(image)


def _visible_pairs(points: np.ndarray, pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the end points (x, y) of each of `pairs`, indices into `points` [K, 2], if both points are visible (not NaN)."""
    for first, second in pairs:
        if np.isfinite(points[[first, second]]).all():
            yield points[first], points[second]


def _ellipse(start: np.ndarray, end: np.ndarray, half_width: float) -> list[tuple[float, float]]:
    """Return the outline, (x, y) points, of an ellipse with the axis from `start` to `end`, both (x, y) in pixels.
    half_width: half of the other axis, in pixels"""
    along = (end - start) / 2
    length = math.hypot(*along)
    across = np.array([-along[1], along[0]]) * (half_width / length) if length else np.zeros(2)
    angles = np.linspace(0, 2 * math.pi, POINTS, endpoint=False)[:, None]
    outline = (start + end) / 2 + np.cos(angles) * along + np.sin(angles) * across
    return [(float(x), float(y)) for x, y in outline]


def _dots(canvas: ImageDraw.ImageDraw, points: np.ndarray, radius: float, color: Color) -> None:
    """Draw a disk of `radius` pixels at each visible (not NaN) point of `points` [K, 2]."""
    for x, y in points[np.isfinite(points).all(axis=1)]:
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
