"""Control images as sd-scripts fits them, and as their images are fitted: recorded cases, exact."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from core.dataset.buckets.aspect_ratio import Placement
from core.dataset.images.masks import control_in_view
from core.dataset.images.views import View
from core.record.workspace import PROJECT
from core.settings.check import build
from core.settings.dataset.concepts import PLAIN, concepts_of
from core.settings.dataset.images import ImageSettings
from core.settings.job import TrainJob
from tests.recorded_tensors import recorded_tensors

VECTORS = PROJECT / "tests/vectors/controlnet"
CASES = json.loads((VECTORS / "hints.json").read_text("utf-8"))["cases"]


@pytest.fixture(scope="module")
def recorded():
    return {name: tensor.numpy() for name, tensor in recorded_tensors(VECTORS / "hints.safetensors").items()}


def fitted(case, hint, fit="aligned", **more):
    """uint8 [3, H, W]. The cases' sides are smaller than the settings allow, so these are made without checks."""
    bucket, resized = tuple(case["bucket_wh"]), tuple(case["resized_wh"])
    crop = tuple((whole - kept) // 2 for whole, kept in zip(resized, bucket, strict=True))
    view = View(Placement(tuple(case["picture_wh"]), bucket, resized, crop), flip=case["flipped"])
    own = {name: value for name, value in case["dataset"].items() if name in ("enable_bucket", "resize_interpolation")}
    concept = replace(PLAIN, images=ImageSettings().model_copy(update=own | more), control_fit=fit)
    return np.asarray(control_in_view(Image.fromarray(hint), view, concept)).transpose(2, 0, 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_control_images_are_aligned_and_with_compatibility_those_of_sd_scripts(recorded, case):
    stem, way = case["case"].rsplit(".", 1)
    hint = recorded[f"{stem}.hint_in"]
    (concept,) = concepts_of(
        build(TrainJob, {"model": {"compatibility": "sd-scripts-0.10"}, "dataset": {"folder": "a"}})
    )
    assert np.array_equal(fitted(case, hint, concept.control_fit), recorded[f"{stem}.{way}.hint"])
    wanted = recorded.get(f"{stem}.plain.aligned")
    if wanted is None and not case.get("stretched_differs_from_aligned"):  # the same, and of the picture's aspect ratio
        wanted = recorded[f"{stem}.{way}.hint"][..., :: -1 if case["flipped"] else 1]
    if wanted is not None and case["dataset"]["enable_bucket"]:
        assert np.array_equal(fitted(case, hint), wanted[..., ::-1] if case["flipped"] else wanted)


def test_lines_stay_lines_with_nearest_and_fade_with_area():
    lines = np.zeros((128, 128, 3), np.uint8)
    lines[::8] = 255
    case = {"picture_wh": (128, 128), "bucket_wh": (64, 64), "resized_wh": (64, 64), "flipped": False, "dataset": {}}
    assert set(np.unique(fitted(case, lines, control_interpolation="nearest"))) <= {0, 255}
    assert fitted(case, lines).max() == 128  # area averaging of one line in two
    assert np.array_equal(
        fitted(case, lines, control_interpolation="area", resize_interpolation="nearest"), fitted(case, lines)
    )
