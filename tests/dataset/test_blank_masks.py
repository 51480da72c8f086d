"""Images whose mask lets nothing train are named before the start."""

import pytest
from PIL import Image

from core.dataset.preflight import preflight
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from tests.dataset.bad_input import DATASET, image


def advice(tmp_path, noise=(), **dataset):
    dataset = {"folder": str(tmp_path / "fox"), **DATASET, **dataset}
    job = TrainJob.model_validate({"dataset": dataset, "noise": dict(noise)})
    report = preflight(job, Workspace(outputs=tmp_path / "outputs"), decode=True, count_tokens=len)
    codes = ("mask.all-black", "mask.dark", "image.fully-transparent", "mask.no-transparency", "mask.missing")
    return [each for each in report.problems if each.code in codes]


def test_a_wholly_black_mask_is_named(tmp_path):
    for folder in ("fox", "masks"):
        (tmp_path / folder).mkdir()
    for name, level in (("a.png", 0), ("b.png", 1), ("c.png", 255)):
        image(tmp_path / "fox" / name)
        Image.new("L", (160, 96), level).save(tmp_path / "masks" / name)
    found, dark = advice(tmp_path, conditioning_data_dir=str(tmp_path / "masks"), masked_loss=True)
    assert "a.png" in found.what and "b.png" not in found.what and found.level == "advice" and found.fix
    assert (dark.code, dark.level) == ("mask.dark", "warning") and "b.png" in dark.what and "a.png" not in dark.what
    assert advice(tmp_path, conditioning_data_dir=str(tmp_path / "masks"), masked_loss=False) == []
    for name in ("unmasked_weight", "unmasked_probability", "masked_prior_preservation_weight"):
        masks = str(tmp_path / "masks")
        assert advice(tmp_path, {name: 0.1}, conditioning_data_dir=masks, masked_loss=True) == []


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((0, 0, 255), ("mask.all-black", "warning")),
        ((0, 0, 0), ("mask.all-black", "error")),
        ((None, None, 255), ("mask.missing", "advice")),
        ((None, None, None), ("mask.missing", "warning")),
    ],
)
def test_masks_that_leave_most_or_all_images_out_are_more_than_advice(tmp_path, levels, expected):
    for folder in ("fox", "masks"):
        (tmp_path / folder).mkdir()
    for name, level in zip(("a.png", "b.png", "c.png"), levels, strict=True):
        image(tmp_path / "fox" / name)
        if level is not None:
            Image.new("L", (160, 96), level).save(tmp_path / "masks" / name)
    (found,) = advice(tmp_path, conditioning_data_dir=str(tmp_path / "masks"), masked_loss=True)
    assert (found.code, found.level) == expected


def test_an_alpha_mask_of_images_without_transparency_is_named(tmp_path):
    (tmp_path / "fox").mkdir()
    for name in ("a.png", "b.png"):
        image(tmp_path / "fox" / name)
    for given in ({}, {"masked_loss": True}):
        found = advice(tmp_path, alpha_mask=True, **given)
        assert ("mask.no-transparency", "warning") in [(each.code, each.level) for each in found]
    Image.new("RGBA", (160, 96), (9, 9, 9, 99)).save(tmp_path / "fox" / "b.png")
    assert advice(tmp_path, alpha_mask=True) == []


def test_a_wholly_transparent_image_is_named_where_its_transparency_is_the_mask(tmp_path):
    (tmp_path / "fox").mkdir()
    image(tmp_path / "fox" / "b.png")
    Image.new("RGBA", (160, 96), (9, 9, 9, 0)).save(tmp_path / "fox" / "a.png")
    (found,) = advice(tmp_path, alpha_mask=True)
    assert "a.png" in found.what and "b.png" not in found.what
    assert advice(tmp_path, alpha_mask=False) == []


def test_an_image_that_its_transparency_masks_is_not_without_a_mask(tmp_path):
    for folder in ("fox", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("painted.png", "full.png"):
        image(tmp_path / "fox" / name)
    Image.new("RGBA", (160, 96), (9, 9, 9, 0)).save(tmp_path / "fox" / "clear.png")
    Image.new("L", (160, 96), 255).save(tmp_path / "masks" / "painted.png")
    masks = {"conditioning_data_dir": str(tmp_path / "masks"), "masked_loss": True}
    for alpha_mask, of_3, masked in ((True, "1 of 3", True), (False, "2 of 3", False)):
        dataset = {"folder": str(tmp_path / "fox"), **DATASET, **masks, "alpha_mask": alpha_mask}
        job = TrainJob.model_validate({"dataset": dataset})
        report = preflight(job, Workspace(outputs=tmp_path / "outputs"), decode=True, count_tokens=len)
        (found,) = [each for each in report.problems if each.code == "mask.missing"]
        assert of_3 in found.what and "full.png" in found.what and ("clear.png" not in found.what) is masked
        assert {row.key[1]: row.mask for row in report.rows} == {
            "painted.png": True,
            "full.png": False,
            "clear.png": masked,
        }
    job = TrainJob.model_validate({"dataset": dataset | {"masked_loss": False}})
    report = preflight(job, Workspace(outputs=tmp_path / "outputs"), decode=True, count_tokens=len)
    assert not any(row.mask for row in report.rows)  # it has no effect
