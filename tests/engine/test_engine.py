"""The queue survives everything, a failing job takes nothing with it, and a snapshot tells the truth."""

import errno
import json
import shutil
import threading
import time
from contextlib import suppress
from contextvars import copy_context

import pytest

from core import tasks
from core.cli.jobs import TerminalProgress
from core.engine import engine as engine_module
from core.engine.engine import Engine
from core.engine.explain import explain
from core.engine.extend import extend
from core.engine.owner import DeviceLock, hand_in
from core.engine.queue import GUEST, MAX_ENDED, MOST_OF_ONE, MOST_WAITING, Queue, QueueEntry, as_guest
from core.engine.runs import Runs
from core.engine.view import RunView, thin
from core.record import atomic
from core.record.cancel import Cancelled, CancelToken
from core.record.events import MemoryUsed, Planned, Sampled, Saved, Stage, StateChanged, Steps, Validated
from core.record.journal import Journal, Tail
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import JOBS, TrainJob
from core.settings.named import Limits
from core.settings.presets.files import dump, to_values
from tests.refusals import refused
from tests.tasks import stand_in


def job(name="a", **groups):
    return build(TrainJob, {"saving": {"output_name": name}, **groups})


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")


@pytest.fixture
def engine(workspace, monkeypatch):  # what a test patches holds until the engine is closed: a job may just begin
    engine = Engine(workspace, "cpu")
    yield engine
    engine.close(wait_seconds=60)


def states(engine):
    return [entry.state for entry in engine.queue()]


def stepper(total=3, error=None, wait=0.0):
    """A stand-in for a training that follows the same protocol."""

    def run(job, context):
        context.journal.put(Planned(total, 1, total, 4, "4 images"))
        for step in range(1, total + 1):
            if error is not None and step == 2:
                raise error
            context.journal.put(Steps([step], [1.0 / step], {"unet": 1e-4}, 1, 0.01))
            time.sleep(wait)
            context.take_commands()
            if context.token.wanted:
                return "stopped"
        return "done"

    return run


def test_jobs_run_one_after_the_other_and_a_failure_does_not_stop_the_next(engine, monkeypatch):
    def by_name(job, context):
        return stepper(error=RuntimeError("CUDA out of memory") if job.saving.output_name == "bad" else None)(
            job, context
        )

    stand_in(monkeypatch, "train", by_name)
    monkeypatch.setattr("core.engine.execute.memory_advice", lambda *_: "gradient checkpointing saves about 1 GB")
    for name in ("one", "bad", "two"):
        engine.submit("train", job(name))
    engine.start()
    until(lambda: states(engine) == ["done", "failed", "done"])
    failed = next(run for run in engine.runs() if run.title == "bad")
    assert failed.state == "failed" and failed.message == "The device ran out of memory"
    assert engine.snapshot(failed.name)["code"] == "memory.out"
    snapshot = engine.snapshot(failed.name)
    assert "gradient checkpointing" in snapshot["fix"] and snapshot["log"][-1]["level"] == "error"
    assert (failed.folder / "logs" / "error.txt").is_file()


@pytest.mark.parametrize("task", ["train", "inspect"])
def test_a_panic_of_a_library_fails_its_job_and_the_next_one_runs(engine, monkeypatch, task):
    class Panic(BaseException):
        """As PyO3 raises it for a panic in safetensors or tokenizers."""

    def run(job, context):
        if context.folder.name.endswith("_0"):
            raise Panic("called `Option::unwrap()` on a `None` value")
        return "done"

    stand_in(monkeypatch, task, run)
    ids = [engine.submit(task, build(JOBS[task], {}), str(number)) for number in range(2)]
    engine.start()
    until(lambda: not engine.works)
    assert states(engine) == ["failed", "done"] and "Option::unwrap" in engine._queue.get(ids[0]).message


@pytest.mark.slow
def test_a_run_remembers_the_preset_it_was_started_from_also_when_it_is_made_longer(engine, workspace, monkeypatch):
    stand_in(monkeypatch, "train", stepper())
    engine.submit("train", job("here"), preset="starter_lora")
    hand_in(workspace, "train", "there", to_values(job("there")), preset="user/mine")
    engine.submit("train", job("none"))
    engine.start()
    until(lambda: states(engine) == ["done"] * 3)
    folders = {run.title: RunFolder(run.folder) for run in engine.runs()}
    extend(folders["here"], {"schedule": {"max_train_steps": 9000}})
    assert {title: folder.preset for title, folder in folders.items()} == {
        "here": "starter_lora",
        "there": "user/mine",
        "none": "",
    }
    assert engine.run_job(folders["here"].name).schedule.max_train_steps == 9000


@pytest.mark.slow
def test_the_best_validation_is_the_lowest_and_the_most_memory_of_all_lives_counts(engine, monkeypatch):
    def measured(job, context):
        for step, loss in ((0, 0.3), (10, 0.11), (20, 0.11), (30, float("nan")), (40, 0.2)):
            context.journal.put(Validated(step, loss, 0.1, loss - 0.1, {"200": loss}, 2))
        for peak in (5, 9, 7):
            context.journal.put(MemoryUsed(peak, "cuda:0"))
        return "done"

    stand_in(monkeypatch, "train", measured)
    engine.submit("train", job())
    engine.start()
    until(lambda: states(engine) == ["done"])
    (run,) = engine.runs()
    assert run.best == (0.11, 10), "the earliest of equal ones; what is no number does not count"
    facts = engine.snapshot(run.name)
    assert (facts["peak_bytes"], facts["peak_device"]) == (9, "cuda:0")


