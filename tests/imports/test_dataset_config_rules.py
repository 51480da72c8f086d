"""Every row of the accept and reject lists: what a person reads when a dataset file has it, with table path and line."""

import pytest

from core.imports.dataset_config import read_dataset_config
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


REFUSED = {  # sd-scripts' words for it -> (file, table path and line, what is said, what to do)
    "required key not provided: image_dir": (
        HEAD + "[[datasets.subsets]]\nnum_repeats = 2\n",
        "line 3, datasets[0].subsets[0]",
        "datasets[0].subsets[0] has no image_dir.",
        "Give it: image_dir = 'path'.",
    ),
    "required key not provided: a misspelt one": (
        HEAD + "[[datasets.subsets]]\nimage_dri = '/set'\n",
        "line 4, datasets[0].subsets[0].image_dri",
        "datasets[0].subsets[0].image_dri is no option of sd-scripts' dataset files.",
        "Did you mean image_dir?",
    ),
    "required key not provided: conditioning without images": (
        HEAD + "[[datasets.subsets]]\nconditioning_data_dir = '/masks'\n",
        "line 3, datasets[0].subsets[0]",
        "datasets[0].subsets[0] has no image_dir.",
        "Give it: image_dir = 'path'.",
    ),
    "an empty image_dir": (
        HEAD + "[[datasets.subsets]]\nimage_dir = ''\n",
        "line 4, datasets[0].subsets[0].image_dir",
        "datasets[0].subsets[0] has an empty image_dir.",
        "Give the folder or file.",
    ),
    "extra keys not allowed: unknown": (
        subset("shufle_caption = true"),
        "line 5, datasets[0].subsets[0].shufle_caption",
        "datasets[0].subsets[0].shufle_caption is no option of sd-scripts' dataset files.",
        "Did you mean shuffle_caption?",
    ),
    "extra keys not allowed: top level": (
        "generall = 1\n" + subset(),
        "line 1, generall",
        "'generall' has no place at the top of the file.",
        "Did you mean general?",
    ),
    "extra keys not allowed: batch_size in a subset": (
        subset("batch_size = 2"),
        "line 5, datasets[0].subsets[0].batch_size",
        "batch_size has no place in [[datasets.subsets]].",
        "Move it to [general] or [[datasets]].",
    ),
    "extra keys not allowed: resolution in a subset": (
        subset("resolution = 768"),
        "line 5, datasets[0].subsets[0].resolution",
        "resolution has no place in [[datasets.subsets]].",
        "Move it to [general] or [[datasets]].",
    ),
    "extra keys not allowed: validation_split in a subset": (
        subset("validation_split = 0.1"),
        "line 5, datasets[0].subsets[0].validation_split",
        "validation_split has no place in [[datasets.subsets]].",
        "Move it to [general] or [[datasets]].",
    ),
    "extra keys not allowed: is_reg above the subset": (
        subset(dataset=["is_reg = true"]),
        "line 3, datasets[0].is_reg",
        "is_reg has no place in [[datasets]].",
        "Move it to [[datasets.subsets]].",
    ),
    "extra keys not allowed: alpha_mask in general": (
        subset(general=["alpha_mask = true"]),
        "line 2, general.alpha_mask",
        "alpha_mask has no place in [general].",
        "Move it to [[datasets.subsets]].",
    ),
    "extra keys not allowed: image_dir of a dataset": (
        subset(dataset=["image_dir = '/set'"]),
        "line 3, datasets[0].image_dir",
        "image_dir has no place in [[datasets]].",
        "Move it to [[datasets.subsets]].",
    ),
    "extra keys not allowed: caption_extension in a fine-tuning subset": (
        subset("metadata_file = '/m.json'", "caption_extension = '.txt'"),
        "line 6, datasets[0].subsets[0].caption_extension",
        "caption_extension has no place here: captions come from the metadata file.",
        "Remove it.",
    ),
    "extra keys not allowed: is_reg beside metadata": (
        subset("metadata_file = '/m.json'", "is_reg = true"),
        "line 6, datasets[0].subsets[0].is_reg",
        "Regularization (is_reg) is for DreamBooth datasets: it takes neither metadata nor masks.",
        "Remove it.",
    ),
    "extra keys not allowed: alpha_mask beside masks": (
        subset("conditioning_data_dir = '/m'", "alpha_mask = true"),
        "line 6, datasets[0].subsets[0].alpha_mask",
        "alpha_mask cannot stand beside a conditioning_data_dir: the masks come from that folder.",
        "Remove it.",
    ),
    "extra keys not allowed: conditioning_data_dir in some subsets": (
        subset("[[datasets.subsets]]", "image_dir = '/b'", "conditioning_data_dir = '/m'"),
        "line 7, datasets[0].subsets[1].conditioning_data_dir",
        "In a dataset either every folder has a conditioning_data_dir or none has.",
        "Put the others into a dataset of their own.",
    ),
    "DreamBooth subset and fine tuning subset cannot be mixed": (
        subset("[[datasets.subsets]]", "image_dir = '/b'", "metadata_file = '/m.json'"),
        "line 7, datasets[0].subsets[1].metadata_file",
        "Folders with a metadata_file and folders without one cannot be mixed in one dataset.",
        "Put them into two [[datasets]].",
    ),
    "expected int: text": (
        "[[datasets]]\nresolution = '512'\n[[datasets.subsets]]\nimage_dir = '/set'\n",
        "line 2, datasets[0].resolution",
        'resolution is "512", which is not a whole number, or two in brackets.',
        "Write a whole number, or two in brackets: [768, 1024].",
    ),
    "expected int: a float": (
        "[[datasets]]\nresolution = 512.0\n[[datasets.subsets]]\nimage_dir = '/set'\n",
        "line 2, datasets[0].resolution",
        "resolution is 512.0, which is not a whole number, or two in brackets.",
        "Write a whole number, or two in brackets: [768, 1024].",
    ),
    "expected int: three sides": (
        "[[datasets]]\nresolution = [1, 2, 3]\n[[datasets.subsets]]\nimage_dir = '/set'\n",
        "line 2, datasets[0].resolution",
        "resolution is [1, 2, 3], which is not a whole number, or two in brackets.",
        "Write a whole number, or two in brackets: [768, 1024].",
    ),
    "expected int: 1.5": (
        subset("keep_tokens = 1.5"),
        "line 5, datasets[0].subsets[0].keep_tokens",
        "keep_tokens is 1.5, which is not a whole number.",
        "Write a whole number.",
    ),
    "true is not 1": (
        subset("num_repeats = true"),
        "line 5, datasets[0].subsets[0].num_repeats",
        "num_repeats is true, which is not a whole number.",
        "Write a whole number; sd-scripts would take true for 1.",
    ),
    "expected bool: 1": (
        subset("flip_aug = 1"),
        "line 5, datasets[0].subsets[0].flip_aug",
        "flip_aug is 1, which is not true or false.",
        "Write true or false.",
    ),
    "expected bool: text": (
        subset('flip_aug = "true"'),
        "line 5, datasets[0].subsets[0].flip_aug",
        'flip_aug is "true", which is not true or false.',
        "Write true or false.",
    ),
    "expected str": (
        subset("caption_prefix = 3"),
        "line 5, datasets[0].subsets[0].caption_prefix",
        "caption_prefix is 3, which is not text in quotes.",
        "Write text in quotes.",
    ),
    "expected float: text": (
        subset(dataset=['network_multiplier = "1"']),
        "line 3, datasets[0].network_multiplier",
        'network_multiplier is "1", which is not a number with a point, such as 1.0.',
        "Write a number with a point, such as 1.0.",
    ),
    "expected dict": (
        subset("custom_attributes = 1"),
        "line 5, datasets[0].subsets[0].custom_attributes",
        "custom_attributes is 1, which is not a table.",
        "Write a table: { name = value }.",
    ),
    "a range with three ends": (
        subset("face_crop_aug_range = [0.1, 0.2, 0.3]"),
        "line 5, datasets[0].subsets[0].face_crop_aug_range",
        "face_crop_aug_range is [0.1, 0.2, 0.3], which is not two numbers in brackets.",
        "Write two numbers in brackets: [0.2, 0.6].",
    ),
    "a range upside down": (
        subset("face_crop_aug_range = [0.6, 0.2]"),
        "line 5, datasets[0].subsets[0].face_crop_aug_range",
        "face_crop_aug_range is [0.6, 0.2]: the first is above the second.",
        "Swap the two numbers.",
    ),
    "no such interpolation": (
        subset("resize_interpolation = 'bicubik'"),
        "line 5, datasets[0].subsets[0].resize_interpolation",
        'resize_interpolation is "bicubik".',
        "Use one of lanczos, nearest, bilinear, bicubic, area, box, linear, cubic.",
    ),
    "an empty caption_separator": (
        subset("caption_separator = ''"),
        "line 5, datasets[0].subsets[0].caption_separator",
        'caption_separator is "".',
        "Use text in quotes.",
    ),
    "out of range": (
        subset("caption_dropout_rate = 1.5"),
        "line 5, datasets[0].subsets[0].caption_dropout_rate",
        "caption_dropout_rate is 1.5.",
        "Use a number, 0 to 1.",
    ),
    "batch_size 0": (
        subset(dataset=["batch_size = 0"]),
        "line 3, datasets[0].batch_size",
        "batch_size is 0.",
        "Use a whole number, 1 to 1024 (images).",
    ),
    "resolution is required": (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '/set'\n",
        "line 1, datasets[0]",
        "datasets[0] has no resolution.",
        "Add resolution = 512, or the size that you train at.",
    ),
    "resolution is required: metadata without sizes": (
        "[[datasets]]\n[[datasets.subsets]]\nmetadata_file = '/nowhere.json'\n",
        "line 1, datasets[0]",
        "datasets[0] has no resolution.",
        "Add resolution = 512, or the size that you train at.",
    ),
    "max_bucket_reso must be equal or greater than resolution": (
        "[[datasets]]\nresolution = [768, 1152]\nenable_bucket = true\n[[datasets.subsets]]\nimage_dir = '/set'\n",
        "line 1, datasets[0].max_bucket_reso",
        "max_bucket_reso (1024; what sd-scripts takes where none is given) is below the resolution 768 x 1152.",
        "Set max_bucket_reso to 2304.",
    ),
    "min_bucket_reso must be equal or less than resolution": (
        subset(dataset=["enable_bucket = true", "min_bucket_reso = 640"]),
        "line 4, datasets[0].min_bucket_reso",
        "min_bucket_reso (640) is above the resolution 512 x 512.",
        "Set min_bucket_reso to 512 or less.",
    ),
    "random_crop with conditioning images": (
        subset("conditioning_data_dir = '/m'", general=["random_crop = true"]),
        "line 5, datasets[0].subsets[0].random_crop",
        "random_crop cannot be used with a conditioning_data_dir.",
        "Switch it off for this folder.",
    ),
    "an option of the command line": (
        subset(dataset=["prior_loss_weight = 0.5"]),
        "line 3, datasets[0].prior_loss_weight",
        "datasets[0].prior_loss_weight is no option of sd-scripts' dataset files.",
        "It belongs to sd-scripts' command line; here it is the setting dataset.prior_loss_weight. Remove it.",
    ),
    "the command line's name": (
        subset(dataset=["train_batch_size = 4"]),
        "line 3, datasets[0].train_batch_size",
        "datasets[0].train_batch_size is no option of sd-scripts' dataset files.",
        "Did you mean batch_size?",
    ),
    "one bracket for two": (
        "[datasets]\nresolution = 512\n",
        "line 1, datasets",
        "datasets is not a list of tables.",
        "Write [[datasets]], with two brackets.",
    ),
    "one bracket for two, of subsets": (
        "[[datasets]]\nresolution = 512\n[datasets.subsets]\nimage_dir = '/a'\n",
        "line 3, datasets[0].subsets",
        "datasets[0].subsets is not a list of tables.",
        "Write [[datasets.subsets]], with two brackets.",
    ),
    "No data found: no dataset": (
        "[general]\nflip_aug = true\n",
        "set.toml",
        "The file has no dataset.",
        "Write [[datasets]], and [[datasets.subsets]] for each folder.",
    ),
    "No data found: empty subsets": (
        "[[datasets]]\nresolution = 512\nsubsets = []\n",
        "datasets",
        "The file names no folder.",
        "Add [[datasets.subsets]] with an image_dir.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_sd_scripts_refuses_is_told_with_table_line_and_remedy(tmp_path, case):
    text, where, what, fix = REFUSED[case]
    found = told(tmp_path, text)
    assert [(problem.what, problem.fix) for problem in errors(found.problems)] == [(what, fix)]
    assert errors(found.problems)[0].where.endswith(where) and "set.toml" in errors(found.problems)[0].where
    assert found.values == {}


ACCEPTED_THERE_ONLY_WITH_A_POINT = ["network_multiplier = 1", "validation_split = 0"]


@pytest.mark.parametrize("line", ACCEPTED_THERE_ONLY_WITH_A_POINT)
def test_a_whole_number_for_a_float_is_taken_and_said(tmp_path, line):
    found = told(tmp_path, subset(dataset=[line]))
    assert not errors(found.problems)
    assert f"datasets[0].{line.split()[0]}: {line.split()[-1]} was taken" in " ".join(found.notes)


def test_whole_numbers_pass_where_sd_scripts_takes_them(tmp_path):
    rows = ["caption_dropout_rate = 1", "caption_tag_dropout_rate = 0", "token_warmup_step = 100"]
    found = told(tmp_path, subset(*rows, dataset=["skip_image_resolution = 768"]))
    assert not found.problems and len(found.notes) == 1


ADVICE = {
    "num_repeats below 1": (subset("num_repeats = 0"), "num_repeats is 0: the folder is left out, as by sd-scripts."),
    "validation_split outside": (
        subset(dataset=["validation_split = 1.5"]),
        "validation_split is 1.5: outside 0 to 1 nothing is held out.",
    ),
    "a folder twice": (
        subset("[[datasets.subsets]]", "image_dir = '/set'", "num_repeats = 3"),
        "This folder stands in datasets[0] already; it counts once, as in datasets[0].subsets[0].",
    ),
    "an empty dataset beside another": (subset() + "[[datasets]]\n", "datasets[1] has no folder."),
    "face crop with buckets": (
        subset("face_crop_aug_range = [0.2, 0.6]", dataset=["enable_bucket = true"]),
        "face_crop_aug_range has no effect while enable_bucket is on.",
    ),
    "limits without effect": (
        subset(dataset=["enable_bucket = true", "bucket_no_upscale = true", "max_bucket_reso = 384"]),
        "max_bucket_reso (384) is below the resolution 512 x 512.",
    ),
    "two seeds": (
        subset(dataset=["validation_seed = 3"])
        + HEAD
        + "validation_seed = 2\n[[datasets.subsets]]\nimage_dir = '/b'\n",
        "Datasets have different values of validation_seed; one holds for all here: 2.",
    ),
}


@pytest.mark.parametrize("case", ADVICE)
def test_what_sd_scripts_only_warns_of_is_advice(tmp_path, case):
    text, what = ADVICE[case]
    found = told(tmp_path, text)
    assert [(problem.what, problem.level) for problem in found.problems] == [(what, "advice")]
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
