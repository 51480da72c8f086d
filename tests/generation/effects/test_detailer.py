"""The detailer, with a detector of known boxes: what it repaints, in which order, and its words in image texts."""

from __future__ import annotations

import re
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from core.control.detectors import DETECTORS, Detector
from core.generation.effects.detailer import boxes_to_detail, job_of
from core.generation.images.a1111 import a1111_parts, a1111_text, from_a1111_text
from core.generation.images.metadata import read_image_metadata
from core.generation.making import ImageMaker
from core.generation.model.sources import Hashes
from core.generation.plan.plan import plan_of
from core.generation.run import run_generate
from core.record.context import Reports
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.generation.detailer import DetailerSettings
from core.settings.job import GenerateJob
from tests.control.test_yolo_detector import file_of

LEFT, RIGHT, SIDE = (4, 8, 20, 24), (44, 40, 60, 56), 64


class Heard(Reports):
    def __init__(self):
        self.problems = []

    def warn(self, problem):
        self.problems.append(problem.code)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    space = Workspace(tmp_path_factory.mktemp("out"), PROJECT / "models")
    space.runs.mkdir(parents=True)
    return space


@pytest.fixture
def detected(monkeypatch):
    """The boxes that the detector of faces finds in every image; and the confidences it was asked for."""
    boxes, asked = [LEFT, RIGHT], []

    @contextmanager
    def opened():
        yield lambda image, lowest: asked.append(lowest) or list(boxes)

    monkeypatch.setitem(DETECTORS, "face", Detector("face", "Faces", opened, confidence=0.9))
    return boxes, asked


@pytest.fixture
def make(workspace, store):
    def images(reports=None, generate=None, **groups):
        base = {"prompt": "a fox, flat icon", "seed": 7, "steps": 1, "width": SIDE, "height": SIDE, "sampler": "euler"}
        groups["detailer"] = {
            "ad_steps": 2,
            "ad_denoising_strength": 0.7,
            "ad_mask_blur": 1,
            "ad_inpaint_only_masked_padding": 8,
        } | groups.get("detailer", {})
        job = build(
            GenerateJob,
            {
                "model": {"base_model": str(PROJECT / "models" / "starter")},
                "generate": base | (generate or {}),
                "memory": {"mixed_precision": "no"},
                **groups,
            },
        )
        files = run_generate(job, workspace, store=store, reports=reports or Heard())
        return [(np.asarray(Image.open(file).convert("RGB")).astype(int), file) for file in files]

    return images


def reach(box, blur=1, dilation=2):
    """A mask of what may change: the box, dilated, and the reach of the blur's three box filters."""
    more, mask = dilation + 3 * blur, np.zeros((SIDE, SIDE), bool)
    mask[max(box[1] - more, 0) : box[3] + more, max(box[0] - more, 0) : box[2] + more] = True
    return mask


def changed(before, after):
    return (before != after).any(axis=2)


FACE = {"ad_model": "face"}


def test_only_the_feathered_boxes_of_two_faces_change(make, detected):
    ((plain, _),), ((detailed, _),) = make(), make(detailer=FACE)
    difference = changed(plain, detailed)
    for box in (LEFT, RIGHT):
        assert difference[box[1] : box[3], box[0] : box[2]].mean() > 0.9
    assert not difference[~(reach(LEFT) | reach(RIGHT))].any()
    assert detected[1] == [0.9]


def test_an_image_without_detections_is_unchanged_and_says_so(make, detected):
    detected[0].clear()
    heard = Heard()
    ((plain, _),), ((detailed, _),) = make(), make(heard, detailer=FACE)
    assert not changed(plain, detailed).any() and heard.problems == ["detailer.none-found"]


def test_detections_that_are_left_out_or_blurred_away_are_told(make, detected):
    for more, code in (
        ({"ad_mask_min_ratio": 0.9}, "detailer.all-left-out"),
        ({"ad_mask_blur": 256}, "detailer.mask-blurred"),
    ):
        heard = Heard()
        ((plain, _),), ((detailed, _),) = make(), make(heard, detailer=FACE | more)
        assert not changed(plain, detailed).any() and {*heard.problems} == {code}


def test_each_image_of_a_batch_gets_its_own_details(make, detected):
    both = make(generate={"count": 2, "batch_size": 2}, detailer=FACE)
    plain = make(generate={"count": 2, "batch_size": 2})
    for (before, _), (after, _) in zip(plain, both, strict=True):
        difference = changed(before, after)
        assert difference[8:24, 4:20].mean() > 0.9 and not difference[~(reach(LEFT) | reach(RIGHT))].any()


