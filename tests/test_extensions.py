"""Modules of other people: which ones the command line allows, and what becomes of each."""

import sys

import pytest

from core import extensions
from core.record import allowed
from core.record.problems import ProblemsError


@pytest.fixture
def modules(tmp_path, monkeypatch):
    for name in ("letters_here", "numbers_here"):
        (tmp_path / f"{name}.py").write_text("")
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "broken_here.py").write_text("import not_here_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(allowed, "_by_flag", set())
    monkeypatch.setattr(allowed, "FILE", tmp_path / "allowed_modules.txt")
    monkeypatch.setattr(extensions, "EXTENSIONS", extensions.EXTENSIONS)
    return tmp_path


def test_modules_are_allowed_by_both_forms_of_the_flag_and_listed_once(modules):
    before = extensions.EXTENSIONS
    extensions.import_allowed(
        ["train", "--allow-module=letters_here", "--steps", "3", "--allow-module", "numbers_here"]
    )
    assert extensions.EXTENSIONS == (*before, "letters_here", "numbers_here")
    extensions.import_allowed(["--allow-module", "letters_here"])
    assert extensions.EXTENSIONS == (*before, "letters_here", "numbers_here")


def test_lines_of_the_file_are_allowed_without_their_comments_and_absent_modules_ignored(modules):
    (modules / "allowed_modules.txt").write_text(
        "letters_here # of a friend\n# numbers_here\nnobody_has_this\nbad name\n"
    )
    before = extensions.EXTENSIONS
    extensions.import_allowed()
    assert extensions.EXTENSIONS == (*before, "letters_here") and "numbers_here" not in sys.modules


def test_a_module_that_fails_is_named_and_none_is_listed(modules):
    before = extensions.EXTENSIONS
    with pytest.raises(ProblemsError) as caught:
        extensions.import_allowed(["--allow-module=broken_here", "--allow-module=letters_here"])
    assert [(each.code, each.where) for each in caught.value.problems] == [("module.import", "broken_here")]
    assert extensions.EXTENSIONS == before
