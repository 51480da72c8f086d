"""What a training of several processes tells of its end, where more than one of them has something to tell."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from core.cli import jobs
from core.engine import execute as execute_module
from core.engine import launch
from core.engine.explain import Explanation, explain
from core.engine.follow import follow
from core.engine.other_process import record_failure, recorded_failure
from core.record import commands
from core.record.cancel import CancelToken
from core.record.journal import read_lines
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import CURRENT_WORKSPACE, PROJECT, Workspace
from core.settings.job import TrainJob
from tests.tasks import stand_in

GONE = explain(RuntimeError("Connection closed by peer [127.0.0.1]:30381")).what
OTHER = Explanation("The device ran out of memory")


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "runs", "t", {})


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")


def end_of_the_first(folder, workspace, monkeypatch, error, later=None):
    """The state and its words, when the first of two processes ends by this error. later: told only after it."""
    stand_in(monkeypatch, "train", lambda job, context: raise_(error))
    if later is not None:
        monkeypatch.setattr(execute_module, "free_memory", lambda: record_failure(folder, later, 2))
    monkeypatch.setattr(execute_module, "memory_advice", lambda *_: "")  # advice takes seconds
    two = SimpleNamespace(count=2)
    execute_module.execute("train", TrainJob(), folder, workspace, "cpu", processes=two)
    last = [line for line in read_lines(folder.journal_file) if line["kind"] == "state"][-1]
    return last["state"], last.get("message", "")


def raise_(error):
    raise error


def test_the_first_process_tells_what_another_told_before_it_saw_that_one_leave(folder, workspace, monkeypatch):
    record_failure(folder, OTHER, 2)
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:552] Connection closed by peer [127.0.0.1]:30381")
    told = ("failed", "The device ran out of memory (in process 2)")
    assert end_of_the_first(folder, workspace, monkeypatch, gone) == told


def test_a_problem_that_every_process_finds_is_told_as_the_first_ones_own(folder, workspace, monkeypatch):
    record_failure(folder, Explanation("There is no model"), 2)
    problem = ProblemsError.one("There is no model", "model.base_model", "choose one")
    assert end_of_the_first(folder, workspace, monkeypatch, problem) == (
        "failed",
        "There is no model (model.base_model)",
    )


@pytest.mark.slow
def test_what_another_tells_after_the_first_has_failed_is_not_the_reason(folder, workspace, monkeypatch):
    own = torch.OutOfMemoryError("CUDA out of memory")
    later = Explanation(GONE)
    assert end_of_the_first(folder, workspace, monkeypatch, own, later) == ("failed", "The device ran out of memory")


@pytest.mark.slow(only=("error0-The device ran out of memory (in process 3)",))
@pytest.mark.parametrize(
    "error, told",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "The device ran out of memory (in process 3)"),
        (RuntimeError("Connection closed by peer [127.0.0.1]:30381"), GONE),
        (RuntimeError("writev [127.0.0.1]:30381: Broken pipe"), GONE),
    ],
)
def test_a_process_that_only_sees_another_leave_is_not_named_as_the_one_that_ended(
    folder, workspace, monkeypatch, error, told
):
    monkeypatch.setattr("core.training.start.run_training", lambda job, context: raise_(error))
    third = SimpleNamespace(rank=2, count=3, device="cpu", broadcast=lambda nothing: (folder.path, TrainJob()))
    with pytest.raises(type(error)):
        jobs._train_as_follower(third, workspace)
    assert recorded_failure(folder).what == told


@pytest.mark.parametrize(
    "told, what",
    [(OTHER, "The device ran out of memory (in process 2)"), (None, "The process ended without an error message")],
)
def test_what_another_told_is_said_also_where_the_first_is_killed(folder, workspace, monkeypatch, told, what):
    """One that waits for its card does not hear the launcher's wish to end."""
    folder.logs.mkdir(exist_ok=True)
    record_failure(folder, Explanation("What ended the run before"), 2)

    def start(*_):
        if told is not None:
            record_failure(folder, told, 2)
        return SimpleNamespace(poll=lambda: 1, returncode=1, stdin=None)

    monkeypatch.setattr(launch, "_start", start)
    state, words = launch.supervise(
        TrainJob(), folder, workspace, "cpu", listener=lambda line: None, token=CancelToken()
    )
    assert state == "failed" and words.what.startswith(what)


