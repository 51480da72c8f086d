"""A job's folders written as a dataset file of sd-scripts: what is in it, and what is named because it cannot be."""

import json

import pytest
import toml
from PIL import Image

from core.dataset.images.painting import begin_folder
from core.imports.dataset_config import apply_dataset_config
from core.imports.dataset_export import dataset_config, dataset_text, dataset_toml, write_dataset_config
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob


def job_of(*sources, captions=None, compatibility="none", **dataset):
    return build(
        TrainJob,
        {
            "dataset": {"sources": list(sources), **dataset},
            "captions": {"caption_extension": ".txt"} | (captions or {}),
            "model": {"compatibility": compatibility},
        },
    )


def plain(folder="/set", **more):
    return {"folder": str(folder), "recursive": False, "num_repeats": 1, "class_tokens": "", **more}


def image(path, ending=".png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path.with_suffix(ending))


def subsets(config):
    return [subset for dataset in config["datasets"] for subset in dataset["subsets"]]


def test_the_file_is_short_and_reads_as_a_person_would_write_it(tmp_path):
    job = job_of(
        plain("D:\\sets\\it's a fox", num_repeats=10, class_tokens="sks fox", keep_tokens=1),
        plain("D:\\sets\\reg", role="regularization", class_tokens="fox"),
        resolution=768,
        compatibility="sd-scripts-0.10",
    )
    written = write_dataset_config(job, tmp_path / "set.toml")
    assert written.problems == []
    assert written.path.read_text("utf-8") == (
        """# Dataset config of sd-scripts, for --dataset_config

[general]
resolution = 768
batch_size = 1
enable_bucket = true
min_bucket_reso = 256
max_bucket_reso = 1536
caption_extension = ".txt"

[[datasets]]

  [[datasets.subsets]]
  image_dir = "D:/sets/it's a fox"
  class_tokens = "sks fox"
  num_repeats = 10
  keep_tokens = 1

  [[datasets.subsets]]
  image_dir = 'D:/sets/reg'
  is_reg = true
  class_tokens = "fox"
  num_repeats = 1
"""
    )


def test_json_holds_the_same(tmp_path):
    job = job_of(plain(), plain("/b", resolution=768))
    both = [write_dataset_config(job, tmp_path / name) for name in ("set.toml", "set.json")]
    assert toml.loads(both[0].path.read_text("utf-8")) == json.loads(both[1].path.read_text("utf-8"))


def test_the_kind_comes_from_the_name_or_is_added_to_it(tmp_path):
    assert write_dataset_config(job_of(plain()), tmp_path / "set.v2", "json").path.name == "set.v2.json"
    with pytest.raises(ProblemsError) as refused:
        write_dataset_config(job_of(plain()), tmp_path / "set.yaml")
    assert refused.value.codes == ["dataset-config.unknown-format"]


def test_nothing_to_write_is_told_and_no_file_is_made(tmp_path):
    with pytest.raises(ProblemsError) as refused:
        write_dataset_config(TrainJob(), tmp_path / "set.toml")
    assert refused.value.codes == ["dataset.no-folder"]
    assert not list(tmp_path.iterdir())


def test_folders_with_equal_sizes_become_one_dataset_and_others_their_own():
    job = job_of(plain("/a"), plain("/b", resolution=768), plain("/c", flip_aug=True))
    config, problems = dataset_config(job)
    assert [[each["image_dir"] for each in dataset["subsets"]] for dataset in config["datasets"]] == [
        ["/a", "/c"],
        ["/b"],
    ]
    assert problems[0].code == "dataset-config.separate-datasets", "here they could share a bucket"


def test_batch_groups_keep_folders_apart():
    config, problems = dataset_config(job_of(plain("/a", batch_group="x"), plain("/b", batch_group="y")))
    assert len(config["datasets"]) == 2 and problems == []


def test_a_parent_of_numbered_folders_is_written_as_its_folders(tmp_path):
    for name in ("10_sks fox/a", "3_style/b", "3_style/more/c", "loose"):
        image(tmp_path / "set" / name)
    config, problems = dataset_config(job_of({"folder": str(tmp_path / "set")}))
    root = (tmp_path / "set").as_posix()
    assert [(each["image_dir"], each["num_repeats"], each.get("class_tokens")) for each in subsets(config)] == [
        (root, 1, "set"),
        (f"{root}/10_sks fox", 10, "sks fox"),
        (f"{root}/3_style", 3, "style"),
        (f"{root}/3_style/more", 3, "style"),
    ]
    assert problems == []


def test_identifier_and_class_become_class_tokens():
    job = job_of({"folder": "/a", "recursive": False, "num_repeats": 2, "identifier": "sks", "class_word": "dog"})
    assert subsets(dataset_config(job)[0])[0]["class_tokens"] == "sks dog"


def test_further_resolutions_are_further_datasets():
    config, problems = dataset_config(job_of(plain(), more_resolutions=[768, [512, 1024]]))
    assert [dataset["resolution"] for dataset in config["datasets"]] == [512, 768, [512, 1024]]
    assert [dataset["max_bucket_reso"] for dataset in config["datasets"]] == [1024, 1536, 2048]
    assert problems[0].code == "dataset-config.more-resolutions"


def test_a_resolution_that_is_listed_twice_is_written_once():
    config, _ = dataset_config(job_of(plain(), resolution=512, more_resolutions=[512, [512, 512], 768, [768, 768]]))
    assert [dataset["max_bucket_reso"] for dataset in config["datasets"]] == [1024, 1536]


def test_a_folder_that_is_listed_twice_is_a_dataset_of_its_own_since_sd_scripts_would_ignore_it(tmp_path):
    sources = (
        plain("/a", num_repeats=2),
        plain("/a", flip_aug=True, num_repeats=3),
        plain("/b"),
        plain("/a", enabled=False),
    )
    written = write_dataset_config(job_of(*sources), tmp_path / "set.toml")
    assert [len(dataset["subsets"]) for dataset in written.config["datasets"]] == [3, 1]
    again, report = apply_dataset_config(TrainJob(), written.path)
    assert report.problems == [] or "dataset-config.duplicate-folder" not in [each.code for each in report.problems]
    found = sorted((each.source.folder, each.source.num_repeats, each.images.flip_aug) for each in concepts_of(again))
    assert found == [("/a", 2, False), ("/a", 3, True), ("/b", 1, False)]


def test_a_folder_that_is_switched_off_is_left_out_by_no_repeats_and_stays_in_the_file(tmp_path):
    written = write_dataset_config(job_of(plain(), plain("/b", enabled=False)), tmp_path / "set.toml")
    assert [each["num_repeats"] for each in subsets(written.config)] == [1, 0]
    again, _ = apply_dataset_config(TrainJob(), written.path)
    assert [source.enabled for source in again.dataset.sources] == [True, False]


def test_validation_folders_hold_out_everything():
    config, _ = dataset_config(job_of(plain(), plain("/held", role="validation")))
    assert [dataset.get("validation_split", 0.0) for dataset in config["datasets"]] == [0.0, 1.0]


def test_bucket_sides_that_sd_scripts_would_refuse_are_those_in_force(tmp_path):
    written = write_dataset_config(job_of(plain(), resolution=128), tmp_path / "set.toml")
    assert (written.config["general"]["min_bucket_reso"], written.config["general"]["max_bucket_reso"]) == (64, 256)
    apply_dataset_config(TrainJob(), written.path)


def captioned(folder, *names):
    """Images with these caption files."""
    for name in names:
        image(folder / name.split(".")[0])
        (folder / name).write_text("x")
    return {"caption_extension": "auto"}


@pytest.mark.parametrize(("names", "ending"), [(["a.caption", "b.caption"], ".caption"), (["a.txt"], ".txt")])
def test_auto_takes_the_ending_that_the_folder_has(tmp_path, names, ending):
    config, problems = dataset_config(job_of(plain(tmp_path), captions=captioned(tmp_path, *names)))
    assert config["general"]["caption_extension"] == ending and problems == []


def test_auto_takes_the_ending_of_more_captions_and_names_those_that_are_not_read(tmp_path):
    few, many, both = (tmp_path / name for name in ("few", "many", "both"))
    captions = [
        captioned(few, "a.txt", "b.txt", "c.caption"),
        captioned(many, "a.txt", "b.caption", "c.caption"),
        captioned(both, "a.txt", "a.caption", "b.txt"),  # where both are, auto reads the .txt as well
    ]
    config, problems = dataset_config(job_of(*map(plain, (few, many, both)), captions=captions[0]))
    found = [subset["caption_extension"] for subset in config["datasets"][0]["subsets"]]
    assert found == [".txt", ".caption", ".txt"]
    assert [(problem.where, problem.code) for problem in problems] == [
        (few.as_posix(), "dataset-config.mixed-caption-extensions"),
        (many.as_posix(), "dataset-config.mixed-caption-extensions"),
    ]
    assert ".caption files to .txt" in problems[0].fix and ".txt files to .caption" in problems[1].fix
    assert "c.png" in problems[0].what and "a.png" in problems[1].what


LOST = {
    "dataset.more": ({}, {"prior_loss_weight": 0.5}, {}, "lost.prior_loss_weight"),
    "dataset.balance": ({}, {}, {}, "regularization-balance"),
    "dataset.short": ({}, {"short_batches": "merge"}, {}, "lost.short_batches"),
    "dataset.broken": ({}, {"skip_broken": True}, {}, "lost.skip_broken"),
    "dataset.class": ({}, {"dataset_class": "a.b.C"}, {}, "lost.dataset_class"),
    "dataset.color": ({}, {"alpha_color": "#000000"}, {}, "lost.alpha_color"),
    "captions.length": ({}, {}, {"max_token_length": 150}, "lost.max_token_length"),
    "captions.sidecars": ({}, {}, {"sidecars": "joined"}, "lost.sidecars"),
    "captions.lines": ({}, {}, {"caption_lines": "all"}, "lost.caption_lines"),
    "captions.trigger": ({}, {}, {"trigger_word": "zwx"}, "lost.trigger_word"),
    "captions.template": ({}, {}, {"caption_template": "style"}, "lost.caption_template"),
    "source.samples": ({"samples_per_epoch": 20}, {}, {}, "lost.samples_per_epoch"),
    "source.weight": ({"loss_weight": 0.5}, {}, {}, "lost.loss_weight"),
    "source.held": ({"validation_images": ["a.png"]}, {}, {}, "lost.validation_images"),
    "masks alone": ({"masked_loss": True}, {}, {}, "lost.masked_loss"),
    "masks unused": ({"conditioning_data_dir": "/m"}, {}, {}, "lost.masked_loss"),
    "masks and list": ({"conditioning_data_dir": "/m", "metadata_file": "/m.json"}, {}, {}, "lost.metadata_file"),
    "masks and alpha": ({"conditioning_data_dir": "/m", "alpha_mask": True}, {}, {}, "lost.alpha_mask"),
    "masks and words": ({"conditioning_data_dir": "/m", "class_tokens": "x"}, {}, {}, "lost.class_tokens"),
    "list and role": ({"metadata_file": "/m.json", "role": "regularization"}, {}, {}, "lost.role"),
    "list and cache": ({"metadata_file": "/m.json", "cache_info": True}, {}, {}, "lost.cache_info"),
}


@pytest.mark.parametrize("case", LOST)
def test_what_sd_scripts_has_no_option_for_is_named(case):
    source, dataset, captions, name = LOST[case]
    code = f"dataset-config.{name}"
    job = job_of(plain(**source), plain("/reg", role="regularization"), captions=captions, **dataset)
    if "template" in case:  # of textual inversion only
        job = job.with_settings(method={"kind": "embedding"})
    _, problems = dataset_config(job)
    found = [problem for problem in problems if problem.code == code]
    assert found and found[0].level == "advice" and found[0].fix and found[0].where
    if "balance" not in case:
        _, before = dataset_config(job_of(plain(), plain("/reg", role="regularization")))
        assert not [problem for problem in before if problem.code == code]


def test_masks_need_an_option_on_the_command_line():
    _, problems = dataset_config(job_of(plain(conditioning_data_dir="/m", masked_loss=True)))
    (problem,) = problems
    assert problem.code == "dataset-config.masks-need-option" and "--masked_loss" in problem.fix


def test_masks_that_sd_scripts_would_not_find_are_named(tmp_path):
    begin_folder(tmp_path / "painted", tmp_path)
    _, problems = dataset_config(job_of(plain(conditioning_data_dir=str(tmp_path / "painted"), masked_loss=True)))
    assert "dataset-config.painted-masks" in [problem.code for problem in problems]


def test_a_bucket_step_and_files_that_sd_scripts_refuses_are_told(tmp_path):
    image(tmp_path / "a", ".gif")
    _, problems = dataset_config(job_of({"folder": str(tmp_path)}, bucket_reso_steps=8))
    named = {problem.code: problem.what for problem in problems}
    assert named.keys() == {"dataset-config.bucket-step", "dataset-config.unread-images"}
    assert " 8" in named["dataset-config.bucket-step"] and "1 .gif" in named["dataset-config.unread-images"]


def test_attributes_that_toml_cannot_hold_are_named_and_json_keeps_them(tmp_path):
    job = job_of(plain(custom_attributes={"a": None, "b": [1, "x"], "c": {"d": [1, 2]}, "e f": "'\"\\#\t"}))
    written = write_dataset_config(job, tmp_path / "set.toml")
    assert {problem.code for problem in written.problems} == {"dataset-config.attribute-not-toml"}
    assert ["'a'" in problem.what and "'b'" not in problem.what for problem in written.problems] == [True, False]
    assert "'b'" in written.problems[1].what
    assert subsets(toml.load(written.path))[0]["custom_attributes"] == {"c": {"d": [1, 2]}, "e f": "'\"\\#\t"}
    whole = write_dataset_config(job, tmp_path / "set.json")
    assert whole.problems == [] and apply_dataset_config(TrainJob(), whole.path)[0].dataset.sources[
        0
    ].custom_attributes["b"] == [1, "x"]


@pytest.mark.parametrize(
    "text", ["", "a", "it's", '"', "\\", "C:\\new", "a\nb", "\t", "#", "'''", '"""', "é日", "\x7f\x00", "\\u0041"]
)
def test_any_text_comes_back_from_the_parser_of_sd_scripts(text):
    config = {"general": {"x": text}, "datasets": [{"y": text, "subsets": [{"z": text}]}]}
    assert toml.loads(dataset_toml(config)) == config


def test_a_file_that_stands_is_replaced_whole(tmp_path):
    target = tmp_path / "set.toml"
    target.write_text("x" * 100000)
    write_dataset_config(job_of(plain()), target)
    assert toml.load(target)["datasets"] and [path.name for path in tmp_path.iterdir()] == ["set.toml"]


def test_caption_dropout_is_left_out_and_named_for_textual_inversion(tmp_path):
    sources = [{"folder": str(tmp_path), "caption_tag_dropout_rate": 0.2}, {"folder": str(tmp_path / "b")}]
    for kind, written in (("embedding", False), ("lora", True)):
        groups = {"captions": {"caption_dropout_rate": 0.1}, "dataset": {"sources": sources}}
        text, _, problems = dataset_text(build(TrainJob, groups | {"method": {"kind": kind}}), "toml")
        codes = {problem.code for problem in problems}
        assert ("dropout_rate =" in text) == written
        assert ("dataset-config.lost.caption_tag_dropout_rate" in codes) != written
        assert ("dataset-config.lost.caption_dropout_rate" in codes) != written
