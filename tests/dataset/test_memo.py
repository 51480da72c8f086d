"""What was found out about files stays known also where the drive cannot hold a database."""

import sqlite3
from types import SimpleNamespace

import pytest

from core.dataset.sources import memo as remembering
from core.dataset.sources.memo import Memo


@pytest.fixture
def file(tmp_path):
    return SimpleNamespace(path=tmp_path / "a.png", bytes=3, mtime_ns=5)


def connecting(monkeypatch, refuses):
    """sqlite3.connect, whose databases refuse to work where `refuses` says so of their path."""
    real = sqlite3.connect

    class Refusing(sqlite3.Connection):
        def execute(self, *_):
            raise sqlite3.OperationalError("locking protocol")

    def connect(path, **options):
        return real(path, **options, **({"factory": Refusing} if refuses(path) else {}))

    monkeypatch.setattr(remembering.sqlite3, "connect", connect)


def test_on_a_drive_without_locks_the_memory_lies_on_the_machine(tmp_path, file, monkeypatch):
    index = tmp_path / "drive" / "index.sqlite"
    connecting(monkeypatch, lambda path: str(tmp_path) in path)
    for _ in range(2):
        Memo(index).remember("kind", {file.path: "known"}, [file])
        assert Memo(index).known("kind", [file]) == {file.path: "known"}
    assert not index.is_relative_to(Memo(index).path.parent) and Memo(index).path.is_file()
    assert list(index.parent.glob(".tmp-*")) == []


def test_a_database_that_another_process_holds_stays_where_it_is(tmp_path, file, monkeypatch):
    index = tmp_path / "index.sqlite"
    Memo(index).remember("kind", {file.path: "known"}, [file])
    connecting(monkeypatch, lambda path: path == str(index))
    Memo(index).remember("kind", {file.path: "other"}, [file])
    assert Memo(index).known("kind", [file]) == {} and Memo(index).path == index
    monkeypatch.undo()
    assert Memo(index).known("kind", [file]) == {file.path: "known"}


def test_facts_of_any_number_of_files_are_known_until_size_or_time_changes(tmp_path):
    memo = Memo(tmp_path / "index.sqlite")
    files = [SimpleNamespace(path=tmp_path / f"{n}.png", bytes=n, mtime_ns=n) for n in range(1001)]
    memo.remember("kind", {file.path: str(file.bytes) for file in files}, files)
    for count in (0, 1, 500, 501, 1001):
        assert memo.known("kind", files[:count]) == {file.path: str(file.bytes) for file in files[:count]}
    assert memo.known("other", files) == {}
    for change in ({"bytes": 1}, {"mtime_ns": 1}):
        assert memo.known("kind", [SimpleNamespace(**vars(files[0]) | change)]) == {}


def test_a_database_that_is_in_use_is_waited_for_5_seconds(tmp_path, file, monkeypatch):
    waits, real = [], sqlite3.connect
    monkeypatch.setattr(
        remembering.sqlite3, "connect", lambda path, timeout: waits.append(timeout) or real(path, timeout=timeout)
    )
    Memo(tmp_path / "index.sqlite").remember("kind", {file.path: "known"}, [file])
    assert waits == [5]