@pytest.mark.slow
def test_problems_of_a_job_are_all_in_its_log(engine, monkeypatch):
    from core.record.problems import Problem

    error = ProblemsError([Problem("First wrong", "here", "fix it"), Problem("Second wrong", "there")])
    stand_in(monkeypatch, "train", stepper(error=error))
    engine.submit("train", job())
    engine.start()
    until(lambda: states(engine) == ["failed"])
    texts = [entry["text"] for entry in engine.snapshot(engine.current_run())["log"]]
    assert texts == ["Second wrong (there)", "First wrong (here) (and 1 more)"]


@pytest.mark.slow
def test_a_running_job_stops_when_cancelled_and_a_waiting_one_never_begins(engine, monkeypatch):
    stand_in(monkeypatch, "train", stepper(total=10000, wait=0.01))
    first, second = engine.submit("train", job("a")), engine.submit("train", job("b"))
    engine.start()
    until(lambda: engine.status()["job"] is not None and engine.status()["job"].get("step", 0) > 2)
    assert engine.status()["job"]["title"] == "a" and not engine.status()["job"]["stopping"]
    engine.cancel(second)
    assert not engine.status()["job"]["stopping"]
    engine.cancel(first)
    assert (engine.status()["job"] or {"stopping": True})["stopping"], "said at once, before the job has seen it"
    until(lambda: states(engine) == ["stopped", "cancelled"])
    assert [run.state for run in engine.runs()] == ["stopped"]


def test_a_job_that_was_to_be_removed_from_the_queue_is_not_stopped_if_it_has_started(engine):
    waiting, started = engine.submit("train", job("a")), engine.submit("train", job("b"))
    assert engine._queue.begin(started)
    with pytest.raises(ProblemsError) as error:
        engine.cancel(started, only_waiting=True)
    assert error.value.problems[0].code == "queue.has-started" and not engine._token_of(started).wanted
    engine.cancel(waiting, only_waiting=True)
    assert states(engine) == ["cancelled", "running"]
    engine.cancel(started)
    assert engine._token_of(started).wanted


@pytest.mark.slow(but=("train-True",))
@pytest.mark.parametrize(("task", "launched"), [("train", True), ("probe", False), ("prepare", False)])
def test_of_jobs_for_several_cards_only_trainings_are_launched(engine, monkeypatch, task, launched):
    """A probe that was launched trained the whole job."""
    begun = []
    monkeypatch.setattr(engine_module, "supervise", lambda *about, **more: begun.append("launched") or ("done", None))
    stand_in(monkeypatch, task, lambda job, context: begun.append("here") or "done")
    engine.start()
    engine.submit(task, build(JOBS[task], {"memory": {"num_processes": 2}}))
    until(lambda: states(engine) == ["done"])
    assert begun == ["launched" if launched else "here"]


def test_waiting_jobs_can_be_put_in_another_order(engine):
    ids = [engine.submit("train", job(name)) for name in "abc"]
    engine.move(ids[2], 0)
    assert [entry.title for entry in engine.queue()] == ["c", "a", "b"]
    engine.move(ids[2], 99)
    assert [entry.title for entry in engine.queue()] == ["a", "b", "c"]


@pytest.mark.slow
def test_a_shared_page_queues_a_few_jobs_only(engine, workspace):
    engine.limits = Limits.of(workspace)
    ids = [engine.submit("train", job()) for _ in range(MOST_WAITING)]
    with refused("queue.full"):
        engine.submit("train", job())
    engine.cancel(ids[0])
    assert engine.submit("train", job())
    engine.limits = None  # the machine itself
    assert engine.submit("train", job())


def test_a_run_that_a_full_queue_refuses_keeps_its_settings(engine, workspace, monkeypatch):
    monkeypatch.setattr("core.engine.queue.MOST_WAITING", 0)
    engine.limits, run = Limits.of(workspace), killed_run(workspace)
    before = run.job_file.read_bytes()
    with refused("queue.full"):
        engine.continue_run(run.name, {"schedule": {"max_train_steps": 9000}})
    assert run.job_file.read_bytes() == before


def test_one_guest_of_a_shared_page_leaves_room_for_others(engine, workspace):
    """Also of presses at the same moment, and of runs that go on."""
    engine.limits = Limits.of(workspace)

    def press(name: str) -> None:
        with suppress(ProblemsError):
            in_guest(name, lambda: engine.submit("train", job()))

    presses = [threading.Thread(target=press, args=("first",)) for _ in range(3 * MOST_OF_ONE)]
    for each in presses:
        each.start()
    for each in presses:
        each.join()
    assert [entry.guest for entry in engine.queue()] == ["first"] * MOST_OF_ONE
    run = RunFolder.create(workspace.runs, "a", dump(job(), task="train"))
    with refused("queue.full-for-guest"):
        in_guest("first", lambda: engine.continue_run(run.name))
    assert in_guest("second", lambda: engine.submit("train", job()))
    assert Queue(workspace.private / "queue.json").entries() == engine.queue()