def test_a_detail_follows_hires_fix_and_an_initial_image_and_its_own_seed_and_prompt(make, detected, tmp_path):
    detected[0].pop()
    image = tmp_path / "start.png"
    Image.new("RGB", (SIDE, SIDE), "gray").save(image)
    begin = {
        "image_to_image": {"image_path": str(image), "strength": 0.6},
        "hires": {"highres_fix_scale": 0.5},
        "generate": {"sampler": "ddim"},
    }
    ((plain, _),), ((first, _),) = make(**begin), make(detailer=FACE, **begin)
    assert changed(plain, first)[8:24, 4:20].mean() > 0.9 and not changed(plain, first)[~reach(LEFT)].any()
    for other in ({"ad_seed": 8}, {"ad_prompt": "a blue square"}):
        ((again, _),) = make(detailer=FACE | other, **begin)
        assert changed(first, again).any() and not changed(first, again)[~reach(LEFT)].any()


SIZE = (100, 80)
BOXES = [(50.0, 20.0, 70.0, 40.0), (0.0, 0.0, 10.0, 10.0), (90.0, 70.0, 130.0, 90.0)]


@pytest.mark.parametrize(
    ("settings", "order"),
    [
        ({}, [0, 1, 2]),
        ({"ad_bbox_sortby": "left"}, [1, 0, 2]),
        ({"ad_bbox_sortby": "center"}, [0, 1, 2]),
        ({"ad_bbox_sortby": "area"}, [2, 0, 1]),
        ({"ad_mask_k_largest": 2}, [0, 2]),
        ({"ad_mask_min_ratio": 0.02}, [0, 2]),
        ({"ad_mask_max_ratio": 0.02}, [1]),
    ],
)
def test_area_limits_the_largest_k_and_the_order(settings, order):
    whole = [(50, 20, 70, 40), (0, 0, 10, 10), (90, 70, 100, 80)]
    settings = DetailerSettings.model_validate({"ad_dilate_erode": 0} | settings)
    assert boxes_to_detail(BOXES, SIZE, settings) == [whole[number] for number in order]


def test_boxes_are_dilated_within_the_image_and_shrunk_to_nothing():
    assert boxes_to_detail([(5, 5, 20, 20)], SIZE, DetailerSettings(ad_dilate_erode=20)) == [(0, 0, 30, 30)]
    assert boxes_to_detail([(5, 5, 20, 20)], SIZE, DetailerSettings(ad_dilate_erode=-16)) == []
    assert boxes_to_detail([(-50, -50, 150, 150)], SIZE, DetailerSettings()) == [(0, 0, *SIZE)]


def test_prompts_of_detections_are_separated_inserted_and_skipped():
    detailer = {"ad_model": "face", "ad_prompt": "[PROMPT], smile [SEP] [SKIP] [SEP]", "ad_seed": 5}
    job = build(
        GenerateJob, {"generate": {"prompt": "a man", "seed": 1, "width": 64, "height": 64}, "detailer": detailer}
    )
    parts = [job_of(job, number) for number in range(4)]
    assert [part and (part.generate.prompt, part.generate.seed) for part in parts] == [
        ("a man, smile", 5), None, ("a man", 7), ("a man", 8),
    ]  # fmt: skip


def test_a_detection_has_its_own_size_steps_guidance_and_negative_prompt_and_no_settings_of_the_whole():
    own = {
        "ad_inpaint_width": 96,
        "ad_inpaint_height": 128,
        "ad_steps": 5,
        "ad_cfg_scale": 3,
        "ad_negative_prompt": "b",
    }
    groups = {
        "hires": {"highres_fix_scale": 2},
        "regions": {"region_map": "map.png"},
        "controls": {"control_image": "a"},
    }
    image = {"prompt": "a", "negative_prompt": "c", "seed": 1, "width": 64, "height": 64}
    job = build(GenerateJob, {"generate": image, "detailer": FACE | own, **groups})
    part = job_of(job, 0)
    of = part.generate
    assert (of.width, of.height, of.steps, of.guidance_scale, of.negative_prompt) == (96, 128, 5, 3, "b")
    assert not (part.hires.highres_fix_scale or part.regions.region_map or part.controls.control_image)


