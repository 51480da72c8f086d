"""The report on captions says what a training would train, by each folder's own settings."""

import json

import pytest
from PIL import Image

from core.captioning.report import caption_report, run_captions
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import CaptionJob
from tests.tasks import surroundings


@pytest.fixture
def folders(tmp_path):
    """A folder of .txt, one of .tags with settings of its own, one of a metadata file."""
    for name, ending in (("1_fox", ".txt"), ("1_owl", ".tags"), ("1_bee", None)):
        (tmp_path / name).mkdir()
        for stem in ("a", "b"):
            Image.new("RGB", (64, 64)).save(tmp_path / name / f"{stem}.png")
        if ending:
            (tmp_path / name / f"a{ending}").write_text(f"{name[2:]}; red")
    (tmp_path / "bee.json").write_text(json.dumps({"a": {"caption": "bee", "tags": "x"}, "b": {"caption": "two"}}))
    owl = {"caption_extension": ".tags", "caption_prefix": "photo,", "secondary_separator": ";"}
    return [
        {"folder": str(tmp_path / "1_fox")},
        {"folder": str(tmp_path / "1_owl"), **owl},
        {"folder": str(tmp_path / "1_bee"), "metadata_file": str(tmp_path / "bee.json"), "caption_separator": " + "},
    ]


def job(folders, text=None):
    return build(CaptionJob, {"dataset": {"sources": folders}, "caption": {"write_missing": text}})


def test_each_image_is_reported_with_what_its_folder_makes_of_it(folders):
    assert caption_report(job(folders)).lines() == [
        "a.png: fox; red",
        "b.png: fox   (no file)",
        "a.png: photo, owl, red",
        "b.png: photo, owl   (no file)",
        "a.png: bee + x   (from the metadata)",
        "b.png: two   (from the metadata)",
        "6 images, 4 with a caption",
    ]


def test_missing_captions_are_written_where_the_folder_reads_them(folders, tmp_path):
    done = run_captions(job(folders, "a {words}"), surroundings(Workspace(tmp_path / "outputs")))
    assert (done.state, done.facts) == ("done", {"images": 6, "missing": 2, "written": 2})
    assert (tmp_path / "1_fox" / "b.txt").read_text() == "a fox\n"
    assert (tmp_path / "1_owl" / "b.tags").read_text() == "a owl\n" and not (tmp_path / "1_owl" / "b.txt").exists()
    assert caption_report(job(folders)).missing == []


def test_images_that_share_a_caption_file_get_one_and_leave_no_other_file(tmp_path):
    folder = tmp_path / "1_fox"
    folder.mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (64, 64)).save(folder / name)
    outcome = run_captions(job([{"folder": str(folder)}], "a fox"), surroundings(Workspace(tmp_path / "outputs")))
    assert sorted(path.name for path in folder.iterdir()) == ["a.jpg", "a.png", "a.txt", "b.png", "b.txt"]
    assert outcome.facts == {"images": 3, "missing": 3, "written": 2}


def test_missing_captions_are_not_written_over_what_came_or_cannot_be_read(tmp_path, monkeypatch):
    from core.captioning import report as module

    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (64, 64)).save(folder / f"{name}.png")
    (folder / "c.txt").write_bytes(b"x" * ((1 << 20) + 1))
    whole = module.caption_report

    def read(*given):
        found = whole(*given)
        (folder / "a.txt").write_text("a tagger's")
        return found

    monkeypatch.setattr(module, "caption_report", read)
    job = build(CaptionJob, {"dataset": {"folder": str(folder)}, "caption": {"write_missing": "a photo"}})
    outcome = module.run_captions(job, surroundings(Workspace(tmp_path / "out")))
    assert outcome.facts["written"] == 1 and (folder / "b.txt").read_text() == "a photo\n"
    assert (folder / "a.txt").read_text() == "a tagger's" and len((folder / "c.txt").read_bytes()) > 1 << 20