def test_guests_end_and_move_only_their_own_jobs_and_the_owner_all(engine, workspace):
    engine.limits = Limits.of(workspace)
    ids = [in_guest(name, lambda: engine.submit("train", job())) for name in ("a", "b", "a", "b", "")]
    for refuses in (engine.cancel, lambda each: engine.move(each, 0)):
        for each in (ids[0], ids[4]):
            with refused("queue.not-yours"):
                in_guest("b", lambda each=each, refuses=refuses: refuses(each))
    with refused("queue.not-yours"):
        in_guest("b", engine.pause_queue)
    in_guest("b", lambda: engine.move(ids[3], 0))  # before their own only: the others keep their places
    assert [entry.id for entry in engine.queue()] == [ids[0], ids[3], ids[2], ids[1], ids[4]]
    in_guest("b", lambda: engine.cancel(ids[1]))
    engine.cancel(ids[2])
    assert [engine._queue.get(each).state for each in ids[1:3]] == ["cancelled"] * 2
    in_guest("b", lambda: engine.forget(ids))
    assert ids[1] not in [entry.id for entry in engine.queue()] and ids[2] in [entry.id for entry in engine.queue()]
    engine.forget(ids)
    engine.move(ids[4], 0)
    assert [entry.id for entry in engine.queue()] == [ids[4], ids[0], ids[3]]
    run = RunFolder.create(workspace.runs, "a", dump(job(), task="train"))
    engine._queue.change(ids[0], state="running", run=run.name)
    with refused("queue.not-yours"):
        in_guest("b", lambda: engine.command(run.name, "stop"))
    assert in_guest("a", lambda: engine.command(run.name, "stop"))


def test_a_guest_does_not_lift_the_owners_pause(engine, workspace):
    run, stored = killed_run(workspace), workspace.private / "queue.json"
    in_guest("b", engine.pause_queue)
    assert Queue(stored).paused_by == "b"
    in_guest("a", engine.resume_queue)
    engine.pause_queue()
    in_guest("b", engine.pause_queue)
    with refused("queue.not-yours"):
        in_guest("b", engine.resume_queue)
    in_guest("b", lambda: engine.continue_run(run.name))
    again = Queue(stored)
    assert engine.queue_paused and (again.paused, again.paused_by) == (True, "")
    engine.resume_queue()
    assert not engine.queue_paused and engine.paused_by is None
    stored.write_text('{"paused": true, "entries": []}')
    assert (Queue(stored).paused, Queue(stored).paused_by) == (True, None), "a file of an earlier version"


def in_guest(name, work):
    def named():
        GUEST.set(name)
        return work()

    return copy_context().run(named)


@pytest.mark.parametrize("schedule", [{"max_train_steps": 10_000_000}, {"max_train_epochs": 100_000}])
def test_a_shared_page_takes_no_training_of_weeks(engine, workspace, schedule):
    assert engine.submit("train", job(schedule=schedule))
    engine.limits = Limits.of(workspace)
    with refused("shared.too-long"):
        engine.submit("train", job(schedule=schedule))
    assert engine.submit("train", job(schedule={"max_train_steps": 2000, "max_train_epochs": 100_000}))


@pytest.mark.parametrize("added", ["nan", "inf", 1e300, None, 10**400])
def test_a_queue_file_with_a_time_that_is_none_does_not_keep_jobs_from_being_added(tmp_path, added):
    path = tmp_path / "queue.json"
    path.write_text(json.dumps({"entries": [{"id": "a", "task": "train", "title": "t", "job": {}, "added": added}]}))
    queue = Queue(path)
    assert queue.set_aside and queue.add("train", "b", {})


def test_a_running_job_whose_folder_was_deleted_by_hand_is_still_shown(engine, workspace, monkeypatch):
    shown = []

    def run(job, context):
        shutil.rmtree(context.folder.path)
        (entry,) = engine.queue()
        shown.append((engine.status()["job"]["title"], engine.progress(entry.id)["state"], engine.waits()))
        shown.append(engine.snapshot(entry.run)["run"] == entry.run)
        shown.append(Runs(workspace, lambda _: False).time_left(entry))  # as the command `runs` has it
        return "done"

    stand_in(monkeypatch, "train", run)
    engine.submit("train", job("a"))
    engine.start()
    until(lambda: states(engine) == ["done"])
    assert shown == [("a", "running", {}), True, (0.0, False)]


def test_a_run_that_was_deleted_while_it_waited_fails_and_the_status_is_shown_meanwhile(engine, workspace, monkeypatch):
    shown = []
    run = killed_run(workspace)
    engine.continue_run(run.name)
    engine.delete_run(run.name)
    monkeypatch.setattr(engine, "_ready_device", lambda: shown.append(engine.status()["job"]["run"]) or "cpu")
    engine.start()
    until(lambda: states(engine) == ["failed"])
    assert shown == [run.name] and "was deleted" in engine.queue()[0].message


