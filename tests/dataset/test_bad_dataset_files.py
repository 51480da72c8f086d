"""Every error that sd-scripts gives for a dataset (reference, section 1.6): what is said here, with table path, line and
remedy, or how it does without; and that nothing in the folder is changed. Rows are named by sd-scripts' words."""

import pytest

from core.dataset.captions.pipeline import caption_preview
from core.imports.dataset_config import read_dataset_config
from core.record.problems import errors
from core.settings.dataset.images import ImageSettings
from tests.dataset.bad_input import Table, image, told, tree

table = Table()
HEAD = "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'fox'\n"


def imported(theirs, text):
    """What the import says of a dataset file that lies in the folder."""
    path = theirs / "set.toml"
    path.write_text(text, "utf-8")
    before = tree(theirs)
    found = read_dataset_config(path)
    assert tree(theirs) == before
    return found


def refused(theirs, text, code, line, *facts):
    """The file is refused with its name, the line, the table path and a remedy, and gives no values."""
    found = imported(theirs, text)
    problem = told(found.problems, f"dataset-config.{code}", f"{theirs / 'set.toml'}, line {line}", blocks=True)
    assert problem.fix and all(fact in f"{problem.what}; {problem.fix}" for fact in facts), problem
    assert not found.values and len(errors(found.problems)) == 1


@table.row("required key not provided:")
def image_dir_missing_or_misspelt(theirs):
    yield {}
    refused(
        theirs,
        HEAD.replace("image_dir = 'fox'", ""),
        "missing-path",
        "3, datasets[0].subsets[0]",
        "subsets[0]",
        "image_dir = ",
    )
    refused(
        theirs,
        HEAD.replace("image_dir", "image_dri"),
        "unknown-option",
        "4, datasets[0].subsets[0].image_dri",
        "image_dir",
    )
    text = HEAD.replace("image_dir = 'fox'", "metadata_fil = 'a.json'")  # then it is no fine-tuning folder either
    found = imported(theirs, text)
    problem = told(found.problems, "dataset-config.unknown-option", "line 4", "metadata_file", blocks=True)
    assert problem.where.endswith("datasets[0].subsets[0].metadata_fil")


@table.row("extra keys not allowed:")
def unknown_keys_and_keys_at_the_wrong_level(theirs):
    yield {}
    place = "5, datasets[0].subsets[0]"
    refused(theirs, HEAD + "shufle_caption = true\n", "unknown-option", f"{place}.shufle_caption", "shuffle_caption")
    for name in ("batch_size", "resolution"):
        text = HEAD + f"{name} = 2\n"
        refused(theirs, text, "misplaced-option", f"{place}.{name}", "[[datasets.subsets]]; ", "[[datasets]]")
    for name in ("is_reg", "alpha_mask"):
        text = HEAD.replace("512\n", f"512\n{name} = true\n")
        refused(
            theirs, text, "misplaced-option", f"3, datasets[0].{name}", name, "[[datasets]]; ", "[[datasets.subsets]]"
        )
    # "not supported by the trainer" (caption dropout in textual inversion, masks without --masked_loss) cannot happen:
    # every method takes every option, and a folder of masks switches the masks on.
    found = imported(theirs, HEAD + "conditioning_data_dir = 'masks'\ncaption_dropout_rate = 0.1\n")
    assert not found.problems and found.values["dataset"]["masked_loss"]
    assert any(f"'{ImageSettings.title_of('masked_loss')}'" in note for note in found.notes)


@table.row("expected int for dictionary value:")
def values_of_the_wrong_type(theirs):
    yield {}
    place = "5, datasets[0].subsets[0]"
    refused(theirs, HEAD + "num_repeats = '10'\n", "wrong-type", f"{place}.num_repeats", ' is "10"', "whole number")
    refused(
        theirs,
        HEAD + "num_repeats = true\n",
        "wrong-type",
        f"{place}.num_repeats",
        " is true",
        "whole number",
        "true as 1",
    )
    refused(theirs, HEAD + "flip_aug = 1\n", "wrong-type", f"{place}.flip_aug", " is 1", "true or false")
    refused(theirs, HEAD + "caption_prefix = 3\n", "wrong-type", f"{place}.caption_prefix", " is 3", "text")
    # Refused there for want of a point
    found = imported(theirs, HEAD.replace("512\n", "512\nnetwork_multiplier = 1\n"))
    assert not found.problems and found.values["dataset"]["network_multiplier"] == 1


