"""sd-scripts' metadata_cache.json is used as it stands, and every difference from the folder is said."""

import json

from core.dataset.captions.files import read_caption
from core.dataset.sources.scan import scan_dataset
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.dataset import DatasetSettings


def look(folder):
    return scan_dataset(
        DatasetSettings.model_validate(
            {"sources": [{"folder": str(folder), "cache_info": True, "class_tokens": "fox"}]}
        )
    )


def write(folder, said):
    (folder / "metadata_cache.json").write_text(json.dumps(said))


def test_the_list_is_written_where_there_is_none_and_read_back_as_the_same(tmp_path, add):
    path = add("set/a.png", 64, 48)
    add("set/b.png")
    path.with_suffix(".txt").write_text("a red fox\nsecond line")
    first = look(tmp_path / "set")
    said = json.loads((tmp_path / "set/metadata_cache.json").read_text())
    assert said == {
        str(path): {"caption": "a red fox", "resolution": [64, 48]},
        str(tmp_path / "set/b.png"): {"caption": "fox", "resolution": [64, 48]},
    }
    again = look(tmp_path / "set")
    assert [p.key for p in again.images] == [p.key for p in first.images] and not again.problems
    assert [p.metadata_caption for p in again.images] == ["a red fox", "fox"]


def test_the_list_decides_what_trains_and_with_which_words(tmp_path, add):
    path = add("set/a.png")
    add("set/new.png")
    path.with_suffix(".txt").write_text("edited since")
    write(tmp_path / "set", {str(path): {"caption": "of the list", "resolution": [64, 48]}})
    found = look(tmp_path / "set")
    assert [read_caption(p, CaptionSettings()).text for p in found.images] == ["of the list"]
    unlisted, edited = found.problems
    assert unlisted.code == "metadata.unlisted-images" and "new.png" in unlisted.what
    assert edited.code == "dataset.stale-caption-cache" and "1 of 1" in edited.what and "a.png" in edited.what
    assert {unlisted.level, edited.level} == {"advice"}
    assert "metadata_cache.json" in edited.fix


def test_entries_whose_image_is_gone_and_images_that_changed_are_said(tmp_path, add):
    path = add("set/a.png")
    write(
        tmp_path / "set",
        {
            str(path): {"caption": "x", "resolution": [99, 48]},
            str(tmp_path / "set/gone.png"): {"caption": "x", "resolution": [1, 1]},
        },
    )
    whats = [problem.what for problem in look(tmp_path / "set").problems]
    assert any("match no image" in what and "gone.png" in what for what in whats)
    assert any("a.png (99 x 48 in the metadata, 64 x 48 now)" in what for what in whats)


def test_a_list_of_another_computer_is_found_by_name(tmp_path, add):
    add("set/a.png")
    write(tmp_path / "set", {"D:\\old\\a.png": {"caption": "x", "resolution": [64, 48]}})
    found = look(tmp_path / "set")
    assert [p.relative for p in found.images] == ["a.png"] and found.problems[0].code == "metadata.matched-by-name"


def test_a_folder_that_takes_no_list_trains_all_the_same_and_it_is_said(tmp_path, add, monkeypatch):
    add("set/a.png")

    def refuse(target, value):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("core.record.atomic.write_json", refuse)
    found = look(tmp_path / "set")
    assert len(found.images) == 1
    assert "could not be written" in found.problems[0].what and found.problems[0].level == "advice"


def test_without_the_setting_no_list_is_read_or_written(tmp_path, add):
    add("set/a.png")
    scan_dataset(DatasetSettings(folder=str(tmp_path / "set")))
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["a.png"]
    write(tmp_path / "set", {})
    assert len(scan_dataset(DatasetSettings(folder=str(tmp_path / "set"))).images) == 1
