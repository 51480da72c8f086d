"""Space on the disk: caches, deleted runs and images put away are counted and emptied from Tools."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from work_parts import event, image, make_page, said

from core.dataset.doctor.trash import put_away, undoable_actions
from core.record.problems import ProblemsError
from core.record.units import size_text
from tabs.tools.disk import DiskHandlers
from tests.refusals import refused


@pytest.fixture
def desk(tmp_path):
    page = make_page(tmp_path)
    page.engine.status = lambda: {"job": page.engine.job}
    page.engine.job = None
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    image(tmp_path / "set" / "a.png")
    return DiskHandlers(page)


def cached(desk, name: str, size: int, age: int):
    path = desk.page.workspace.cache / name / "0a" / f"{age}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (10_000 - age, 10_000 - age))
    return path


def test_a_cache_is_emptied_or_keeps_its_newest(desk):
    old, new = cached(desk, "latents", 3_000_000, 9), cached(desk, "latents", 2_000_000, 1)
    text = cached(desk, "text", 1000, 1)
    assert "5.0 MB" in desk.html({})
    place = {}
    desk.act(place, event("keep", value="0,004"))
    desk.act(place, event("prune", "latents"))  # with the state of before: it may already be under way
    assert not old.exists() and new.exists() and text.exists() and "3.0 MB freed" in said(desk)
    desk.act({}, event("prune", "latents"))
    assert not new.exists() and text.exists() and "2.0 MB freed" in said(desk)
    with pytest.raises(ProblemsError) as refused:
        desk.act({"keep": "-1"}, event("prune", "text"))
    assert refused.value.codes == ["disk.bad-number"]
    desk.page.engine.job = {"title": "a training"}
    with pytest.raises(ProblemsError, match="A job is running"):
        desk.act({}, event("prune", "text"))
    assert text.exists()


def test_what_a_cache_keeps_is_told_in_gb_of_a_thousand_million_bytes(desk, monkeypatch):
    kept = []
    monkeypatch.setattr("tabs.tools.disk.prune", lambda folder, most: kept.append(most) or 0)
    for text in ("0", "1", "0,5", "999999"):
        desk.act({"keep": text}, event("prune", "text"))
    assert kept == [0, 10**9, 5 * 10**8, 999_999 * 10**9]
    for text in ("1000000", "-0.1", "", "nan"):
        with pytest.raises(ProblemsError):
            desk.act({"keep": text}, event("prune", "text"))
    assert len(kept) == 4


@pytest.mark.parametrize("name", ["latents", "text", "masks", "controls"])
def test_every_cache_of_a_training_is_counted_and_emptied(name, desk):
    entry, other = cached(desk, name, 7_000_000, 1), cached(desk, "of another program", 5_000_000, 1)
    assert "7.0 MB" in desk.html({}) and "5.0 MB" not in desk.html({})
    desk.act({}, event("prune", name))
    assert not entry.exists() and other.exists() and "7.0 MB freed" in said(desk)


def test_thumbnails_are_emptied_too_but_nothing_of_the_users_next_to_them(desk):
    small, other = (desk.page.workspace.thumbs / name for name in ("0a/0a1.jpg", "notes.jpg"))
    small.parent.mkdir(parents=True)
    for path in (small, other):
        path.write_bytes(b"x" * 9000)
    assert "Thumbnails" in desk.html({})
    desk.act({}, event("prune", "thumbs"))
    assert not small.exists() and other.exists() and "9.0 kB freed" in said(desk)


def test_deleted_runs_go_for_good_only_after_a_question(desk):
    run = desk.page.workspace.trash / "run-1"
    run.mkdir(parents=True)
    (run / "fox.safetensors").write_bytes(b"x" * 4000)
    assert (
        'data-act="delete" data-arg="runs" aria-label="Delete for good: Deleted runs and checkpoints" data-sure="'
        in desk.html({})
    )
    desk.act({}, event("delete", "images"))  # another one
    assert run.exists()
    desk.act({}, event("delete", "runs"))
    assert not run.exists() and "4.0 kB freed" in said(desk) and desk.page.workspace.trash.is_dir()


def test_a_deleted_run_is_listed_and_put_back(desk):
    space, name = desk.page.workspace, "20260101-120000_<b>fox-1767268800"
    (space.trash / name).mkdir(parents=True)
    (space.trash / name / "job.json").write_text("{}")
    (space.trash / "of a person").mkdir()
    shown = desk.html({})
    assert shown.count("Put back") == 2 and "<b>fox" not in shown and "deleted 2026-01-01" in shown
    desk.act({}, event("put-back", name))
    assert (space.runs / "20260101-120000_<b>fox" / "job.json").is_file() and "in Runs again" in said(desk)
    with refused("runs.not-in-trash"):
        desk.act({}, event("put-back", name))


def test_images_that_were_put_away_go_for_good_and_the_others_stay(desk, tmp_path):
    gone = image(tmp_path / "set" / "b.png")
    put_away([gone], tmp_path / "set", "twice there")
    assert undoable_actions(tmp_path / "set")
    desk.act({}, event("delete", "images"))
    assert not undoable_actions(tmp_path / "set") and (tmp_path / "set" / "a.png").exists()


def test_generated_images_in_the_trash_are_counted_and_go_for_good(desk):
    folder = desk.page.workspace.images
    kept, away = image(folder / "d" / "1.png"), image(folder / "d" / "2.png")
    size = away.stat().st_size
    assert "generated" not in desk.html({})
    put_away([away], folder, "deleted in Generate")
    assert "Deleted generations" in desk.html({})
    desk.act({}, event("delete", "generated"))
    assert not undoable_actions(folder) and kept.exists() and size_text(size) in said(desk)


def test_only_the_owner_empties_the_trash_of_people_with_a_page_each(tmp_path):
    page = make_page(tmp_path)
    owner, page.workspace = page.workspace, replace(page.workspace, person="anna")
    image(page.workspace.trash / "20260101-000000_fox-1767225600" / "a.png")
    image(tmp_path / "set" / "a.png")
    away = image(tmp_path / "set" / "b.png")
    put_away([away], tmp_path / "set", "twice there")
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    desk = DiskHandlers(page)
    assert desk.html({}).count("Delete for good</button>") == 1, "that of her own dataset"
    with pytest.raises(ProblemsError) as refused:
        desk.act({}, event("delete", "runs"))
    assert refused.value.problems[0].code == "disk.not-yours" and any(page.workspace.trash.iterdir())
    page.workspace = owner
    desk.act({}, event("delete", "runs"))
    assert not any(page.workspace.trash.iterdir())


def test_a_shared_page_empties_no_folder_that_is_not_open(tmp_path):
    page = make_page(tmp_path / "home", shared=True)
    away = image(tmp_path / "set" / "b.png")
    image(tmp_path / "set" / "a.png")
    put_away([away], tmp_path / "set", "twice there")
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    desk = DiskHandlers(page)
    desk.act({}, event("delete", "images"))
    assert undoable_actions(tmp_path / "set")
