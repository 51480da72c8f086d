"""What a folder's own settings do to its scan: words, roles, repeats, sizes left out; headers remembered; nothing changed."""

import hashlib
import os
import sys

import pytest

import core.dataset.sources.walk as walking
from core.dataset.sources.files import extended_form, plain_form, printable, reachable, without_face
from core.dataset.sources.scan import scan, scan_dataset
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.validation import ValidationSettings


def look(*sources, memo_path=None, captions=None, **options):
    sources = [source if isinstance(source, dict) else {"folder": str(source)} for source in sources]
    dataset = DatasetSettings.model_validate({"sources": sources, **options})
    return scan(concepts(dataset, captions or CaptionSettings(), ValidationSettings()), memo_path=memo_path)


# ---- words, roles, repeats


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "red fox"),
        ({"identifier": "sks"}, "sks"),
        ({"identifier": "sks", "class_word": "fox"}, "sks fox"),
        ({"class_word": " fox "}, "fox"),
        ({"identifier": "", "class_word": " "}, "red fox"),
        ({"identifier": "sks", "class_word": "fox", "class_tokens": "my words"}, "my words"),
        ({"class_tokens": ""}, ""),
        ({"role": "regularization", "identifier": "sks", "class_word": "fox"}, "fox"),
        ({"role": "regularization", "identifier": "sks"}, "red fox"),
    ],
)
def test_words_are_those_set_then_identifier_and_class_then_the_folders_own(tmp_path, add, source, words):
    add("red_fox/a.png")
    (image,) = look({"folder": str(tmp_path / "red_fox"), **source}).images
    assert image.class_tokens == words
    add("set/4_red fox/a.png")
    (image,) = look({"folder": str(tmp_path / "set"), **source}).images
    assert (image.class_tokens, image.repeats) == (words, 4)


def test_folders_of_one_name_never_share_an_address(tmp_path, add):
    """An address is what captions and draws are found by: a folder may bear the very name that the second gets."""
    folders = [tmp_path / "a" / "fox", tmp_path / "b" / "fox", tmp_path / "c" / "fox #2", tmp_path / "d" / "fox"]
    for folder in folders:
        add(f"{folder.relative_to(tmp_path)}/x.png")
    found = look(*folders)
    assert not found.problems
    assert len({image.key for image in found.images}) == 4


def test_each_image_carries_the_number_of_its_folders_settings(tmp_path, add):
    for name in ("fox", "set/2_cat", "reg/1_animal"):
        add(f"{name}/a.png")
    found = look(tmp_path / "fox", tmp_path / "set", {"folder": str(tmp_path / "reg"), "role": "regularization"})
    assert [(p.source, p.repeats, p.concept) for p in found.images] == [
        ("fox", 1, 0),
        ("2_cat", 2, 1),
        ("1_animal", 1, 2),
    ]
    assert [(folder.id, folder.concept) for folder in found.folders] == [("fox", 0), ("2_cat", 1), ("1_animal", 2)]


def test_one_folder_trains_twice_where_its_settings_differ(tmp_path, add):
    add("fox/a.png")
    folder = str(tmp_path / "fox")
    found = look({"folder": folder}, {"folder": folder, "resolution": 768}, {"folder": folder, "caption_prefix": "x"})
    assert [image.source for image in found.images] == ["fox", "fox #2", "fox #3"] and not found.problems
    found = look({"folder": folder}, {"folder": folder, "num_repeats": 5})
    assert len(found.images) == 1 and found.problems[0].code == "dataset.duplicate-folder"


def test_regularization_images_below_the_training_folder_are_pointed_out(tmp_path, add):
    add("set/a.png")
    add("set/reg/b.png")
    found = look(tmp_path / "set", {"folder": str(tmp_path / "set/reg"), "role": "regularization"})
    (problem,) = found.problems
    assert problem.code == "dataset.overlapping-folders" and "b.png" in problem.what and problem.level == "advice"
    both = look(tmp_path / "set/reg", {"folder": str(tmp_path / "set/reg"), "role": "regularization"})
    assert [each.code for each in both.problems] == ["dataset.overlapping-folders"], "one folder in both roles"


