"""Titles of model files: equal names of different files are distinguished, in time that grows with their number."""

from __future__ import annotations

from pathlib import Path

import pytest

import core.record.file_titles
from core.record.file_titles import titles_of


def test_equal_names_are_distinguished_by_folder_then_name_then_path(tmp_path: Path) -> None:
    def titles(*names: str) -> list[str]:
        return titles_of([[tmp_path / each for each in name.split()] for name in names], tmp_path / "runs")

    assert titles("a/fox.pt", "b/cat.pt") == ["fox", "cat"]
    assert titles("a/fox.pt", "b/fox.pt", "a/fox.pt") == ["fox (a)", "fox (b)", "fox (a)"]
    assert titles("a/fox.pt", "a/fox.ckpt") == ["fox (fox.pt)", "fox (fox.ckpt)"]
    assert titles("a/x/fox.pt", "b/x/fox.pt") == [f"fox ({tmp_path.as_posix()}/{each}/x/fox.pt)" for each in "ab"]
    assert titles("a/fox.pt a/cat.pt", "b/fox.pt b/cat.pt", "c/fox.pt") == ["fox, cat (a)", "fox, cat (b)", "fox"]
    assert titles("", "") == ["", ""]


def test_each_of_many_equal_names_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(core.record.file_titles, "run_of", lambda path, runs: asked.append(path))
    files = [[tmp_path / f"{number}" / "fox.pt"] for number in range(300)]
    assert len(set(titles_of(files, tmp_path / "runs"))) == 300
    assert len(asked) <= 2 * len(files)  # for its title, and for its folder
