"""Changes of many caption files: whole after a kill, one undo, nothing overwritten that someone else changed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.dataset.captions import history as module
from core.dataset.captions.history import Change, History
from core.record import allowed
from core.record.problems import ProblemsError
from tests.refusals import refused

ROOT = Path(__file__).parents[2]


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "outputs" / "captions")


def files(folder, count=3):
    paths = [folder / f"{number}.txt" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(f"old {number}\n")
    return paths


def changed(paths):
    return [Change(path, path.read_bytes(), f"new {path.stem}\n".encode()) for path in paths]


def texts(paths):
    return [path.read_text() if path.exists() else None for path in paths]


def test_many_files_change_and_come_back_as_one(tmp_path, history):
    paths = files(tmp_path)
    before, more = texts(paths), Change(tmp_path / "new.txt", None, b"first\n")
    done = history.apply("Replace", [*changed(paths), more], about={"by": "a test"})
    assert texts(paths) == [f"new {number}\n" for number in range(3)] and set(done.written) == {*paths, more.path}
    back = history.undo(done.id)
    assert texts(paths) == before and not more.path.exists()
    history.undo(back.id)
    assert texts(paths)[0] == "new 0\n" and more.path.read_text() == "first\n"
    assert [entry.title for entry in history.entries()] == ["Redo: Replace", "Undo: Replace", "Replace"]
    assert history.entry(done.id).about == {"by": "a test", "files": 4, "first": "0.txt"}


def test_what_someone_else_changed_is_never_overwritten(tmp_path, history):
    paths = files(tmp_path)
    due = changed(paths)
    paths[1].write_text("mine\n")
    done = history.apply("Replace", due)
    assert texts(paths) == ["new 0\n", "mine\n", "new 2\n"] and done.changed_since == (paths[1],)
    paths[0].write_text("edited\n")
    back = history.undo(done.id)
    assert texts(paths) == ["edited\n", "mine\n", "old 2\n"] and back.changed_since == (paths[0],)


@pytest.mark.parametrize("step", ["write_temporary", "replace_by_temporary"])
def test_an_error_half_way_leaves_all_as_they_were(tmp_path, history, monkeypatch, step):
    paths = files(tmp_path)
    before, work = texts(paths), getattr(module.atomic, step)

    def full(*given):
        if paths[2] in given:
            raise OSError(28, "No space left on device")
        return work(*given)

    monkeypatch.setattr(module.atomic, step, full)
    with pytest.raises(ProblemsError) as caught:
        history.apply("Replace", changed(paths))
    assert caught.value.codes == ["disk.full"] and texts(paths) == before


def test_an_undo_leaves_out_a_folder_that_is_gone_and_says_so(tmp_path, history):
    (tmp_path / "b").mkdir()
    here, there = files(tmp_path), files(tmp_path / "b")
    before, done = texts(here), history.apply("Replace", changed([*here, *there]))
    (tmp_path / "b").rename(tmp_path / "c")
    undone = history.undo(done.id)
    assert texts(here) == before and undone.changed_since == tuple(sorted(there))
    (tmp_path / "c").rename(tmp_path / "b")
    alone = history.apply("Replace", [Change(path, path.read_bytes(), b"new") for path in there])
    (tmp_path / "b").rename(tmp_path / "c")
    with pytest.raises(ProblemsError) as caught:
        history.undo(alone.id)
    assert caught.value.codes == ["caption.folder-gone"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused_before_anything_is_written(tmp_path, history):
    refused_for(tmp_path, history)


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything(tmp_path, history, monkeypatch):
    monkeypatch.setattr(module.os, "access", lambda folder, mode: folder.name != "locked")
    refused_for(tmp_path, history)


def refused_for(tmp_path, history):
    locked = tmp_path / "locked"
    locked.mkdir()
    paths = [*files(tmp_path), *files(locked)]
    locked.chmod(0o500)
    before = texts(paths)
    try:
        with pytest.raises(ProblemsError) as caught:
            history.apply("Replace", changed(paths))
    finally:
        locked.chmod(0o700)
    assert caught.value.codes == ["caption.read-only-folder"] and texts(paths) == before


def test_the_history_of_one_image_is_its_texts_newest_first(tmp_path, history):
    path = files(tmp_path, 1)[0]
    for text in ("one", "two"):
        history.apply("Edit", [Change(path, path.read_bytes(), text.encode())])
    history.apply("Other", [Change(tmp_path / "other.txt", None, b"x")])
    assert [change.new for _, change in history.changes_of(path, 20)] == [b"two", b"one"]
    assert [change.new for _, change in history.changes_of(path, 1)] == [b"two"]
    (entry, _), *_ = history.changes_of(path, 1)
    history.apply("Edit", [Change(path, b"two", b"three")], resume=entry.id)  # the same change has grown
    history.apply("Edit", [Change(other := path.with_name("another.txt"), None, b"new")])
    assert [change.new for _, change in history.changes_of(path, 20)] == [b"three", b"one"]
    assert [change.new for _, change in history.changes_of(other, 20)] == [b"new"]


def test_a_change_that_is_not_kept_says_so(tmp_path, history):
    with pytest.raises(ProblemsError) as caught:
        history.undo("123")
    assert caught.value.codes == ["caption.no-history"]
    history.apply("Edit", [Change(tmp_path / "a.txt", None, b"x")])
    (file,) = (tmp_path / "outputs" / "captions").glob("*.jsonl")
    file.write_bytes(b"\x00 damaged\n[1, 2]\n" + file.read_bytes().split(b"\n")[1])
    with pytest.raises(ProblemsError):
        history.undo(file.stem)
    assert list(history.entries()) == [] and (tmp_path / "a.txt").read_text() == "x"


def test_the_oldest_changes_are_deleted_when_there_are_too_many(tmp_path, history, monkeypatch):
    monkeypatch.setattr(module, "MAX_CHANGES", 3)
    monkeypatch.setattr(module, "PRUNE_EVERY", 1)
    for number in range(6):
        history.apply(f"Edit {number}", [Change(tmp_path / f"{number}.txt", None, b"x")])
    assert [entry.title for entry in history.entries()][:2] == ["Edit 5", "Edit 4"]
    assert len(list(history.entries())) <= 4


@settings(max_examples=25, deadline=None)
@given(old=st.none() | st.binary(max_size=40), new=st.none() | st.binary(max_size=40))
def test_any_bytes_come_back(tmp_path_factory, old, new):
    folder = tmp_path_factory.mktemp("any")
    path = folder / "[a] 狐.txt"
    if old is not None:
        path.write_bytes(old)
    history = History(folder / "captions")
    done = history.apply("Replace", [Change(path, old, new)])
    assert (path.read_bytes() if path.exists() else None) == new
    if done.id:
        history.undo(done.id)
    assert (path.read_bytes() if path.exists() else None) == old


WRITER = """
import sys, time
from pathlib import Path
from core.dataset.captions.history import Change, History
folder = Path(sys.argv[1])
changes = [Change(path, path.read_bytes(), b"new " + path.stem.encode()) for path in sorted(folder.glob("[!.]*.txt"))]
print("ready", flush=True)
with History(folder / "captions").open("Kill me", {"job": 1}) as opened:
    for start in range(0, len(changes), 7):
        opened.write(changes[start : start + 7])