@table.row("min_bucket_reso and max_bucket_reso against the resolution:")
def bucket_sides_that_contradict_the_resolution(theirs):
    yield {}
    text = HEAD.replace("512\n", "[768, 1152]\nenable_bucket = true\n")
    refused(theirs, text, "max-bucket-below-resolution", "1, datasets[0]", "(1024", "768 x 1152", "to 2304")
    text = HEAD.replace("512\n", "512\nenable_bucket = true\nmin_bucket_reso = 640\n")
    place = "4, datasets[0].min_bucket_reso"
    refused(theirs, text, "min-bucket-above-resolution", place, "(640)", "512 x 512", "to 512 or less")


@table.row("resolution is required:")
def a_dataset_without_resolution(theirs):
    yield {}
    text = HEAD.replace("resolution = 512\n", "")
    refused(theirs, text, "no-resolution", "1, datasets[0]", "datasets[0]", "resolution = 512")


@table.row("when caching latents, either color_aug or random_crop cannot be used:")
def cached_latents_and_changes_by_chance(theirs):
    image(theirs / "a.png")
    seen = yield {"dataset": {"color_aug": True, "random_crop": True}}
    assert seen.report.ok  # auto encodes these images at each step
    seen.look(memory={"cache_latents": "disk"}, dataset={"color_aug": True, "random_crop": True})
    for name in ("color_aug", "random_crop"):
        named, code = f"'{ImageSettings.title_of(name)}'", "dataset.augmentation-with-latent-cache"
        said = seen.told(code, "memory.cache_latents", named, blocks=True)
        assert str(theirs) in said.what and "auto" in said.fix


@table.row("when caching Text Encoder output, either caption_dropout_rate, shuffle_caption, ... cannot be used:")
def cached_captions_and_draws(theirs):
    image(theirs / "a.png", caption="{red|blue}, b, c, d")
    draws = {"shuffle_caption": True, "caption_tag_dropout_rate": 0.5, "enable_wildcard": True, "caption_prefix": "x,"}
    seen = yield {"captions": draws}
    assert seen.report.ok and not seen.problems  # draws are known ahead, so what each epoch needs is encoded
    placed = seen.placed("a.png")
    drawn = {each.text for each in caption_preview(placed.caption, placed.concept.captions, 0, placed.key, 20)}
    assert len(drawn) > 5 and any("red" in text for text in drawn) and any("blue" in text for text in drawn)


@table.row("image too large, but cropping and bucketing are disabled; image size is small:")
def image_shapes_not_kept(theirs):
    image(theirs / "large.png", 300, 200)
    image(theirs / "small.png", 60, 100)
    seen = yield {"dataset": {"enable_bucket": False}}
    assert seen.report.ok and seen.report.buckets == {(128, 128): (2, 2)}  # resized and cropped, cached or not
    said = seen.told("image.upscaled", str(theirs), "1 of 2 images")
    assert "2.1 times" in said.what and "small.png" in said.what and "large.png" not in said.what
    assert ImageSettings.title_of("bucket_no_upscale") not in said.fix  # it is for buckets


@table.row("caption file is empty:")
def a_caption_file_of_no_bytes(theirs):
    image(theirs / "a.png", caption="")
    seen = yield {}
    said = seen.told("dataset.empty-captions", str(theirs), "1 of 1 images")
    assert "a.png" in said.what and said.fix and seen.report.ok


@table.row("No data found:")
def the_folder_of_the_images_rather_than_its_parent(theirs):
    image(theirs / "a.png")
    seen = yield {}
    seen.trains("a.png")
    assert seen.report.ok
    seen.look(dataset={"folder": None})
    assert seen.told("dataset.no-folder", "dataset.folder", blocks=True).fix
    (theirs / "a.png").unlink()
    seen.look()
    seen.told("dataset.no-images", str(theirs), ".txt", blocks=True)


@pytest.mark.parametrize("name", table.rows)
def test_what_is_wrong_is_told_and_nothing_is_changed(tmp_path, name):
    table.run(name, tmp_path)
