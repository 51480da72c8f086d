"""Every row of the accept and reject lists: the problem reported for it, with table path and line."""

import pytest

from core.imports.dataset_config import _nearest_option, read_dataset_config
from core.imports.dataset_options import GENERAL, INTERPOLATIONS
from core.record.problems import errors

HEAD = "[[datasets]]\nresolution = 512\n"


def told(tmp_path, text, name="set.toml"):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return read_dataset_config(path)


def subset(*lines, dataset=(), general=()):
    """A file with one folder; the folder's own lines begin at line 5 if there is nothing above."""
    rows = (["[general]", *general] if general else []) + ["[[datasets]]", "resolution = 512", *dataset]
    return "\n".join([*rows, "[[datasets.subsets]]", "image_dir = '/set'", *lines]) + "\n"


REFUSED = {  # sd-scripts' message -> (file, table path and line, code, what the fix names)
    "required key not provided: image_dir": (
        HEAD + "[[datasets.subsets]]\nnum_repeats = 2\n",
        "line 3, datasets[0].subsets[0]",
        "missing-path",
        "image_dir",
    ),
    "required key not provided: a misspelt one": (
        HEAD + "[[datasets.subsets]]\nimage_dri = '/set'\n",
        "line 4, datasets[0].subsets[0].image_dri",
        "unknown-option",
        "image_dir",
    ),
    "required key not provided: conditioning without images": (
        HEAD + "[[datasets.subsets]]\nconditioning_data_dir = '/masks'\n",
        "line 3, datasets[0].subsets[0]",
        "missing-path",
        "image_dir",
    ),
    "an empty image_dir": (
        HEAD + "[[datasets.subsets]]\nimage_dir = ''\n",
        "line 4, datasets[0].subsets[0].image_dir",
        "empty-path",
        "folder",
    ),
    "extra keys not allowed: unknown": (
        subset("shufle_caption = true"),
        "line 5, datasets[0].subsets[0].shufle_caption",
        "unknown-option",
        "shuffle_caption",
    ),
    "extra keys not allowed: top level": (
        "generall = 1\n" + subset(),
        "line 1, generall",
        "unknown-table",
        "general",
    ),
    "extra keys not allowed: batch_size in a subset": (
        subset("batch_size = 2"),
        "line 5, datasets[0].subsets[0].batch_size",
        "misplaced-option",
        "[general] or [[datasets]]",
    ),
    "extra keys not allowed: resolution in a subset": (
        subset("resolution = 768"),
        "line 5, datasets[0].subsets[0].resolution",
        "misplaced-option",
        "[general] or [[datasets]]",
    ),
    "extra keys not allowed: validation_split in a subset": (
        subset("validation_split = 0.1"),
        "line 5, datasets[0].subsets[0].validation_split",
        "misplaced-option",
        "[general] or [[datasets]]",
    ),
    "extra keys not allowed: is_reg above the subset": (
        subset(dataset=["is_reg = true"]),
        "line 3, datasets[0].is_reg",
        "misplaced-option",
        "[[datasets.subsets]]",
    ),
    "extra keys not allowed: alpha_mask in general": (
        subset(general=["alpha_mask = true"]),
        "line 2, general.alpha_mask",
        "misplaced-option",
        "[[datasets.subsets]]",
    ),
    "extra keys not allowed: image_dir of a dataset": (
        subset(dataset=["image_dir = '/set'"]),
        "line 3, datasets[0].image_dir",
        "misplaced-option",
        "[[datasets.subsets]]",
    ),
    "extra keys not allowed: caption_extension in a fine-tuning subset": (
        subset("metadata_file = '/m.json'", "caption_extension = '.txt'"),
        "line 6, datasets[0].subsets[0].caption_extension",
        "wrong-dataset-kind",
        "remove",
    ),
    "extra keys not allowed: is_reg beside metadata": (
        subset("metadata_file = '/m.json'", "is_reg = true"),
        "line 6, datasets[0].subsets[0].is_reg",
        "wrong-dataset-kind",
        "remove",
    ),
    "extra keys not allowed: alpha_mask beside masks": (
        subset("conditioning_data_dir = '/m'", "alpha_mask = true"),
        "line 6, datasets[0].subsets[0].alpha_mask",
        "wrong-dataset-kind",
        "remove",
    ),
    "extra keys not allowed: conditioning_data_dir in some subsets": (
        subset("[[datasets.subsets]]", "image_dir = '/b'", "conditioning_data_dir = '/m'"),
        "line 7, datasets[0].subsets[1].conditioning_data_dir",
        "wrong-dataset-kind",
        "separate dataset",
    ),
    "DreamBooth subset and fine tuning subset cannot be mixed": (
        subset("[[datasets.subsets]]", "image_dir = '/b'", "metadata_file = '/m.json'"),
        "line 7, datasets[0].subsets[1].metadata_file",
        "wrong-dataset-kind",
        "two [[datasets]]",
    ),
    "expected int: text": (
        "[[datasets]]\nresolution = '512'\n[[datasets.subsets]]\nimage_dir = '/set'\n",
        "line 2, datasets[0].resolution",
        "wrong-type",
        "[768, 1024]",
    ),
    "expected int: a float": (
        "[[datasets]]\nresolution = 512.0\n[[datasets.subsets]]\nimage_dir = '/set'\n",
        "line 2, datasets[0].resolution",
        "wrong-type",
        "[768, 1024]",
    ),
    "expected int: three sides": (
        "[[datasets]]\nresolution = [1, 2, 3]\n[[datasets.subsets]]\nimage_dir = '/set'\n",
        "line 2, datasets[0].resolution",
        "wrong-type",
        "[768, 1024]",
    ),
    "expected int: 1.5": (
        subset("keep_tokens = 1.5"),
        "line 5, datasets[0].subsets[0].keep_tokens",
        "wrong-type",
        "a whole number",
    ),
    "true is not 1": (
        subset("num_repeats = true"),
        "line 5, datasets[0].subsets[0].num_repeats",
        "wrong-type",
        "true as 1",
    ),
    "expected bool: 1": (
        subset("flip_aug = 1"),
        "line 5, datasets[0].subsets[0].flip_aug",
        "wrong-type",
        "true or false",
    ),
    "expected bool: text": (
        subset('flip_aug = "true"'),
        "line 5, datasets[0].subsets[0].flip_aug",
        "wrong-type",
        "true or false",
    ),
    "expected str": (
        subset("caption_prefix = 3"),
        "line 5, datasets[0].subsets[0].caption_prefix",
        "wrong-type",
        "text in quotes",
    ),
    "expected float: text": (
        subset(dataset=['network_multiplier = "1"']),
        "line 3, datasets[0].network_multiplier",
        "wrong-type",
        "1.0",
    ),
    "expected dict": (
        subset("custom_attributes = 1"),
        "line 5, datasets[0].subsets[0].custom_attributes",
        "wrong-type",
        "{ name = value }",
    ),
    "a range with three ends": (
        subset("face_crop_aug_range = [0.1, 0.2, 0.3]"),
        "line 5, datasets[0].subsets[0].face_crop_aug_range",
        "wrong-type",
        "[0.2, 0.6]",
    ),
    "a range upside down": (
        subset("face_crop_aug_range = [0.6, 0.2]"),
        "line 5, datasets[0].subsets[0].face_crop_aug_range",
        "range-reversed",
        "swap",
    ),
    "no such interpolation": (
        subset("resize_interpolation = 'bicubik'"),
        "line 5, datasets[0].subsets[0].resize_interpolation",
        "value-out-of-range",
        "lanczos, nearest, bilinear, bicubic, area, box, linear, cubic",
    ),
    "an empty caption_separator": (
        subset("caption_separator = ''"),
        "line 5, datasets[0].subsets[0].caption_separator",
        "value-out-of-range",
        "text in quotes",
    ),
    "out of range": (
        subset("caption_dropout_rate = 1.5"),
        "line 5, datasets[0].subsets[0].caption_dropout_rate",
        "value-out-of-range",
        "0 to 1",
    ),
    "batch_size 0": (
        subset(dataset=["batch_size = 0"]),
        "line 3, datasets[0].batch_size",
        "value-out-of-range",
        "1 to 1024 (images)",
    ),
    "resolution is required": (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '/set'\n",
        "line 1, datasets[0]",
        "no-resolution",
        "resolution = 512",
    ),
    "resolution is required: metadata without sizes": (
        "[[datasets]]\n[[datasets.subsets]]\nmetadata_file = '/nowhere.json'\n",
        "line 1, datasets[0]",
        "no-resolution",
        "resolution = 512",
    ),
    "max_bucket_reso must be equal or greater than resolution": (
        "[[datasets]]\nresolution = [768, 1152]\nenable_bucket = true\n[[datasets.subsets]]\nimage_dir = '/set'\n",
        "line 1, datasets[0].max_bucket_reso",
        "max-bucket-below-resolution",
        "2304",
    ),
    "min_bucket_reso must be equal or less than resolution": (
        subset(dataset=["enable_bucket = true", "min_bucket_reso = 640"]),
        "line 4, datasets[0].min_bucket_reso",
        "min-bucket-above-resolution",
        "512",
    ),
    "random_crop with conditioning images": (
        subset("conditioning_data_dir = '/m'", general=["random_crop = true"]),
        "line 5, datasets[0].subsets[0].random_crop",
        "random-crop-with-masks",
        "turn it off",
    ),
    "an option of the command line": (
        subset(dataset=["prior_loss_weight = 0.5"]),
        "line 3, datasets[0].prior_loss_weight",
        "unknown-option",
        "dataset.prior_loss_weight",
    ),
    "the command line's name": (
        subset(dataset=["train_batch_size = 4"]),
        "line 3, datasets[0].train_batch_size",
        "unknown-option",
        "batch_size",
    ),
    "one bracket for two": (
        "[datasets]\nresolution = 512\n",
        "line 1, datasets",
        "not-an-array",
        "[[datasets]]",
    ),
    "one bracket for two, of subsets": (
        "[[datasets]]\nresolution = 512\n[datasets.subsets]\nimage_dir = '/a'\n",
        "line 3, datasets[0].subsets",
        "not-an-array",
        "[[datasets.subsets]]",
    ),
    "No data found: no dataset": (
        "[general]\nflip_aug = true\n",
        "set.toml",
        "no-dataset",
        "[[datasets]]",
    ),
    "No data found: empty subsets": (
        "[[datasets]]\nresolution = 512\nsubsets = []\n",
        "datasets",
        "no-folder",
        "[[datasets.subsets]]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_sd_scripts_refuses_is_told_with_table_line_and_remedy(tmp_path, case):
    text, where, code, named = REFUSED[case]
    found = told(tmp_path, text)
    (problem,) = errors(found.problems)
    assert problem.code == f"dataset-config.{code}" and named in problem.fix
    assert problem.where.endswith(where) and "set.toml" in problem.where
    assert found.values == {}


ACCEPTED_THERE_ONLY_WITH_A_POINT = ["network_multiplier = 1", "validation_split = 0"]


@pytest.mark.parametrize("line", ACCEPTED_THERE_ONLY_WITH_A_POINT)
def test_a_whole_number_for_a_float_is_taken_and_said(tmp_path, line):
    found = told(tmp_path, subset(dataset=[line]))
    assert not errors(found.problems)
    assert f"datasets[0].{line.split()[0]}: {line.split()[-1]} was accepted" in " ".join(found.notes)


def test_whole_numbers_pass_where_sd_scripts_takes_them(tmp_path):
    rows = ["caption_dropout_rate = 1", "caption_tag_dropout_rate = 0", "token_warmup_step = 100"]
    found = told(tmp_path, subset(*rows, dataset=["skip_image_resolution = [512, 768]"]))
    assert not found.problems and len(found.notes) == 1


ADVICE = {  # case -> (file, code, what the message names)
    "num_repeats below 1": (subset("num_repeats = 0"), "no-repeats", "num_repeats is 0"),
    "validation_split outside": (
        subset(dataset=["validation_split = 1.5"]),
        "validation-split-out-of-range",
        "validation_split is 1.5",
    ),
    "a folder twice": (
        subset("[[datasets.subsets]]", "image_dir = '/set'", "num_repeats = 3"),
        "duplicate-folder",
        "datasets[0].subsets[0]",
    ),
    "an empty dataset beside another": (subset() + "[[datasets]]\n", "dataset-without-folder", "datasets[1]"),
    "face crop with buckets": (
        subset("face_crop_aug_range = [0.2, 0.6]", dataset=["enable_bucket = true"]),
        "face-crop-with-buckets",
        "enable_bucket",
    ),
    "limits without effect": (
        subset(dataset=["enable_bucket = true", "bucket_no_upscale = true", "max_bucket_reso = 384"]),
        "max-bucket-below-resolution",
        "max_bucket_reso (384) is below the resolution 512 x 512",
    ),
    "two seeds": (
        subset(dataset=["validation_seed = 3"])
        + HEAD
        + "validation_seed = 2\n[[datasets.subsets]]\nimage_dir = '/b'\n",
        "several-validation-seeds",
        "2 is used for all",
    ),
}


@pytest.mark.parametrize("case", ADVICE)
def test_what_sd_scripts_only_warns_of_is_advice(tmp_path, case):
    text, code, named = ADVICE[case]
    found = told(tmp_path, text)
    (problem,) = found.problems
    assert (problem.code, problem.level) == (f"dataset-config.{code}", "advice") and named in problem.what
    assert found.values


def test_everything_wrong_is_told_at_once(tmp_path):
    found = told(tmp_path, "top = 1\n" + subset("flip_aug = 1", "keep_tokns = 1", dataset=["batch_size = 'x'"]))
    assert len(found.problems) == 4 and not found.values


def test_limits_count_after_rounding_to_the_step(tmp_path):
    rows = ["enable_bucket = true", "min_bucket_reso = 570", "max_bucket_reso = 500"]
    assert not told(tmp_path, subset(*[], dataset=rows)).problems  # 570 -> 512, 500 -> 512
    assert errors(told(tmp_path, subset(dataset=[*rows, "bucket_reso_steps = 8"])).problems)


def test_a_class_word_in_general_is_right_whatever_the_datasets_are(tmp_path):
    text = subset("metadata_file = '/m.json'", general=["class_tokens = 'fox'", "caption_extension = '.txt'"])
    assert not told(tmp_path, text).problems


@pytest.mark.parametrize(
    ("theirs", "option"),
    [
        ("train_batch_size", "batch_size"),
        ("dataset_repeats", "num_repeats"),
        ("min_bucket_resolution", "min_bucket_reso"),
    ],
)
def test_names_of_the_command_line_and_near_ones_are_told_by_their_name_in_the_file(theirs, option):
    assert _nearest_option(theirs, GENERAL, "DreamBooth") == option


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("linear", "bilinear"), ("cubic", "bicubic")]
    + [(name, name) for name in ("lanczos", "nearest", "bilinear", "bicubic", "area", "box")],
)
def test_each_interpolation_of_sd_scripts_is_one_of_ours(theirs, ours):
    assert INTERPOLATIONS[theirs] == ours