def test_no_job_begins_once_the_running_ones_are_stopped_for_the_end(workspace):
    queue = Queue(workspace.private / "queue.json")
    first, _, light = (queue.add(task, "x", {}).id for task in ("train", "train", "inspect"))
    queue.take()
    assert [entry.id for entry in queue.close()] == [first]
    assert queue.take() is None and queue.begin(light) is None
    assert [entry.state for entry in Queue(workspace.private / "queue.json").entries()][1:] == ["waiting"] * 2


@pytest.mark.parametrize("damage", [{"lane": "cloud"}, {"job": {"generate": None}}, None])
def test_a_queue_file_of_another_version_does_not_keep_the_page_from_starting(workspace, damage):
    entry = {"id": "a", "task": "inspect", "title": "t", "job": {}} | damage if damage else damage
    atomic.write_json(workspace.private / "queue.json", {"entries": [entry]})
    assert "moved to queue.broken" in Queue(workspace.private / "queue.json").set_aside


def test_a_queue_of_a_later_version_keeps_its_jobs(workspace):
    entries = [{"id": name, "task": "inspect", "title": "t", "job": {}, "later": 1} for name in "ab"]
    atomic.write_json(workspace.private / "queue.json", {"entries": entries, "also later": 2})
    queue = Queue(workspace.private / "queue.json")
    assert [entry.id for entry in queue.entries()] == ["a", "b"] and not queue.set_aside


def test_a_generation_of_a_removed_extension_is_listed_for_other_people():
    entry = QueueEntry("a", "removed", "a prompt", {"generate": {"prompt": "a prompt"}})
    with as_guest("anna"):
        assert entry.visible({"anna"}).title == "removed"


def test_only_jobs_that_have_ended_are_taken_out_of_the_list(engine, workspace):
    ended, waiting = engine.submit("train", job("a")), engine.submit("train", job("b"))
    engine.cancel(ended)
    engine.forget([ended, waiting, "made up"])
    assert [entry.id for entry in engine.queue()] == [waiting]
    assert [entry.id for entry in Queue(workspace.private / "queue.json").entries()] == [waiting]


def test_the_jobs_that_ended_last_stay_in_the_list_however_long_they_ran(workspace):
    path = workspace.private / "queue.json"
    queue = Queue(path)
    long, cut_off = (queue.add("train", name, {}).id for name in ("long", "cut off"))
    for _ in range(2):
        queue.take()
    for number in range(MAX_ENDED + 5):
        queue.change(queue.add("inspect", str(number), {}).id, state="done")
    queue.change(long, state="failed", message="why")
    kept = {entry.title for entry in Queue(path).entries()}
    assert len(kept) == MAX_ENDED and {"long", "cut off", str(MAX_ENDED + 4)} <= kept
    assert Queue(path).get(cut_off).state == "interrupted", "so that it can be continued"


def test_the_queue_survives_a_kill_and_comes_up_paused(workspace):
    path = workspace.private / "queue.json"
    queue = Queue(path)
    queue.add("train", "a", to_values(job()))
    queue.add("train", "b", to_values(job()))
    queue.take()
    again = Queue(path)
    assert [entry.state for entry in again.entries()] == ["interrupted", "waiting"]
    assert again.paused and again.take() is None
    again.pause(False)
    assert again.take().title == "b"


ENTRY = {"id": "a", "task": "train", "title": "t", "job": {}}


@pytest.mark.parametrize(
    "content",
    [
        "{half",
        '{"entries": 5}',
        *(
            json.dumps({"entries": [each]})
            for each in (5, {}, *(ENTRY | {name: value} for name, value in (
                ("title", 5), ("job", {"saving": 1}), ("lane", "x"), ("tries", "3"), ("added", -1), ("ended", 2**60))))
        ),
    ],
)  # fmt: skip
def test_a_damaged_queue_is_set_aside_not_lost(workspace, content):
    workspace.private.mkdir(parents=True)
    (workspace.private / "queue.json").write_text(content)
    assert Queue(workspace.private / "queue.json").entries() == []
    assert [path.read_text() for path in workspace.private.glob("queue.broken-*")] == [content]


def test_a_queue_of_a_later_version_is_read(workspace):
    workspace.private.mkdir(parents=True)
    (workspace.private / "queue.json").write_text(json.dumps({"entries": [ENTRY | {"added": 5, "later": 1}]}))
    assert [entry.added for entry in Queue(workspace.private / "queue.json").entries()] == [5.0]


@pytest.mark.parametrize("name", ["x" * 5000, "..", "", "a/b", "\0", "\ud800", "nowhere"])
def test_a_run_that_cannot_be_is_no_run(engine, name):
    with pytest.raises(ProblemsError, match="There is no such run"):
        engine.command(name, "stop")


def test_one_output_folder_has_one_engine_and_a_second_is_told_who(engine, workspace, monkeypatch):
    monkeypatch.setattr("core.record.lock.LOOK_SECONDS", 0.2)
    engine.announce("the page at http://127.0.0.1:7860")
    with refused("outputs.held", "the page at http://127.0.0.1:7860"):
        Engine(workspace)


@pytest.mark.slow
def test_a_job_handed_in_by_another_process_is_taken_up(engine, workspace, monkeypatch):
    stand_in(monkeypatch, "train", stepper())
    hand_in(workspace, "train", "from a terminal", to_values(job()))
    (workspace.private / "inbox" / "0.json").write_text("{broken")
    engine.start()
    until(lambda: states(engine) == ["done"])
    assert engine.queue()[0].title == "from a terminal"


