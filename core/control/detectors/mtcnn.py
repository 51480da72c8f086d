"""Face and eye detection by MTCNN (Zhang et al. 2016, arXiv:1604.02878), offline and on the CPU.

The weights (2 MB, MIT license) come with the package `mtcnn`, whose code needs TensorFlow; here its three small networks
(P-Net, R-Net, O-Net) run in torch. They were trained on photographs: drawn faces are mostly missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from core.record.lazy_torch import torch
from core.record.problems import ProblemsError

PACKAGES = "mtcnn==1.0.0 joblib==1.6.0 lz4==4.4.5 cloudpickle==3.1.2"
_NETWORKS = ("pnet", "rnet", "onet")
_CELL, _STRIDE = 12, 2  # pixels that the first network sees, and between two looks
_PYRAMID = 0.709  # each level has half the area of the one before
_SMALLEST_SHARE = 0.04  # of the shorter side: smaller faces are of no use and cost most of the time
_PROPOSE, _REFINE, _OVERLAP = 0.6, 0.7, 0.7  # thresholds of the published implementation
_AT_ONCE = 512  # candidates in one forward pass


@dataclass(frozen=True, slots=True)
class Face:
    """A detected face: its box and eye centers in pixels of the image, and its score from 0 to 1.

    Eyes are (x, y), left and right as seen in the image.
    """

    left: float
    top: float
    right: float
    bottom: float
    score: float
    left_eye: tuple[float, float]
    right_eye: tuple[float, float]

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the box's center in pixels."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def size(self) -> tuple[float, float]:
        """(width, height) of the box in pixels."""
        return self.right - self.left, self.bottom - self.top

    @property
    def tilt(self) -> float:
        """Clockwise angle of the line from the left to the right eye, in degrees; 0 is level."""
        (x1, y1), (x2, y2) = self.left_eye, self.right_eye
        return math.degrees(math.atan2(y2 - y1, x2 - x1))


def weights_folder() -> Path:
    """Return the folder of the weights in the package `mtcnn`, without importing it.

    Raises ProblemsError if the package, or one needed to read the weights, is not installed.
    """
    if find_spec("lz4") and find_spec("joblib"):
        spec = find_spec("mtcnn")
        for location in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(location) / "assets" / "weights"
            if all((folder / f"{name}.lz4").is_file() for name in _NETWORKS):
                return folder
    fix = f"run in Atelier's Python, then try again: python -m pip install {PACKAGES}"
    raise ProblemsError.one("The face detector is not installed", "faces", fix, "tools.no-face-detector")


class FaceDetector:
    """MTCNN face detector. Loading takes about a second, an image of one megapixel about a quarter of a second."""

    def __init__(self) -> None:
        """Load the weights of the three networks. Raises ProblemsError if they are not installed."""
        import joblib

        def tensor(array: np.ndarray) -> torch.Tensor:
            # Keras keeps kernels as [H, W, in, out], matrices as [in, out] and slopes of convolutions as [1, 1, C].
            if array.ndim == 3:
                array = array.reshape(-1)
            order = (3, 2, 0, 1) if array.ndim == 4 else range(array.ndim)[::-1]
            return torch.from_numpy(np.ascontiguousarray(array.transpose(order), dtype=np.float32))

        folder = weights_folder()
        self._weights = {name: [tensor(array) for array in joblib.load(folder / f"{name}.lz4")] for name in _NETWORKS}

    def find(self, image: Image.Image, min_score: float = 0.9) -> list[Face]:
        """Return the faces in an RGB image with a score of at least `min_score` (0 to 1), the largest first."""
        with torch.inference_mode():
            pixels = (torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32)) - 127.5) / 128
            pixels = pixels.permute(2, 0, 1)[None]
            boxes = self._proposals(pixels)
            boxes = self._refined(pixels, boxes)
            faces = self._faces(pixels, boxes, min_score)
        return sorted(faces, key=lambda face: (-max(face.size), face.left, face.top))

    def _proposals(self, pixels: torch.Tensor) -> np.ndarray:
        """Run P-Net on an image pyramid and return candidate boxes, enlarged to squares.

        pixels    float [1, 3, H, W], (value - 127.5) / 128
        returns   float [N, 5]: left, top, right, bottom in pixels, score
        """
        from torch.nn.functional import interpolate

        height, width = pixels.shape[-2:]
        scale = _CELL / max(20.0, _SMALLEST_SHARE * min(width, height))
        proposals: list[np.ndarray] = []
        while min(width, height) * scale >= _CELL:
            size = (math.ceil(height * scale), math.ceil(width * scale))
            small = interpolate(pixels, size, mode="area") if scale < 1 else interpolate(pixels, size, mode="bilinear")
            offsets, scores = self._first(small)
            rows, columns = torch.where(scores > _PROPOSE)
            if len(rows):
                shifts = offsets[:, rows, columns].T.numpy() * _CELL
                corner = np.stack([columns.numpy(), rows.numpy()], 1).astype(np.float32) * _STRIDE
                boxes = (np.concatenate([corner, corner + _CELL], 1) + shifts) / scale
                level_boxes = np.concatenate([boxes, scores[rows, columns].numpy()[:, None]], 1)
                proposals.append(level_boxes[_nms(level_boxes, 0.5)])
            scale *= _PYRAMID
        if not proposals:
            return np.zeros((0, 5), np.float32)
        all_boxes = np.concatenate(proposals)
        return _squares(all_boxes[_nms(all_boxes, _OVERLAP)])

    def _first(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run P-Net on an image [1, 3, H, W]; return box offsets [4, h, w] in units of 12 pixels, and face scores [h, w]."""
        from torch.nn.functional import conv2d, max_pool2d, prelu

        w = self._weights["pnet"]
        x = max_pool2d(prelu(conv2d(x, w[0], w[1]), w[2]), 2, 2, ceil_mode=True)
        x = prelu(conv2d(x, w[3], w[4]), w[5])
        x = prelu(conv2d(x, w[6], w[7]), w[8])
        return conv2d(x, w[9], w[10])[0], conv2d(x, w[11], w[12])[0].softmax(0)[1]

    def _refined(self, pixels: torch.Tensor, boxes: np.ndarray) -> np.ndarray:
        """Run R-Net on candidate boxes [N, 5] (see `_proposals`) and return those it accepts, refined, in the same form."""
        from torch.nn.functional import conv2d, linear, max_pool2d, prelu

        if not len(boxes):
            return boxes
        w, outputs = self._weights["rnet"], []
        for part in torch.split(_patches(pixels, boxes, 24), _AT_ONCE):
            x = max_pool2d(prelu(conv2d(part, w[0], w[1]), w[2]), 3, 2, ceil_mode=True)
            x = max_pool2d(prelu(conv2d(x, w[3], w[4]), w[5]), 3, 2)
            x = prelu(conv2d(x, w[6], w[7]), w[8])
            x = prelu(linear(_flat(x), w[9], w[10]), w[11])
            outputs.append(torch.cat([linear(x, w[12], w[13]), linear(x, w[14], w[15]).softmax(1)[:, 1:]], 1))
        result = torch.cat(outputs).numpy()
        boxes = _shifted(boxes, result[:, :4], result[:, 4])
        boxes = boxes[boxes[:, 4] > _REFINE]
        return _squares(boxes[_nms(boxes, _OVERLAP)])

    def _faces(self, pixels: torch.Tensor, boxes: np.ndarray, min_score: float) -> list[Face]:
        """Run O-Net on boxes [N, 5] (see `_proposals`) and return the faces with a score of at least `min_score`."""
        from torch.nn.functional import conv2d, linear, max_pool2d, prelu

        if not len(boxes):
            return []
        w, outputs = self._weights["onet"], []
        for part in torch.split(_patches(pixels, boxes, 48), _AT_ONCE):
            x = max_pool2d(prelu(conv2d(part, w[0], w[1]), w[2]), 3, 2, ceil_mode=True)
            x = max_pool2d(prelu(conv2d(x, w[3], w[4]), w[5]), 3, 2)
            x = max_pool2d(prelu(conv2d(x, w[6], w[7]), w[8]), 2, 2, ceil_mode=True)
            x = prelu(conv2d(x, w[9], w[10]), w[11])
            x = prelu(linear(_flat(x), w[12], w[13]), w[14])
            parts = [linear(x, w[15], w[16]), linear(x, w[17], w[18]), linear(x, w[19], w[20]).softmax(1)[:, 1:]]
            outputs.append(torch.cat(parts, 1))
        result = torch.cat(outputs).numpy()
        points, scores = result[:, 4:14], result[:, 14]
        sides = boxes[:, 2:4] - boxes[:, :2]
        xs = boxes[:, :1] + points[:, :5] * sides[:, :1]
        ys = boxes[:, 1:2] + points[:, 5:] * sides[:, 1:]
        boxes = _shifted(boxes, result[:, :4], scores)
        confident = np.flatnonzero(scores >= min_score)
        confident = confident[_nms(boxes[confident], _OVERLAP, smaller=True)]
        faces = []
        for n in confident:
            left, top, right, bottom, score = (float(value) for value in boxes[n])
            eyes = [(float(xs[n, eye]), float(ys[n, eye])) for eye in (0, 1)]
            faces.append(Face(left, top, right, bottom, score, eyes[0], eyes[1]))
        return faces


