"""Small ONNX models of the pose models' contracts: they find dots of known colors in an image, so that keypoints move with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from core.control.hints.pose.bottom_up import FIELDS, MATCHED
from core.control.hints.pose.detector import grid

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
MARK = (255, 0, 0)  # on a person's chest, for the detector
# A person in OpenPose's order, in units of its height, around the hips.
STANDING = np.array([
    (0.0, -0.42), (0.0, -0.3), (-0.12, -0.3), (-0.2, -0.17), (-0.22, -0.03), (0.12, -0.3), (0.2, -0.17), (0.22, -0.03),
    (-0.08, 0.0), (-0.09, 0.22), (-0.1, 0.44), (0.08, 0.0), (0.09, 0.22), (0.1, 0.44), (-0.05, -0.46), (0.05, -0.46),
    (-0.1, -0.42), (0.1, -0.42),
])  # fmt: skip
COCO = (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10)  # of each keypoint of COCO: its number in OpenPose


def colors(count: int) -> np.ndarray:
    """uint8 [K, 3]. Red and green add up to 255: no mixture of one and black is another."""
    number = np.arange(count)
    level = 20 + number % 14 * 14
    return np.stack([level, 255 - level, number // 14 * 24], axis=1).astype(np.uint8)


def dot(image: np.ndarray, center: np.ndarray, color: np.ndarray | tuple[int, ...], reach: int = 4) -> None:
    """A square around the pixel of an index (x, y)."""
    x, y = np.rint(center).astype(int)
    image[y - reach : y + reach + 1, x - reach : x + reach + 1] = color


def person(
    image: np.ndarray, center: tuple[int, int], height: int, *, mark: bool = False, reach: int = 4
) -> np.ndarray:
    """A standing person of dots in the colors of COCO's keypoints. Returns OpenPose's keypoints [18, 2], whole pixels."""
    points = np.rint(np.array(center) + STANDING * height)
    for color, number in zip(colors(17), COCO, strict=True):
        dot(image, points[number], color, reach)
    if mark:
        dot(image, np.array(center) + (0, -0.15 * height), MARK, round(0.05 * height))
    return points


class Graph:
    """Nodes of an ONNX graph, one after the other."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: object, dtype: type = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: object) -> str:
        name = name or f"node{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [*inputs], [name], **attributes))
        return name

    def save(
        self, path: Path, given: tuple, outputs: dict[str, tuple | None], *, kind: int = TensorProto.FLOAT
    ) -> Path:
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes, "pose", [info("image", TensorProto.FLOAT, given)],
            [info(name, kind, shape) for name, shape in outputs.items()], self.constants,
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
        return path

    def likeness(self, wanted: np.ndarray, mean: np.ndarray, std: np.ndarray) -> str:
        """[N, K, H, W]: 1 where the image, normalized by these numbers, has a color of [K, 3], 0 where it is another."""
        raw = self.add("Mul", "image", self.constant(std.reshape(1, 3, 1, 1)))
        raw = self.add("Add", raw, self.constant(mean.reshape(1, 3, 1, 1)))
        raw = self.add("Unsqueeze", raw, self.constant([1], np.int64))
        off = self.add("Abs", self.add("Sub", raw, self.constant(wanted.reshape(1, -1, 3, 1, 1))))
        off = self.add("ReduceSum", off, self.constant([2], np.int64), keepdims=0)
        off = self.add("Div", off, self.constant(10))
        return self.add("Relu", self.add("Sub", self.constant(1), off))

    def blurred(self, values: str, count: int, kernel: np.ndarray, **attributes: object) -> str:
        """Each of K channels with the same kernel [h, w]."""
        weights = self.constant(np.broadcast_to(kernel, (count, 1, *kernel.shape)))
        return self.add("Conv", values, weights, group=count, **attributes)


def bell(reach: int, deviation: float) -> np.ndarray:
    return np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)


