"""Folders that are whole or absent."""

import os
import time

import pytest

from core.record import atomic
from core.record.run_folder import RunFolder


def filled(folder, name="a.txt", text="new"):
    (folder / "inside").mkdir()
    (folder / "inside" / name).write_text(text)


def test_a_folder_appears_whole_and_with_the_usual_rights(tmp_path):
    with atomic.folder_atomic(tmp_path / "deep" / "m") as temporary:
        filled(temporary)
        assert not (tmp_path / "deep" / "m").exists()
    assert (tmp_path / "deep" / "m" / "inside" / "a.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["m"]
    if os.name != "nt":
        (tmp_path / "usual").mkdir()
        assert (tmp_path / "deep" / "m").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_one_that_was_there_is_replaced_with_everything_in_it(tmp_path):
    (tmp_path / "m").mkdir()
    filled(tmp_path / "m", "old.txt", "old")
    with atomic.folder_atomic(tmp_path / "m") as temporary:
        filled(temporary)
        assert (tmp_path / "m" / "inside" / "old.txt").is_file()
    assert [path.name for path in (tmp_path / "m" / "inside").iterdir()] == ["a.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "m").mkdir()
    filled(tmp_path / "m", "old.txt", "old")
    with pytest.raises(RuntimeError), atomic.folder_atomic(tmp_path / "m") as temporary:
        filled(temporary)
        raise RuntimeError
    assert (tmp_path / "m" / "inside" / "old.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    filled(tmp_path / "m", "old.txt", "old")
    plain = os.replace

    def refuse(source, target):
        if str(target).endswith("m") and ".tmp-" in str(source):
            raise OSError(5, "Input/output error")
        plain(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "replace", refuse)
        with atomic.folder_atomic(tmp_path / "m") as temporary:
            filled(temporary)
    assert (tmp_path / "m" / "inside" / "old.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_a_killed_process_left_is_taken_away_after_an_hour_and_nothing_else(tmp_path):
    for name in (".tmp-dead_1ab", ".tmp-alive_2b", ".tmp-drafts", ".old-m-abc", "m"):
        (tmp_path / name).mkdir()
        filled(tmp_path / name)
    (tmp_path / ".tmp-dead_3cd.safetensors").touch()
    (tmp_path / ".tmp-live_4de.safetensors").touch()
    (tmp_path / ".tmp-of another program.txt").touch()
    long_ago = time.time() - 2 * atomic.LEFTOVER_SECONDS
    for path in [each for each in tmp_path.iterdir() if each.name != ".tmp-live_4de.safetensors"]:
        for each in [*path.rglob("*"), path]:
            os.utime(each, (long_ago, long_ago))
    (tmp_path / ".tmp-alive_2b" / "inside" / "a.txt").touch()  # still being written
    atomic.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".old-m-abc",
        ".tmp-alive_2b",
        ".tmp-drafts",
        ".tmp-live_4de.safetensors",
        ".tmp-of another program.txt",
        "m",
    ]
    atomic.remove_leftovers(tmp_path / "missing")


def test_a_run_resumed_after_a_kill_has_its_folders_back_and_nothing_half_written(tmp_path):
    run = RunFolder.create(tmp_path, "x", {})
    aside = [run.checkpoints / name for name in (".old-my-model-abc_12", ".old-t-step00000002-def_34")]
    for folder in (*aside, run.checkpoints / "t-step00000002", run.checkpoints / ".tmp-gone_567"):
        folder.mkdir(parents=True)
        filled(folder, text="old" if folder in aside else "new")
    for name in (".tmp-dead_1ab.json", ".tmp-live_2cd.json"):
        (run.path / name).touch()
    os.utime(run.path / ".tmp-dead_1ab.json", (0, 0))
    run.remove_half_written()
    texts = {path.name: (path / "inside" / "a.txt").read_text() for path in run.checkpoints.iterdir()}
    assert texts == {"my-model": "old", "t-step00000002": "new"}
    assert [path.name for path in run.path.glob(".tmp-*")] == [".tmp-live_2cd.json"]
