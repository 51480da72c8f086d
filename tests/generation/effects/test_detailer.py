"""The detailer, with a detector of known boxes: what it repaints, in which order, and its words in image texts."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from core.control.detectors import DETECTORS, Detector
from core.generation.effects.detailer import chosen, job_of
from core.generation.images.metadata import read_image_metadata
from core.generation.plan.plan import plan_of
from core.generation.run import run_generate
from core.record.context import Reports
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.generation.detailer import DetailerSettings
from core.settings.job import GenerateJob

LEFT, RIGHT, SIDE = (10, 20, 40, 50), (80, 70, 110, 100), 128


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
    def images(reports=None, generate={}, **groups):
        base = {"prompt": "a fox, flat icon", "seed": 7, "steps": 2, "width": SIDE, "height": SIDE, "sampler": "euler"}
        groups["detailer"] = {"ad_steps": 3, "ad_denoising_strength": 0.7} | groups.get("detailer", {})
        job = build(
            GenerateJob,
            {
                "model": {"base_model": str(PROJECT / "models" / "starter")},
                "generate": base | generate,
                "memory": {"mixed_precision": "no"},
                **groups,
            },
        )
        files = run_generate(job, workspace, store=store, reports=reports or Heard())
        return [(np.asarray(Image.open(file).convert("RGB")).astype(int), file) for file in files]

    return images


def reach(box, blur=4, dilation=2):
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


def test_each_image_of_a_batch_gets_its_own_details(make, detected):
    both = make(generate={"count": 2, "batch_size": 2}, detailer=FACE)
    plain = make(generate={"count": 2, "batch_size": 2})
    for (before, _), (after, _) in zip(plain, both, strict=True):
        difference = changed(before, after)
        assert difference[20:50, 10:40].mean() > 0.9 and not difference[~(reach(LEFT) | reach(RIGHT))].any()


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
    assert changed(plain, first)[20:50, 10:40].mean() > 0.9 and not changed(plain, first)[~reach(LEFT)].any()
    for other in ({"ad_seed": 8}, {"ad_prompt": "a blue square"}, {"ad_cfg_scale": 1.0}, {"ad_negative_prompt": "red"}):
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
    assert chosen(BOXES, SIZE, settings) == [whole[number] for number in order]


def test_boxes_are_dilated_within_the_image_and_shrunk_to_nothing():
    assert chosen([(5, 5, 20, 20)], SIZE, DetailerSettings(ad_dilate_erode=20)) == [(0, 0, 30, 30)]
    assert chosen([(5, 5, 20, 20)], SIZE, DetailerSettings(ad_dilate_erode=-16)) == []


def test_prompts_of_detections_are_separated_inserted_and_skipped():
    detailer = {"ad_model": "face", "ad_prompt": "[PROMPT], smile [SEP] [SKIP] [SEP]", "ad_seed": 5}
    job = build(
        GenerateJob, {"generate": {"prompt": "a man", "seed": 1, "width": 64, "height": 64}, "detailer": detailer}
    )
    parts = [job_of(job, number) for number in range(4)]
    assert [part and (part.generate.prompt, part.generate.seed) for part in parts] == [
        ("a man, smile", 5), None, ("a man", 7), ("a man", 8),
    ]  # fmt: skip


def test_bad_settings_are_refused_together_before_anything_is_loaded(workspace, detected):
    detailer = {
        "ad_model": "face",
        "ad_model_file": "none.onnx",
        "ad_mask_min_ratio": 0.5,
        "ad_mask_max_ratio": 0.4,
        "ad_denoising_strength": 0,
        "ad_prompt": "a face <lora:ink:1>",
        "ad_negative_prompt": "(red:high)",
    }
    job = build(GenerateJob, {"model": {"base_model": str(PROJECT / "models" / "starter")}, "detailer": detailer})
    with pytest.raises(ProblemsError) as refused:
        plan_of(job, workspace)
    assert {
        "detailer.area", "detailer.no-steps", "detailer.lora", "prompt.bad-weight", "detailer.no-file",
    } <= {*refused.value.codes}  # fmt: skip


def test_an_images_file_makes_it_again(make, detected, workspace):
    ((first, file),) = make(detailer=FACE | {"ad_mask_k_largest": 1, "ad_prompt": "a face, red"})
    record = read_image_metadata(file)
    assert record.job.detailer.ad_mask_k_largest == 1 and record.job.detailer.ad_prompt == "a face, red"