@pytest.mark.slow
def test_a_job_handed_in_while_another_runs_joins_the_queue_and_can_be_cancelled(engine, workspace, monkeypatch):
    hold = threading.Event()
    stand_in(monkeypatch, "train", lambda *_, **__: hold.wait(20) and "done")
    engine.start()
    engine.submit("train", job("first"))
    until(lambda: states(engine) == ["running"])
    hand_in(workspace, "train", "second", to_values(job()))
    until(lambda: states(engine) == ["running", "waiting"])
    engine.cancel(engine.queue()[1].id)
    hold.set()
    until(lambda: "running" not in states(engine))
    assert sorted(states(engine)) == ["cancelled", "done"]


@pytest.mark.slow
def test_a_job_handed_in_that_cannot_be_done_stays_in_the_list_with_the_reason(engine, workspace, monkeypatch):
    stand_in(monkeypatch, "train", stepper())
    hand_in(workspace, "train", "of another version", to_values(job()) | {"gone": {}})
    hand_in(workspace, "train", "no such run", {}, run="20260101-120000_gone")
    hand_in(workspace, "train", "sound", to_values(job()))
    engine.start()
    until(lambda: sorted(states(engine)) == ["done", "failed", "failed"])
    said = {entry.title: entry.message for entry in engine.queue()}
    assert "There is no setting 'gone'" in said["of another version"]
    assert "There is no such run" in said["no such run"] and said["sound"] == ""


@pytest.mark.slow
def test_the_device_is_lent_to_one_at_a_time(engine, monkeypatch):
    stand_in(monkeypatch, "train", stepper())
    with engine.borrow_device(CancelToken(), "a test") as device:
        assert device == "cpu" and engine.lent_to == "a test"
        engine.start()
        engine.submit("train", job())
        time.sleep(1.2)
        assert states(engine) == ["waiting"], "no job begins beside what has borrowed the device"
        cancelled = CancelToken()
        cancelled.cancel()
        with pytest.raises(Cancelled), engine.borrow_device(cancelled, "another"):
            pass
    until(lambda: states(engine) == ["done"])
    until(lambda: not engine.lent_to)


def test_only_a_waiting_job_that_can_do_without_the_device_is_started_on_the_cpu(engine, monkeypatch):
    ran = []
    monkeypatch.setattr(
        engine_module, "run_in_child", lambda folder, *a, **b: ran.append(folder.name) or ("done", None)
    )
    stand_in(monkeypatch, "train", stepper())
    with engine.borrow_device(CancelToken(), "a test"):
        tags, sentences = (engine.submit(task, build(JOBS[task], {}), title=task) for task in ("tag", "blip"))
        with refused("queue.needs-device"):
            engine.start_on_cpu(sentences)
        engine.start_on_cpu(tags)
        until(lambda: engine.progress(tags)["state"] == "done")
        assert engine.progress(tags)["lane"] == "process" and engine.progress(sentences)["lane"] == "device"
        engine.start_on_cpu(tags)
    assert states(engine) == ["done", "waiting"] and len(ran) == 1
    assert [entry.lane for entry in Queue(engine.workspace.private / "queue.json").entries()] == ["process", ""]


def test_who_waits_for_the_device_has_it_as_soon_as_it_is_free_and_two_never_hold_it():
    lock, seen = DeviceLock(), []

    def hold(name):
        while not lock.acquire(name, 0.01):
            pass
        seen.append((name, lock.holder))
        time.sleep(0.002)
        seen.append((name, lock.holder))
        lock.release()

    threads = [threading.Thread(target=hold, args=(str(number),)) for number in range(20)]
    assert lock.acquire("first", 0) and not lock.acquire("second", 0)
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    assert not seen and lock.holder == "first"
    lock.release()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 40 and all(name == holder for name, holder in seen) and lock.holder == ""


def test_a_proof_that_fails_gives_the_device_back(engine, monkeypatch):
    stand_in(monkeypatch, "train", stepper())
    with pytest.raises(OSError), engine.borrow_device(CancelToken(), "a test"):
        raise OSError
    assert not engine.lent_to
    engine.submit("train", job())
    engine.start()
    until(lambda: states(engine) == ["done"])


def killed_run(workspace, steps=5):
    """What a process leaves that was killed in mid-run."""
    folder = RunFolder.create(workspace.runs, "victim", dump(job("victim")))
    with Journal(folder.path) as journal:
        journal.put(StateChanged("running"))
        journal.put(Planned(10, 2, 5, 4))
        journal.put(Steps(list(range(1, steps + 1)), [0.5] * steps, {"unet": 1e-4}, 1, 0.5))
    return folder


def test_a_killed_run_shows_as_interrupted_at_its_step_and_continues(engine, workspace, monkeypatch):
    folder = killed_run(workspace)
    assert engine.snapshot(folder.name)["state"] == "interrupted"
    summary = engine.runs()[0]
    assert (summary.state, summary.step, summary.total) == ("interrupted", 5, 10)
    stand_in(monkeypatch, "train", stepper())
    engine.continue_run(folder.name)
    with refused("runs.queued"):
        engine.continue_run(folder.name)
    engine.start()
    until(lambda: engine.snapshot(folder.name)["state"] == "done")
    assert len(list(workspace.runs.iterdir())) == 1


