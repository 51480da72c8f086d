"""Remembered captions are what reading gives, and no longer are as soon as anything they come from changes."""

import os

import pytest

import core.dataset.captions.memo as caption_memo
from core.dataset.captions import files
from core.dataset.captions.files import read_caption
from core.dataset.captions.memo import READ_SETTINGS, captions_of
from core.dataset.sources.scan import scan_dataset
from core.record.problems import ProblemsError
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.dataset import DatasetSettings


@pytest.fixture
def reads(monkeypatch):
    """Names of the images whose caption was read anew."""
    names = []

    def read(image, settings):
        names.append(image.relative)
        return read_caption(image, settings)

    monkeypatch.setattr(caption_memo, "read_caption", read)
    return names


def captions(folder, memo, **settings):
    wanted = CaptionSettings(**settings)
    images = scan_dataset(DatasetSettings(folder=str(folder))).images
    found = captions_of(images, [wanted], memo)
    assert found == {image.key: read_caption(image, wanted) for image in images}
    return found


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding)
    os.utime(path, ns=(1, write.time))
    write.time += 1


write.time = 10**18


@pytest.mark.parametrize(
    ("held", "sidecars", "other", "texts"),
    [
        (".txt", "one", "", ["set", "tags"]),
        (".txt", "joined", "A fox.", ["A fox.", "A fox.,tags"]),
        (".caption", "joined", "A fox.", ["tags", "A fox.,tags"]),
        (".caption", "drawn", "A fox.", ["tags", "tags"]),
    ],
)
def test_a_caption_file_that_another_program_has_open_is_read_again(
    tmp_path, add, monkeypatch, held, sidecars, other, texts
):
    add("set/a.png")
    write(tmp_path / "set/a.txt", "tags")
    if other:
        write(tmp_path / "set/a.caption", other)
    memo, read = tmp_path / "memo.sqlite", files.read_regular

    def in_use(path, most):
        if path.suffix == held:
            raise ProblemsError.one("The file cannot be read: Permission denied", str(path), code="file.unreadable")
        return read(path, most)

    monkeypatch.setattr(files, "read_regular", in_use)
    (first,) = captions(tmp_path / "set", memo, sidecars=sidecars).values()
    monkeypatch.setattr(files, "read_regular", read)
    (later,) = captions(tmp_path / "set", memo, sidecars=sidecars).values()
    assert (first.problem.code, later.problem) == ("caption.unreadable", None)
    assert [first.text, later.text] == texts


def test_captions_are_read_once_until_a_file_beside_the_image_changes(tmp_path, add, reads):
    for name in ("a", "b", "c"):
        add(f"set/{name}.png")
    write(tmp_path / "set/a.txt", "a fox")
    write(tmp_path / "set/b.txt", "きつねがはしる", "shift-jis")  # its caption has a finding of its own
    memo = tmp_path / "memo.sqlite"
    captions(tmp_path / "set", memo)
    assert reads == ["a.png", "b.png", "c.png"]
    reads.clear()
    captions(tmp_path / "set", memo)
    assert reads == ["c.png"]  # it has no file to read
    reads.clear()
    write(tmp_path / "set/a.txt", "b fox")  # of the same length
    write(tmp_path / "set/b.caption", "a second file")
    captions(tmp_path / "set", memo)
    assert reads == ["a.png", "b.png", "c.png"]
    reads.clear()
    os.remove(tmp_path / "set/b.txt")
    captions(tmp_path / "set", memo)
    assert reads == ["b.png", "c.png"]


def test_the_caption_that_a_cut_out_face_shares_is_noticed_too(tmp_path, add, reads):
    add("set/a_0001_0002_0003_0004.png")
    write(tmp_path / "set/a.txt", "a fox")
    memo = tmp_path / "memo.sqlite"
    captions(tmp_path / "set", memo)
    write(tmp_path / "set/a.txt", "b fox")
    assert [caption.text for caption in captions(tmp_path / "set", memo).values()] == ["b fox"]


def test_other_settings_and_other_words_of_the_folder_read_anew(tmp_path, add, reads):
    add("set/a.png")
    write(tmp_path / "set/a.txt", "tags")
    write(tmp_path / "set/a.caption", "A sentence.")
    memo = tmp_path / "memo.sqlite"
    captions(tmp_path / "set", memo)
    captions(tmp_path / "set", memo, sidecars="joined")
    captions(tmp_path / "set", memo, sidecars="joined", shuffle_caption=True)  # acts later
    assert reads == ["a.png", "a.png"]


class Watched:
    """Settings that note which of them are looked at."""

    def __init__(self, settings):
        self.settings, self.seen = settings, set()

    def __getattr__(self, name):
        self.seen.add(name)
        return getattr(self.settings, name)


def test_the_settings_that_reading_looks_at_are_those_that_the_memo_compares(tmp_path, add):
    add("set/a.png")
    add("set/b.png")
    write(tmp_path / "set/a.txt", "tags\nmore")
    write(tmp_path / "set/a.caption", "A sentence.\nAnother.")
    images = scan_dataset(DatasetSettings(folder=str(tmp_path / "set"))).images
    seen = set()
    for sidecars in ("one", "joined", "drawn"):
        for lines in ("first", "all"):
            for compatibility in ("none", "kohya"):
                for image in images:
                    settings = CaptionSettings(sidecars=sidecars, caption_lines=lines, compatibility=compatibility)
                    watched = Watched(settings)
                    read_caption(image, watched)
                    seen |= watched.seen
    assert seen <= set(READ_SETTINGS) <= set(CaptionSettings.model_fields)


def test_a_damaged_entry_is_read_anew(tmp_path, add, reads, monkeypatch):
    add("set/a.png")
    write(tmp_path / "set/a.txt", "a fox")
    memo = tmp_path / "memo.sqlite"
    monkeypatch.setattr(caption_memo, "_to_json", lambda caption: '["too short"]')
    captions(tmp_path / "set", memo)
    assert [each.text for each in captions(tmp_path / "set", memo).values()] == ["a fox"]
    assert reads == ["a.png", "a.png"]
