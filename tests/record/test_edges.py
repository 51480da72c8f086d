"""Records at their edges: longest paths, folders that are synced, memory that is kept, files handed in."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.engine import owner
from core.record import atomic, context, heap, run_about
from core.record.cancel import Cancelled, CancelToken
from core.record.former import with_current_names
from core.record.regular import LONGEST_NAME, LONGEST_PATH, impossible_path
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from tests.refusals import refused
from tests.tasks import Heard


@pytest.mark.parametrize("more", [0, 1])
def test_a_name_of_255_bytes_and_a_path_of_4095_are_possible(tmp_path, more):
    name = tmp_path / ("n" * (LONGEST_NAME + more))
    left = LONGEST_PATH - len(os.fsencode(tmp_path)) + more
    parts = ["p" * 200] * (left // 201)
    path = tmp_path.joinpath(*parts, "q" * (left - 201 * len(parts) - 1))
    assert len(os.fsencode(path)) == LONGEST_PATH + more
    for each in (name, path):
        problem = impossible_path(each, "here")
        assert (problem and problem.code) == ("file.path-too-long" if more else None)


def test_windows_counts_the_characters_of_names(tmp_path, monkeypatch):
    monkeypatch.setattr("core.record.regular.WINDOWS", True)
    lengths = {
        "狐" * 255: None,
        "狐" * 256: "file.path-too-long",
        "\U0001f98a" * 127: None,
        "\U0001f98a" * 128: "file.path-too-long",
    }
    problems = {name: impossible_path(tmp_path / name, "here") for name in lengths}
    assert {name: problem and problem.code for name, problem in problems.items()} == lengths


@pytest.mark.parametrize("name", ["con.png", "a:b.png", "a?.png", "sub./a.png", "LPT1"])
def test_names_that_windows_does_not_allow_are_refused_there(tmp_path, monkeypatch, name):
    assert impossible_path(tmp_path / name, "here") is None
    monkeypatch.setattr("core.record.regular.WINDOWS", True)
    assert impossible_path(tmp_path / "sub" / ".." / "fox.png", "here") is None
    assert impossible_path(tmp_path / name, "here").code == "file.invalid-name"


def test_a_drive_that_is_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    with pytest.raises(FileNotFoundError):
        atomic.make_folders("/gone/outputs")


def test_a_new_run_is_on_disk_before_anything_is_written_into_it(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(atomic, "sync_folder", lambda folder: done.append(folder))
    write = atomic.write_json
    monkeypatch.setattr(atomic, "write_json", lambda path, value: done.append(path.name) or write(path, value))
    RunFolder.create(tmp_path / "runs", "x", {})
    assert done.index(tmp_path / "runs") < done.index("job.json")


def test_runs_of_one_second_are_numbered_and_a_thousand_are_too_many(tmp_path, monkeypatch):
    names = [RunFolder.create(tmp_path, "x", {}, now=0).name for _ in range(3)]
    assert [name.partition("_x")[2] for name in names] == ["", "-2", "-3"]
    made = []

    def mkdir(path, *_, **__):
        made.append(path.name)
        raise FileExistsError

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(atomic, "make_folders", lambda folder: None)
    with refused("run.no-free-name"):
        RunFolder.create(tmp_path, "x", {}, now=0)
    assert len(made) == 999 and made[-1].endswith("-999")


def test_memory_is_kept_and_then_returned_with_the_usual_limits(monkeypatch):
    calls = []
    library = SimpleNamespace(
        mallopt=lambda what, value: calls.append((what, value)),
        malloc_trim=lambda pad: calls.append(("trim", pad)) or 1,
    )
    monkeypatch.setattr(heap, "_glibc", lambda: library)
    heap.single_arena()
    with heap.keep_freed_memory():
        kept, calls[:] = list(calls), []
    # M_TRIM_THRESHOLD -1, M_MMAP_THRESHOLD -3, M_MMAP_MAX -4, M_ARENA_MAX -8 (glibc's malloc.h)
    assert kept == [(-8, 1), (-4, 0), (-1, 2**31 - 1)]
    assert calls == [(-1, 64 << 20), (-3, 32 << 20), (-4, 65536), ("trim", 0)]
    assert heap.trim_heap() is True
    trimmer = heap.HeapTrimmer()
    calls.clear()
    for size in (heap.TRIM_BYTES - 1, 1, heap.TRIM_BYTES - 1, 1, heap.TRIM_BYTES):
        trimmer.freed(size)
    assert calls == [("trim", 0)] * 3
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    assert heap.trim_heap() is False
    with heap.keep_freed_memory():
        heap.single_arena()
    assert len(calls) == 3


def test_former_names_of_a_record_and_of_an_events_kind_become_the_present_ones():
    assert with_current_names({"pictures": 1, "pictures_seen": 2, "kind": "picture", "x": 3}) == {
        "images": 1,
        "images_seen": 2,
        "kind": "image",
        "x": 3,
    }
    assert with_current_names({"kind": 7}) == {"kind": 7} and with_current_names({"kind": "steps"}) == {"kind": "steps"}


def test_what_is_handed_in_is_taken_once_in_order_and_what_is_damaged_is_set_aside(tmp_path, monkeypatch, capsys):
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")
    taken = []
    owner.read_inbox(workspace, taken.append)
    clock = iter([2.0, 1.0, 3.0])
    monkeypatch.setattr(owner.time, "time", lambda: next(clock))
    for title in "bac":
        owner.hand_in(workspace, "train", title, {"x": 1}, run="r", preset="p")
    inbox = owner.inbox(workspace)
    (inbox / "0.json").write_text("{half")
    (inbox / ".tmp.json").write_text("{}")
    owner.read_inbox(workspace, taken.append)
    assert [each["title"] for each in taken] == ["a", "b", "c"]
    assert taken[0].pop("id") and taken[0] == {
        "task": "train",
        "title": "a",
        "job": {"x": 1},
        "run": "r",
        "preset": "p",
    }
    left = sorted(path.name.partition("-")[0] for path in inbox.iterdir())
    assert left == [".tmp.json", "0.broken"] and "0.broken-" in capsys.readouterr().err
    monkeypatch.undo()
    (inbox / "1.json").write_text("{}")
    failing = OSError(errno.EIO, "no")

    def unread(path):
        raise owner.ProblemsError.one("x", "y", "z", "file.unreadable") from failing

    monkeypatch.setattr(owner, "read_json_object", unread)
    owner.read_inbox(workspace, taken.append)
    assert (inbox / "1.json").exists() and len(taken) == 3, "tried again next time"


def test_title_and_note_of_another_type_are_none_and_signs_that_are_not_shown_go(tmp_path):
    folder = RunFolder.create(tmp_path, "x", {})
    about = folder.path / run_about.FILE
    for number, (content, title, note) in enumerate(
        [
            ('{"title": 7, "note": ["a"]}', "", ""),
            ('{"title": " a\\u202e\\n b ", "note": " a\\r\\n\\tb\\u0007 "}', "a b", "a\n b"),
            ("{}", "", ""),
        ]
    ):
        about.write_text(content + " " * number)
        assert run_about._read.__wrapped__(about) == run_about.RunAbout(title, note)
    about.unlink()
    assert run_about.write_about(folder, title="t", note="n") == run_about.RunAbout("t", "n")
    assert run_about.write_about(folder, title="x") == run_about.RunAbout("", "n"), "its initial title"


@pytest.mark.parametrize(
    ("heard", "waits", "stopped", "left"),
    [
        ([["pause"], [], ["resume"]], 2, False, []),
        ([["pause", "resume"]], 0, False, ["pause", "resume"]),
        ([["pause"], ["save"], ["stop"]], 2, True, ["save", "stop"]),
        ([["save"]], 0, False, ["save"]),
        ([["stop"]], 0, True, ["stop"]),
    ],
)
def test_work_outside_the_loop_waits_while_paused_and_leaves_other_commands(
    tmp_path, monkeypatch, heard, waits, stopped, left
):
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")
    commands, slept, journal = iter(heard), [], Heard()
    reader = SimpleNamespace(new=lambda: next(commands, []))
    working = context.JobContext(workspace, RunFolder(tmp_path), journal, reader, token=CancelToken())
    working.pauses = True
    monkeypatch.setattr(context.time, "sleep", slept.append)
    try:
        working.check()
        assert not stopped
    except Cancelled:
        assert stopped
    assert slept == [context.PAUSE_SECONDS] * waits and working.pending == left
    states = [event.state for event in journal.events]
    assert states == (["paused"] if stopped else ["paused", "running"]) * bool(waits)
