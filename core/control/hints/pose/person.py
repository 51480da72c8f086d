"""A person's keypoints in OpenPose's order, and their conversion from COCO's order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.control.hints.models import Profile

# Of COCO: nose, then eyes, ears, shoulders, elbows, wrists, hips, knees and ankles, the left one of each first.
# Of OpenPose: nose, neck; shoulder, elbow and wrist of the right and the left; hip, knee and ankle; eyes, ears.
LEFT_SHOULDER, RIGHT_SHOULDER = 5, 6
NECK = 17  # appended to COCO's
BODY = (0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
WHOLE_BODY = 133  # COCO-WholeBody: body, 6 points of the feet, face, left hand, right hand
FACE, LEFT_HAND, RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)


@dataclass(frozen=True)
class Person:
    """A person's keypoints (x, y) in pixels of the image, float [K, 2]; NaN for those that are not visible.

    body    18 points of OpenPose
    hands   21 points each
    face    68 points, None if not estimated
    """

    body: np.ndarray
    hands: Sequence[np.ndarray] = ()
    face: np.ndarray | None = None


def person_of(points: np.ndarray, profile: Profile) -> Person:
    """Convert keypoints of COCO, Halpe or COCO-WholeBody, float [K, 2] with NaN for invisible ones, to a Person.

    Hands and face are included if COCO-WholeBody has them (K = 133) and `profile` draws them.
    """
    neck = (points[LEFT_SHOULDER] + points[RIGHT_SHOULDER]) / 2
    body = np.concatenate([points[:NECK], neck[None]])[list(BODY)]
    if len(points) != WHOLE_BODY:
        return Person(body)
    hands = (points[LEFT_HAND], points[RIGHT_HAND]) if profile.hands else ()
    return Person(body, hands, points[FACE] if profile.face else None)