def test_bad_settings_are_refused_together_before_anything_is_loaded(workspace, detected):
    detailer = {
        "ad_model": "face",
        "ad_model_file": "none.onnx",
        "ad_mask_min_ratio": 0.5,
        "ad_mask_max_ratio": 0.4,
        "ad_denoising_strength": 0,
        "ad_prompt": "a face <lora:ink:1>",
        "ad_negative_prompt": "(red:1.2.3)",
    }
    job = build(GenerateJob, {"model": {"base_model": str(PROJECT / "models" / "starter")}, "detailer": detailer})
    with pytest.raises(ProblemsError) as refused:
        plan_of(job, workspace)
    assert {
        "detailer.area", "detailer.no-steps", "detailer.lora", "prompt.bad-weight", "detailer.no-file",
    } <= {*refused.value.codes}  # fmt: skip


def test_a_class_that_the_detectors_file_lacks_is_refused_before_anything_is_loaded(workspace, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "detector", [], []))
    onnx.helper.set_model_props(model, {"stride": "32", "names": "{0: 'face', 1: 'hand'}"})
    onnx.save(model, file := tmp_path / "detector.onnx")
    codes = {}
    for classes in ("Hand, 0", "foot", "2", "hand, 9"):
        detailer = {"ad_model_file": str(file), "ad_model_classes": classes}
        job = build(GenerateJob, {"model": {"base_model": str(PROJECT / "models" / "starter")}, "detailer": detailer})
        try:
            plan_of(job, workspace)
        except ProblemsError as error:
            codes[classes] = error.codes
    assert codes == {each: ["hint-model.class"] for each in ("foot", "2", "hand, 9")}


def test_a_detector_file_that_cannot_run_is_refused_before_the_first_image(make, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageMaker, "make", None)
    file = file_of(tmp_path, np.zeros((3, 100)))
    with pytest.raises(ProblemsError) as refused:
        make(detailer={"ad_model_file": str(file)})
    assert refused.value.codes == ["hint-model.model"]


def test_an_images_file_makes_it_again(make, detected, workspace, store):
    ((first, file),) = make(detailer=FACE | {"ad_mask_k_largest": 1, "ad_prompt": "a face, red"})
    job = read_image_metadata(file).job
    assert job.detailer.ad_mask_k_largest == 1
    (again,) = run_generate(job, workspace, store=store, reports=Heard())
    assert not changed(first, np.asarray(Image.open(again).convert("RGB")).astype(int)).any()


WORDS = (
    'ADetailer model: face_yolov8n.pt, ADetailer prompt: "a face, [PROMPT]", ADetailer confidence: 0.3, '
    "ADetailer mask only top k largest: 2, ADetailer dilate erode: 4, ADetailer mask blur: 8, "
    "ADetailer denoising strength: 0.35, ADetailer inpaint only masked: True, ADetailer inpaint padding: 40, "
    "ADetailer use inpaint width height: True, ADetailer inpaint width: 768, ADetailer inpaint height: 640, "
    "ADetailer use separate steps: True, ADetailer steps: 12, ADetailer version: 24.9.0"
)


def test_adetailers_words_are_read_and_written():
    record = from_a1111_text(f"a fox\nSteps: 20, Sampler: Euler, Seed: 1, Size: 512x512, {WORDS}, Version: v1.10.1")
    assert record.job.detailer == DetailerSettings(
        ad_model="face", ad_prompt="a face, [PROMPT]", ad_mask_k_largest=2, ad_mask_blur=8, ad_denoising_strength=0.35,
        ad_inpaint_only_masked_padding=40, ad_inpaint_width=768, ad_inpaint_height=640, ad_steps=12,
    )  # fmt: skip
    (note,) = record.notes
    assert note.code == "image-settings.detector" and "confidence 0.3 " in note.what
    again = from_a1111_text(a1111_text(record.job, Hashes("")))
    assert again.job.detailer == record.job.detailer.model_copy(update={"ad_confidence": 0.9})
    written = a1111_parts(a1111_text(record.job, Hashes("")))[2]
    read = dict(pair.split(": ", 1) for pair in re.split(r", (?=ADetailer)", WORDS.replace('"', "")))
    assert {name: text for name, text in written.items() if "Detailer" in name} == {
        name: text for name, text in read.items() if name != "ADetailer version"
    } | {"ADetailer model": "face", "ADetailer confidence": "0.9"}


def test_other_detectors_of_adetailer_are_looked_for_as_onnx_files():
    record = from_a1111_text(
        "a\nSteps: 20, Sampler: Euler, ADetailer model: hand_yolov8n.pt, ADetailer confidence: 0.4"
    )
    assert (record.job.detailer.ad_model_file, record.job.detailer.ad_confidence) == ("hand_yolov8n.onnx", 0.4)
    assert [note.code for note in record.notes] == ["image-settings.detector"]