def test_people_with_a_page_each_change_only_their_own_runs(engine, workspace):
    engine.people = frozenset({"anna", "ben"})
    entry = in_guest("anna", lambda: engine.submit("train", job()))
    folder = engine._new_folder(engine._queue.get(entry), job())
    older = RunFolder.create(workspace.runs, "older", dump(job(), task="train"))
    changes = (
        lambda run: engine.describe_run(run, title="mine"),
        lambda run: engine.star_run(run, True),
        engine.continue_run,
        engine.delete_run,
    )
    for change in changes:
        for run in (folder.name, older.name):
            with refused("runs.not-yours"):
                in_guest("ben", lambda change=change, run=run: change(run))
    in_guest("anna", lambda: engine.describe_run(folder.name, title="hers", note="n"))
    assert [(run.title, run.person) for run in engine.runs()] == [("older", ""), ("hers", "anna")]
    engine.describe_run(folder.name, title="")
    assert engine.run(folder.name).person == "anna", "only the title goes back"
    in_guest("anna", lambda: engine.delete_run(folder.name))
    engine.owner = "olga"
    owners = engine._new_folder(engine._queue.get(engine.submit("train", job(), "own")), job())
    assert engine.snapshot(owners.name)["person"] == engine.run(owners.name).person == "olga"
    with refused("runs.not-yours"):
        in_guest("ben", lambda: engine.delete_run(owners.name))
    engine.delete_run(owners.name)
    in_guest("abcdef", lambda: engine.delete_run(older.name))  # a guest of a page that is one workspace
    assert engine.runs() == []


def test_a_run_whose_title_cannot_be_read_is_starred_and_deleted(engine, workspace):
    """By the owner; whose it is cannot be known, so people leave it."""
    folder = RunFolder.create(workspace.runs, "fox", dump(job(), task="train"))
    (folder.path / "about.json").write_text("{")
    engine.people = frozenset({"anna"})
    with refused("runs.not-yours"):
        in_guest("anna", lambda: engine.delete_run(folder.name))
    engine.star_run(folder.name, True)
    engine.delete_run(folder.name)
    assert engine.runs() == []


def test_a_run_is_deleted_into_the_trash_but_not_while_it_runs(engine, workspace):
    folder = killed_run(workspace)
    folder.lock()
    with pytest.raises(ProblemsError, match="is running"):
        engine.delete_run(folder.name)
    folder.unlock()
    entry = engine.continue_run(folder.name)
    engine._queue.take()  # its folder is locked only once the device is ready
    with refused("run.in-use"):
        engine.delete_run(folder.name)
    engine._queue.change(entry, state="stopped")
    workspace.trash.parent.mkdir(exist_ok=True)
    workspace.trash.write_bytes(b"a file in the place of the trash")
    with refused("file.unwritable", "nothing was changed"):
        engine.delete_run(folder.name)
    workspace.trash.unlink()
    engine.delete_run(folder.name)
    assert engine.runs() == [] and len(list(workspace.trash.iterdir())) == 1


@pytest.mark.parametrize("name", ["../x", "..", "", "/etc", "a/b"])
def test_a_run_name_cannot_leave_the_runs_folder(engine, name):
    with pytest.raises(ProblemsError):
        engine.snapshot(name)


def test_the_time_of_a_run_leaves_out_pauses_and_the_time_it_was_dead(tmp_path):
    view, seq = RunView(RunFolder.create(tmp_path, "x", {})), 0

    def put(when, kind, **facts):
        nonlocal seq
        seq += 1
        view.apply({"seq": seq, "time": when, "kind": kind, **facts})

    def state(when, name):
        put(when, "state", state=name, message="", fix="")

    state(100.0, "running")
    state(130.0, "paused")
    assert view.snapshot(held=True)["seconds"] == 30.0, "a pause stands still"
    state(190.0, "running")
    put(200.0, "log", level="info", text="killed after this", fix="")
    assert view.snapshot(held=False)["seconds"] == 40.0
    state(900.0, "running")
    state(920.0, "done")
    assert view.snapshot(held=False)["seconds"] == 60.0
    for end in (1500.0, 9000.0):  # a quarter of an hour without a line counts as sleep
        put(end, "saved", step=4, file="checkpoints/x-average-2-to-4.safetensors", bytes=1)
        assert view.snapshot(held=False)["seconds"] == 60.0
    state(9500.0, "running")
    state(9510.0, "done")
    assert view.snapshot(held=False)["seconds"] == 70.0, "an average was saved in between"


def test_one_long_journal_holds_up_nobody_who_asks_for_another_run(engine, workspace, monkeypatch):
    slow, quick = (RunFolder.create(workspace.runs, name, dump(job())) for name in ("slow", "quick"))
    begun, go, real = threading.Event(), threading.Event(), Tail.lines

    def lines(tail):
        if tail._path == slow.journal_file:
            begun.set()
            assert go.wait(60)
        return real(tail)

    monkeypatch.setattr(Tail, "lines", lines)
    reader = threading.Thread(target=lambda: engine.snapshot(slow.name))
    reader.start()
    assert begun.wait(60)
    assert engine.snapshot(quick.name)["run"] == quick.name and reader.is_alive()
    go.set()
    reader.join(60)


