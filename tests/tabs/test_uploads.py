"""Dropped files become one folder under outputs/datasets, whole or not at all."""

from __future__ import annotations

import os
import zipfile
from types import SimpleNamespace

import pytest
from work_parts import image

from core.record.problems import ProblemsError
from tabs.server import uploads


def test_images_and_captions_land_in_one_new_folder_named_after_them(tmp_path):
    files = [image(tmp_path / "in" / f"fox_0{n}.png", caption="a fox") for n in range(3)]
    files += [path.with_suffix(".txt") for path in files]
    folder = uploads.store_upload(files, tmp_path / "datasets")
    assert folder == tmp_path / "datasets" / "fox"
    assert sorted(path.name for path in folder.iterdir()) == [
        "fox_00.png", "fox_00.txt", "fox_01.png", "fox_01.txt", "fox_02.png", "fox_02.txt"
    ]  # fmt: skip


def test_a_second_set_of_that_name_is_numbered(tmp_path):
    files = [image(tmp_path / "in" / f"fox_0{n}.png") for n in range(2)]
    uploads.store_upload(files, tmp_path / "datasets")
    assert uploads.store_upload(files, tmp_path / "datasets").name == "fox-2"


def test_two_files_of_one_name_are_both_kept(tmp_path):
    files = [image(tmp_path / "one" / "a.png"), image(tmp_path / "two" / "a.png", color="red")]
    folder = uploads.store_upload(files, tmp_path / "datasets")
    assert sorted(path.name for path in folder.iterdir()) == ["a-2.png", "a.png"]


def test_a_folder_keeps_the_name_that_has_its_repeats_and_no_other(tmp_path):
    files = [image(tmp_path / str(n) / f"fox{n}.png") for n in range(5)]
    names = ["10_sks fox", "foxes", "", "3_..", "2_x/../../y"]
    folder = uploads.store_upload(files, tmp_path / "datasets", folders=names)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert found == ["10_sks fox/fox0.png", "fox1.png", "fox2.png", "fox3.png", "fox4.png"]


def files_in(folder, *names):
    """Files in a folder of their own: images, and captions that say which folder they are of."""
    folder.mkdir()
    for name in names:
        if name.endswith((".png", ".jpg")):
            image(folder / name)
        else:
            (folder / name).write_text(folder.name)
    return [folder / name for name in names]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("a.png",), ("a.png", "a.txt")),
        (("a.png", "a.txt"), ("A.png", "a.txt")),
        (("a.png", "a.txt"), ("a.jpg", "a.txt", "a.caption")),
        (("a.png", "a-masklabel.png"), ("a.png", "a-masklabel.png")),
    ],
)
def test_captions_and_masks_of_images_of_one_name_are_refused_in_any_order(tmp_path, one, two):
    first, second = files_in(tmp_path / "one", *one), files_in(tmp_path / "two", *two)
    for files in (first + second, [*first[:1], *second, *first[1:]]):
        with pytest.raises(ProblemsError) as refused:
            uploads.store_upload(files, tmp_path / "datasets")
        assert refused.value.codes == ["upload.captions-unclear"] and not (tmp_path / "datasets").exists()


def test_images_that_share_a_stem_share_its_caption_and_other_files_are_numbered(tmp_path):
    files = files_in(tmp_path / "one", "a.png", "a.jpg", "a.txt", "meta.json", "b.png")
    files += files_in(tmp_path / "two", "meta.json", "b.png")
    folder = uploads.store_upload(files, tmp_path / "datasets")
    found = {path.name for path in folder.iterdir()}
    assert found == {"a.png", "a.jpg", "a.txt", "meta.json", "meta-2.json", "b.png", "b-2.png"}


def test_a_zip_is_unpacked(tmp_path):
    image(tmp_path / "in" / "a.png", caption="a fox")
    with zipfile.ZipFile(tmp_path / "foxes.zip", "w") as archive:
        archive.write(tmp_path / "in" / "a.png", "foxes/a.png")
        archive.write(tmp_path / "in" / "a.txt", "foxes/a.txt")
    folder = uploads.store_upload([tmp_path / "foxes.zip"], tmp_path / "datasets")
    assert folder.name == "foxes" and (folder / "a.txt").read_text() == "a fox"
    for dropped in (tmp_path / "foxes.zip", tmp_path / "in" / "a.png"):
        left = tmp_path / "datasets" / ".tmp-0abc_def"  # by a kill, hours ago
        left.mkdir()
        os.utime(left, (0, 0))
        uploads.store_upload([dropped], tmp_path / "datasets")
        assert not left.exists()


def test_no_image_is_refused_and_leaves_nothing(tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("words")
    with pytest.raises(ProblemsError, match="no image"):
        uploads.store_upload([note], tmp_path / "datasets")
    assert not (tmp_path / "datasets").exists() or list((tmp_path / "datasets").iterdir()) == []


def test_a_zip_among_other_files_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ProblemsError, match="together"):
        uploads.store_upload([tmp_path / "a.zip", image(tmp_path / "a.png")], tmp_path / "datasets")


def test_a_copy_that_fails_leaves_no_half_folder(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads.shutil, "copyfile", full)
    with pytest.raises(ProblemsError, match="disk is full"):
        uploads.store_upload([image(tmp_path / "a.png")], tmp_path / "datasets")
    assert list((tmp_path / "datasets").iterdir()) == []


def test_uploads_that_a_killed_page_left_are_removed_at_the_next_start(tmp_path, monkeypatch):
    from tabs.server import app

    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "FORWARDED_ALLOW_IPS"):
        monkeypatch.setenv(name, "")  # put back after the test
    left = tmp_path / "uploads" / "0a1b" / "photos.zip"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    monkeypatch.setattr(app, "build", lambda page: 1 / 0)  # nothing is served
    with pytest.raises(ZeroDivisionError):
        app.launch(
            SimpleNamespace(workspace=SimpleNamespace(private=tmp_path)), host="", port=0, share=False, auth=None
        )
    assert not left.exists()