"""


@pytest.mark.slow
def test_a_killed_change_leaves_each_caption_whole_is_undone_and_is_resumed(tmp_path):
    for kill in range(4):
        folder = tmp_path / str(kill)
        folder.mkdir()
        paths = files(folder, 300)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.01 * (1 + 2 * kill))
        process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
        process.wait()
        for path in paths:
            assert path.read_text() in (f"old {path.stem}\n", f"new {path.stem}"), path
        history = History(folder / "captions")
        if not (id := history.unfinished({"job": 1})):
            continue  # killed before its first line, or after its last
        with history.open("", resume=id) as opened:
            done = opened.written_files()
            assert done == {path for path in paths if path.read_text().startswith("new")}
            opened.write(
                [Change(path, path.read_bytes(), b"new " + path.stem.encode()) for path in paths if path not in done]
            )
        assert texts(paths) == [f"new {number}" for number in range(300)] and not history.unfinished({"job": 1})
        history.undo(id)
        assert texts(paths) == [f"old {number}\n" for number in range(300)]


def test_each_line_stands_on_the_disk_before_its_file_changes(tmp_path, history, monkeypatch):
    paths = files(tmp_path)
    seen = []

    def look(path, content, link, aside):
        (file,) = (tmp_path / "outputs" / "captions").glob("*.jsonl")
        seen.append([json.loads(line).get("path") for line in file.read_text().splitlines()])

    monkeypatch.setattr(module, "_write_or_remove", look)
    history.apply("Replace", changed(paths))
    assert all(str(path) in lines for path, lines in zip(paths, seen, strict=True))


def test_files_that_a_power_failure_left_empty_get_their_text(tmp_path, history):
    paths = files(tmp_path)
    with pytest.raises(RuntimeError), history.open("Cut off") as opened:
        opened.write(changed(paths))
        raise RuntimeError
    paths[0].write_bytes(b"")
    paths[1].write_bytes(bytes(6))
    paths[2].write_text("edited")
    assert history.repair() == 2 and texts(paths) == ["new 0\n", "new 1\n", "edited"]
    done = history.apply("Replace", [Change(paths[0], b"new 0\n", b"")])
    assert done.written and history.repair() == 0 and texts(paths)[0] == "", "an empty caption may be meant"


def test_a_text_that_comes_between_look_and_write_stays(tmp_path, history, monkeypatch):
    paths = files(tmp_path)
    whole = module.OpenChange.append

    def note(self, *lines):
        whole(self, *lines)
        if any("path" in line for line in lines):
            paths[1].write_text("typed")

    monkeypatch.setattr(module.OpenChange, "append", note)
    done = history.apply("Replace", changed(paths))
    assert done.changed_since == (paths[1],) and paths[1].read_text() == "typed"
    assert len(done.written) == len(paths) - 1
    monkeypatch.undo()
    history.undo(done.id)
    assert paths[1].read_text() == "typed"


def test_whole_metadata_files_do_not_push_captions_out(tmp_path, history, monkeypatch):
    for name, value in (("LARGE_CHANGE", 10_000), ("MAX_HISTORY_BYTES", 50_000), ("PRUNE_EVERY", 1)):
        monkeypatch.setattr(module, name, value)
    history.apply("Edit", [Change(tmp_path / "a.txt", None, b"x")])
    for number in range(5):
        history.apply("Clean metadata", [Change(tmp_path / f"{number}.json", None, b"y" * 30_000)])
    titles = [entry.title for entry in history.entries()]
    assert "Edit" in titles and titles.count("Clean metadata") < 4


def test_a_persons_files_are_not_taken_for_half_written_ones(tmp_path, history):
    drafts = tmp_path / "set" / ".tmp-my drafts"
    drafts.mkdir(parents=True)
    kept = [drafts / "precious.psd", tmp_path / "set" / ".tmp-notes.txt"]
    left = tmp_path / "set" / ".tmp-a1b2c3d_.txt"
    for path in (*kept, left):
        path.write_text("x")
        os.utime(path, (0, 0))
    os.utime(drafts, (0, 0))
    history.apply("Edit", [Change(tmp_path / "set" / "a.txt", None, b"x")])
    assert all(path.exists() for path in kept) and not left.exists()


def test_a_caption_that_a_person_emptied_later_stays_empty(tmp_path, history):
    paths = files(tmp_path)
    with pytest.raises(RuntimeError), history.open("Cut off") as opened:
        opened.write(changed(paths))
        raise RuntimeError
    paths[0].write_bytes(b"")
    later = time.time() + 3600
    os.utime(paths[0], (later, later))
    assert history.repair() == 0 and paths[0].read_bytes() == b""


DAMAGE = {
    "title": [None, 5, [], {}],
    "at": ["soon", None, 1e400, -1, [], True],
    "about": [[], "x", {"undoes": []}, {"files": {}}],
    "path": [None, 5, [], "a\0b", "\ud800"],
    "old": [5, [], {}, {"base64": 5}, {"base64": "?"}],
    "new": [5, True, {"base64": None}],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_line_is_left_out_and_stops_nothing_else(tmp_path, history, name):
    paths = files(tmp_path)
    good = history.apply("Good", changed(paths))
    for number, value in enumerate(DAMAGE[name]):
        first = {"title": "Damaged", "at": 1.0, "about": {}}
        line = {"path": str(paths[0]), "old": "x", "new": "new"}
        said = [each | {name: value} if name in each else each for each in (first, line)]
        path = history._folder / f"{10**18 + number}.jsonl"
        text = "".join(json.dumps(each) + "\n" for each in said) + "[" * 5000 + "\n"
        path.write_bytes(text.encode() + b"\xff\n")
        assert history.damaged_lines(path.stem) >= 2
        with suppress(ProblemsError):
            history.undo(path.stem)
    assert history.unfinished({"undoes": []}) == "" and history.file_count(good.id) == 3
    assert [change.path for _, change in history.changes_of(paths[1], 5)] == [paths[1]]
    assert list(history.new_lines({})) and history.repair() == 0
    assert len(history.apply("Next", [Change(path, path.read_bytes(), b"next") for path in paths]).written) == 3


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_stays_a_link_and_undo_restores_the_file_behind_it(tmp_path, history):
    behind, link = tmp_path / "elsewhere" / "a.txt", tmp_path / "a.txt"
    behind.parent.mkdir()
    behind.write_bytes(b"old")
    link.symlink_to(behind)
    done = history.apply("Edit", [Change(link, b"old", b"new")])
    assert link.is_symlink() and behind.read_bytes() == b"new"
    history.undo(done.id)
    assert link.is_symlink() and behind.read_bytes() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_that_is_deleted_comes_back_as_a_link_if_it_still_leads_to_the_same_text(tmp_path, history):
    behind, link = tmp_path / "elsewhere" / "a.txt", tmp_path / "a.txt"
    behind.parent.mkdir()
    behind.write_bytes(b"old")
    link.symlink_to("elsewhere/a.txt")
    done = history.apply("Delete", [Change(link, b"old", None)])
    assert not os.path.lexists(link) and behind.read_bytes() == b"old"
    undone = history.undo(done.id)
    assert os.readlink(link) == "elsewhere/a.txt" and link.read_bytes() == b"old"
    again = history.undo(undone.id)
    assert not os.path.lexists(link)
    behind.write_bytes(b"changed meanwhile")
    assert history.undo(again.id).changed_since == (link,) and not os.path.lexists(link)
    behind.write_bytes(b"old")
    history.undo(again.id)
    assert link.is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_out_of_the_open_folders_is_refused(tmp_path, history):
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.txt").write_bytes(b"old")
    (tmp_path / "set" / "a.txt").symlink_to(tmp_path / "secret.txt")
    allowed.keep_files_inside([tmp_path / "set"])
    try:
        with refused("caption.link-outside", "a.txt"):
            history.apply("Edit", [Change(tmp_path / "set" / "a.txt", b"old", b"new")])
    finally:
        allowed.keep_files_inside(None)
    assert (tmp_path / "secret.txt").read_bytes() == b"old"


def test_a_change_within_the_same_tick_of_the_folders_time_is_listed(history):
    first = history._new()
    time_of_folder = os.stat(first.parent).st_mtime_ns
    assert history._files() == [first]
    second = history._new()
    os.utime(first.parent, ns=(time_of_folder, time_of_folder))
    assert history._files() == sorted([first, second])


# ---- at the edges


def cut_off(history, changes, about=None):
    """The id of a change that was made and never finished, as after a kill."""
    with pytest.raises(RuntimeError), history.open("Cut off", about) as opened:
        opened.write(changes)
        raise RuntimeError
    return opened.id


@pytest.mark.parametrize(("nanoseconds", "again"), [(4_999_999_999, False), (5_000_000_000, True)])
def test_a_listing_is_used_again_once_the_folder_has_rested_for_5_seconds(
    tmp_path, history, monkeypatch, nanoseconds, again
):
    history.apply("Edit", [Change(tmp_path / "a.txt", None, b"x")])
    time_of_folder = os.stat(history._folder).st_mtime_ns
    monkeypatch.setattr(module.time, "time_ns", lambda: time_of_folder + nanoseconds)
    assert (history._files() is history._files()) is again


def test_of_the_newest_changes_only_what_was_added_is_read_again(tmp_path, history, monkeypatch):
    monkeypatch.setattr(module, "NEWEST", 2)
    ids = [history.apply(f"Edit {n}", [Change(tmp_path / f"{n}.txt", None, b"x")]).id for n in range(3)]
    offsets = {}
    assert [id for id, _ in history.new_lines(offsets)] == ids[1:] and list(history.new_lines(offsets)) == []
    assert [history.file_count(id) for id in ids] == [1, 1, 1]
    for id in (ids[0], ids[2]):
        with open(history._file(id), "ab") as file:
            file.write(b'no json\n{"told"')
    assert list(history.new_lines(offsets)) == [(ids[2], [{}])], "the line that is not whole yet comes later"
    with open(history._file(ids[2]), "ab") as file:
        file.write(b": true}\n")
    assert list(history.new_lines(offsets)) == [(ids[2], [{"told": True}])]
    assert [history.damaged_lines(id) for id in ids] == [0, 0, 1]


@pytest.mark.parametrize(("seconds", "repaired"), [(60, 1), (61, 0)])
def test_an_empty_file_is_repaired_if_it_was_written_within_a_minute_of_its_line(tmp_path, history, seconds, repaired):
    (path,), listed = files(tmp_path, 1), 1_700_000_000
    id = cut_off(history, changed([path]))
    path.write_bytes(b"")
    os.utime(history._file(id), (listed, listed))
    os.utime(path, (listed + seconds, listed + seconds))
    assert history.repair() == repaired


def test_files_that_are_gone_or_were_empty_before_are_not_repaired(tmp_path, history):
    paths = files(tmp_path, 2)
    paths[1].write_bytes(b"")
    cut_off(history, changed(paths))
    paths[0].unlink()
    paths[1].write_bytes(b"")
    assert history.repair() == 0 and texts(paths) == [None, ""]


def test_a_folder_in_the_place_of_a_caption_stops_no_repair_of_the_others(tmp_path, history):
    paths = files(tmp_path, 2)
    cut_off(history, changed(paths))
    paths[0].unlink()
    paths[0].mkdir()
    paths[1].write_bytes(b"")
    assert history.repair() == 1 and paths[1].read_text() == "new 1\n" and paths[0].is_dir()


def test_progress_counts_files_that_are_left_alone(tmp_path, history, monkeypatch):
    monkeypatch.setattr(module, "FILES_PER_SYNC", 2)
    paths, progress = files(tmp_path, 5), []
    due = changed(paths)
    paths[4].write_text("mine")
    history.apply("Replace", due, progress=lambda *given: progress.append(given))
    assert progress == [(2, 5), (4, 5), (5, 5)]


def test_a_change_is_unfinished_until_it_ends_or_is_undone(tmp_path, history):
    about = {"by": "a test"}
    assert history.unfinished(about) == ""
    id = cut_off(history, changed(files(tmp_path)), about)
    assert history.unfinished(about) == id and history.unfinished({}) == "" and not history.is_settled(id)
    history.mark_reported(id)
    assert history.is_settled(id) and history.unfinished(about) == id, "that it was reported does not finish it"
    history.undo(id)
    assert history.unfinished(about) == ""
    with history.open("Whole", about) as opened:
        opened.write([Change(tmp_path / "new.txt", None, b"x")])
    assert history.is_settled(opened.id) and history.unfinished(about) == ""


def test_a_line_that_a_kill_cut_off_goes_before_the_next_is_added(tmp_path, history):
    id = cut_off(history, changed(files(tmp_path)))
    with open(history._file(id), "ab") as file:
        file.write(b'{"path": "x')
    history.apply("", [Change(tmp_path / "new.txt", None, b"x")], resume=id)
    assert (history.damaged_lines(id), history.file_count(id), history.is_settled(id)) == (0, 4, True)


@pytest.mark.parametrize(("at", "read"), [(0, True), (-0.5, False), (99_999_999_999, True), (1e11, False)])
def test_the_time_of_a_change_is_from_1970_to_the_year_5138(history, at, read):
    history._folder.mkdir(parents=True)
    (history._folder / "1.jsonl").write_text(json.dumps({"title": "Edit", "at": at}) + "\n")
    assert [entry.at for entry in history.entries()] == [at] * read


def test_undo_and_redo_alternate(tmp_path, history):
    id = history.apply("Replace", changed(files(tmp_path, 1))).id
    for _ in range(3):
        id = history.undo(id).id
    assert [entry.title for entry in history.entries()] == [
        "Undo: Replace",
        "Redo: Replace",
        "Undo: Replace",
        "Replace",
    ]
    assert history.entry(id).about["of"] == "Replace"


def test_a_text_that_is_only_kept_comes_back_by_undo(tmp_path, history):
    path = tmp_path / "a.txt"
    history.undo(history.record("Delete", Change(path, b"old", None)))
    assert path.read_bytes() == b"old"


def test_one_file_is_written_with_its_folder_or_refused_with_the_code_of_its_task(tmp_path, history):
    path = tmp_path / "new folder" / "a.json"
    assert history.write_file("Edit", Change(path, None, b"x"), "list", "list.changed") and path.read_bytes() == b"x"
    assert history.write_file("Edit", Change(path, b"x", b"x"), "list", "list.changed") == ""
    with refused("list.changed"):
        history.write_file("Edit", Change(path, b"other", b"y"), "list", "list.changed")
    assert path.read_bytes() == b"x" and len(list(history.entries())) == 1
