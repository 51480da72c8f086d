"""Loaded models that find poses: where dots of an image are found, which files belong together, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto

from core.control.hints.by_model import open_model
from core.control.hints.models import DWPOSE, OPENPOSE, ModelFile, Profile, checked_model
from core.control.hints.one_image import OneImageModel
from core.control.hints.pose.detector import USUAL_SIZE, PersonDetector
from core.control.hints.pose.drawing import COLORS
from core.formats.onnx.providers import CPU
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from tests.control.hints import pose_models
from tests.control.hints.pose_models import (
    Graph,
    colors,
    dot,
    openpose_colors,
    person,
    write_detector,
    write_estimator,
    write_openpose,
)
from tests.refusals import refused


def opened(file, kind=DWPOSE, detector=None, **profile):
    return open_model(ModelFile(file, Profile(**profile), "tool.model", kind, detector), [CPU], "cpu", CancelToken())


def black(height, width):
    return np.zeros((height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Files of an estimator and of a detector."""
    folder = tmp_path_factory.mktemp("pose")
    return write_estimator(folder / "rtmpose.onnx"), write_detector(folder / "yolox.onnx")


def off(person, points):
    return np.abs(person.body - points).max()


def test_without_a_detector_the_whole_image_is_one_person(pair):
    image = black(320, 240)
    points = person(image, (120, 160), 300)
    points[1] = points[[2, 5]].mean(axis=0)  # the neck
    with opened(pair[0]) as model:
        (found,) = model.find(image)
        assert off(found, points) <= 1
        drawn = model.make(image)
        assert tuple(drawn[*points[4, ::-1].astype(int)]) == COLORS[4] and drawn.shape == image.shape
        dot(image, points[3], (0, 0, 0))  # an elbow
        (found,) = model.find(image)
        assert np.isnan(found.body).all(axis=1).nonzero()[0].tolist() == [3]
        assert not model.make(black(64, 90)).any()
    assert model._model._worker._process.poll() is not None


def test_each_person_is_found_in_the_box_of_a_detector(pair):
    image = black(256, 512)
    left, right = person(image, (130, 128), 200, mark=True), person(image, (380, 120), 220, mark=True)
    with opened(pair[0], detector=pair[1]) as model:
        found = sorted(model.find(image), key=lambda each: each.body[0, 0])
        assert len(found) == 2
        for each, points in zip(found, (left, right), strict=True):
            assert off(each, points) <= 1  # the neck is the middle of the shoulders in these images
        drawn = model.make(image)
        for points in (left, right):
            assert tuple(drawn[*points[0, ::-1].astype(int)]) == COLORS[0]
        alone = black(256, 512)
        person(alone, (130, 128), 200)  # without a mark: nobody for the detector
        assert model.find(alone) == [] and not model.make(alone).any()
    processes = [each._model._worker._process for each in (model, model._detector)]
    assert all(process.poll() is not None for process in processes)


def test_hands_and_face_of_a_whole_body_are_drawn_unless_the_profile_leaves_them_out(tmp_path):
    file = write_estimator(tmp_path / "dw.onnx", size=(96, 128), keypoints=133)
    image = black(1280, 960)
    codes, places = colors(133), {23: (200, 200), 90: (400, 200), 91: (200, 700), 95: (200, 850), 112: (700, 700)}
    for number, place in places.items():
        dot(image, np.array(place), codes[number], reach=40)
    wanted = {(200, 200): (255,) * 3, (400, 200): (255,) * 3, (700, 700): (0, 0, 255), (200, 700): (0, 0, 255)}
    with opened(file) as model:
        drawn = model.make(image)
        for (x, y), color in wanted.items():  # a pixel of the input is 13 of the image: within a dot of 8
            near = drawn[y - 13 : y + 14, x - 13 : x + 14].reshape(-1, 3)
            assert (near == color).all(axis=1).any(), (x, y)
    with opened(file, hands=False) as model:
        drawn = model.make(image)
        assert drawn[:600].any() and not drawn[600:].any()


