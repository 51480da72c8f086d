"""A folder has one worker at a time, also on drives without file locks, where a heartbeat replaces the lock."""

import errno
import os
import threading
import time

import pytest

from core.engine import execute as execution
from core.engine.owner import Ownership, hand_in, is_held
from core.record import lock
from core.record.journal import read_lines
from core.record.lock import HeldElsewhere, Lock, heartbeat_age, heartbeat_file
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from tests.refusals import refused
from tests.tasks import stand_in

NONE_THERE = [OSError(number, "no locks") for number in sorted(lock.NO_LOCKS)] + [NotImplementedError("no flock")]


@pytest.fixture(params=NONE_THERE, ids=lambda error: getattr(error, "errno", None) or "not implemented")
def lockless(request, monkeypatch):
    """A drive without locks."""

    def refuse(self, *_, **__):
        raise request.param

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path, "x", {})


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")


def leave_sign(path, seconds):
    """As a process on another machine left it so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    heartbeat_file(path).write_text("another")
    os.utime(heartbeat_file(path), (time.time() - seconds,) * 2)


def test_without_locks_a_run_works_and_a_second_start_is_refused(lockless, folder):
    assert not folder.held
    (said,) = folder.lock()
    assert "no file locks" in said
    assert folder.held and RunFolder(folder.path).held
    with refused("run.already-running", "heartbeat", "try again in 60 s"):
        RunFolder(folder.path).lock()
    folder.unlock()
    assert not RunFolder(folder.path).held
    other = RunFolder(folder.path)
    other.lock()
    other.unlock()


def test_without_locks_a_run_whose_process_is_gone_is_taken_over_with_a_sentence(lockless, folder):
    leave_sign(folder.path / "lock", 3600)
    assert not folder.held
    assert "Taken over" in (taken := folder.lock()[1]) and "60 minutes" in taken
    assert RunFolder(folder.path).held
    folder.unlock()


def test_the_sentences_are_in_the_log_of_the_run(lockless, folder, workspace, monkeypatch):
    stand_in(monkeypatch, "train", lambda job, context: "done")
    monkeypatch.setattr(execution, "free_memory", lambda: None)
    leave_sign(folder.path / "lock", 300)
    assert execution.execute("train", TrainJob(), folder, workspace, "cpu") == ("done", None)
    said = [line["text"] for line in read_lines(folder.journal_file) if line["kind"] == "log"]
    assert ["no file locks" in said[0], "Taken over" in said[1], len(said)] == [True, True, 2]
    assert not folder.held


def test_without_locks_one_output_folder_has_one_engine(lockless, workspace, capsys):
    first = Ownership(workspace, "the page")
    assert is_held(workspace) and "no file locks" in capsys.readouterr().err
    with pytest.raises(ProblemsError, match=r"the page .*heartbeat"):
        Ownership(workspace, "a second one")
    first.release()
    assert not is_held(workspace)
    leave_sign(workspace.private / "lock", 200)
    second = Ownership(workspace, "a later one")
    said = capsys.readouterr().err
    assert "Taken over" in said and "3 minutes" in said
    second.release()


def test_a_folder_that_is_moved_while_it_is_held_is_noticed(workspace):
    owner, jobs = Ownership(workspace, "the page"), []
    hand_in(workspace, "resize", "a", {})
    owner.read_inbox(jobs.append)
    assert len(jobs) == 1 and not owner.lost
    workspace.outputs.rename(workspace.outputs.with_name("moved"))
    owner.read_inbox(jobs.append)
    Ownership(workspace, "a later one").release()
    owner.read_inbox(jobs.append)
    assert owner.lost
    owner.release()


def test_without_locks_the_sign_is_what_is_moved(lockless, tmp_path):
    held = Lock(tmp_path / "lock")
    held.acquire()
    assert held.is_there
    heartbeat_file(tmp_path / "lock").unlink()
    assert not held.is_there
    held.release()


def test_the_sign_is_renewed_while_the_lock_is_held(lockless, tmp_path):
    held = Lock(tmp_path / "lock")
    held.acquire()
    os.utime(heartbeat_file(tmp_path / "lock"), (0, 0))
    end = time.monotonic() + 60
    while heartbeat_age(tmp_path / "lock") > lock.STALE_SECONDS:
        assert time.monotonic() < end
        time.sleep(0.01)
    held.release()
    assert heartbeat_age(tmp_path / "lock") is None


def test_a_sign_that_only_looks_old_is_respected(lockless, tmp_path, monkeypatch):
    """Clocks of two machines differ: what is renewed meanwhile is alive, whatever its time."""
    leave_sign(tmp_path / "lock", 9999)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: os.utime(heartbeat_file(tmp_path / "lock"), (5, 5)))
    with pytest.raises(HeldElsewhere):
        Lock(tmp_path / "lock").acquire()


def test_of_two_that_begin_at_once_one_stays(lockless, tmp_path, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: heartbeat_file(tmp_path / "lock").write_text("the other"))
    with pytest.raises(HeldElsewhere):
        Lock(tmp_path / "lock").acquire()
    assert heartbeat_file(tmp_path / "lock").read_text() == "the other"


def test_who_was_taken_over_leaves_the_new_sign_alone(lockless, tmp_path):
    asleep = Lock(tmp_path / "lock")
    asleep.acquire()
    leave_sign(tmp_path / "lock", 3600)
    asleep._beating.join(timeout=60)
    assert not asleep._beating.is_alive()
    asleep.release()
    assert heartbeat_file(tmp_path / "lock").read_text() == "another" and heartbeat_age(tmp_path / "lock") > 3000


def test_with_locks_only_a_fresh_sign_of_another_machine_counts(folder):
    """The same drive may have locks on one machine and none on another."""
    leave_sign(folder.path / "lock", 5)
    assert folder.held
    with refused("run.already-running", "heartbeat"):
        folder.lock()
    leave_sign(folder.path / "lock", 3600)
    assert not folder.held and folder.lock() == []
    assert heartbeat_age(folder.path / "lock") is None, "nothing is left that could be taken for a sign"
    folder.unlock()


def test_a_folder_that_takes_no_file_is_no_drive_without_locks(folder, workspace, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    with pytest.raises(ProblemsError, match="Read-only file system"):
        Ownership(workspace, "a page")
    with refused("file.unwritable", "Read-only"):
        folder.lock()


def test_a_look_at_a_lock_does_not_keep_a_run_from_beginning(folder):
    look = lock.FileLock(folder.path / "lock", timeout=0, thread_local=False)
    look.acquire()
    threading.Timer(0.2, look.release).start()
    folder.lock()
    folder.unlock()


@pytest.mark.parametrize("asks", ["a page", "a job"])
@pytest.mark.parametrize("holds", ["a page", "a job"])
def test_who_holds_the_folder_is_named_with_what_can_be_done_about_it(workspace, monkeypatch, holds, asks):
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.1)
    holder = Ownership(workspace, f"{holds} here", page=holds == "a page")
    try:
        with pytest.raises(ProblemsError) as caught:
            Ownership(workspace, "another", page=asks == "a page")
    finally:
        holder.release()
    (problem,) = caught.value.problems
    assert f"{holds} here (process {os.getpid()}, since" in problem.what
    assert "Ctrl-C in its terminal" in problem.fix and "another --outputs" in problem.fix
    assert (f"kill {os.getpid()}" in problem.fix) == (os.name != "nt")
    assert ("--queue" in problem.fix) == (holds == "a page" and asks == "a job"), (
        "only a page takes jobs, only of a job"
    )
    assert ("in your browser" in problem.fix) == (holds == asks == "a page")
    assert ("wait until it ends" in problem.fix) == (holds == "a job")


@pytest.mark.parametrize(
    "note", ["", "[]", '{"what": "x"}', '{"what": "x", "pid": 1, "since": 1e300, "host": "h", "page": true}']
)
def test_a_damaged_note_of_the_holder_is_no_error_of_its_own(workspace, monkeypatch, note):
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.1)
    holder = Ownership(workspace, "it")
    (workspace.private / "holder.json").write_text(note)
    with refused("outputs.held"):
        Ownership(workspace, "another")
    holder.release()