def test_sub_folders_can_be_left_alone(tmp_path, add):
    add("set/a.png")
    add("set/sub/b.png")
    add("set/10_fox/c.png")
    found = look({"folder": str(tmp_path / "set"), "recursive": False})
    assert [image.relative for image in found.images] == ["a.png"]


def test_small_images_are_left_out_and_listed(tmp_path, add):
    add("fox/tiny.png", 20, 30)
    add("fox/exact.png", 32, 32)
    add("fox/long.png", 8, 200)
    found = look(tmp_path / "fox", skip_image_resolution=32)
    assert [image.relative for image in found.images] == ["long.png"]
    assert [(image.relative, why) for image, why in found.left_out] == [
        ("exact.png", "has at most 32 x 32 pixels"),
        ("tiny.png", "has at most 32 x 32 pixels"),
    ]
    (problem,) = found.problems
    assert "2 images" in problem.what and "exact.png, tiny.png" in problem.what and problem.level == "advice"
    assert len(look(tmp_path / "fox").images) == 3


def test_captions_of_a_chosen_ending_are_noted_in_any_case(tmp_path, add):
    add("fox/a.png")
    for name in ("a.TAGS", "a.txt", "a.wd.tags"):
        (tmp_path / "fox" / name).write_text("x")
    (image,) = look(tmp_path / "fox", captions=CaptionSettings(caption_extension=".tags")).images
    assert image.sidecars == ("a.TAGS", "a.txt")
    assert [size for size, _ in image.sidecar_states] == [1, 1]
    (image,) = look(tmp_path / "fox").images
    assert image.sidecars == ("a.txt",)


# ---- headers remembered


def test_an_unchanged_folder_is_not_opened_again_and_a_changed_file_is(tmp_path, add, monkeypatch):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    add("fox/a.png", 40, 30)
    add("fox/turned.jpg", 40, 30, exif=exif)
    Image.new("RGB", (16, 16), "red").save(
        tmp_path / "fox/moving.gif", save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")]
    )
    (tmp_path / "fox/broken.png").write_bytes(b"no image")
    memo = tmp_path / "memo.sqlite"
    first = look(tmp_path / "fox", memo_path=memo)
    opened = []
    read = walking.read_header
    monkeypatch.setattr(walking, "read_header", lambda path: opened.append(path.name) or read(path))
    again = look(tmp_path / "fox", memo_path=memo)
    assert again == first and opened == ["broken.png"]  # what was wrong with it may have gone: rights, a plug-in
    opened.clear()
    add("fox/a.png", 50, 30)
    os.utime(tmp_path / "fox/a.png", ns=(1, 1))
    changed = look(tmp_path / "fox", memo_path=memo)
    assert sorted(opened) == ["a.png", "broken.png"]
    assert next(p.width for p in changed.images if p.relative == "a.png") == 50


def test_a_disk_that_cannot_hold_the_index_costs_the_memory_alone(tmp_path, add):
    add("fox/a.png")
    (tmp_path / "memo").mkdir()
    assert len(look(tmp_path / "fox", memo_path=tmp_path / "memo").images) == 1
    (tmp_path / "damaged.sqlite").write_bytes(b"no database at all" * 100)
    for _ in range(2):
        assert len(look(tmp_path / "fox", memo_path=tmp_path / "damaged.sqlite").images) == 1


# ---- names


@pytest.mark.parametrize("names", ["aA", ("\u00e9", "e\u0301")], ids=["case", "accent"])
def test_names_that_differ_in_case_or_the_form_of_an_accent_alone_are_pointed_out(tmp_path, add, names):
    for name in names:
        add(f"fox/{name}.png")
    if len(os.listdir(tmp_path / "fox")) == 1:
        pytest.skip("this disk takes them for one file")
    found = look(tmp_path / "fox")
    assert len(found.images) == 2
    assert found.problems[0].code == "image.same-name-ignoring-case"