def write_estimator(
    path: Path, *, size=(288, 384), keypoints=17, batch="N", names=("simcc_x", "simcc_y"), split=(2, 2), add=0.0
) -> Path:
    """SimCC of dots in `colors`: the share of a dot's row or column, smoothed, at `split` positions for each pixel."""
    graph = Graph()
    seen = graph.likeness(colors(keypoints), MEAN, STD)
    for name, axis, times in zip(names, (2, 3), split, strict=True):  # the axis that is gone
        line = graph.add("ReduceMax", seen, graph.constant([axis], np.int64), keepdims=1)
        bent = bell(8, 3.0).reshape((1, -1) if axis == 2 else (-1, 1)) / 4
        pads = [0, 8, 0, 8] if axis == 2 else [8, 0, 8, 0]
        line = graph.blurred(line, keypoints, bent, pads=pads)
        scales = [1, 1, 1, times] if axis == 2 else [1, 1, times, 1]
        line = graph.add("Resize", line, "", graph.constant(scales), mode="linear")
        line = graph.add("Add", line, graph.constant(add))
        graph.add("Squeeze", line, graph.constant([axis], np.int64), name=name)
    positions = [("N", keypoints, side * times) for side, times in zip(size, split, strict=True)]
    return graph.save(path, (batch, 3, size[1], size[0]), dict(zip(names, positions, strict=True)))


def write_detector(path: Path, *, side=128, box=(30, 60), classes=80, columns=None, places=None, add=0.0) -> Path:
    """YOLOX's raw head: of stride 8, a cell's share of MARK, times 8, is the score of a box of this size around its center."""
    graph, cells = Graph(), len(grid((side, side))[0])
    seen = graph.likeness(np.array([MARK[::-1]]), np.zeros(3), np.ones(3))  # BGR, not scaled
    share = graph.add("AveragePool", seen, kernel_shape=[8, 8], strides=[8, 8])
    share = graph.add("Reshape", share, graph.constant([1, (side // 8) ** 2, 1], np.int64))
    share = graph.add("Min", graph.add("Mul", share, graph.constant(8)), graph.constant(1))
    rest = graph.constant(np.zeros((1, cells - (side // 8) ** 2, 1)))
    score = graph.add("Concat", share, rest, axis=1)
    shape = np.broadcast_to([0.5, 0.5, *np.log(np.array(box) / 8)], (1, cells, 4))
    likely = np.broadcast_to([1.0] + [0.9] * (classes - 1), (1, cells, classes))
    whole = graph.add("Concat", graph.constant(shape), score, graph.constant(likely), axis=2)
    graph.add("Add", whole, graph.constant(add), name="output")
    return graph.save(path, (1, 3, side, side), {"output": (1, places or cells, columns or classes + 5)})


def write_openpose(path: Path, *, side: int | str = "H", parts=18, fields=None, swapped=False, add=0.0) -> Path:
    """Heat maps of dots in `openpose_colors`, and fields that point along the limbs of `STANDING` everywhere."""
    graph, wanted = Graph(), openpose_colors()[:parts, ::-1].astype(float)
    seen = graph.likeness(wanted, np.full(3, 128.0), np.full(3, 256.0))
    bent = np.outer(bell(15, 6.0), bell(15, 6.0))
    # the middle of a cell of 8 pixels is between two of them, so that of the kernel, of an even size, is too
    bent = (bent[1:] + bent[:-1])[:, 1:] + (bent[1:] + bent[:-1])[:, :-1]
    heat = graph.blurred(seen, parts, bent / bent.sum() * 3, strides=[8, 8], pads=[11, 11, 11, 11])
    nothing = graph.add(
        "Mul", graph.add("Slice", heat, *(graph.constant([n], np.int64) for n in (0, 1, 1))), graph.constant(0)
    )
    directions = np.zeros(fields or 38)
    for (first, second), channel in zip(MATCHED, FIELDS, strict=True):
        way = STANDING[second] - STANDING[first]
        directions[channel : channel + 2] = way / np.hypot(*way)
    heat = graph.add("Add", heat, graph.constant(add))
    graph.add("Concat", heat, nothing, axis=1, name="heat")
    graph.add("Add", nothing, graph.constant(directions.reshape(1, -1, 1, 1)), name="fields")
    shapes = {"heat": ("N", parts + 1, "h", "w"), "fields": ("N", fields or 38, "h", "w")}
    names = ("fields", "heat") if swapped else ("heat", "fields")
    return graph.save(path, ("N", 3, side, side if side != "H" else "W"), {name: shapes[name] for name in names})


def openpose_colors() -> np.ndarray:
    """uint8 [18, 3]: COCO's colors in OpenPose's order; the neck has another."""
    found = np.zeros((18, 3), np.uint8)
    found[1] = colors(18)[17]
    for color, number in zip(colors(17), COCO, strict=True):
        found[number] = color
    return found
