"""Every error that sd-scripts gives for a dataset (reference, section 1.6): what is said here, with table path, line and
remedy, or how it does without; and that nothing in the folder is changed. Rows are named by sd-scripts' words."""

import pytest

from core.dataset.captions import caption_preview
from core.imports.dataset_config import read_dataset_config
from core.record.problems import errors
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


def refused(theirs, text, what, line, fix):
    """The file is refused with its name, the line, the table path and a remedy, and gives no values."""
    found = imported(theirs, text)
    told(found.problems, what, f"{theirs / 'set.toml'}, line {line}", fix, blocks=True)
    assert not found.values and len(errors(found.problems)) == 1


@table.row("required key not provided:")
def image_dir_missing_or_misspelt(theirs):
    yield {}
    refused(
        theirs,
        HEAD.replace("image_dir = 'fox'", ""),
        "subsets[0] has no image_dir",
        "3, datasets[0].subsets[0]",
        "image_dir = ",
    )
    refused(
        theirs,
        HEAD.replace("image_dir", "image_dri"),
        "is no option",
        "4, datasets[0].subsets[0].image_dri",
        "image_dir?",
    )
    text = HEAD.replace("image_dir = 'fox'", "metadata_fil = 'a.json'")  # then it is no fine-tuning folder either
    found = imported(theirs, text)
    told(found.problems, "metadata_fil is no option", "line 4", "Did you mean metadata_file?", blocks=True)


@table.row("extra keys not allowed:")
def unknown_keys_and_keys_at_the_wrong_level(theirs):
    yield {}
    place = "5, datasets[0].subsets[0]"
    refused(theirs, HEAD + "shufle_caption = true\n", "is no option", f"{place}.shufle_caption", "shuffle_caption?")
    refused(
        theirs, HEAD + "batch_size = 2\n", "no place in [[datasets.subsets]]", f"{place}.batch_size", "[[datasets]]"
    )
    refused(
        theirs, HEAD + "resolution = 2\n", "no place in [[datasets.subsets]]", f"{place}.resolution", "[[datasets]]"
    )
    for name in ("is_reg", "alpha_mask"):
        text = HEAD.replace("512\n", f"512\n{name} = true\n")
        refused(theirs, text, f"{name} has no place in [[datasets]]", f"3, datasets[0].{name}", "[[datasets.subsets]]")
    # "not supported by the trainer" (caption dropout in textual inversion, masks without --masked_loss) cannot happen:
    # every method takes every option, and a folder of masks switches the masks on.
    found = imported(theirs, HEAD + "conditioning_data_dir = 'masks'\ncaption_dropout_rate = 0.1\n")
    assert not found.problems and found.values["dataset"]["masked_loss"]
    assert any("'Use the masks' is on" in note for note in found.notes)


@table.row("expected int for dictionary value:")
def values_of_the_wrong_type(theirs):
    yield {}
    place = "5, datasets[0].subsets[0]"
    refused(theirs, HEAD + "num_repeats = '10'\n", 'num_repeats is "10"', f"{place}.num_repeats", "whole number")
    refused(theirs, HEAD + "num_repeats = true\n", "num_repeats is true", f"{place}.num_repeats", "true for 1")
    refused(theirs, HEAD + "flip_aug = 1\n", "flip_aug is 1", f"{place}.flip_aug", "true or false")
    refused(theirs, HEAD + "caption_prefix = 3\n", "caption_prefix is 3", f"{place}.caption_prefix", "text")
    found = imported(
        theirs, HEAD.replace("512\n", "512\nnetwork_multiplier = 1\n")
    )  # refused there for want of a point
    assert not found.problems and found.values["dataset"]["network_multiplier"] == 1


@table.row("min_bucket_reso and max_bucket_reso against the resolution:")
def bucket_sides_that_contradict_the_resolution(theirs):
    yield {}
    text = HEAD.replace("512\n", "[768, 1152]\nenable_bucket = true\n")
    refused(theirs, text, "is below the resolution 768 x 1152", "1, datasets[0]", "Set max_bucket_reso to 2304")
    text = HEAD.replace("512\n", "512\nenable_bucket = true\nmin_bucket_reso = 640\n")
    refused(theirs, text, "(640) is above the resolution 512 x 512", "4, datasets[0].min_bucket_reso", "to 512 or less")


@table.row("resolution is required:")
def a_dataset_without_resolution(theirs):
    yield {}
    text = HEAD.replace("resolution = 512\n", "")
    refused(theirs, text, "datasets[0] has no resolution", "1, datasets[0]", "resolution = 512")


@table.row("when caching latents, either color_aug or random_crop cannot be used:")
def cached_latents_and_changes_by_chance(theirs):
    image(theirs / "a.png")
    seen = yield {"dataset": {"color_aug": True, "random_crop": True}}
    assert seen.report.ok  # auto encodes these images at each step
    seen.look(memory={"cache_latents": "disk"}, dataset={"color_aug": True, "random_crop": True})
    for title in ("'Change colors by chance'", "'Crop by chance'"):
        said = seen.told(title, "memory.cache_latents", "set it to auto", blocks=True)
        assert str(theirs) in said.what


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
    said = seen.told("1 of 2 images are smaller than their bucket", str(theirs), "Use larger images")
    assert "small.png" in said.what


@table.row("caption file is empty:")
def a_caption_file_of_no_bytes(theirs):
    image(theirs / "a.png", caption="")
    seen = yield {}
    said = seen.told("empty caption file", str(theirs), "Write captions, or delete the files")
    assert "a.png" in said.what and seen.report.ok


@table.row("No data found:")
def the_folder_of_the_images_rather_than_its_parent(theirs):
    image(theirs / "a.png")
    seen = yield {}
    seen.trains("a.png")
    assert seen.report.ok
    seen.look(dataset={"folder": None})
    seen.told("No image folder is chosen", "dataset.folder", "Choose the folder", blocks=True)
    (theirs / "a.png").unlink()
    seen.look()
    seen.told("There is no image in the folder. It holds other files", str(theirs), "Choose a folder", blocks=True)


@pytest.mark.parametrize("name", table.rows)
def test_what_is_wrong_is_told_and_nothing_is_changed(tmp_path, name):
    table.run(name, tmp_path)
