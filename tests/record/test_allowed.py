"""Which modules may run is said by the machine's owner alone."""

import pytest

import core.record.allowed as allowed
from core.record.problems import ProblemsError


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch, tmp_path):
    monkeypatch.setattr(allowed, "_by_flag", set())
    monkeypatch.setattr(allowed, "FILE", tmp_path / "allowed_modules.txt")


def test_without_a_word_of_the_owner_nothing_is_allowed():
    assert allowed.allowed_modules() == frozenset()


def test_flags_and_lines_of_the_file_are_allowed(tmp_path):
    (tmp_path / "allowed_modules.txt").write_text(
        "\ufeff# mine\n one \ntwo # a comment\n\n#three\nos.path\n-x\n", "utf-8"
    )
    allowed.allow("four")
    assert allowed.allowed_modules() == {"one", "two", "four"}


@pytest.mark.parametrize("name", ["", "a.b", "a b", "../a", "1a"])
def test_what_is_no_module_is_refused(name):
    with pytest.raises(ProblemsError):
        allowed.allow(name)
    assert allowed.allowed_modules() == frozenset()


def test_a_file_that_cannot_be_read_allows_nothing(tmp_path):
    (tmp_path / "allowed_modules.txt").write_bytes(b"one\n\xff\xfe\n")
    assert allowed.allowed_modules() == frozenset()


def test_the_file_is_ignored_by_git():
    assert "/allowed_modules.txt" in (allowed.PROJECT / ".gitignore").read_text().splitlines()


def test_launched_processes_keep_to_just_these_folders_whatever_they_are_called(tmp_path, monkeypatch):
    """A colon may stand in a folder's name; it parts folders in lists such as PATH."""
    named = tmp_path / "out:puts \u00e9"
    monkeypatch.setattr(allowed, "_open_folders", None)
    allowed.keep_files_inside([named])
    for name, value in allowed.limits_of_launched().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(allowed, "_open_folders", None)
    allowed.take_limits()
    assert allowed.may_reach(named / "a.png") and not allowed.may_reach(tmp_path / "out" / "a.png")
