"""Folders of painted masks: one for each image folder, complete or absent, each mask for its own image only."""

import os
import shutil

import pytest
from PIL import Image

from core.dataset.captions.history import History
from core.dataset.images.painting import begin_folder, mask_in, record_replaced, write_mask
from core.dataset.sources.painted import MARK, is_painted, painted_folder
from core.dataset.sources.scan import scan_dataset
from core.record import atomic
from core.settings.dataset.dataset import DatasetSettings
from tests.refusals import refused

WHITE = Image.new("L", (64, 48), 255)


def pairs(folder, masks):
    found = scan_dataset(DatasetSettings(folder=str(folder), conditioning_data_dir=str(masks), masked_loss=True))
    return {
        f"{image.source}/{image.relative}": image.conditioning and image.conditioning.relative_to(masks).as_posix()
        for image in found.images
    }


def test_each_folder_has_one_of_its_own_whatever_they_are_called(tmp_path, add):
    first, second = add("x/set/a.png").parent, add("y/set/a.png").parent
    datasets = tmp_path / "datasets"
    begin_folder(painted_folder(datasets, first), first)
    assert painted_folder(datasets, first).name == "set_masks"
    assert painted_folder(datasets, second).name == "set_masks-2"
    (tmp_path / "link").symlink_to(first)
    assert painted_folder(datasets, tmp_path / "link").name == "set_masks", "the same folder by another name"
    assert len(os.fsencode(painted_folder(datasets, tmp_path / ("n" * 255)).name)) < 255
    (datasets / "set_masks" / MARK).write_bytes(b"[1")
    assert painted_folder(datasets, first).name == "set_masks-2", "a mark that cannot be read is nobody's"


def test_a_painted_mask_is_for_the_image_at_its_path_and_no_other_of_its_name(tmp_path, add):
    for name in ("set/a.png", "set/2_fox/a.png", "set/sub/a.png"):
        add(name)
    masks = painted_folder(tmp_path / "datasets", tmp_path / "set")
    begin_folder(masks, tmp_path / "set")
    write_mask(History(tmp_path / "history"), masks, "a", WHITE)
    assert pairs(tmp_path / "set", masks) == {"set/a.png": "a.png", "set/sub/a.png": None, "2_fox/a.png": None}
    write_mask(History(tmp_path / "history"), masks, "2_fox/a", WHITE)
    assert pairs(tmp_path / "set", masks)["2_fox/a.png"] == "2_fox/a.png"
    (masks / MARK).unlink()
    assert pairs(tmp_path / "set", masks)["set/sub/a.png"] == "a.png", "as of any other mask folder"


@pytest.mark.parametrize(("name", "stem"), [("a", "a"), ("e\u0301", "\u00e9")], ids=["ascii", "accent"])
def test_a_painted_mask_replaces_one_of_another_format(tmp_path, add, name, stem):
    masks, old = tmp_path / "masks", add(f"masks/sub/{name}.jpg")
    begin_folder(tmp_path / "new", tmp_path / "set")
    shutil.copy(tmp_path / "new" / MARK, masks)
    assert is_painted(masks) and mask_in(masks, f"sub/{stem}") == old
    write_mask(History(tmp_path / "history"), masks, f"sub/{stem}", WHITE)
    assert sorted(each.name for each in (masks / "sub").iterdir()) == [f"{stem}.png"]
    assert mask_in(masks, "none/c") is None


def test_images_without_a_painted_mask_keep_those_of_the_replaced_folder(tmp_path, add):
    for name in ("set/a.png", "set/b.png", "set/c.png", "own/a.png", "own/b.jpg", "own/extra.png"):
        add(name)
    masks = tmp_path / "masks"
    begin_folder(masks, tmp_path / "set")
    write_mask(History(tmp_path / "history"), masks, "a", WHITE)
    record_replaced(masks, [tmp_path / "own"])
    settings = DatasetSettings(folder=str(tmp_path / "set"), conditioning_data_dir=str(masks), masked_loss=True)

    def scan():
        found = scan_dataset(settings)
        return [image.conditioning for image in found.images], [(each.code, each.level) for each in found.problems]

    paths, codes = scan()
    assert paths == [masks / "a.png", tmp_path / "own" / "b.jpg", None]
    assert codes == [("mask.missing", "advice"), ("mask.unmatched", "advice")], (
        "the mask that was painted over is neither"
    )
    shutil.rmtree(tmp_path / "own")
    paths, codes = scan()
    assert paths == [masks / "a.png", None, None] and ("dataset.missing-folder", "advice") in codes


def test_a_full_disk_leaves_no_folder_behind(tmp_path, monkeypatch):
    def full(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_json", full)
    with refused("disk.full"):
        begin_folder(tmp_path / "datasets" / "set_masks", tmp_path / "set")
    assert not list((tmp_path / "datasets").iterdir())


def test_a_mask_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    masks = tmp_path / "masks"
    begin_folder(masks, tmp_path / "set")
    before = write_mask(History(tmp_path / "history"), masks, "a", WHITE).read_bytes()

    def full(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_bytes", full)
    with refused("disk.full"):
        write_mask(History(tmp_path / "history"), masks, "a", Image.new("L", (64, 48)))
    assert (masks / "a.png").read_bytes() == before and sorted(path.name for path in masks.iterdir()) == [MARK, "a.png"]


def test_an_earlier_mask_comes_back(tmp_path, add):
    history, masks, data = History(tmp_path / "history"), tmp_path / "masks", add("masks/a.jpg").read_bytes()
    first = write_mask(history, masks, "a", WHITE).read_bytes()
    write_mask(history, masks, "a", Image.new("L", (64, 48)))
    newest, oldest = list(history.entries())
    history.undo(newest.id)
    assert (masks / "a.png").read_bytes() == first
    history.undo(oldest.id)
    assert (masks / "a.jpg").read_bytes() == data and not (masks / "a.png").exists()
