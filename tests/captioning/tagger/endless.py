"""Taggers that harm: one that never answers, one whose file takes long to open."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests.captioning.tagger.models import LABELS, write_csv


def endless_folder(folder: Path) -> Path:
    """A WD tagger whose scores are computed by a loop without an end."""
    values, flag = helper.make_tensor_value_info, helper.make_tensor("true", TensorProto.BOOL, [], [True])
    body = helper.make_graph(
        [helper.make_node("Identity", [f"{name}_in"], [f"{name}_out"]) for name in ("go", "x")],
        "body",
        [values("i", TensorProto.INT64, []), values("go_in", TensorProto.BOOL, []), values("x_in", TensorProto.FLOAT, None)],
        [values("go_out", TensorProto.BOOL, []), values("x_out", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["means"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Loop", ["", "true", "means"], ["output"], body=body),
    ]
    return _folder(folder, nodes, [flag])


def idle_folder(folder: Path, nodes: int) -> Path:
    """A WD tagger with nodes whose results nobody uses: onnxruntime's time grows with the square of their number."""
    means = helper.make_node("ReduceMean", ["image"], ["output"], axes=[1, 2, 3], keepdims=0)
    idle = [helper.make_node("Abs", ["output"], [f"v{number}"]) for number in range(nodes)]
    return _folder(folder, [means, *idle], [])


def _folder(folder: Path, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> Path:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 32, 32, 3])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", len(LABELS)])
    graph = helper.make_graph(nodes, "tagger", [image], [output], constants)
    folder.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "model.onnx"
    )
    write_csv(folder / "selected_tags.csv")
    return folder
