"""Kept scores: added block by block, found image by image, whole after a kill."""

import os

import pytest

from core.captioning.tagger import score_cache as module
from core.captioning.tagger.score_cache import FolderScores, ScoreCache
from core.captioning.tagger.tags import Label
from core.record.workspace import Workspace
from tests.refusals import refused

THRESHOLDS = {"general": 0.35}
# What was written before scores came in blocks: all labels, then all images.
FORMER = (
    '{"version": 1, "thresholds": {"general": 0.3}, "labels": [["a", "general", []], ["b", "character", ["c"]]]}\n'
    '{"image": "old.png", "stamp": [1, 2], "scores": [[0, 0.9], [1, 0.8]]}\n'
)
OLD = ((Label("a", "general"), 0.9), (Label("b", "character", ("c",)), 0.8))


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "out")


def keep(workspace, folder, close=True, **scores):
    """Add the score of one tag for each image, "x" for its label."""
    folder.mkdir(exist_ok=True)
    keeper = ScoreCache(workspace, "m", THRESHOLDS)
    for name, value in scores.items():
        (folder / f"{name}.png").touch()
        keeper.add(folder / f"{name}.png", [(Label(f"tag of {name}", "general"), value)])
    (keeper.close if close else keeper.write)()
    return FolderScores(workspace, "m", folder).path


def found(workspace, folder, *names):
    """{name: score} of the images that are kept."""
    shelf, scores = ScoreCache(workspace, "m"), {}
    for name in names:
        one, _ = shelf.find(folder / f"{name}.png")
        if one is not None:
            ((label, value),) = one.scored
            assert label == Label(f"tag of {name}", "general")
            scores[name] = value
    return scores


def test_scores_are_added_and_those_before_are_not_written_again(tmp_path, workspace):
    path = keep(workspace, tmp_path / "set", a=0.1, b=0.2)
    before, node = path.read_bytes(), path.stat().st_ino
    keep(workspace, tmp_path / "set", b=0.3, c=0.4)
    assert path.read_bytes().startswith(before) and path.stat().st_ino == node
    assert found(workspace, tmp_path / "set", *"abcd") == {"a": 0.1, "b": 0.3, "c": 0.4}, "the last of an image counts"


def test_a_file_from_before_blocks_is_read_and_added_to(tmp_path, workspace):
    path = FolderScores(workspace, "m", tmp_path / "set").path
    path.parent.mkdir(parents=True)
    path.write_text(FORMER)
    one, thresholds = ScoreCache(workspace, "m").find(tmp_path / "set" / "old.png")
    assert (one.stamp, one.scored, thresholds) == ((1, 2), OLD, {"general": 0.3})
    keep(workspace, tmp_path / "set", a=0.1)
    one, thresholds = ScoreCache(workspace, "m").find(tmp_path / "set" / "old.png")
    assert one.scored == OLD and thresholds == THRESHOLDS, "thresholds are those of the last run"


def test_a_kill_in_the_middle_of_writing_harms_no_other_line(tmp_path, workspace):
    folder = tmp_path / "set"
    path = keep(workspace, folder, a=0.1)
    first = path.stat().st_size
    keep(workspace, folder, a=0.2, b=0.3)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        values = found(workspace, folder, "a", "b")
        assert length <= first or values["a"] in (0.1, 0.2), length
        keep(workspace, folder, close=False, c=0.4)
        after = found(workspace, folder, "a", "b", "c")
        assert after.pop("c") == 0.4 and values.keys() <= after.keys()
        assert after.items() <= {("a", 0.1), ("a", 0.2), ("b", 0.3)}


def test_a_file_that_is_mostly_outdated_is_made_smaller(tmp_path, workspace):
    folder = tmp_path / "set"
    path = keep(workspace, folder, a=0.1, b=0.2)
    keep(workspace, folder, a=0.3, b=0.4)
    size = path.stat().st_size
    keep(workspace, folder, a=0.5)
    assert path.stat().st_size < size, "three of five were outdated"
    assert found(workspace, folder, "a", "b") == {"a": 0.5, "b": 0.4}
    assert path.read_bytes().count(b'"image"') == 2


def test_a_look_at_one_image_reads_one_line(tmp_path, workspace, monkeypatch):
    keep(workspace, tmp_path / "set", **{f"i{number}": number / 100 for number in range(50)})
    parsed, own = [], module.parse_json
    monkeypatch.setattr(module, "parse_json", lambda *words: parsed.append(1) or own(*words))
    indexed, index = [], module.read_index
    monkeypatch.setattr(module, "read_index", lambda *words: indexed.append(1) or index(*words))
    module._indexes.clear()
    for number in (7, 8, 9):
        assert found(workspace, tmp_path / "set", f"i{number}") == {f"i{number}": number / 100}
    assert (len(parsed), len(indexed)) == (4, 1), "the labels once, then a line each; the file looked through once"
    keep(workspace, tmp_path / "set", i7=0.99)
    assert found(workspace, tmp_path / "set", "i7", "i8") == {"i7": 0.99, "i8": 0.08}, "a changed file is read again"


@pytest.mark.parametrize("bad", ["{}\n", "[1]\n[2]\n", "\n\n", '{"version": 9, "labels": []}\n'])
def test_a_file_of_something_else_is_said_and_can_be_added_to(tmp_path, workspace, bad):
    path = FolderScores(workspace, "m", tmp_path / "set").path
    path.parent.mkdir(parents=True)
    path.write_text(bad)
    with refused("tagger.bad-scores"):
        ScoreCache(workspace, "m").find(tmp_path / "set" / "a.png")
    keep(workspace, tmp_path / "set", a=0.1)
    assert found(workspace, tmp_path / "set", "a") == {"a": 0.1}


@pytest.mark.parametrize(
    "change", [('[["tag', '[[1, "tag'), ("[[0,", "[[99,"), ("[[0,", '[["x",'), ('"stamp": [', '"stamp": [[')]
)
def test_a_damaged_line_is_said(tmp_path, workspace, change):
    path = keep(workspace, tmp_path / "set", a=0.1)
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(Exception) as caught:
        found(workspace, tmp_path / "set", "a")
    assert caught.value.codes[0] in ("tagger.bad-scores", "file.not-json")


@pytest.mark.skipif(os.name == "nt", reason="no named pipes")
def test_a_pipe_in_its_place_is_refused(tmp_path, workspace):
    path = FolderScores(workspace, "m", tmp_path / "set").path
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with refused("file.is-pipe"):
        keep(workspace, tmp_path / "set", a=0.1)
    with refused("file.is-pipe"):
        found(workspace, tmp_path / "set", "a")
