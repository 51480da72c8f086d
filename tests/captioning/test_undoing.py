"""Captions changed and restored on the command line: `caption TOOL` is the tool, and a change is undone by its number."""

from __future__ import annotations

import pytest
from PIL import Image

from core.cli.main import BAD_INPUT, DONE, main


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (64, 64), (200, 30, 30)).save(place / f"{name}.png")
        (place / f"{name}.txt").write_text(f"caption {name}\n")
    return place


def texts(folder):
    return [(folder / f"{name}.txt").read_text() for name in ("a", "b")]


def test_changes_are_listed_and_undone(folder, tmp_path, capsys):
    before, outputs = texts(folder), ["--outputs", str(tmp_path / "out")]
    edit = ["caption", "edit_captions", "--dataset.folder", str(folder), *outputs, "--edit_captions.tags"]
    for tag in ("one", "two"):
        assert main([*edit, tag]) == DONE
    assert texts(folder) == ["caption a, one, two\n", "caption b, one, two\n"]
    capsys.readouterr()
    assert main(["caption", "caption_history", *outputs]) == DONE
    newest, older = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "2 captions" in line]
    assert int(newest) > int(older)
    (folder / "b.txt").write_text("by hand\n")
    assert main(["caption_history", "--caption_history.undo", "last", "--check", *outputs]) == DONE
    assert texts(folder)[0] == "caption a, one, two\n", "a check undoes nothing"
    assert main(["caption_history", "--caption_history.undo", "last", *outputs]) == DONE
    assert texts(folder) == ["caption a, one\n", "by hand\n"] and "b.txt" in capsys.readouterr().out
    assert main(["caption_history", f"--caption_history.undo={older}", *outputs]) == DONE
    assert texts(folder) == [before[0], "by hand\n"]


def test_an_interrupted_change_says_how_many_it_reached(folder, tmp_path, capsys):
    outputs = ["--outputs", str(tmp_path / "out")]
    assert main(["edit_captions", str(folder), *outputs, "--edit_captions.tags", "one"]) == DONE
    (kept,) = (tmp_path / "out" / ".atelier" / "captions").glob("*.jsonl")
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:2]))  # what was done, and one file
    capsys.readouterr()
    assert main(["caption_history", *outputs]) == DONE
    assert "at most 1 of 2 captions" in capsys.readouterr().out


@pytest.mark.parametrize("wanted", ["last", "123", "../../etc/passwd"])
def test_a_change_that_is_not_there_is_refused(tmp_path, wanted, capsys):
    assert main(["caption_history", "--caption_history.undo", wanted, "--outputs", str(tmp_path / "out")]) == BAD_INPUT
    assert "caption_history.undo" in capsys.readouterr().err


def test_the_help_of_caption_names_its_tools_and_no_other_command_takes_them(capsys):
    assert main(["caption", "--help"]) == DONE
    assert "\n  tag  " in capsys.readouterr().out
    assert main(["caption", "tag", "--help"]) == DONE and "--tag.thresh" in capsys.readouterr().out
    assert main(["caption", "train"]) == BAD_INPUT and main(["train", "tag"]) == BAD_INPUT
