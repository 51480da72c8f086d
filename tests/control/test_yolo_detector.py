"""Boxes of ONNX detectors: the outputs of YOLOv8, YOLO26 and YOLOX, with classes chosen by name or number."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from core.control.detectors.yolo import YoloDetector
from core.control.hints.pose.detector import grid
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError

SIZE = 64  # of the input
IMAGE = Image.new("RGB", (128, 96), "gray")  # scaled by 0.5
# Centers and sizes in pixels of the input, and scores of two classes.
ROWS = [(20, 20, 10, 20, 0.9, 0.1), (21, 20, 10, 20, 0.8, 0.0), (50, 30, 8, 8, 0.0, 0.6), (8, 8, 8, 8, 0.2, 0.2)]
FIRST, SECOND = (30, 20, 50, 60), (92, 52, 108, 68)  # in the image


def file_of(folder, values):
    """An ONNX model that returns these values for every image of 64 x 64."""
    onnx = pytest.importorskip("onnx")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    image = make.make_tensor_value_info("images", kind, [1, 3, SIZE, SIZE])
    output = make.make_tensor_value_info("output0", kind, [1, *values.shape])
    constant = onnx.numpy_helper.from_array(values[None].astype(np.float32), "values")
    nodes = [
        make.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        make.make_node("Mul", ["mean", "zero"], ["nothing"]),
        make.make_node("Add", ["values", "nothing"], ["output0"]),
    ]
    zero = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    graph = make.make_graph(nodes, "detector", [image], [output], [constant, zero])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8)
    onnx.helper.set_model_props(model, {"names": "{0: 'face', 1: 'hand'}"})
    onnx.save(model, folder / "detector.onnx")
    return folder / "detector.onnx"


def boxes_of(file, classes="", lowest=0.3):
    with YoloDetector(file, "detailer.ad_model_file", CancelToken(), classes) as detector:
        return [tuple(round(side) for side in box) for box in detector.find(IMAGE, lowest)]


def yolov8():
    values = np.zeros((6, 100))
    values[:, : len(ROWS)] = np.array(ROWS).T
    return values


def yolo26():
    values = np.zeros((20, 6))
    values[:2] = [(15, 10, 25, 30, 0.9, 0), (46, 26, 54, 34, 0.6, 1)]
    return values


def yolox():
    cells, strides = grid((SIZE, SIZE))
    values = np.zeros((len(cells), 7))
    for row, at in zip(ROWS, (0, 1, 40, 50), strict=True):
        values[at] = [
            *(np.array(row[:2]) / strides[at] - cells[at]), *np.log(np.array(row[2:4]) / strides[at]), 1, row[4], row[5],
        ]  # fmt: skip
    return values


@pytest.mark.parametrize(
    ("values", "found"),
    [(yolov8, [FIRST, SECOND]), (yolo26, [FIRST, SECOND]), (yolox, [FIRST])],
    ids=["yolov8", "yolo26", "yolox"],
)
def test_boxes_are_in_pixels_of_the_image_without_duplicates(tmp_path, values, found):
    assert boxes_of(file_of(tmp_path, values())) == found


def test_classes_are_chosen_by_name_or_number_and_others_refused(tmp_path):
    file = file_of(tmp_path, yolov8())
    assert boxes_of(file, "Hand") == boxes_of(file, "1") == [SECOND]
    assert boxes_of(file, "", 0.7) == [FIRST]
    with pytest.raises(ProblemsError) as refused:
        boxes_of(file, "foot")
    assert refused.value.codes == ["hint-model.class"]


def test_outputs_that_are_no_boxes_are_refused(tmp_path):
    with pytest.raises(ProblemsError) as refused:
        boxes_of(file_of(tmp_path, np.zeros((3, 4))))
    assert refused.value.codes == ["hint-model.model"]
