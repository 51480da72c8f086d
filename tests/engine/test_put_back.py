"""What happens to the queue and to trainings after the program ended: what is said, put back and given up."""

import subprocess
import sys

import pytest

from core.engine import engine as engine_module
from core.engine.engine import Engine
from core.engine.explain import Explanation
from core.engine.queue import Queue, as_guest
from core.record.run_folder import seal_state
from core.record.workspace import Workspace
from core.settings.presets.files import to_values
from tests.engine.test_engine import job, killed_run, states, stepper, until
from tests.tasks import stand_in

TRAINS = """
import sys, time
from pathlib import Path
from core.engine.engine import Engine
from core.record.workspace import Workspace
from tests.engine.test_engine import job, stepper
from tests.tasks import stand_in
import pytest

stand_in(pytest.MonkeyPatch(), "train", stepper(total=10_000, wait=0.01))
engine = Engine(Workspace(*(Path(each) for each in sys.argv[1:4])), "cpu")
for name in ("fox", "owl"):
    engine.submit("train", job(name))
engine.start()
time.sleep(600)
"""


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")


@pytest.fixture
def begun(workspace):
    """Start an engine on the folder; all are closed at the end."""
    engines = []

    def begin(resume=False):
        engines.append(engine := Engine(workspace, "cpu"))
        engine._device_thread.run = engine._inbox_thread.run = lambda: None
        engine.start(resume)
        return engine

    yield begin
    for engine in engines:
        engine.close(wait_seconds=5)


def ended(workspace, run=None, **changes):
    """The queue file of a process that was killed while "fox" trained and "owl" waited."""
    queue = Queue(workspace.private / "queue.json")
    first = queue.add("train", "fox", to_values(job("fox")), run=(run or killed_run(workspace)).name)
    queue.add("train", "owl", to_values(job("owl")))
    if changes.pop("paused", False):
        queue.pause(True)
    queue.change(first.id, state="running", **changes)
    return first.id


def saved(run, step):
    folder = run.states / f"step{step:08d}"
    folder.mkdir(parents=True)
    (folder / "training.pt").write_bytes(b"weights")
    seal_state(folder)


def titles(engine):
    return [(entry.title, entry.state) for entry in engine.queue()]


def test_a_queue_says_that_the_program_ended_and_a_button_continues_the_training_first(workspace, begun):
    fox = ended(workspace)
    engine = begun()
    assert engine.queue_paused and engine.why_paused == "the program ended unexpectedly while 'fox' trained"
    assert [entry.id for entry in engine.interrupted] == [fox]
    engine.continue_first()
    assert titles(engine) == [("fox", "waiting"), ("owl", "waiting")]
    assert not engine.queue_paused and not engine.why_paused and not engine.interrupted


def test_the_reason_is_kept_over_a_restart_and_ends_with_the_pause(workspace, begun):
    ended(workspace)
    Queue(workspace.private / "queue.json")
    engine = begun()
    assert "'fox'" in engine.why_paused
    engine.resume_queue()
    engine.pause_queue()
    assert engine.queue_paused and not engine.why_paused and not engine.interrupted
    engine.continue_first()
    assert engine.queue_paused and titles(engine) == [("fox", "interrupted"), ("owl", "waiting")]


def test_a_run_that_was_resumed_otherwise_is_not_put_back_again(workspace, begun):
    ended(workspace, run := killed_run(workspace))
    engine = begun()
    engine._queue_run(run.name)
    assert engine.queue_paused and not engine.interrupted


@pytest.mark.parametrize("paused", [False, True], ids=["paused by the crash", "paused by hand"])
def test_an_interrupted_run_that_is_handed_in_is_the_first_in_the_queue_which_stays_paused(workspace, begun, paused):
    ended(workspace, run := killed_run(workspace), paused=paused)
    engine = begun()
    engine._queue_handed_in({"run": run.name})
    waiting = [entry.run for entry in engine.queue() if entry.state == "waiting"]
    assert engine.queue_paused and waiting == [run.name, ""]


def test_a_run_that_was_deleted_is_not_put_back(workspace, begun):
    ended(workspace, run := killed_run(workspace))
    engine = begun()
    engine.delete_run(run.name)
    assert engine.queue_paused and not engine.interrupted
    engine.continue_first()
    assert not engine.queue_paused and titles(engine) == [("fox", "interrupted"), ("owl", "waiting")]


@pytest.mark.parametrize(
    ("guest", "order"), [("", ["fox", "owl", "cat"]), ("anna", ["owl", "fox", "cat"])], ids=["the owner", "a guest"]
)
def test_a_run_that_is_resumed_after_the_end_of_the_program_goes_before_what_its_user_may_move(
    workspace, begun, guest, order
):
    ended(workspace, run := killed_run(workspace))
    engine = begun()
    with as_guest(guest):
        engine.submit("train", job("cat"))
        resumed = engine.continue_run(run.name)
    assert not engine.queue_paused and engine._queue.get(resumed).run == run.name
    waiting = [entry for entry in engine.queue() if entry.state == "waiting"]
    assert ["fox" if entry.id == resumed else entry.title for entry in waiting] == order


