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
