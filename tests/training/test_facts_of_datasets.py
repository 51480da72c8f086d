"""What a file says of the folders it was trained with (ss_dataset_dirs, ss_tag_frequency, ss_bucket_info, ss_datasets)."""

from dataclasses import replace

import pytest

from core.dataset.buckets.placing import place
from core.dataset.captions.files import Caption
from core.training.saving.facts import buckets_of, datasets_of, folders_of, tags_of
from tests.dataset.test_placing import folders, image

CAPTIONS = {"f0": "Fox, snow, fox", "f1": "dog"}


def placed(*sources, **dataset):
    """Two images of the first folder (repeated three times) and one of the second, each at its first size."""
    images = [image(1, size=(512, 512)), image(2, size=(640, 384)), image(1, 1)]
    repeated = [replace(each, repeats=3 if each.concept == 0 else 1) for each in images]
    found = place(
        repeated,
        folders(*sources, **dataset),
        lambda each: Caption(CAPTIONS[each.source], "txt", each.path),
    )
    return found.placed


def test_images_repeats_and_tags_are_counted_by_folder_and_regularization_apart():
    both = placed({}, {"role": "regularization"})
    assert folders_of(both) == {"f0": {"n_repeats": 3, "img_count": 2}, "f1": {"n_repeats": 1, "img_count": 1}}
    assert list(folders_of(both, regularization=False)) == ["f0"]
    assert list(folders_of(both, regularization=True)) == ["f1"]
    assert tags_of(both) == {"f0": {"fox": 2, "snow": 2}, "f1": {"dog": 1}}


@pytest.mark.parametrize(
    ("settings", "tags"),
    [
        ({}, {"fox", "snow"}),
        ({"caption_lines": "all"}, {"fox", "snow", "a fox in snow"}),
        ({"caption_lines": "random"}, {"fox", "snow", "a fox in snow"}),
        ({"enable_wildcard": True}, {"fox", "snow", "a fox in snow"}),
    ],
)
def test_tags_are_those_of_the_caption_lines_that_are_trained(monkeypatch, settings, tags):
    monkeypatch.setitem(CAPTIONS, "f1", "fox, snow\nA fox in snow")
    assert tags_of(placed({}, settings))["f1"].keys() == tags


@pytest.mark.parametrize(
    ("caption", "settings"),
    [
        ("fox ||| snow, hat", {"keep_tokens_separator": "|||"}),
        ("fox, snow;;;hat", {"secondary_separator": ";;;"}),
        ("fox; snow; hat", {"caption_separator": ";"}),
    ],
)
def test_tags_are_divided_at_the_separators_of_the_folder(monkeypatch, caption, settings):
    monkeypatch.setitem(CAPTIONS, "f1", caption)
    assert tags_of(placed({}, settings))["f1"].keys() == {"fox", "snow", "hat"}


def test_an_image_at_two_sizes_counts_once():
    twice = placed({}, {})
    doubled = [*twice, replace(twice[0], variant="256x256")]
    assert folders_of(doubled) == folders_of(twice) and tags_of(doubled) == tags_of(twice)


def test_buckets_count_views_and_errors_count_images():
    one, wide, _ = placed({}, {})
    assert wide.placement.bucket == (640, 384)
    found = buckets_of([one, one, one, wide])
    assert found["buckets"] == {
        "0": {"resolution": [512, 512], "count": 3},
        "1": {"resolution": [640, 384], "count": 1},
    }
    assert found["mean_img_ar_error"] == 0
    narrow = replace(wide, image=replace(wide.image, width=600))
    error = abs(640 / 384 - 600 / 384)
    assert buckets_of([one, narrow])["mean_img_ar_error"] == pytest.approx(error / 2)
    assert buckets_of([]) == {"buckets": {}, "mean_img_ar_error": 0}


def test_folders_without_settings_of_their_own_need_no_entry():
    both = placed({}, {"role": "regularization"})
    assert datasets_of(both, both) == []


def test_folders_that_share_sizes_and_batches_are_one_dataset_and_each_keeps_its_settings():
    both = placed({"flip_aug": True, "keep_tokens": 2}, {"role": "regularization"})
    (one,) = datasets_of(both, [both[0], *both])
    assert (one["num_train_images"], one["num_reg_images"]) == (3, 1)
    assert one["resolution"] == [512, 512] and one["is_dreambooth"] and one["batch_size_per_device"] == 1
    assert one["tag_frequency"] == tags_of(both) and one["bucket_info"] == buckets_of([both[0], *both])
    first, second = one["subsets"]
    assert (first["img_count"], first["num_repeats"], first["image_dir"], first["is_reg"]) == (2, 3, "f0", False)
    assert (second["img_count"], second["num_repeats"], second["image_dir"], second["is_reg"]) == (1, 1, "f1", True)
    assert (first["flip_aug"], first["keep_tokens"]) == (True, 2)
    assert (second["flip_aug"], second["keep_tokens"]) == (False, 0)


@pytest.mark.parametrize("own", [{"train_batch_size": 2}, {"resolution": (640, 384)}])
def test_other_batches_or_another_resolution_are_another_dataset(own):
    both = placed({}, own)
    first, second = datasets_of(both, both)
    assert [len(each["subsets"]) for each in (first, second)] == [1, 1]
    assert (first["num_train_images"], second["num_train_images"]) == (2, 1)
    assert second["batch_size_per_device"] == own.get("train_batch_size", 1)
    assert second["resolution"] == list(own.get("resolution", (512, 512)))
    assert list(second["tag_frequency"]) == ["f1"]
