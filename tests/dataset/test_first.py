"""The first images of a dataset are those of the report, found without looking at the others."""

import os

import pytest

from core.dataset.first import first_rows
from core.dataset.preflight import preflight
from core.dataset.sources.walk import first_files, walk
from core.record.cancel import Cancelled, CancelToken
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import TrainJob

NAMES = (
    "b.png",
    "a/z.png",
    "a-b.png",
    "a.png",
    "a/b/c.png",
    "a/B.JPG",
    "A/q.png",
    "c/1.webp",
    "a b/x.png",
    ".tmp-a/n.png",
)


@pytest.mark.parametrize("most", [0, 1, 3, 5, 100])
@pytest.mark.parametrize("recursive", [True, False])
def test_the_first_files_are_those_of_a_walk(tmp_path, most, recursive):
    for name in (*NAMES, "masks/m.png", "10_fox/y.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")
        path.with_suffix(".TXT").write_text(name)
        path.with_suffix(".caption").write_text(name)
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    more = {"left_out": frozenset({"10_fox"}), "excluded": [tmp_path / "masks"], "recursive": recursive}
    assert first_files(tmp_path, most, **more) == walk(tmp_path, **more).files[:most]


def test_folders_behind_the_first_files_are_not_opened(tmp_path, add, monkeypatch):
    for number in range(4):
        add(f"{number}/a.png")
    opened, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: opened.append(os.path.basename(folder)) or real(folder))
    assert len(first_files(tmp_path, 2)) == 2
    assert opened == [tmp_path.name, "0", "1"]


@pytest.fixture
def job(tmp_path, add):
    """Two folders, one of them with a folder of repeats."""
    for name in ("fox/a.png", "fox/b.png", "fox/3_red fox/c.png", "owl/d.png", "owl/e.png"):
        add(name, 256, 192)
    (tmp_path / "fox" / "a.txt").write_text("a fox\n")
    (tmp_path / "fox" / "b.txt").write_text("")
    add("fox/bad.png").write_bytes(b"no image")
    sources = [{"folder": str(tmp_path / "fox")}, {"folder": str(tmp_path / "owl"), "class_word": "owl"}]
    return build(
        TrainJob, {"dataset": {"sources": sources, "resolution": 128}, "captions": {"caption_prefix": "art, "}}
    )


@pytest.mark.parametrize("most", [1, 3, 5, 100])
def test_the_first_rows_say_of_each_image_what_the_report_will_say(tmp_path, job, most):
    def told(rows):
        return [(row.key, row.path, row.size, row.caption, row.source, row.readable) for row in rows]

    report = preflight(job, Workspace(outputs=tmp_path / "outputs"))
    first = first_rows(job, most)
    assert told(first) == told(report.rows[:most]) and first
    assert not any(row.bucket or row.trains for row in first), "which is known when all are read"


def test_images_that_a_file_lists_and_folders_that_are_not_there_have_no_first_rows(tmp_path, job):
    listed = {"folder": str(tmp_path / "fox"), "metadata_file": str(tmp_path / "meta.json")}
    for source in (listed, {"folder": str(tmp_path / "fox"), "cache_info": True}, {"folder": str(tmp_path / "none")}):
        assert first_rows(build(TrainJob, {"dataset": {"sources": [source]}}), 9) == []
    assert first_rows(TrainJob(), 9) == []


def test_reading_the_first_rows_can_be_cancelled(job):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        first_rows(job, 9, token)