@pytest.mark.skipif(os.name == "nt", reason="the test's own tools stop at 260 characters there")
def test_paths_beyond_260_characters_train_with_their_captions(tmp_path, add):
    from core.dataset.captions.files import read_caption

    path = add("/".join(["a folder with a long name " * 3] * 6) + "/fox.png")
    path.with_suffix(".txt").write_text("a fox")
    assert len(str(path)) > 400
    (image,) = look(tmp_path).images
    assert read_caption(image, CaptionSettings()).text == "a fox"


@pytest.mark.skipif(sys.platform != "linux", reason="systems differ in how deep a path may go")
def test_a_path_that_no_system_call_takes_is_said_and_the_rest_trains(tmp_path, add):
    add("set/a.png")
    here = os.getcwd()
    os.chdir(tmp_path / "set")
    try:
        for _ in range(22):
            os.mkdir("x" * 200)
            os.chdir("x" * 200)
    finally:
        os.chdir(here)
    found = look(tmp_path / "set")
    assert [image.relative for image in found.images] == ["a.png"]
    assert "cannot be opened" in found.problems[0].what and found.problems[0].level == "advice"


def test_long_paths_of_windows_get_the_form_that_opens_there_and_are_shown_without_it(monkeypatch, tmp_path):
    """Microsoft, Maximum Path Length Limitation: a prefix of two backslashes, question mark, backslash lifts it."""
    assert extended_form("C:\\a/b") == "\\\\?\\C:\\a\\b"
    assert extended_form("\\\\server\\share\\a") == "\\\\?\\UNC\\server\\share\\a"
    assert extended_form("\\\\?\\C:\\a") == "\\\\?\\C:\\a"
    for path in ("C:\\a\\b", "\\\\server\\share\\a"):
        assert plain_form(extended_form(path)) == path == printable(extended_form(path))
    assert reachable(tmp_path) is tmp_path


@pytest.mark.parametrize(
    ("stem", "whole"),
    [
        ("foo_0123_0200_0080_0080", "foo"),
        ("my_foo_1_2_3_4", "my_foo"),
        ("my_long_name_of_image", None),
        ("_1_2_3_4", None),
        ("1_2_3_4", None),
    ],
)
def test_the_name_of_a_cut_out_face_tells_the_whole_image(stem, whole):
    assert without_face(stem) == whole


# ---- nothing of the user's is changed


def test_scanning_any_folder_changes_nothing_in_it(tmp_path, add):
    for name in ("set/10_fox/a.png", "set/[b] (1).JPG", "set/sub/狐.webp", "set/masks/a.png"):
        add(name)
    for name in ("set/broken.png", "set/Thumbs.db", "set/._a.png", "set/10_fox/a.txt", "set/meta.json"):
        (tmp_path / name).write_bytes(b"\xff\xfe{")

    def state():
        return {
            path: (path.stat().st_mtime_ns, path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest())
            for path in (tmp_path / "set").rglob("*")
        }

    before = state()
    sources = [
        {"folder": str(tmp_path / "set"), "conditioning_data_dir": str(tmp_path / "set/masks"), "masked_loss": True},
        {"folder": str(tmp_path / "set"), "metadata_file": str(tmp_path / "set/meta.json")},
        {"folder": str(tmp_path / "set/meta.json")},
    ]
    found = look(*sources, memo_path=tmp_path / "memo.sqlite")
    assert state() == before
    assert {problem.level for problem in found.problems} == {"error", "advice"}


def test_a_job_of_no_settings_of_its_own_scans_like_one_of_plain_settings(tmp_path, add):
    add("fox/a.png")
    dataset = DatasetSettings(folder=str(tmp_path / "fox"))
    assert scan_dataset(dataset) == look(tmp_path / "fox")
