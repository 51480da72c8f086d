"""Browsing folders in the page: only open ones."""

from __future__ import annotations

import os
import sys

import pytest
from work_parts import image, make_page

from core.record.problems import ProblemsError
from tabs.form import folder_browser
from tabs.tools.models import Models


def test_folders_and_images_are_listed_and_junk_is_not(tmp_path):
    page = make_page(tmp_path)
    image(tmp_path / "set" / "a.png")
    for name in ("Zeta", "alpha", ".hidden", "_atelier_trash", "__MACOSX"):
        (tmp_path / "set" / name).mkdir()
    found = folder_browser.listing(page.roots, str(tmp_path / "set"))
    assert found.folders == ["alpha", "Zeta"] and found.images == 1 and found.parent == tmp_path


def test_images_in_subfolders_are_counted_apart(tmp_path, monkeypatch):
    page = make_page(tmp_path)
    for name in ("a.png", "one/b.png", "one/two/c.png", "one/.hidden/d.png"):
        image(tmp_path / "set" / name)
    found = folder_browser.listing(page.roots, str(tmp_path / "set"))
    assert found.images == 1 and folder_browser.images_below(page.roots, found) == (2, False)
    monkeypatch.setattr(folder_browser, "MAX_BELOW", 1)
    assert folder_browser.images_below(page.roots, found)[1]


def test_a_shared_page_browses_only_the_projects_folders(tmp_path):
    page = make_page(tmp_path, shared=True)
    page.workspace.datasets.mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    with pytest.raises(ProblemsError):
        folder_browser.listing(page.roots, str(tmp_path / "secret"))
    assert folder_browser.listing(page.roots, str(page.workspace.outputs)).parent is None
    assert "Home" not in [name for name, _ in folder_browser.starts(page.roots)]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_out_of_the_open_folders_is_not_listed(tmp_path):
    page = make_page(tmp_path, shared=True)
    page.workspace.datasets.mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    os.symlink(tmp_path / "secret", page.workspace.datasets / "way-out")
    assert folder_browser.listing(page.roots, str(page.workspace.datasets)).folders == []


def test_a_folder_that_is_gone_is_said(tmp_path):
    assert folder_browser.listing(make_page(tmp_path).roots, str(tmp_path / "gone")).reason


@pytest.mark.parametrize("tab", ["Dataset", "Captions", "Train", "Monitor", "Generate", "Runs", "Tools"])
def test_the_browser_of_files_lists_a_folder_on_every_tab(tmp_path, tab):
    """Fields with paths are on Generate too, where nothing was listed."""
    page = make_page(tmp_path)
    models = Models(page.workspace, page.project, page.roots)
    (tmp_path / "set").mkdir()
    found = models.parts(tab, {"wants": {"files": str(tmp_path), "kind": "any"}})
    assert "set" in str(found["browse"])
    assert "browse" not in models.parts(tab, {})
