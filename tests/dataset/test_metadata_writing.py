"""The metadata JSON for other tools: keys, texts and sizes as sd-scripts reads them, and nothing of the user's is lost."""

import json
from pathlib import Path

import pytest

import core.record.allowed as allowed
from core.dataset.buckets.aspect_ratio import plan_buckets
from core.dataset.buckets.batches import Placed
from core.dataset.caches.metadata_writing import write_metadata
from core.dataset.captions.files import read_caption
from core.dataset.sources.scan import scan
from core.record.problems import ProblemsError
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts
from core.settings.dataset.dataset import DatasetSettings
from core.settings.dataset.validation import ValidationSettings


def placed_of(folder, **source):
    dataset = DatasetSettings.model_validate({"sources": [{"folder": str(folder), **source}], "resolution": 128})
    (concept,) = concepts(dataset, CaptionSettings(), ValidationSettings())
    plan = plan_buckets(concept.images)
    return [
        Placed(image, plan.assign(image.width, image.height), read_caption(image, concept.captions), concept)
        for image in scan([concept]).images
    ]


def read(path):
    return json.loads(path.read_text("utf-8"))


def test_caption_tags_and_bucket_of_each_image_are_written(tmp_path, add):
    add("set/a.png", 128, 128)
    add("set/sub/b.png", 200, 100)
    (tmp_path / "set/a.caption").write_text("a fox")
    (tmp_path / "set/a.txt").write_text("fox, red")
    placed = placed_of(tmp_path / "set")
    assert write_metadata(tmp_path / "meta.json", placed) == 2
    assert read(tmp_path / "meta.json") == {
        "a": {"caption": "a fox", "tags": "fox, red", "train_resolution": [128, 128]},
        "sub/b": {"caption": "set", "train_resolution": list(placed[1].placement.bucket)},
    }
    assert not (tmp_path / "_atelier_trash").exists()


def test_what_is_written_is_read_back_as_the_same_dataset(tmp_path, add):
    for name in ("a.png", "a.png.png", "sub/b.png", "狐 [1].png"):
        path = add(f"set/{name}", 128, 96)
        path.with_suffix(".txt").write_text(f"words of {name}", "utf-8")
    placed = placed_of(tmp_path / "set")
    for full_path in (False, True):
        write_metadata(tmp_path / "meta.json", placed, full_path=full_path)
        again = placed_of(tmp_path / "set", metadata_file=str(tmp_path / "meta.json"))
        assert [each.image.key for each in again] == [each.image.key for each in placed]
        assert [each.caption.text for each in again] == [each.caption.text for each in placed]
        assert [each.image.metadata_bucket for each in again] == [each.placement.bucket for each in placed]


def test_keys_are_absolute_paths_where_asked(tmp_path, add):
    path = add("set/a.png")
    write_metadata(tmp_path / "meta.json", placed_of(tmp_path / "set"), full_path=True)
    assert list(read(tmp_path / "meta.json")) == [str(path)]


def test_images_of_several_folders_get_keys_below_their_common_one(tmp_path, add):
    add("set/2_fox/a.png")
    add("set/3_cat/a.png")
    write_metadata(tmp_path / "meta.json", placed_of(tmp_path / "set"))
    written = read(tmp_path / "meta.json")
    assert {key: entry["caption"] for key, entry in written.items()} == {"2_fox/a": "fox", "3_cat/a": "cat"}


def test_an_earlier_file_is_kept_in_the_trash_folder(tmp_path, add):
    add("set/a.png")
    target = tmp_path / "set/meta.json"
    target.write_text("precious")
    write_metadata(target, placed_of(tmp_path / "set"))
    (backup,) = (tmp_path / "set/_atelier_trash").iterdir()
    assert backup.read_text() == "precious" and backup.suffix == ".bak" and list(read(target)) == ["a"]


def test_two_images_of_one_key_are_refused_and_nothing_is_written(tmp_path, add):
    add("set/a.png")
    add("set/a.jpg")
    with pytest.raises(ProblemsError, match=r"a for a\.jpg, a\.png") as refused:
        write_metadata(tmp_path / "meta.json", placed_of(tmp_path / "set"))
    assert "full paths" in refused.value.problems[0].fix and not (tmp_path / "meta.json").exists()
    assert write_metadata(tmp_path / "meta.json", placed_of(tmp_path / "set"), full_path=True) == 2
    assert len(read(tmp_path / "meta.json")) == 2


def test_a_disk_that_takes_nothing_leaves_the_earlier_file(tmp_path, add, monkeypatch):
    add("set/a.png")
    (tmp_path / "meta.json").write_text("precious")

    def full(target, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("core.record.atomic.write_json", full)
    with pytest.raises(ProblemsError, match="No space left"):
        write_metadata(tmp_path / "meta.json", placed_of(tmp_path / "set"))
    assert Path(tmp_path / "meta.json").read_text() == "precious"


def test_a_shared_page_writes_no_list_outside_its_folders(tmp_path, add, monkeypatch):
    add("set/a.png")
    monkeypatch.setattr(allowed, "_open_folders", [])
    with pytest.raises(ProblemsError, match="shared page"):
        write_metadata(tmp_path / "meta.json", placed_of(tmp_path / "set"))
    assert not (tmp_path / "meta.json").exists()
