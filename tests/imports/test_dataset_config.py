"""Dataset files of sd-scripts read into a job: inheritance, kinds of dataset, paths, encodings, lines."""

import codecs
import json
import os
import time
import tracemalloc

import pytest

from core.imports.dataset_config import apply_dataset_config, read_dataset_config
from core.imports.dataset_text import json_lines, toml_lines
from core.record import allowed
from core.record.problems import ProblemsError, errors
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob

EXAMPLE = r"""
[general]
caption_extension = ".txt"
shuffle_caption = true
keep_tokens = 1

[[datasets]]                 # DreamBooth-style
resolution = [1024, 1024]
batch_size = 2
enable_bucket = true
max_bucket_reso = 2048
  [[datasets.subsets]]
  image_dir = 'D:\train\hero'
  class_tokens = "sks hero"
  num_repeats = 10
  keep_tokens = 0
  [[datasets.subsets]]
  is_reg = true
  image_dir = 'D:\reg\person'
  class_tokens = "person"

[[datasets]]                 # fine-tuning style, other resolution
resolution = 768
shuffle_caption = false
  [[datasets.subsets]]
  image_dir = 'D:\ft'
  metadata_file = 'D:\ft\meta.json'
"""


def written(tmp_path, text, name="set.toml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def one(tmp_path, *rows, job=None):
    """The only folder of a file with these lines in its subset."""
    text = "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = '/set'\n" + "\n".join(rows)
    job, report = apply_dataset_config(job or TrainJob(), written(tmp_path, text))
    return concepts_of(job)[0], job, report


def test_each_folder_has_what_its_table_its_dataset_and_general_say_in_this_order(tmp_path):
    job, report = apply_dataset_config(TrainJob(), written(tmp_path, EXAMPLE))
    hero, person, listed = concepts_of(job)
    assert [each.source.folder for each in (hero, person, listed)] == ["D:\\train\\hero", "D:\\reg\\person", "D:\\ft"]
    assert [each.captions.keep_tokens for each in (hero, person, listed)] == [0, 1, 1]
    assert [each.captions.shuffle_caption for each in (hero, person, listed)] == [True, True, False]
    assert [each.images.resolution for each in (hero, person, listed)] == [1024, 1024, 768]
    assert [each.images.train_batch_size for each in (hero, person, listed)] == [2, 2, 1]
    assert [each.role for each in (hero, person, listed)] == ["train", "regularization", "train"]
    assert [each.source.num_repeats for each in (hero, person, listed)] == [10, 1, 1]
    assert listed.source.metadata_file == "D:\\ft\\meta.json"
    assert report.problems == [] and report.notes == ["3 folders in 2 datasets."]


def test_datasets_never_share_batches_and_folders_of_one_do(tmp_path):
    text = EXAMPLE.replace("batch_size = 2", "").replace(
        "resolution = 768", "resolution = 1024\nmax_bucket_reso = 2048"
    )
    groups = [each.batch_group for each in concepts_of(apply_dataset_config(TrainJob(), written(tmp_path, text))[0])]
    assert groups[0] == groups[1] != groups[2]


def test_defaults_are_those_of_sd_scripts_not_ours(tmp_path):
    concept, job, _ = one(tmp_path)
    images, captions, source = concept.images, concept.captions, concept.source
    assert (images.enable_bucket, images.max_bucket_reso, images.min_bucket_reso) == (False, 1024, 256)
    assert (captions.caption_extension, source.num_repeats, source.class_tokens) == (".caption", 1, "")
    assert source.recursive is False, "image_dir takes no sub-folders"
    assert job.dataset.folder is None and not images.masked_loss


def test_a_number_in_front_of_the_folders_name_does_not_count(tmp_path):
    text = "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = '/sets/10_fox'\n"
    source = apply_dataset_config(TrainJob(), written(tmp_path, text))[0].dataset.sources[0]
    assert (source.num_repeats, source.class_tokens) == (1, "")


def test_what_all_folders_share_stands_in_the_common_groups_and_what_differs_on_each(tmp_path):
    job, _ = apply_dataset_config(TrainJob(), written(tmp_path, EXAMPLE))
    assert job.captions.caption_extension == ".txt" and job.dataset.sources[0].caption_extension is None
    assert [source.keep_tokens for source in job.dataset.sources] == [0, 1, 1]


def test_no_prefix_on_one_folder_is_kept_where_the_others_have_one(tmp_path):
    rows = ["caption_prefix = ''", "[[datasets.subsets]]", "image_dir = '/b'"]
    text = "[general]\ncaption_prefix = 'x,'\n[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = '/a'\n"
    job, _ = apply_dataset_config(TrainJob(), written(tmp_path, text + "\n".join(rows)))
    assert [each.captions.caption_prefix for each in concepts_of(job)] == [None, "x,"]


def test_every_option_of_a_folder_arrives(tmp_path):
    rows = """class_tokens = "a fox"
caption_extension = "txt"
cache_info = true
alpha_mask = true
num_repeats = 7
shuffle_caption = true
caption_separator = ";"
keep_tokens = 2
keep_tokens_separator = "|||"
secondary_separator = ";;;"
enable_wildcard = true
caption_prefix = "pre,"
caption_suffix = ", suf"
caption_dropout_rate = 0.1
caption_dropout_every_n_epochs = 3
caption_tag_dropout_rate = 0.2
token_warmup_min = 4
token_warmup_step = 0.5
color_aug = true
flip_aug = true
face_crop_aug_range = [0.2, 0.6]
random_crop = true
resize_interpolation = "cubic"
custom_attributes = { diff_output_preservation = true }"""
    concept, _, _ = one(tmp_path, rows)
    images, captions, source = concept.images, concept.captions, concept.source
    assert (source.class_tokens, source.cache_info, source.num_repeats) == ("a fox", True, 7)
    assert source.diff_output_preservation and source.custom_attributes == {}
    assert (captions.caption_extension, captions.caption_separator, captions.keep_tokens) == (".txt", ";", 2)
    assert (captions.keep_tokens_separator, captions.secondary_separator) == ("|||", ";;;")
    assert (captions.enable_wildcard, captions.shuffle_caption) == (True, True)
    assert (captions.caption_prefix, captions.caption_suffix) == ("pre,", ", suf")
    assert (captions.caption_dropout_rate, captions.caption_dropout_every_n_epochs) == (0.1, 3)
    assert (captions.caption_tag_dropout_rate, captions.token_warmup_min, captions.token_warmup_step) == (0.2, 4, 0.5)
    assert (images.color_aug, images.flip_aug, images.random_crop, images.alpha_mask) == (True,) * 4
    assert (images.face_crop_aug_range, images.resize_interpolation) == ((0.2, 0.6), "bicubic")


def test_every_option_of_a_dataset_arrives(tmp_path):
    rows = """[general]
validation_seed = 5
[[datasets]]
resolution = [512, 768]
batch_size = 3
enable_bucket = true
min_bucket_reso = 320
max_bucket_reso = 1280
bucket_reso_steps = 32
bucket_no_upscale = true
network_multiplier = 0.5
validation_split = 0.25
skip_image_resolution = [200, 450]
  [[datasets.subsets]]
  image_dir = '/set'
"""
    job, _ = apply_dataset_config(TrainJob(), written(tmp_path, rows))
    images = concepts_of(job)[0].images
    assert (images.resolution, images.train_batch_size, images.enable_bucket) == ((512, 768), 3, True)
    assert (images.min_bucket_reso, images.max_bucket_reso, images.bucket_reso_steps) == (320, 1280, 32)
    assert (images.bucket_no_upscale, images.network_multiplier) == (True, 0.5)
    assert (images.skip_image_resolution, job.validation.validation_split) == (300, 0.25)
    assert job.validation.validation_seed == 5


def test_a_mask_folder_switches_the_masks_on_as_sd_scripts_needs_it(tmp_path):
    concept, _, report = one(tmp_path, "conditioning_data_dir = '/masks'")
    assert concept.images.masked_loss and concept.images.conditioning_data_dir == "/masks"
    assert any("--masked_loss" in note for note in report.notes)


def test_sizes_in_the_metadata_stand_for_the_resolution(tmp_path):
    entries = {"a": {"train_resolution": [512, 768]}, "b": {"train_resolution": [640, 640]}}
    (tmp_path / "meta.json").write_text(json.dumps(entries))
    text = f"[[datasets]]\n[[datasets.subsets]]\nmetadata_file = '{(tmp_path / 'meta.json').as_posix()}'\n"
    job, report = apply_dataset_config(TrainJob(), written(tmp_path, text))
    assert job.dataset.resolution == 640 and job.dataset.enable_bucket
    assert "sizes come from the metadata" in report.notes[1]
    refused = read_dataset_config(
        written(tmp_path, text.replace("[[datasets]]", "[[datasets]]\nbucket_no_upscale = true", 1))
    )
    assert [problem.code for problem in refused.problems] == ["dataset-config.no-upscale-with-metadata-sizes"]


def test_a_metadata_file_that_may_not_be_read_states_no_sizes(tmp_path, monkeypatch):
    metadata = tmp_path / "elsewhere" / "meta.json"
    metadata.parent.mkdir()
    metadata.write_text(json.dumps({"a": {"train_resolution": [512, 768]}}))
    text = f"[[datasets]]\n[[datasets.subsets]]\nmetadata_file = '{metadata.as_posix()}'\n"
    assert (
        apply_dataset_config(TrainJob(), written(tmp_path, text))[0].dataset.resolution != TrainJob().dataset.resolution
    )
    monkeypatch.setattr(allowed, "_open_folders", [(tmp_path / "open").resolve()])
    with pytest.raises(ProblemsError) as error:
        apply_dataset_config(TrainJob(), written(tmp_path, text))
    assert [each.code for each in error.value.problems] == ["dataset-config.no-resolution"]


def test_what_the_job_had_of_its_own_is_told_where_it_goes(tmp_path):
    job = TrainJob(
        dataset={"folder": "/old", "prior_loss_weight": 0.5},
        captions={"trigger_word": "zwx", "caption_dropout_rate": 0.1},
    )
    _, job, report = one(tmp_path, job=job)
    assert job.dataset.prior_loss_weight == 0.5 and job.captions.trigger_word is None and job.dataset.folder is None
    said = " ".join(report.notes)
    assert "folders were replaced" in said and "'Trigger word' was zwx" in said and "'Caption dropout' was 0.1" in said
    _, _, report = one(tmp_path, "caption_dropout_rate = 0.2", job=job)
    assert "Caption dropout" not in " ".join(report.notes)


def test_how_the_best_checkpoint_is_found_is_no_matter_of_a_dataset_file(tmp_path):
    _, job, report = one(tmp_path, job=TrainJob(validation={"best_checkpoint": "auto", "validation_split": 0.1}))
    assert job.validation.best_checkpoint == "auto" and job.validation.validation_split == 0
    assert not [note for note in report.notes if "Best checkpoint" in note]


def test_errors_leave_the_job_alone(tmp_path):
    with pytest.raises(ProblemsError, match="num_repeets"):
        one(tmp_path, "num_repeets = 1")


# ---- paths


def path_problem(tmp_path, row, name="set.toml"):
    text = f"[[datasets]]\nresolution = 512\n[[datasets.subsets]]\n{row}\n"
    return read_dataset_config(written(tmp_path, text, name))


@pytest.mark.parametrize("tail", ["\\new\\train", "\\hoge", "\\train\\", "\\users\\me", "\\new\\\\b\\hoge"])
def test_a_windows_path_with_single_backslashes_is_told_with_its_line_and_the_right_spelling(tmp_path, tail):
    found = path_problem(tmp_path, f'image_dir = "C:{tail}"  # mine')
    (problem,) = found.problems
    assert (problem.level, problem.code) == ("error", "dataset-config.backslashes")
    assert "line 4, datasets[0].subsets[0].image_dir" in problem.where
    meant = "C:" + tail.replace("\\\\", "\\")
    assert meant.replace("\\", "/") in problem.fix and "\n" not in problem.fix


@pytest.mark.skipif(os.name == "nt", reason="a backslash is a separator there")
def test_a_path_that_was_meant_and_exists_is_taken_and_said(tmp_path):
    (tmp_path / "a\\new").mkdir()
    found = path_problem(tmp_path, f'image_dir = "{tmp_path}/a\\new"')
    (problem,) = found.problems
    assert (problem.level, problem.code) == ("advice", "dataset-config.backslashes-repaired")
    assert found.values["dataset"]["sources"][0]["folder"] == f"{tmp_path}/a\\new"


@pytest.mark.parametrize("row", ["image_dir = 'C:\\new\\train'", 'image_dir = "C:\\\\new\\\\train"'])
def test_well_written_windows_paths_are_taken_as_they_stand(tmp_path, row):
    found = path_problem(tmp_path, row)
    assert not found.problems and found.values["dataset"]["sources"][0]["folder"] == "C:\\new\\train"


def test_a_windows_path_in_json_is_told_too(tmp_path):
    text = '{"datasets": [{"resolution": 512, "subsets": [\n{"image_dir": "C:\\new\\hoge"}]}]}'
    (problem,) = read_dataset_config(written(tmp_path, text, "set.json")).problems
    assert "line 2, datasets[0].subsets[0]" in problem.where and '"image_dir": "C:/new/hoge"' in problem.fix


def test_a_relative_path_beside_the_file_is_found(tmp_path):
    (tmp_path / "fox").mkdir()
    found = path_problem(tmp_path, "image_dir = 'fox'")
    assert found.values["dataset"]["sources"][0]["folder"] == str(tmp_path / "fox")
    assert any("was found next to the file" in note for note in found.notes)


# ---- the text


def test_json_says_the_same_as_toml(tmp_path):
    import toml

    both = [
        read_dataset_config(written(tmp_path, EXAMPLE)),
        read_dataset_config(written(tmp_path, json.dumps(toml.loads(EXAMPLE)), "SET.JSON")),
    ]
    assert both[0].values == both[1].values


def test_a_byte_order_mark_is_passed_over_and_said(tmp_path):
    found = read_dataset_config(written(tmp_path, codecs.BOM_UTF8 + EXAMPLE.encode()))
    assert not found.problems and any("byte order mark" in note for note in found.notes)
    assert read_dataset_config(written(tmp_path, EXAMPLE.encode("utf-16"))).values == found.values


def test_a_list_of_whole_and_other_numbers_is_taken_and_said(tmp_path):
    concept, _, report = one(tmp_path, "face_crop_aug_range = [0.5, 1]")
    assert concept.images.face_crop_aug_range == (0.5, 1)
    assert any("refuses this file (not a homogeneous array)" in note for note in report.notes)


BROKEN = {
    "no value": ("[[datasets]]\nresolution =\n", "line 2"),
    "unknown word": ("[[datasets]]\nenable_bucket = tru\n", "line 2"),
    "two values": ("[[datasets]]\nresolution = 5 6\n", "line 2, column 16"),
    "twice": ("[general]\nflip_aug = true\nflip_aug = false\n", "line 3"),
    "open text": ('[general]\ncaption_prefix = "a\n', "line 2"),
    "an escape": ('[general]\ncaption_prefix = "a\\|b"\n', "line 2, column 22"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_text_that_is_no_toml_is_told_with_its_line(tmp_path, case):
    text, where = BROKEN[case]
    (problem,) = read_dataset_config(written(tmp_path, text)).problems
    assert problem.code == "file.not-toml" and where in problem.where


def test_text_that_is_no_json_is_told_with_line_and_column(tmp_path):
    (problem,) = read_dataset_config(written(tmp_path, '{"datasets":\n [}', "a.json")).problems
    assert problem.where.endswith("line 2, column 3") and problem.code == "file.not-json"


def test_a_key_that_stands_twice_in_json_is_told(tmp_path):
    text = '{"datasets": [{"resolution": 512, "resolution": 256,\n"subsets": [{"image_dir": "/a"}]}]}'
    found = read_dataset_config(written(tmp_path, text, "a.json"))
    assert found.values["dataset"]["resolution"] == 256
    assert found.problems[0].code == "dataset-config.duplicate-key"
    assert "datasets[0].resolution" in found.problems[0].what


def test_other_files_and_missing_ones_are_told(tmp_path):
    def code(path):
        return errors(read_dataset_config(path).problems)[0].code

    assert code(written(tmp_path, "", "a.yaml")) == "dataset-config.unknown-format"
    assert code(tmp_path / "none.toml") == "file.missing"
    assert code(written(tmp_path, "[]", "b.json")) == "dataset-config.not-a-table"
    assert code(written(tmp_path, b"a = '\xff\xfe\x81'", "c.toml")) == "file.not-utf8"


def test_null_counts_as_not_given_and_is_said(tmp_path):
    text = '{"datasets": [{"resolution": 512, "subsets": [{"image_dir": "/a", "caption_prefix": null}]}]}'
    found = read_dataset_config(written(tmp_path, text, "a.json"))
    assert not found.problems and "datasets[0].subsets[0].caption_prefix is null" in " ".join(found.notes)


def test_lines_are_found_through_long_texts_and_lists():
    text = (
        '[general]\ncaption_prefix = """a\n[[datasets]]\nx = 1"""\n[[datasets]]\nresolution = [\n512, # ]\n768]\n'
        "batch_size = 2\n[[datasets.subsets]]\nimage_dir = '#'\n[[datasets]]\n[[datasets.subsets]]\n[[datasets.subsets]]\n"
        "a = 1\n[datasets.subsets.custom_attributes]\nb = 2\n"
    )
    lines = toml_lines(text)
    assert lines["datasets[0]"] == 5 and lines["datasets[0].batch_size"] == 9
    assert lines["datasets[0].subsets[0].image_dir"] == 11
    assert lines["datasets[1].subsets[1].a"] == 15 and lines["datasets[1].subsets[1].custom_attributes.b"] == 17


def test_strings_that_are_never_closed_are_passed_over_once():
    """Looking for the end of each again took minutes for 100 kB."""
    began = time.thread_time()
    lines = toml_lines('[general]\na = """' + '\\"""\n' * 20_000 + "[[datasets]]\n" + '"\\' * 2_000)
    assert lines == {"general": 1, "general.a": 2} and time.thread_time() - began < 2


def test_lines_of_json_are_found_by_path():
    lines, twice = json_lines('{"a":\n[{"b": 1},\n{"b": {"c:": [1, 2]},\n"d": ","}]}')
    assert lines == {"a": 1, "a[0]": 2, "a[0].b": 2, "a[1]": 3, "a[1].b": 3, "a[1].b.c:": 3, "a[1].d": 4}
    assert twice == []


def test_the_scan_takes_what_sd_scripts_takes_from_a_folder(tmp_path):
    """Its own images alone, once each, without the words of its name; each dataset for itself."""
    from PIL import Image

    from core.dataset.sources.scan import scan

    for name in ("10_fox/a.png", "10_fox/b.png", "10_fox/more/c.png", "10_fox/5_x/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    one = "[[datasets]]\nresolution = {}\n[[datasets.subsets]]\nimage_dir = '10_fox'\n"
    job, _ = apply_dataset_config(TrainJob(), written(tmp_path, one.format(512) + one.format(768)))
    found = scan(concepts_of(job))
    assert [(image.path.name, image.repeats, image.class_tokens) for image in found.images] == [
        ("a.png", 1, ""),
        ("b.png", 1, ""),
    ] * 2
    assert not errors(found.problems)


@pytest.mark.parametrize(
    "text", ["a" + ".a" * 9000 + " = 1", "[a" + " . 'a'" * 9000 + "]\nb = 1", "a = [{" + '"a".' * 9000 + "a = 1}]"]
)
def test_a_key_of_thousands_of_parts_is_refused_at_once(tmp_path, text):
    """tomllib took 91 seconds and 9 GB for 100 kB of them."""
    path = tmp_path / "a.toml"
    path.write_text(text)
    tracemalloc.start()
    try:
        assert [problem.code for problem in read_dataset_config(path).problems] == ["file.not-toml"]
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    path.write_text('a = """\n' + "word. " * 100 + '"""\nb = "' + "a.b." * 100 + '"')
    assert "file.not-toml" not in {problem.code for problem in read_dataset_config(path).problems}