def test_a_run_that_the_end_of_the_program_interrupted_is_resumed_first_in_a_queue_that_somebody_paused(
    workspace, begun
):
    ended(workspace, run := killed_run(workspace), paused=True)
    engine = begun()
    resumed = engine.continue_run(run.name)
    waiting = [entry for entry in engine.queue() if entry.state == "waiting"]
    assert engine.queue_paused and [entry.id == resumed for entry in waiting] == [True, False]
    engine._queue.change(resumed, state="done")
    longer = engine._queue.add("train", "fox", to_values(job("fox")), run=run.name)
    engine._queue.resume_with(longer.id, alone=False)
    assert engine.queue()[-1].id == longer.id, "one that was stopped or has finished since goes to the end"


def test_a_supervised_server_puts_the_training_back_and_resumes_unless_somebody_paused(workspace, begun, capsys):
    ended(workspace)
    engine = begun(resume=True)
    assert titles(engine) == [("fox", "waiting"), ("owl", "waiting")] and not engine.queue_paused
    assert "'fox' is put back" in capsys.readouterr().err and not engine.notice


def test_a_queue_that_was_paused_by_hand_stays_paused_after_a_crash(workspace, begun):
    fox = ended(workspace, paused=True)
    engine = begun(resume=True)
    assert engine.queue_paused and engine.paused_by == "" and engine.queue()[0].id == fox and not engine.why_paused
    for entry in engine.queue():
        engine.cancel(entry.id)
    engine._queue.change(fox, state="running")
    assert Queue(workspace.private / "queue.json").paused, "also where nothing else waits"


def test_a_training_that_ends_the_program_again_and_again_without_progress_is_given_up(workspace, begun):
    fox = ended(workspace, run := killed_run(workspace))
    path, tried = workspace.private / "queue.json", []
    for step in (0, 0, 5, 0, 0):
        if step:
            saved(run, step)
        engine = begun(resume=True)
        tried.append(next(entry for entry in engine.queue() if entry.id == fox))
        assert ("'fox' is not resumed" in engine.notice) == (tried[-1].state == "failed")
        if tried[-1].state == "waiting":
            engine._queue.change(fox, state="running")
        engine._owner.release()
    assert [(each.state, each.tries) for each in tried] == [
        ("waiting", 1),
        ("waiting", 2),
        ("waiting", 1),
        ("waiting", 2),
        ("failed", 3),
    ]
    assert "owl" in [entry.title for entry in Queue(path).entries() if entry.state == "waiting"]
    assert not Queue(path).paused, "the others go on"


@pytest.mark.parametrize("resume", [True, False])
def test_a_training_that_a_signal_to_the_server_stopped_resumes_there_too(workspace, monkeypatch, resume):
    stand_in(monkeypatch, "train", stepper(total=10_000, wait=0.01))
    engine = Engine(workspace, "cpu")
    for name in ("fox", "owl", "cat"):
        engine.submit("train", job(name))
    engine.start()
    until(lambda: states(engine)[0] == "running")
    engine.cancel(engine.queue()[0].id)  # by hand: it is not resumed
    until(lambda: states(engine)[1] == "running")
    engine.close()
    again = Engine(workspace, "cpu")
    again._device_thread.run = again._inbox_thread.run = lambda: None
    again.start(resume)
    waiting = [entry.title for entry in again.queue() if entry.state == "waiting"]
    again.close()
    assert waiting == (["owl", "cat"] if resume else ["cat"]) and not again.queue_paused


@pytest.mark.parametrize(("step", "resumes"), [(5, True), (None, False)])
def test_a_training_that_broke_cuda_is_put_back_if_it_has_a_training_state(
    workspace, begun, monkeypatch, step, resumes
):
    run, engine = killed_run(workspace), begun()
    if step:
        saved(run, step)
    broken = Explanation("The GPU reported an error", poisoned=True)
    monkeypatch.setattr(engine_module.os, "_exit", lambda code: None)
    fox = engine._queue.add("train", "fox", to_values(job("fox")), run=run.name)
    engine._queue.add("train", "owl", to_values(job("owl")))
    tried = []
    for _ in range(3):
        entry = engine._queue.change(fox.id, state="running")
        monkeypatch.setattr(engine, "_train_or_execute", lambda *_: ("failed", broken))
        engine._run_on_device(entry)
        engine = begun(resume=True)
        tried.append(next(each.state for each in engine.queue() if each.id == fox.id))
        assert not engine.queue_paused and ("not resumed" in engine.notice) == (resumes and len(tried) == 3)
    assert tried == (["waiting", "waiting", "failed"] if resumes else ["failed"] * 3)


@pytest.mark.slow
def test_after_a_kill_the_training_is_the_first_to_go_on(workspace, monkeypatch):
    folders = [str(workspace.outputs), str(workspace.models), str(workspace.presets)]
    process = subprocess.Popen([sys.executable, "-c", TRAINS, *folders])
    try:
        until(lambda: any(b'"steps"' in each.read_bytes() for each in workspace.runs.glob("*/events.jsonl")), 60)
    finally:
        process.kill()
        process.wait()
    stand_in(monkeypatch, "train", stepper())
    engine = Engine(workspace, "cpu")
    order = []
    engine.end_listeners.append(lambda entry: order.append(entry.title))
    engine.start(resume=True)
    until(lambda: states(engine) == ["done", "done"])
    engine.close()
    assert order == ["fox", "owl"] and len(list(workspace.runs.iterdir())) == 2
