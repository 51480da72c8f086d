"""Fine-tuning metadata: keys of every form find their images, texts are joined as sd-scripts does, all else is said."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given as given_names
from hypothesis import settings
from hypothesis import strategies as st

import core.record.allowed as allowed
from core.dataset.captions.files import read_caption
from core.dataset.sources.metadata import Entry, Finder
from core.dataset.sources.scan import scan, scan_dataset
from core.dataset.sources.walk import File
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.validation import ValidationSettings
from tests.dataset.training_captions import training_caption


@pytest.fixture
def look(tmp_path):
    """look(what) writes it as tmp_path/meta.json, reads the folder tmp_path/set by it and returns the scan."""

    def read(what, name="meta.json", captions=None, **source):
        path = tmp_path / name
        data = what if isinstance(what, bytes) else (what if isinstance(what, str) else json.dumps(what)).encode()
        path.write_bytes(data)
        dataset = DatasetSettings.model_validate(
            {"sources": [{"folder": str(tmp_path / "set"), "metadata_file": str(path), **source}]}
        )
        return scan(concepts(dataset, captions or CaptionSettings(), ValidationSettings()))

    return read


def given(found):
    return {image.relative: image.metadata_caption for image in found.images}


def whats(found):
    return [problem.what for problem in found.problems]


def codes(found):
    return [problem.code for problem in found.problems]


@pytest.mark.parametrize("form", ["stem", "name", "full", "relative", "windows", "case", "dotted"])
def test_a_key_of_any_form_finds_its_image(tmp_path, add, look, form):
    path = add("set/sub/a.b.png")
    key = {
        "stem": "sub/a.b",
        "name": "sub/a.b.png",
        "full": str(path),
        "relative": "set/sub/a.b.png",  # to the metadata file
        "windows": "sub\\a.b",
        "case": "SUB/A.B",
        "dotted": "./sub/a.b.png",
    }[form]
    found = look({key: {"caption": "a fox"}})
    assert given(found) == {"sub/a.b.png": "a fox"} and not found.problems


def test_a_full_path_of_another_computer_is_found_by_its_name_and_said(tmp_path, add, look):
    add("set/a.png")
    found = look({"D:\\train\\hero\\a.png": {"caption": "a fox"}})
    assert given(found) == {"a.png": "a fox"}
    (problem,) = found.problems
    assert problem.code == "metadata.matched-by-name" and "D:\\train" in problem.what and problem.level == "advice"


def test_an_image_outside_the_folder_trains_under_an_address_without_its_absolute_path(tmp_path, add, look):
    add("set/a.png")
    outside = add("elsewhere/a.png")
    found = look({str(outside): {"caption": "out"}, "a": {"caption": "in"}})
    assert given(found) == {"elsewhere/a.png": "out", "a.png": "in"}


def test_the_folder_may_be_left_out_beside_a_metadata_file(tmp_path, add, look):
    add("a.png")
    assert given(look({"a": {"caption": "x"}}, folder="")) == {"a.png": "x"}


# Reference 2.3: no blank is added at the separator; with choices on, tags follow every line and become one line.
JOINED = [
    ({"caption": "a fox"}, {}, "a fox"),
    ({"tags": "fox, red"}, {}, "fox, red"),
    ({"caption": "a fox", "tags": "fox, red"}, {}, "a fox,fox, red"),
    ({"caption": "a fox", "tags": "fox"}, {"caption_separator": ";"}, "a fox;fox"),
    ({"caption": "one\ntwo", "tags": "fox"}, {}, "one,fox\ntwo,fox"),  # so that the line that is taken has them
    ({"caption": "one\ntwo", "tags": "fox"}, {"compatibility": "kohya"}, "one\ntwo,fox"),
    ({"caption": "one\n\ntwo", "tags": "fox\nred"}, {"enable_wildcard": True}, "one,fox,red\ntwo,fox,red"),
    ({"caption": "a fox", "tags": ""}, {}, "a fox"),
    ({}, {}, ""),
]


@pytest.mark.parametrize(("said", "options", "text"), JOINED)
def test_caption_and_tags_are_joined_as_sd_scripts_joins_them(said, options, text):
    assert Entry("a", said.get("caption"), said.get("tags")).text(CaptionSettings(**options)) == text


def trained(found, settings, epochs=20):
    (image,) = found.images
    caption = read_caption(image, settings)
    return {training_caption(caption, settings, 1, epoch, image.key, 0) for epoch in range(epochs)}


def test_caption_or_tags_of_a_metadata_file_are_drawn(add, look):
    add("set/a.png")
    both = {"a": {"caption": "a fox, running", "tags": "fox, red"}}
    for share, texts in ((0.5, {"a fox, running", "fox, red"}), (0, {"fox, red"}), (1, {"a fox, running"})):
        drawn = CaptionSettings(sidecars="drawn", sentence_share=share)
        assert trained(look(both, captions=drawn), drawn) == texts
    assert trained(look({"a": {"tags": "fox, red"}}, captions=drawn), drawn) == {"fox, red"}
    joined = CaptionSettings(sidecars="joined", shuffle_caption=True)
    assert trained(look(both, captions=joined), joined) == {"a fox, running, fox, red", "a fox, running, red, fox"}
    one = CaptionSettings()
    assert trained(look(both, captions=one), one) == {"a fox, running,fox, red"}


def test_the_caption_of_the_metadata_is_what_trains_and_the_file_beside_it_is_not(tmp_path, add, look):
    add("set/a.png")
    (tmp_path / "set/a.txt").write_text("from the file")
    (image,) = look({"a": {"caption": "from the list"}}).images
    caption = read_caption(image, CaptionSettings())
    assert (caption.text, caption.source) == ("from the list", "metadata")


def test_sizes_of_all_entries_are_the_buckets(add, look):
    add("set/a.png")
    add("set/b.png")
    found = look({"a": {"train_resolution": [512, 768]}, "b": {"train_resolution": [512, 512]}})
    assert [image.metadata_bucket for image in found.images] == [(512, 768), (512, 512)]
    assert (found.images[0].width, found.images[0].height) == (64, 48)


def test_sizes_of_some_entries_are_not_used_and_that_is_said(add, look):
    add("set/a.png")
    add("set/b.png")
    found = look({"a": {"train_resolution": [512, 768]}, "b": {"caption": "x"}})
    assert [image.metadata_bucket for image in found.images] == [None, None]
    assert codes(found) == ["metadata.partial-resolutions"] and "1 of 2" in whats(found)[0]


def test_never_enlarge_beside_sizes_of_the_metadata_is_said(add, look):
    add("set/a.png")
    found = look({"a": {"train_resolution": [512, 512]}}, bucket_no_upscale=True)
    assert codes(found) == ["metadata.no-upscale-ignored"]
    assert f"'{ImageSettings.title_of('bucket_no_upscale')}'" in whats(found)[0]


def test_json_lines_are_read_and_blank_lines_passed_over(add, look):
    add("set/a.png", 40, 30)
    add("set/b.png")
    text = '{"image_path": "a.png", "caption": "one", "image_size": [40, 30], "tags": "t"}\n\n{"file_name": "b.png", "text": "two"}\n'
    found = look(text, "meta.jsonl")
    assert given(found) == {"a.png": "one,t", "b.png": "two"} and not found.problems


def test_another_size_than_the_list_says_is_pointed_out_unless_it_is_only_turned(add, look):
    add("set/a.png", 40, 30)
    add("set/b.png", 40, 30)
    found = look({"a": {"image_size": [30, 40]}, "b": {"image_size": [99, 40]}})
    (what,) = whats(found)
    assert "b.png (99 x 40 in the metadata, 40 x 30 now)" in what and "a.png" not in what


def test_keys_that_match_nothing_are_listed_once_with_the_nearest_name(add, look):
    add("set/fox_01.png")
    found = look({"fox_01": {}, "fox_O1": {}, "qqqq": {}, "zzzz": {}, "yyyy": {}})
    (problem,) = found.problems
    assert "4 of 5 entries" in problem.what and "fox_O1 (nearest: fox_01.png)" in problem.what
    assert "and 1 more" in problem.what and problem.level == "advice" and "meta.json" in problem.where


def test_a_list_of_which_nothing_is_there_blocks_the_start(tmp_path, look):
    (tmp_path / "set").mkdir()
    (problem,) = look({"a": {}}).problems
    assert problem.level == "error" and "1 of 1 entries" in problem.what


def test_an_entry_with_cached_latents_alone_is_named_as_lacking_its_image(tmp_path, add, look):
    add("set/a.png")
    (tmp_path / "set/b.npz").write_bytes(b"latents")
    (problem,) = look({"a": {}, "b": {"caption": "x"}}).problems
    assert problem.code == "metadata.latents-only" and problem.what.endswith(": b")


def test_images_that_the_list_does_not_name_are_said(add, look):
    add("set/a.png")
    add("set/b.png")
    found = look({"a": {"caption": "x"}})
    assert given(found) == {"a.png": "x"}
    assert codes(found) == ["metadata.unlisted-images"] and "b.png" in whats(found)[0]


def test_of_two_images_that_a_stem_fits_the_one_is_taken_that_sd_scripts_takes(add, look):
    add("set/a.jpg")
    add("set/a.png")
    found = look({"a": {"caption": "x"}})
    assert list(given(found)) == ["a.png"] and "metadata.ambiguous-key" in codes(found)


def test_of_a_key_that_stands_twice_the_last_counts_and_it_is_said(add, look):
    add("set/a.png")
    found = look('{"a": {"caption": "first"}, "a": {"caption": "last"}}')
    assert given(found) == {"a.png": "last"} and "metadata.duplicate-keys" in codes(found)


def test_an_image_of_two_metadata_files_trains_as_the_later_one_says(tmp_path, add):
    add("set/a.png")
    add("set/b.png")
    (tmp_path / "one.json").write_text('{"a": {"caption": "1"}, "b": {"caption": "1"}}')
    (tmp_path / "two.json").write_text('{"a": {"caption": "2"}}')
    sources = [
        {"folder": str(tmp_path / "set"), "metadata_file": str(tmp_path / name)} for name in ("one.json", "two.json")
    ]
    found = scan_dataset(DatasetSettings.model_validate({"sources": sources}))
    assert [(p.relative, p.metadata_caption) for p in found.images] == [("b.png", "1"), ("a.png", "2")]
    assert "metadata.duplicate-images" in codes(found)
    sources[1]["resolution"] = 768  # another dataset: both train
    assert len(scan_dataset(DatasetSettings.model_validate({"sources": sources})).images) == 3


@pytest.mark.parametrize(
    ("data", "where", "what"),
    [
        (b'{\n "a": {"caption": "x",}\n}', "line 2, column 2", "not valid JSON"),
        (b'{"a": ', "line 1, column 7", "not valid JSON"),
        (b'"a"', "line 1", "not a list of images"),
        (b"", "line 1, column 1", "not valid JSON"),
        (b"{}", "meta.json", "empty"),
        (b'{"a": 5}', "meta.json", "a is a number, not an object"),
        (b'{"a": {"caption": 5}}', "meta.json", "caption of a is a number"),
        (b'{"a": {"train_resolution": "512"}}', "meta.json", "train_resolution of a is not [width, height]"),
        (b'{"a": {"train_resolution": [512, 0]}}', "meta.json", "train_resolution of a is not [width, height]"),
        (b'{"a": {"train_resolution": [512, 515]}}', "meta.json", "a is 512 x 515, not multiples of 8"),
        (b"[" * 100_000, "meta.json", "nested deeper"),
    ],
)
def test_a_broken_file_is_named_with_its_place(add, look, data, where, what):
    add("set/a.png")
    problem = look(data).problems[0]
    assert what in problem.what and where in problem.where and problem.level == "error"


def test_a_broken_line_of_json_lines_is_named(add, look):
    add("set/a.png")
    problem = look('{"image_path": "a.png"}\n{"image_path": }\n', "meta.jsonl").problems[0]
    assert problem.where.endswith("line 2, column 16")
    problem = look('{"image_path": "a.png"}\n{"caption": "x"}\n', "meta.jsonl").problems[0]
    assert problem.code == "metadata.no-path" and problem.where.endswith("line 2")


def test_a_metadata_file_that_is_not_there_is_said(tmp_path, add):
    add("set/a.png")
    source = {"folder": str(tmp_path / "set"), "metadata_file": str(tmp_path / "nowhere.json")}
    problem = scan_dataset(DatasetSettings.model_validate({"sources": [source]})).problems[0]
    assert "does not exist" in problem.what and "nowhere.json" in problem.where


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "shift-jis"])
def test_the_file_is_read_in_the_encoding_it_has(add, look, encoding):
    add("set/a.png")
    found = look('{"a": {"caption": "きつねがはしる"}}'.encode(encoding))
    assert given(found) == {"a.png": "きつねがはしる"}
    assert [problem.level for problem in found.problems] == (["advice"] if encoding == "shift-jis" else [])


def test_reading_metadata_changes_nothing_on_the_disk(tmp_path, add, look):
    add("set/a.png")
    look({"a": {"caption": "x"}, "gone": {}})
    assert sorted(os.listdir(tmp_path)) == ["meta.json", "set"] and os.listdir(tmp_path / "set") == ["a.png"]


NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given_names(st.lists(st.tuples(NAME, NAME, st.sampled_from([".png", ".JPG", ".webp"])), max_size=8), st.booleans())
def test_whatever_images_are_called_each_key_finds_its_own(rows, with_extension):
    """By relative path always; by stem wherever no other file has it, upper and lower case taken together."""
    names = dict.fromkeys(f"{folder}/{name}{ending}" for folder, name, ending in rows if folder not in (".", ".."))
    files = [File(name, Path("/set") / name, 1, 1) for name in names]
    stems = {name: os.path.splitext(name)[0] for name in names}
    folded = Counter(form.casefold() for name in names for form in (name, stems[name]))
    keys = {name: name if with_extension or folded[stems[name].casefold()] > 1 else stems[name] for name in names}
    found = Finder(files, Path("/set"), Path("/nowhere")).match([Entry(key) for key in keys.values()])
    assert {entry.key: file.relative for entry, file in found.pairs} == {key: name for name, key in keys.items()}
    assert not found.missing and not found.unlisted


def test_a_shared_page_reaches_no_image_outside_its_folders_by_a_metadata_file(tmp_path, add, look, monkeypatch):
    add("set/a.png")
    outside = add("elsewhere/b.png")
    said = {"a": {"caption": "x"}, str(outside): {"caption": "y"}, str(tmp_path / "elsewhere/none.png"): {}}
    assert list(given(look(said))) == ["a.png", "b.png"]
    monkeypatch.setattr(allowed, "_open_folders", [(tmp_path / "set").resolve()])
    found = look(said)
    assert list(given(found)) == ["a.png"]
    (problem,) = found.problems
    assert problem.code == "metadata.no-access" and "2 of 3" in problem.what  # nor whether they exist
    found = look({"elsewhere/b.png": {}, "set/../elsewhere/b.png": {}})
    assert not found.images and found.problems[0].level == "error"
