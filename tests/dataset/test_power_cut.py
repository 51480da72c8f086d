"""What a power cut leaves: names of new folders are on disk before what is in them counts, and captions are old or new, never empty."""

import os

import pytest

from core.dataset.captions.history import Change, History, interruption_message
from core.record import atomic
from core.record.lock import Lock
from core.record.run_folder import RunFolder


@pytest.fixture
def disk(monkeypatch):
    """What is done to the disk, in order: ("sync", path), ("rename", path)."""
    done = []
    rename = os.replace

    def fsync(handle):
        done.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))

    def replace(source, target):
        rename(source, target)
        done.append(("rename", str(target)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return done


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="tells which file a handle is of")
def test_each_new_folder_is_synced_into_its_parent_once(tmp_path, disk):
    (tmp_path / "a").mkdir()
    atomic.make_folders(tmp_path / "a" / "b" / "c")
    assert disk == [("sync", str(tmp_path / "a")), ("sync", str(tmp_path / "a" / "b"))]
    atomic.make_folders(tmp_path / "a" / "b" / "c")
    assert len(disk) == 2
    run = RunFolder.create(tmp_path / "runs", "fox", {})
    assert disk[2:4] == [("sync", str(tmp_path)), ("sync", str(tmp_path / "runs"))]
    atomic.write_json(run.checkpoints / "x.json", {})
    assert ("sync", str(run.path)) in disk[disk.index(("rename", str(run.job_file))) + 2 :]


def test_a_change_of_many_captions_is_on_disk_before_a_caption_is_replaced(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(os, "sync", lambda: disk.append(("sync", "all")))
    paths = [tmp_path / f"{n}.txt" for n in range(3)]
    for path in paths:
        path.write_text("old")
    History(tmp_path / "history").apply("Replace", [Change(path, b"old", b"new") for path in paths])
    steps = [step for step in disk if step == ("sync", "all") or step[1] in map(str, paths)]
    assert steps == [("sync", "all"), *(("rename", str(path)) for path in paths), ("sync", "all")]
    assert [path.read_text() for path in paths] == ["new"] * 3 and not list(tmp_path.glob(".tmp-*"))


def test_a_change_that_was_cut_off_is_told_at_the_next_start_once_and_can_be_undone(tmp_path):
    folder = tmp_path / "history"
    assert interruption_message(folder) == ""
    history, paths = History(folder), [tmp_path / f"{n}.txt" for n in range(3)]
    for path in paths:
        path.write_text("old")
    changes = [Change(path, b"old", b"new") for path in paths]
    history.apply("Whole", changes[:1])
    assert interruption_message(folder) == ""
    with pytest.raises(KeyboardInterrupt), history.open("Replace") as opened:
        opened.write(changes[1:])
        raise KeyboardInterrupt
    paths[2].write_text("old")  # not written when the power went
    words = interruption_message(folder)
    assert "'Replace'" in words and "1 of 2" in words
    assert interruption_message(folder) == ""
    history.undo(next(history.entries()).id)
    assert [path.read_text() for path in paths] == ["new", "old", "old"]


def test_nothing_is_told_where_another_process_writes_or_nothing_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("core.record.lock.LOOK_SECONDS", 0.01)
    folder, path = tmp_path / "history", tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), History(folder).open("Replace") as opened:
        opened.write([Change(path, b"old", b"new")])
        raise KeyboardInterrupt
    lock = Lock(folder / "writing.lock")
    lock.acquire()
    assert interruption_message(folder) == ""
    lock.release()
    path.write_text("old")
    assert interruption_message(folder) == ""
