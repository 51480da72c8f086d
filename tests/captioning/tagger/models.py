"""Small taggers with the real contract, whose scores follow from the colors of the image."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

# name, category code, (weights of the mean blue, green and red of 0 to 1), bias: score = sigmoid(weights . means + bias)
LABELS = (
    ("general", "9", (0, 0, 0), 0.5),
    ("sensitive", "9", (0, 0, 4), -1),
    ("questionable", "9", (0, 0, 0), -2),
    ("explicit", "9", (0, 0, 0), -4),
    ("blue_sky", "0", (8, 0, 0), -4),
    ("green_grass", "0", (0, 8, 0), -4),
    ("red_hair", "0", (0, 0, 8), -4),
    ("solo", "0", (0, 0, 0), 1),
    ("^_^", "0", (0, 0, 0), 0.4),
    ("ruby_(gem)", "4", (-8, -8, 8), -4),
)
COLORS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0), "white": (255, 255, 255)}


def sigmoid(values):
    return 1 / (1 + np.exp(-np.asarray(values, np.float64)))


def write_model(
    path: Path,
    *,
    labels=LABELS,
    size: int | str = 32,
    batch: int | str = "N",
    layout: str = "NHWC",
    scale: float = 1 / 255,
    logits: bool = False,
    heads: tuple[str, ...] = ("output",),
    half: bool = False,
    metadata: dict[str, str] | None = None,
    outputs: int | None = None,
) -> Path:
    """Means of each color, a matrix, a sigmoid. heads: each next output has its scores multiplied by 0.5 once more."""
    dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    kind = np.float16 if half else np.float32
    weights = np.array([weight for _, _, weight, _ in labels], kind).T * kind(1)
    bias = np.array([bias for *_, bias in labels], kind)
    if outputs is not None:
        weights, bias = np.resize(weights, (3, outputs)), np.resize(bias, outputs)
    axes = [1, 2] if layout == "NHWC" else [2, 3]
    shape = [batch, size, size, 3] if layout == "NHWC" else [batch, 3, size, size]
    arrays = {"axes": np.array(axes, np.int64), "scale": np.array([scale], kind), "w": weights, "b": bias}
    arrays["half"] = np.array([0.5], kind)
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["logits"]),
        helper.make_node("Identity" if logits else "Sigmoid", ["logits"], [heads[0]]),
        *(helper.make_node("Mul", [last, "half"], [name]) for last, name in pairwise(heads)),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [helper.make_tensor_value_info(name, dtype, [batch, weights.shape[1]]) for name in heads],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, text in (metadata or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def write_csv(path: Path, labels=LABELS) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(["tag_id", "name", "category", "count"])
        rows.writerows([number, name, code, 1] for number, (name, code, *_) in enumerate(labels))
    return path


def wd_folder(folder: Path, **asked) -> Path:
    """A WD tagger in a folder."""
    write_model(folder / "model.onnx", **asked)
    write_csv(folder / "selected_tags.csv", asked.get("labels", LABELS))
    return folder


def score(name: str, color: tuple[int, int, int], labels=LABELS) -> float:
    """What the tagger must find in an image of one color (RGB)."""
    _, _, weights, bias = next(label for label in labels if label[0] == name)
    return float(sigmoid(np.dot(weights, np.array(color[::-1]) / 255) + bias))


def images(folder: Path, *names: str) -> Path:
    """An image for each name ("blue", or "blue as x y.png" for a file of that name)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        color, _, file = name.partition(" as ")
        Image.new("RGB", (40, 40), COLORS[color]).save(folder / (file or f"{color}.png"), "PNG")
    return folder