@pytest.mark.slow(but=("fixed",))
@pytest.mark.parametrize("changes", [{}, {"swapped": True, "side": 368}], ids=["open", "fixed"])
def test_openpose_finds_everybody_at_once_in_any_order_of_outputs(tmp_path, changes):
    """A fixed input shows an image of another shape at the top, on gray."""
    image = black(368, 736)
    people = [person(image, (180, 180), 320), person(image, (520, 190), 300)]
    for points in people:
        dot(image, points[1], openpose_colors()[1])
    if changes:
        image = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
        people = [points * 2 + 0.5 for points in people]
    with opened(write_openpose(tmp_path / "openpose.onnx", **changes), OPENPOSE) as model:
        found = sorted(model.find(image), key=lambda each: each.body[0, 0])
        assert len(found) == 2
        for each, points in zip(found, people, strict=True):
            assert off(each, points) <= (2 if changes else 0.1)  # a pixel of the input is four of the image
        assert model.find(black(200, 300)) == []


# ---- which files belong together


def space(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models")


def checked(name, tmp_path):
    return checked_model(name, space(tmp_path), "tool.model")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models/preprocessors/pose"


SMALL = {"size": (24, 32)}


def test_the_two_models_of_a_folder_are_told_apart_by_their_outputs(folder, tmp_path):
    write_detector(folder / "a_yolox_l.onnx")
    write_estimator(folder / "dw-ll_ucoco_384.onnx", **SMALL)
    for given in ("pose", "pose/dw-ll_ucoco_384.onnx"):
        found = checked(given, tmp_path)
        assert (found.file.name, found.kind, found.detector.name) == ("dw-ll_ucoco_384.onnx", DWPOSE, "a_yolox_l.onnx")
    with refused("hint-model.detector", "a_yolox_l.onnx"):
        checked("pose/a_yolox_l.onnx", tmp_path)
    write_detector(folder / "b.onnx", classes=1)
    with refused("hint-model.detectors", "b.onnx"):
        checked("pose", tmp_path)
    (folder / "profile.json").write_text(json.dumps({"detector": "b.onnx", "title": "Poses"}))
    found = checked("pose", tmp_path)
    assert found.detector.name == "b.onnx" and found.title == "Poses"
    write_estimator(folder / "another.onnx", **SMALL)
    with refused("hint-model.none"):
        checked("pose", tmp_path)


def test_a_pose_model_needs_no_detector_and_a_damaged_one_is_named(folder, tmp_path):
    write_estimator(folder / "model.onnx", **SMALL)
    found = checked("pose", tmp_path)
    assert (found.kind, found.detector) == (DWPOSE, None)
    write_openpose(folder.parent / "openpose.onnx")
    assert checked("openpose.onnx", tmp_path).kind == OPENPOSE
    detector = write_detector(folder / "yolox.onnx")
    detector.write_bytes(detector.read_bytes()[:-40])
    with refused("hint-model.bad-model", "yolox.onnx"):
        checked("pose", tmp_path)
    (folder / "profile.json").write_text('{"detector": "other.onnx"}')
    with pytest.raises(ProblemsError, match=r"other\.onnx"):
        checked("pose", tmp_path)
    for bad in ({"detector": "../yolox.onnx"}, {"kind": "pose"}, {"score": 0}):
        (folder / "profile.json").write_text(json.dumps(bad))
        with refused("hint-model.bad-profile", next(iter(bad))):
            checked("pose", tmp_path)


# ---- what is refused


def write_many_boxes(path):
    """What is declared as boxes of people are 300,000 of them."""
    graph = Graph()
    graph.add(
        "Expand", graph.add("ReduceMean", "image", keepdims=0), graph.constant([1, 300_000, 5], np.int64), name="dets"
    )
    return graph.save(path, (1, 3, 64, 64), {"dets": (1, "M", 5)})


def write_three(path):
    graph = Graph()
    for name in ("simcc_x", "simcc_y", "simcc_z"):
        graph.add("Identity", "image", name=name)
    return graph.save(path, (1, 3, 64, 64), dict.fromkeys(("simcc_x", "simcc_y", "simcc_z")))


def write_numbers(path):
    graph = Graph()
    for name in ("simcc_x", "simcc_y"):
        graph.add("Expand", graph.constant([7], np.int64), graph.constant([1, 17, 192], np.int64), name=name)
    return graph.save(path, (1, 3, 96, 96), dict.fromkeys(("simcc_x", "simcc_y")), kind=TensorProto.INT64)


@pytest.mark.slow(
    but=(
        "keypoints of a hand",
        "positions of two sizes",
        "NaN",
        "17 parts",
    )
)
@pytest.mark.parametrize(
    ("write", "changes", "kind", "code", "fact"),
    [
        ("write_estimator", SMALL | {"keypoints": 21}, DWPOSE, "hint-model.model", "21 keypoints"),
        ("write_estimator", SMALL | {"split": (2, 1)}, DWPOSE, "hint-model.model", "48 and 32"),
        ("write_estimator", SMALL | {"add": float("nan")}, DWPOSE, "hint-model.not-finite", "NaN"),
        (write_three, {}, DWPOSE, "hint-model.model", "simcc_z"),
        (write_numbers, {}, DWPOSE, "hint-model.model", "int64"),
        ("write_openpose", {}, DWPOSE, "hint-model.model", "19"),
        ("write_openpose", {"parts": 17}, OPENPOSE, "hint-model.model", "18"),
        ("write_openpose", {"add": float("inf")}, OPENPOSE, "hint-model.not-finite", "NaN"),
        ("write_estimator", SMALL, OPENPOSE, "hint-model.model", "17"),
    ],
    ids=[
        "keypoints of a hand", "positions of two sizes", "NaN", "x, y and z", "whole numbers", "maps for positions",
        "17 parts", "infinity", "positions for maps",
    ],
)  # fmt: skip
def test_other_outputs_are_refused_by_name(tmp_path, write, changes, kind, code, fact):
    file = (write if callable(write) else getattr(pose_models, write))(tmp_path / "net.onnx", **changes)
    with refused(code, "net", fact), opened(file, kind) as model:
        model.make(np.full((32, 24, 3), 40, np.uint8))


@pytest.mark.slow(only=("NaN",))
@pytest.mark.parametrize(
    ("write", "changes", "code"),
    [
        (write_many_boxes, {}, "hint-model.model"),
        (write_detector, {"add": 100.0, "side": 64}, "hint-model.not-finite"),  # boxes decoded by the model itself
        (write_detector, {"add": float("nan"), "side": 64}, "hint-model.not-finite"),
    ],
    ids=["many", "decoded", "NaN"],
)
def test_detectors_of_other_boxes_are_refused(tmp_path, write, changes, code):
    file = write(tmp_path / "boxes.onnx", **changes)
    with (
        refused(code, "boxes.onnx"),
        PersonDetector(file, file.name, "tool.model", [CPU], "cpu", CancelToken(), USUAL_SIZE) as model,
    ):
        model.find(black(64, 64))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (368, 368)),
        ((512, 1024), (368, 736)),
        ((1024, 512), (736, 368)),
        ((100, 1113), (368, 4096)),
        ((100, 1115), None),
        ((512, 517), (368, 368)),
        ((512, 518), (368, 376)),
    ],
)
def test_the_shorter_side_is_the_profiles_and_the_longer_one_a_multiple_up_to_4096(size, expected):
    model = SimpleNamespace(fixed=None, refused=lambda why, end: refusal(end))
    profile = SimpleNamespace(size=368, multiple=8)
    if expected is None:
        with refused("size"):
            OneImageModel.size_for(model, *size, profile)
        return
    assert OneImageModel.size_for(model, *size, profile) == expected
    assert OneImageModel.size_for(SimpleNamespace(fixed=(8, 9)), *size, profile) == (8, 9)


def refusal(code):
    return ProblemsError.one("", "", "", code)