def test_a_snapshot_gathers_what_the_journal_says(tmp_path):
    folder = RunFolder.create(tmp_path, "x", {})
    with Journal(folder.path) as journal:
        journal.put(StateChanged("running"))
        journal.put(Stage("encoding images", 3, 24))
        journal.put(Planned(2000, 2, 1000, 24, "24 images"))
        for step in range(1, 1501):
            journal.put(Steps([step], [1.0 + (step % 2)], {"unet": 1e-4}, 1 + step // 1000, 0.25))
        journal.put(Sampled(0, 0, "a fox", 1, "samples/0.png"))
        (folder.path / "checkpoints").mkdir()
        (folder.path / "checkpoints" / "x.safetensors").write_bytes(b"x")
        journal.put(Saved(1500, "checkpoints/x.safetensors", 1))
        journal.put(Saved(1000, "checkpoints/gone.safetensors", 1))
    view = RunView.read(folder)
    snapshot = view.snapshot(held=True)
    assert (snapshot["step"], snapshot["total"], snapshot["epoch"], snapshot["eta_seconds"]) == (1500, 2000, 2, 125.0)
    assert snapshot["stage"] == "encoding images 3/24" and len(snapshot["loss"]) == 500
    assert snapshot["loss"][0][0] == 1 and snapshot["loss"][-1][0] == 1500
    assert 1.3 < snapshot["loss"][-1][2] < 1.7, "the smooth line is near the mean of 1 and 2"
    assert [file["name"] for file in snapshot["files"]] == ["x.safetensors"], "files rotated away are not listed"
    json.dumps(snapshot)


def test_a_continued_run_forgets_the_steps_it_repeats(tmp_path):
    folder = RunFolder.create(tmp_path, "x", {})
    with Journal(folder.path) as journal:
        for step in range(1, 11):
            journal.put(Steps([step], [1.0], {}, 1, 0.1))
        journal.put(Steps([6], [2.0], {}, 1, 0.1))
    assert [point[:2] for point in RunView.read(folder).losses] == [[step, 1.0] for step in range(1, 6)] + [[6, 2.0]]


def test_a_stage_of_bytes_is_shown_in_units_on_the_page_and_in_the_terminal(tmp_path, capsys):
    folder = RunFolder.create(tmp_path, "x", {})
    with Journal(folder.path) as journal:
        journal.put(Stage("writing fox", 2_000_000, 2_000_000, of_bytes=True))
    view = RunView.read(folder)
    assert view.stage == "writing fox 2.0 MB of 2.0 MB" and view.counted == (2_000_000, 2_000_000)
    terminal = TerminalProgress()
    for line in Tail(folder.journal_file).lines():
        terminal(line)
    assert "writing fox 2.0 MB of 2.0 MB" in capsys.readouterr().err


def test_thinning_keeps_the_first_and_last_point():
    points = [[number] for number in range(12345)]
    thinned = thin(points, 500)
    assert len(thinned) == 500 and thinned[0] == [0] and thinned[-1] == [12344]


def test_light_work_reports_and_fails_in_plain_words(engine):
    def work(number, task):
        task.stage("half", 1, 2)
        if number < 0:
            raise ProblemsError.one("No", "here", "fix")
        return number * 2

    assert engine.light(work, 21).wait(60) == 42
    with pytest.raises(ProblemsError, match="No"):
        engine.light(work, -1).wait(60)
    with pytest.raises(ProblemsError, match="ZeroDivisionError"):
        engine.light(lambda task: 1 / 0).wait(60)


@pytest.mark.slow
def test_light_work_goes_on_while_a_training_runs(engine, monkeypatch):
    stand_in(monkeypatch, "train", stepper(total=10000, wait=0.01))
    engine.submit("train", job())
    engine.start()
    until(lambda: engine.status()["job"] is not None)
    assert engine.light(lambda task: "scanned").wait(60) == "scanned"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate"), "ran out of memory"),
        (MemoryError(), "ran out of memory"),
        (OSError(28, "No space left on device"), "disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        (OSError(errno.EFBIG, "File too large"), "too large"),
        (PermissionError(13, "denied", "/x"), "cannot be written: /x"),
        (RuntimeError("CUDA error: device-side assert triggered"), "only a restart clears"),
        (ValueError("odd"), "ValueError: odd"),
    ],
)
def test_errors_are_told_in_plain_words(error, words):
    assert words in explain(error).what


def test_a_poisoned_card_is_recognized():
    class AcceleratorError(RuntimeError):
        """torch raises CUDA errors by this name."""

    for kind in (RuntimeError, AcceleratorError):
        assert explain(kind("CUDA error: an illegal memory access was encountered")).poisoned
        assert explain(kind("CUDA error: out of memory")).what == "The device ran out of memory"
    assert not explain(RuntimeError("shapes do not match")).poisoned


@pytest.mark.slow
def test_a_card_that_cannot_even_free_its_memory_still_ends_the_job_with_the_true_reason(engine, monkeypatch):
    import torch

    def refuse():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    restarted = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    monkeypatch.setattr(Engine, "_restart", lambda self, entry, words: restarted.append(words.poisoned))
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    stand_in(monkeypatch, "train", stepper(error=error))
    engine.submit("train", job())
    engine.start()
    until(lambda: states(engine) == ["failed"])
    until(lambda: restarted == [True])
    assert engine.snapshot(engine.current_run())["state"] == "failed"


def test_a_stop_in_a_jobs_first_moments_counts(engine, monkeypatch):
    """While the device thread still loads libraries the run reads no commands yet."""
    reached, go_on = threading.Event(), threading.Event()
    real = engine._new_folder

    def slow(entry, job):
        reached.set()
        go_on.wait(120)
        return real(entry, job)

    monkeypatch.setattr(engine, "_new_folder", slow)
    stand_in(monkeypatch, "train", stepper(total=10000, wait=0.01))
    first = engine.submit("train", job())
    engine.start()
    assert reached.wait(120)
    engine.cancel(first)
    go_on.set()
    until(lambda: states(engine) == ["stopped"])


@pytest.mark.slow
def test_the_queue_goes_on_after_the_disk_was_full_for_a_while(engine, monkeypatch):
    real = atomic.write_json
    full = threading.Event()

    def write(path, value):
        if full.is_set() and path.name == "queue.json":
            raise OSError(28, "No space left on device")
        return real(path, value)

    def fill(job, context):
        full.set()
        return "done"

    monkeypatch.setattr(atomic, "write_json", write)
    stand_in(monkeypatch, "train", fill)
    engine.submit("train", job("a"))
    engine.submit("train", job("b"))
    engine.start()
    until(lambda: states(engine) == ["done", "done"])
    with refused("disk.full"):
        engine.submit("train", job("c"))
    hand_in(engine.workspace, "train", "e", to_values(job("e")))
    with refused("disk.full"):
        engine._owner.read_inbox(engine._queue_handed_in)
    assert len(engine.queue()) == 2, "a job that was refused is not done all the same"
    full.clear()
    engine.submit("train", job("d"))
    until(lambda: states(engine) == ["done"] * 4)


def test_a_full_disk_keeps_no_one_from_changing_the_queue_and_no_engine_from_its_start(workspace, monkeypatch):
    queue = Queue(workspace.private / "queue.json")
    first, second, third = (queue.add("train", name, to_values(job(name))).id for name in "abc")
    queue.take()
    with monkeypatch.context() as full:
        full.setattr(
            atomic, "write_json", lambda path, value: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        queue.pause(True)
        queue.cancel_waiting(second)
        queue.forget([second])
        queue.move(third, 0)
        assert queue.paused and [entry.id for entry in queue.entries()] == [first, third]
        assert Queue(workspace.private / "queue.json").get(first).state == "interrupted"
    queue.resume()
    assert [entry.id for entry in Queue(workspace.private / "queue.json").entries()] == [first, third]


def test_a_job_that_is_still_being_handed_in_is_left_alone(engine, workspace, monkeypatch):
    stand_in(monkeypatch, "train", stepper())
    half = workspace.private / "inbox" / ".tmp-x.json"
    half.parent.mkdir(parents=True)
    half.write_text("{half")
    hand_in(workspace, "train", "whole", to_values(job()))
    engine.start()
    until(lambda: states(engine) == ["done"])
    assert half.exists() and engine.queue()[0].title == "whole"


@pytest.mark.slow
def test_a_run_handed_in_by_another_process_is_continued_not_begun_anew(engine, workspace, monkeypatch):
    folder = killed_run(workspace)
    stand_in(monkeypatch, "train", stepper())
    hand_in(workspace, "train", "victim", to_values(job("victim")), run=folder.name)
    engine.start()
    until(lambda: states(engine) == ["done"])
    assert [path.name for path in workspace.runs.iterdir()] == [folder.name]


def test_a_run_that_ended_keeps_no_more_points_than_a_list_of_runs_can_hold(tmp_path):
    view = RunView(RunFolder.create(tmp_path, "x", {}))
    line = {"kind": "steps", "rates": {"unet": 1e-4}, "epoch": 1, "seconds_per_step": 0.1, "time": 1.0}
    for step in range(1, 5001):
        view.apply({**line, "seq": step, "steps": [step], "losses": [1.0]})
    assert len(view.losses) == 5000
    view.apply({"kind": "state", "seq": 5001, "time": 2.0, "state": "done", "message": "", "fix": ""})
    assert len(view.losses) == len(view.rates) == 2000
    assert (view.losses[0][0], view.losses[-1][0]) == (1, 5000)


@pytest.mark.slow(
    but=(
        "class_images",
        "generate",
    )
)
@pytest.mark.parametrize("task", sorted(name for name, each in tasks.TASKS.items() if each.lane == "device"))
def test_kept_models_leave_before_everything_that_loads_its_own(engine, workspace, monkeypatch, task):
    seen = []
    with engine.models.lease("base", "a model", lambda: [], name="a model"):
        pass
    stand_in(monkeypatch, task, lambda job, context: seen.append(len(engine.models.loaded())) or "done")
    folder = engine._new_folder(QueueEntry("1", task, "t", {}), JOBS[task]())
    engine._train_or_execute(task, JOBS[task](), folder, engine.workspace, "cpu", {})
    assert seen == [int(task in ("generate", "class_images", "grid"))]