def test_processes_on_windows_find_each_other_by_a_file(folder, workspace, monkeypatch):
    """torch's Windows builds lack libuv, which the TCP stores of its launcher require."""
    seen = []
    monkeypatch.setattr(
        launch.subprocess,
        "Popen",
        lambda words, env, **_: seen.append(("store_type=file" in words, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in env)),
    )
    for system in ("linux", "win32"):
        monkeypatch.setattr(launch.sys, "platform", system)
        launch._start(TrainJob(), folder, workspace, None)
    assert seen == [(False, False), (True, True)]


@pytest.mark.parametrize("person", ["", "ben"])
def test_launched_processes_train_for_whom_the_page_trains(folder, workspace, monkeypatch, person):
    space, seen = replace(workspace, person=person), []
    monkeypatch.setattr(
        launch.subprocess, "Popen", lambda words, env, **_: monkeypatch.setattr(launch.os, "environ", env)
    )
    launch._start(TrainJob(), folder, space, None)
    assert jobs.Options(values={"outputs": str(space.outputs)}).workspace().person == person
    monkeypatch.setattr("core.training.start.run_training", lambda job, context: seen.append(CURRENT_WORKSPACE.get()))
    jobs._train_as_follower(
        SimpleNamespace(rank=1, device="cpu", broadcast=lambda nothing: (folder.path, TrainJob())), space
    )
    assert [each.person for each in seen] == [person]


CHILD = """
import sys, time
from pathlib import Path
from core.record.commands import CommandReader
from core.record.events import StateChanged
from core.record.journal import Journal

time.sleep(0.4)  # what it imports first takes longer
commands, end = CommandReader(Path(sys.argv[1])), time.monotonic() + 300
with Journal(Path(sys.argv[1])) as journal:
    journal.put(StateChanged("running"))
    heard = []
    while "stop" not in heard and time.monotonic() < end:
        heard += commands.new()
        time.sleep(0.02)
    journal.put(StateChanged("stopped" if heard == ["stop"] else "done"))
"""


def test_a_stop_before_the_launched_process_reads_commands_reaches_it(tmp_path, monkeypatch):
    """Also where the disk takes the command only at the second try."""
    folder, token, sent = RunFolder.create(tmp_path, "t", {}), CancelToken(), []
    send = commands.send

    def full_once(path, name):
        sent.append(name)
        if len(sent) == 1:
            raise OSError(28, "No space left on device")
        return send(path, name)

    monkeypatch.setattr(commands, "send", full_once)
    token.cancel()

    def start(log):
        words = [sys.executable, "-c", CHILD, str(folder.path)]
        return subprocess.Popen(words, cwd=PROJECT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    assert follow(start, folder, listener=lambda line: None, token=token) == ("stopped", None)
    assert sent == ["stop", "stop"]


def test_a_child_that_is_told_by_its_input_hears_a_stop_on_a_full_disk(tmp_path, monkeypatch):
    def full(path, name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands, "send", full)
    folder, token = RunFolder.create(tmp_path, "t", {}), CancelToken()
    token.cancel()
    child = (
        "import sys; from core.record.events import StateChanged; from core.record.journal import Journal\n"
        "sys.stdin.read()\n"
        "with Journal(__import__('pathlib').Path(sys.argv[1])) as journal: journal.put(StateChanged('stopped'))"
    )

    def start(log):
        words = [sys.executable, "-c", child, str(folder.path)]
        return subprocess.Popen(words, cwd=PROJECT, stdout=log, stderr=log, stdin=subprocess.PIPE)

    assert follow(start, folder, listener=lambda line: None, token=token, patience=20) == ("stopped", None)