def _flat(x: torch.Tensor) -> torch.Tensor:
    """Flatten [N, C, H, W] to [N, W * H * C], columns first, as the weights expect."""
    return x.permute(0, 3, 2, 1).reshape(len(x), -1)


def _patches(pixels: torch.Tensor, boxes: np.ndarray, side: int) -> torch.Tensor:
    """Crop boxes [N, 5] from an image [1, 3, H, W] and resize them to [N, 3, side, side]; black outside the image."""
    from torch.nn.functional import interpolate, pad

    height, width = pixels.shape[-2:]
    patches = []
    for left, top, right, bottom in np.rint(boxes[:, :4]).astype(int):
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        visible = pixels[..., max(top, 0) : max(min(bottom, height), 0), max(left, 0) : max(min(right, width), 0)]
        edges = (max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0))
        patch = pad(visible, edges, value=-127.5 / 128) if any(edges) else visible
        if 0 in visible.shape or patch.shape[-2:] != (bottom - top, right - left):
            patch = torch.full((1, 3, 1, 1), -127.5 / 128)
        patches.append(interpolate(patch, (side, side), mode="area" if right - left >= side else "bilinear"))
    return torch.cat(patches)


def _shifted(boxes: np.ndarray, offsets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return boxes [N, 5] with each edge moved by `offsets` [N, 4], fractions of the box's side, and with new `scores` [N]."""
    sides = boxes[:, 2:4] - boxes[:, :2] + 1
    return np.concatenate([boxes[:, :4] + offsets * np.tile(sides, 2), scores[:, None]], 1)


def _squares(boxes: np.ndarray) -> np.ndarray:
    """Return boxes [N, 5] enlarged to squares with the same centers."""
    sides = boxes[:, 2:4] - boxes[:, :2]
    middle, half = boxes[:, :2] + sides / 2, sides.max(1, keepdims=True, initial=0) / 2
    return np.concatenate([middle - half, middle + half, boxes[:, 4:]], 1)


def _nms(boxes: np.ndarray, overlap: float, smaller: bool = False) -> Sequence[int]:
    """Non-maximum suppression: return the indices of the boxes [N, 5] to keep, highest score first.

    overlap   a box that overlaps a better one by more than this is dropped, 0 to 1
    smaller   measure overlap as a fraction of the smaller box instead of the union
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order, chosen = np.argsort(-boxes[:, 4]), []
    while len(order):
        best, others = order[0], order[1:]
        chosen.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[others, :2])
        high = np.minimum(boxes[best, 2:4], boxes[others, 2:4])
        common = np.prod(np.clip(high - low, 0, None), axis=1)
        reference = np.minimum(area[best], area[others]) if smaller else area[best] + area[others] - common
        order = others[common <= overlap * reference]
    return chosen
