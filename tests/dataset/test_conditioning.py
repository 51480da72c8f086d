"""Masks and control images are paired by name; missing, extra, differing and broken ones are said."""

from dataclasses import replace

import pytest

from core.dataset.preflight import preflight
from core.dataset.sources.scan import scan_dataset
from core.record.workspace import Workspace
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.validation import ValidationSettings
from core.settings.job import TrainJob


def look(folder, masks, **options):
    options = {"masked_loss": True, **options}
    return scan_dataset(DatasetSettings(folder=str(folder), conditioning_data_dir=str(masks), **options))


def pairs(found):
    return {image.relative: image.conditioning and image.conditioning.name for image in found.images}


def test_each_image_gets_the_mask_of_its_name_whatever_its_extension_and_case(tmp_path, add):
    for name in ("a.png", "b.jpg", "sub/c.png", "d.webp"):
        add(f"set/{name}")
    for name in ("a.png", "b.PNG", "sub/c.jpg", "D.png"):
        add(f"masks/{name}")
    found = look(tmp_path / "set", tmp_path / "masks")
    assert pairs(found) == {"a.png": "a.png", "b.jpg": "b.PNG", "d.webp": "D.png", "sub/c.png": "c.jpg"}
    assert not found.problems


def test_masks_of_one_flat_folder_serve_images_in_sub_folders(tmp_path, add):
    add("set/sub/a.png")
    add("masks/a.png")
    assert pairs(look(tmp_path / "set", tmp_path / "masks")) == {"sub/a.png": "a.png"}


def test_masks_mirror_folders_with_repeats_so_that_equal_names_do_not_mix(tmp_path, add):
    add("set/2_fox/a.png", 40, 30)
    add("set/3_cat/a.png", 50, 30)
    add("masks/2_fox/a.png", 40, 30)
    add("masks/3_cat/a.png", 50, 30)
    found = look(tmp_path / "set", tmp_path / "masks")
    assert [image.conditioning.parent.name for image in found.images] == ["2_fox", "3_cat"]
    assert not found.problems


def test_a_mask_of_the_same_extension_comes_before_another(tmp_path, add):
    add("set/a.webp")
    add("masks/a.png")
    add("masks/a.webp")
    found = look(tmp_path / "set", tmp_path / "masks")
    assert pairs(found) == {"a.webp": "a.webp"} and "a.png" in found.problems[0].what


def test_missing_and_extra_masks_are_listed_as_advice(tmp_path, add):
    for name in ("a.png", "b.png"):
        add(f"set/{name}")
    for name in ("a.png", "c.png"):
        add(f"masks/{name}")
    found = look(tmp_path / "set", tmp_path / "masks", masked_loss=True)
    assert pairs(found) == {"a.png": "a.png", "b.png": None}
    missing, extra = found.problems
    assert "1 of 2 images" in missing.what and "b.png" in missing.what
    assert extra.code == "mask.unmatched" and "1 file" in extra.what and "c.png" in extra.what
    assert (missing.level, extra.level) == ("advice", "advice")


def test_a_mask_of_another_size_is_said_to_be_resized(tmp_path, add):
    add("set/a.png", 64, 48)
    add("masks/a.png", 32, 24)
    (problem,) = look(tmp_path / "set", tmp_path / "masks").problems
    assert "a.png (32 x 24 for 64 x 48)" in problem.what and "resized" in problem.what and problem.level == "advice"


def test_masks_inside_the_image_folder_do_not_train(tmp_path, add):
    add("set/a.png")
    add("set/masks/a.png")
    assert pairs(look(tmp_path / "set", tmp_path / "set/masks")) == {"a.png": "a.png"}


@pytest.mark.parametrize(("skip", "level"), [(False, "error"), (True, "advice")])
def test_a_broken_mask_is_named_and_its_image_does_not_train_as_a_whole(tmp_path, add, skip, level):
    add("set/a.png")
    add("set/b.png")
    add("masks/b.png")
    (tmp_path / "masks/a.png").write_bytes(b"no image")
    found = look(tmp_path / "set", tmp_path / "masks", skip_broken=skip)
    assert pairs(found) == {"b.png": "b.png"}
    ((image, why),) = found.left_out
    assert image.relative == "a.png" and "mask" in why
    assert found.problems[0].level == level and "a.png" in found.problems[0].what


@pytest.mark.parametrize(("skip", "level"), [(False, "error"), (True, "advice")])
def test_control_images_are_paired_like_masks_and_needed(tmp_path, add, skip, level):
    for name in ("set/a.png", "set/b.png", "control/b.JPG", "control/c.png"):
        add(name)
    dataset = DatasetSettings(
        folder=str(tmp_path / "set"), conditioning_data_dir=str(tmp_path / "control"), skip_broken=skip
    )
    asked = [replace(each, control=True) for each in concepts(dataset, CaptionSettings(), ValidationSettings())]
    found = scan_dataset(dataset, asked)
    assert [(each.relative, each.conditioning, each.control.name) for each in found.images] == [
        ("b.png", None, "b.JPG")
    ]
    assert [image.relative for image, _ in found.left_out] == ["a.png"]
    assert [(each.code, each.level) for each in found.problems] == [
        ("control.missing", level),
        ("control.unmatched", "advice"),
    ]


def test_a_mask_folder_that_is_not_there_is_an_error_and_the_images_are_still_listed(tmp_path, add):
    add("set/a.png")
    found = look(tmp_path / "set", tmp_path / "nowhere")
    (problem,) = found.problems
    assert problem.code == "dataset.missing-folder" and problem.level == "error" and len(found.images) == 1
    (problem,) = look(tmp_path / "set", tmp_path / "set/a.png").problems
    assert problem.code == "dataset.not-a-folder"


@pytest.mark.parametrize(("skip", "level"), [(False, "error"), (True, "advice")])
def test_a_mask_that_is_cut_off_is_found_by_the_full_decode_and_remembered(tmp_path, add, skip, level):
    for name in ("set/a.png", "set/b.png", "masks/a.png", "masks/b.png"):
        add(name)
    whole = (tmp_path / "masks/a.png").read_bytes()
    (tmp_path / "masks/a.png").write_bytes(whole[: len(whole) // 2])
    dataset = DatasetSettings(
        folder=str(tmp_path / "set"), conditioning_data_dir=str(tmp_path / "masks"), masked_loss=True, skip_broken=skip
    )
    job, workspace = TrainJob(dataset=dataset), Workspace.of(tmp_path / "outputs")
    assert preflight(job, workspace).trained == 2  # its header is whole
    for decode in (True, False):
        report = preflight(job, workspace, decode=decode)
        assert {row.key[1]: row.why for row in report.rows if not row.trains} == {
            "a.png": "has a mask, a.png, that is truncated"
        }
        (problem,) = [problem for problem in report.problems if "mask" in problem.what]
        assert problem.level == level and "a.png" in problem.where
