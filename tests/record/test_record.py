"""Files are whole or absent, journals survive a kill, draws depend on their address alone."""

import errno
import json
import shutil
import threading

import pytest

from core.engine.owner import Ownership, is_held
from core.generation.model.library import Scan
from core.record import atomic, commands, draws
from core.record.events import LogMessage, StateChanged, Steps
from core.record.journal import Journal, Tail, read_lines
from core.record.run_folder import RunFolder, is_whole, list_runs, newest_state, safe_name, seal_state
from core.record.space import clear
from core.record.workspace import PROJECT, Workspace
from tests.refusals import refused


def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path):
    target = tmp_path / "a.json"
    atomic.write_json(target, {"old": 1})
    with pytest.raises(OSError), atomic.open_atomic(target) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert json.loads(target.read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_replace_tries_again_while_another_program_holds_the_file(tmp_path, monkeypatch):
    calls = []
    real = atomic.os.replace

    def busy(source, target):
        calls.append(1)
        if len(calls) < 4:
            raise PermissionError(13, "in use")
        return real(source, target)

    monkeypatch.setattr(atomic.os, "replace", busy)
    monkeypatch.setattr("core.record.regular.RETRY_SECONDS", 0)
    atomic.write_text(tmp_path / "a", "x")
    assert len(calls) == 4 and (tmp_path / "a").read_text() == "x"


def test_a_draw_depends_on_its_address_alone():
    first = draws.normal((4, 2), 1, "noise", 3, ("a", "b.png"), 0)
    draws.normal((100,), 1, "noise", 9)
    assert draws.normal((4, 2), 1, "noise", 3, ("a", "b.png"), 0).equal(first)
    others = [
        draws.address(1, "noise", 3),
        draws.address(1, "noise", 4),
        draws.address(2, "noise", 3),
        draws.address(1, "crop", 3),
    ]
    assert len(set(others)) == 4


def test_draws_are_the_same_on_every_machine_and_in_every_version():
    assert draws.address(1, "noise", 0, "a", 0) == 8906886968893381510
    assert 0 <= draws.uniform(1, "x") < 1
    assert {draws.integer(2, 5, 1, "t", n) for n in range(100)} == {2, 3, 4}


def test_a_torn_last_line_is_ignored_and_writing_goes_on_after_it(tmp_path):
    with Journal(tmp_path) as journal:
        journal.put(LogMessage("info", "one"))
    with open(tmp_path / "events.jsonl", "a") as handle:
        handle.write('{"seq": 2, "kind": "lo')
    assert [line["text"] for line in read_lines(tmp_path / "events.jsonl")] == ["one"]
    with Journal(tmp_path) as journal:
        assert journal.put(LogMessage("info", "two"))["seq"] == 2
    assert [line["text"] for line in read_lines(tmp_path / "events.jsonl")] == ["one", "two"]


def test_a_tail_hands_out_each_event_once_and_waits_for_the_rest_of_a_torn_line(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)

    def told(more):
        with open(path, "ab") as handle:
            handle.write(more)
        return [line["seq"] for line in tail.lines()]

    assert list(tail.lines()) == []  # no file yet
    assert told(b'{"seq": 1}\n{"seq": 2}\n') == [1, 2]
    assert told(b'{"seq": 3, "text": "\xc3') == []
    assert told(b'\xa9"}\nbroken\n[1]\n{"seq": 4}\n') == [3, 4]
    assert told(b"") == []
    path.write_bytes(b'{"seq": 1}\n')  # another file by that name
    assert told(b"") == [1]


def test_state_changes_are_on_disk_at_once(tmp_path):
    with Journal(tmp_path) as journal:
        journal.put(StateChanged("running"))
        assert [line["state"] for line in read_lines(tmp_path / "events.jsonl")] == ["running"]


def test_a_journal_takes_events_from_many_threads_without_losing_or_mixing_them(tmp_path):
    with Journal(tmp_path) as journal:
        threads = [
            threading.Thread(target=lambda: [journal.put(Steps([1], [0.5], {"unet": 1e-4}, 1, 0.1)) for _ in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(line["seq"] for line in read_lines(tmp_path / "events.jsonl")) == list(range(1, 201))


def test_a_journal_outlasts_a_full_disk(tmp_path, monkeypatch):
    with Journal(tmp_path) as journal:
        real = open

        def full(path, mode="r", *arguments, **named):
            if "a" in mode:
                raise OSError(errno.ENOSPC, "full")
            return real(path, mode, *arguments, **named)

        monkeypatch.setattr("builtins.open", full)
        journal.put(StateChanged("running"))
        monkeypatch.undo()
        journal.put(StateChanged("done"))
    assert [line["state"] for line in read_lines(tmp_path / "events.jsonl")] == ["running", "done"]


def test_a_command_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "commands.jsonl").mkdir()
    with refused("file.unwritable", "The command cannot be written"):
        commands.send(tmp_path, "save")


def test_commands_are_read_once_and_old_ones_belong_to_an_earlier_life(tmp_path):
    commands.send(tmp_path, "stop")
    reader = commands.CommandReader(tmp_path)
    assert reader.new() == []
    commands.send(tmp_path, "pause")
    commands.send(tmp_path, "resume")
    with open(tmp_path / "commands.jsonl", "a") as handle:
        handle.write('not json\n{"name": "explode"}\n{"name": "sto')
    assert reader.new() == ["pause", "resume"]
    assert reader.new() == []


def test_only_one_process_may_run_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("core.record.lock.LOOK_SECONDS", 0.2)
    folder = RunFolder.create(tmp_path, "x", {})
    assert not folder.held
    folder.lock()
    assert RunFolder(folder.path).held
    with refused("run.already-running"):
        RunFolder(folder.path).lock()
    folder.unlock()
    assert not RunFolder(folder.path).held


def test_two_runs_of_the_same_second_get_two_folders(tmp_path):
    names = {RunFolder.create(tmp_path, "a/../b", {}, now=0).name for _ in range(3)}
    assert len(names) == 3 and all("/" not in name and ".." not in name for name in names)


@pytest.mark.parametrize("text", ["a/b", "../..", "", "x" * 500, "狐 style", "a\x00b", "CON"])
def test_names_of_folders_are_safe(text):
    name = safe_name(text)
    assert name and "/" not in name and ".." not in name and len(name) <= 60


def test_the_newest_whole_state_counts_and_a_damaged_one_does_not(tmp_path):
    for step in (10, 20):
        folder = tmp_path / f"step{step:08d}"
        folder.mkdir()
        (folder / "training.pt").write_bytes(b"x" * step)
        seal_state(folder)
    (tmp_path / "step00000030").mkdir()
    (tmp_path / "step00000030" / "training.pt").write_bytes(b"half")
    assert newest_state(tmp_path).name == "step00000020"
    (tmp_path / "step00000020" / "training.pt").write_bytes(b"y" * 20)
    assert not is_whole(tmp_path / "step00000020")
    assert newest_state(tmp_path).name == "step00000010"


def test_an_output_folder_that_cannot_be_written_is_a_plain_problem(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with refused("outputs.not-writable"):
        RunFolder.create(blocked / "runs", "x", {})


def test_a_drive_without_modes_and_folder_flushes_still_takes_files(tmp_path, monkeypatch):
    """vfat and exfat refuse chmod, some network drives refuse fsync of a folder, or of any file."""

    def fsync(handle):
        raise OSError(errno.EINVAL, "Invalid argument")

    def chmod(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    monkeypatch.setattr(atomic.os, "chmod", chmod)
    atomic.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_names_that_are_no_unicode_survive_in_journal_and_json(tmp_path):
    name = "caf\udce9.png"  # how Python reads a Latin-1 name
    with Journal(tmp_path) as journal:
        journal.put(StateChanged("failed", name))
    assert [line["message"] for line in read_lines(tmp_path / "events.jsonl")] == [name]
    atomic.write_json(tmp_path / "a.json", {"name": name, "other": "café"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"name": name, "other": "café"}


def test_a_damaged_job_file_is_a_problem_with_a_fix(tmp_path):
    folder = RunFolder.create(tmp_path, "x", {})
    folder.job_file.write_text("{half")
    with refused("file.not-json") as caught:
        folder.job()
    assert caught.value.problems[0].fix


def test_the_readme_of_the_outputs_folder_is_no_run_image_model_or_job(tmp_path):
    """It is tracked, so that the folder exists in a clone."""
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    shutil.copy(PROJECT / "outputs" / "README.md", outputs)
    space = Workspace(outputs, tmp_path / "models", tmp_path / "presets")
    owner = Ownership(space, "a test")
    assert is_held(space)
    owner.release()
    run = RunFolder.create(space.runs, "mira", {"kind": "job"})
    assert [each.path for each in list_runs(space.runs)] == [run.path]
    assert Scan(space).checkpoints() == [] and Scan(space).loras() == []
    assert clear(space.trash) == 0 and (outputs / "README.md").is_file()
