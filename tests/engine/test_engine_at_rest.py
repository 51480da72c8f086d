"""What the engine does and answers, step by step, without its threads."""

import os
from types import SimpleNamespace

import pytest

from core import tasks
from core.engine import engine as engine_module
from core.engine.engine import POISONED
from core.engine.explain import Explanation
from core.engine.owner import hand_in
from core.engine.queue import GUEST
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.events import LogMessage, Planned, Stage, StateChanged, Steps
from core.record.journal import Journal
from core.record.problems import Problem, ProblemsError, with_fixes
from core.record.run_folder import RunFolder, seal_state
from core.record.workspace import Workspace
from core.settings.job import JOBS
from core.settings.named import Limits
from core.settings.presets.files import to_values
from tests.engine.test_engine import job, killed_run, states
from tests.refusals import refused
from tests.tasks import stand_in


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")


@pytest.fixture
def engine(workspace):
    engine = engine_module.Engine(workspace, "cpu")
    yield engine
    engine.close()


def act(engine):
    """Do the next job of the queue in this thread; its run."""
    entry = engine._queue.take()
    engine._run_on_device(entry)
    return engine._queue.get(entry.id)


def test_listeners_hear_of_each_job_that_ended_whatever_another_listener_does(engine, monkeypatch):
    def run(job, context):
        if job.saving.output_name == "bad":
            raise RuntimeError("no")
        return "done"

    stand_in(monkeypatch, "train", run)
    heard = []
    engine.end_listeners.append(lambda entry: heard.append((entry.title, entry.state)))
    *_, waiting = (engine.submit("train", job(name)) for name in ("good", "bad", "waiting"))
    act(engine), act(engine), engine.cancel(waiting)
    assert heard == [("good", "done"), ("bad", "failed"), ("waiting", "cancelled")]
    engine.end_listeners.insert(0, lambda entry: heard.append(1 / 0))
    engine.submit("train", job("good"))
    act(engine)
    engine._closing = True
    engine.submit("train", job("good"))
    act(engine)
    engine._closing = False
    assert len(heard) == 3 and engine._device_job is None and engine._tokens == {}


def test_a_job_whose_folder_cannot_be_made_fails_in_the_list(engine, monkeypatch):
    monkeypatch.setattr(engine, "_new_folder", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    engine.submit("train", job())
    entry = act(engine)
    assert (entry.state, entry.run, bool(entry.message)) == ("failed", "", True)
    assert engine.progress(entry.id)["problems"] == [{"what": entry.message, "fix": ""}]
    assert engine.progress(entry.id)["state"] == "failed"


def test_a_message_is_kept_of_a_job_that_failed_and_none_of_one_that_did_not(engine, monkeypatch):
    stand_in(monkeypatch, "train", lambda job, context: "stopped")
    engine.submit("train", job())
    entry = act(engine)
    assert (entry.state, entry.message) == ("stopped", "")
    assert engine.progress(entry.id)["problems"] == []


def test_only_an_error_that_spoils_the_device_ends_the_process_and_the_folder_is_free_before(engine, monkeypatch):
    ended = []
    monkeypatch.setattr(engine_module.os, "_exit", ended.append)
    monkeypatch.setattr(engine._owner, "release", lambda: ended.append("free"))
    for explanation in (None, Explanation("out of memory"), Explanation("about_error", poisoned=True)):
        monkeypatch.setattr(engine, "_train_or_execute", lambda *_, why=explanation: ("failed", why))
        engine.submit("train", job())
        entry = act(engine)
        assert entry.message == (explanation.what if explanation else "")
    assert ended == ["free", POISONED] and POISONED == 75
    monkeypatch.undo()


def test_the_current_run_is_the_one_at_work_else_the_last_else_the_newest_whole_one(engine, workspace, monkeypatch):
    assert engine.current_run() is None
    for name in ("20250101-000000_old", "20250102-000000_new", "20250103-000000_broken"):
        folder = RunFolder(workspace.runs / name)
        folder.path.mkdir(parents=True)
        folder.journal_file.write_text("")
        if "broken" not in name:
            folder.job_file.write_text("{}")
    assert engine.current_run() == "20250102-000000_new"
    journal = workspace.runs / "20250101-000000_old" / "events.jsonl"
    ran = journal.stat().st_mtime
    os.utime(journal, (ran + 60, ran + 60))  # it was resumed
    assert engine.current_run() == "20250101-000000_old"
    os.utime(journal, (ran, ran))
    seen = []
    stand_in(monkeypatch, "train", lambda job, context: seen.append(engine.current_run()) or "done")
    engine.submit("train", job("a"))
    run = act(engine).run
    assert seen == [run] and engine.current_run() == run
    stand_in(monkeypatch, "generate", lambda job, context: seen.append(engine.current_run()) or "done")
    engine.submit("generate", JOBS["generate"]())
    act(engine)
    assert seen == [run, run], "a job that is no training is no run"
    engine.delete_run(run)
    assert engine.current_run() == "20250102-000000_new"


def test_what_another_process_hands_in_is_queued_resumed_or_kept_with_its_reasons(engine, workspace, monkeypatch):
    folder = killed_run(workspace)
    given = [
        {"task": "train", "job": to_values(job("named")), "title": "by hand", "preset": "user/p"},
        {"task": "train", "job": to_values(job("named"))},
        {"run": folder.name},
        {"task": "train", "job": {"network": {"rank": 0}}, "title": "zero"},
        {"task": "nonsense", "job": {}},
        {"task": "train"},
        ["train"],
        None,
    ]
    for item in given:
        engine._queue_handed_in(item)
    rows = [(each.title, each.state, each.preset, each.run) for each in engine.queue()]
    assert rows == [
        ("by hand", "waiting", "user/p", ""),
        ("named", "waiting", "", ""),
        (engine.queue()[2].title, "waiting", "", folder.name),
        ("zero", "failed", "", ""),
        ("nonsense", "failed", "", ""),
    ]
    assert all(each.message for each in engine.queue()[3:])
    several = ProblemsError([Problem("a", fix="b"), Problem("c")])
    assert with_fixes(several) == "a: b; c"


def test_the_title_of_a_job_is_its_name_its_prompt_or_its_task_in_60_letters():
    def title(task, **groups):
        return engine_module.title_of(task, engine_module.build(JOBS[task], groups))

    assert title("train", saving={"output_name": "n" * 70}) == "n" * 70
    assert title("generate", generate={"prompt": "p" * 61}) == "p" * 60
    assert title("generate", generate={"prompt": ""}) == tasks.named("generate").title_of(JOBS["generate"]())[:60]
    assert title("resize_lora") == tasks.named("resize_lora").title_of(JOBS["resize_lora"]())[:60] != ""


def test_the_engine_works_while_a_job_runs_or_waits_in_a_queue_that_goes_on(engine, monkeypatch):
    seen = []
    stand_in(monkeypatch, "train", lambda job, context: seen.append(engine.works) or "done")
    assert not engine.works
    engine.submit("train", job())
    assert engine.works
    engine.pause_queue()
    assert engine.queue_paused and not engine.works
    engine.resume_queue()
    act(engine)
    assert seen == [True] and not engine.works and not engine.queue_paused


def test_a_shared_pages_light_work_names_only_what_it_may(engine, workspace, tmp_path):
    outside = engine_module.build(JOBS["train"], {"dataset": {"folder": str(tmp_path / "elsewhere")}})
    work = lambda *arguments, task: len(arguments)  # noqa: E731
    assert engine.light(work, outside, 1).wait(60) == 2
    engine.limits = Limits.of(workspace)
    assert engine.light(work, 1, "a").wait(60) == 2
    with pytest.raises(ProblemsError):
        engine.light(work, 1, outside).wait(60)


def test_the_status_tells_the_job_its_steps_and_a_stop(engine, monkeypatch):
    seen = []

    def run(job, context):
        seen.append(engine.status()["job"])
        context.journal.put(StateChanged("running"))
        context.journal.put(Stage("encoding", 2, 8))
        seen.append(engine.status()["job"])
        context.journal.put(Planned(10, 1, 10, 4, ""))
        context.journal.put(Steps([1, 2, 3, 4], [1.0] * 4, {"unet": 1e-4}, 1, 0.5))
        engine.cancel(engine.queue()[0].id)
        seen.append(engine.status()["job"])
        seen.append(engine.progress(engine.queue()[0].id))
        return "stopped"

    stand_in(monkeypatch, "train", run)
    assert engine.status()["job"] is None and engine.status()["memory_total"] > 0
    entry_id = engine.submit("train", job("name"))
    entry = act(engine)
    first, staged, stepped, progress = seen
    assert (first["title"], first["task"], first["run"], first["entry"]) == ("name", "train", entry.run, entry_id)
    assert (first["state"], first["stopping"], first["eta_seconds"]) == ("running", False, 0.0)
    assert (staged["stage"], tuple(staged["counted"]), staged["eta_seconds"]) == ("encoding 2/8", (2, 8), 0.0)
    assert (stepped["step"], stepped["total"], stepped["seconds_per_step"]) == (4, 10, 0.5)
    assert stepped["eta_seconds"] == 3.0 and stepped["stopping"]
    assert (progress["state"], progress["stopping"], progress["lane"]) == ("running", True, "device")
    assert not engine.progress(entry_id)["stopping"] and engine.status()["job"] is None


def test_the_pace_of_a_job_is_the_time_left_once_it_is_planned(engine, monkeypatch):
    paces = []

    def run(job, context):
        entry = lambda: engine.queue()[0]  # noqa: E731
        paces.append(engine._runs.time_left(entry()))
        context.journal.put(Planned(10, 1, 10, 4, ""))
        context.journal.put(Steps([1, 2], [1.0] * 2, {"unet": 1e-4}, 1, 2.0))
        paces.append(engine._runs.time_left(entry()))
        context.journal.put(StateChanged("paused"))
        paces.append((engine._runs.time_left(entry()), engine.progress(entry().id)["state"]))
        return "done"

    stand_in(monkeypatch, "train", run)
    engine.submit("train", job())
    assert engine._runs.time_left(engine.queue()[0]) == (0.0, False)
    act(engine)
    assert paces == [(0.0, False), (16.0, False), ((16.0, True), "paused")]


def test_a_stop_reaches_a_running_job_at_once_and_other_commands_its_folder_alone(engine, workspace, monkeypatch):
    seen = []

    def run(job, context):
        for name in ("pause", "save", "stop"):
            engine.command(engine.queue()[0].run, name)
            seen.append(context.token.wanted)
        return "stopped"

    stand_in(monkeypatch, "train", run)
    engine.submit("train", job())
    entry = act(engine)
    assert seen == [False, False, True]
    folder = killed_run(workspace)
    sent = engine.command(folder.name, "stop")
    assert any(sent in path.read_text() for path in folder.path.rglob("*") if path.is_file())
    assert engine._tokens == {} and entry.state == "stopped"


def test_a_guest_commands_only_runs_of_its_own(engine, monkeypatch):
    codes = []

    def run(job, context):
        for guest in ("a", "b", ""):
            token = GUEST.set(guest)
            try:
                engine.command(engine.queue()[0].run, "save")
                codes.append("")
            except ProblemsError as error:
                codes.append(error.problems[0].code)
            finally:
                GUEST.reset(token)
        return "done"

    stand_in(monkeypatch, "train", run)
    token = GUEST.set("a")
    try:
        engine.submit("train", job())
    finally:
        GUEST.reset(token)
    act(engine)
    assert codes == ["", "queue.not-yours", ""]


def test_a_run_is_resumed_once_and_not_while_a_process_has_it(engine, workspace, monkeypatch):
    folder = killed_run(workspace)
    folder.lock()
    with refused("runs.running"):
        engine.continue_run(folder.name)
    folder.unlock()
    engine.pause_queue()
    engine.continue_run(folder.name)
    assert not engine.queue_paused and states(engine) == ["waiting"], "it waits alone"
    with refused("runs.queued"):
        engine.continue_run(folder.name)
    other = []
    stand_in(monkeypatch, "train", lambda job, context: other.append(_code(engine, folder.name)) or "stopped")
    entry = act(engine)
    assert other[0] in ("runs.running", "runs.queued") and entry.run == folder.name
    engine.continue_run(folder.name)
    assert states(engine) == ["stopped", "waiting"]


def test_a_finished_run_whose_states_are_all_damaged_is_refused_before_it_is_queued_and_stays_as_it_was(
    engine, workspace
):
    folder = killed_run(workspace)
    with Journal(folder.path) as journal:
        journal.put(StateChanged("done"))
    settings = folder.job_file.read_bytes()
    for step in (5, 10):
        state = folder.states / f"step{step:08d}"
        state.mkdir(parents=True)
        (state / "training.pt").write_bytes(b"weights")
        seal_state(state)
        (state / "training.pt").write_bytes(b"cut")
    with refused("state.damaged"):
        engine.continue_run(folder.name, {"schedule": {"max_train_steps": 99}})
    assert not engine.queue() and engine.runs()[0].state == "done" and folder.job_file.read_bytes() == settings
    seal_state(state)
    engine.continue_run(folder.name)
    assert states(engine) == ["waiting"]


def test_a_queue_that_somebody_paused_stays_paused_where_other_jobs_wait(engine, workspace):
    folder, again = killed_run(workspace), killed_run(workspace)
    engine.pause_queue()
    engine._queue_handed_in({"run": folder.name})
    assert engine.queue_paused, "a command line resumes no queue"
    engine.continue_run(again.name)
    assert engine.queue_paused and states(engine) == ["waiting", "waiting"]
    engine._queue.paused_by = None
    engine.cancel(engine.queue()[1].id)
    engine.continue_run(again.name)
    assert not engine.queue_paused, "nobody paused it"


def test_the_id_of_a_job_that_is_handed_in_is_known_before_it_is_taken_in(engine, workspace):
    folder = killed_run(workspace)
    values = to_values(job())
    ids = [hand_in(workspace, "train", "a", values), hand_in(workspace, "train", "b", values, run=folder.name)]
    ids.append(hand_in(workspace, "train", "c", {"network": {"rank": 0}}))
    engine._owner.read_inbox(engine._queue_handed_in)
    assert [entry.id for entry in engine.queue()] == ids and states(engine) == ["waiting", "waiting", "failed"]


def test_a_job_that_was_handed_in_is_queued_once_even_if_its_file_stays(engine, workspace, monkeypatch):
    folder = killed_run(workspace)
    for title, run in (("a", ""), ("b", folder.name)):
        hand_in(workspace, "train", title, to_values(job(title)), run=run)
    monkeypatch.setattr(atomic, "remove", lambda path: None)  # the program was killed, or the folder is read-only
    for _ in range(3):
        engine._owner.read_inbox(engine._queue_handed_in)
    assert [(entry.state, entry.run) for entry in engine.queue()] == [("waiting", ""), ("waiting", folder.name)]


def _code(engine, run):
    try:
        return engine.continue_run(run)
    except ProblemsError as error:
        return error.problems[0].code


def test_the_device_is_found_once_and_the_cpu_until_then(workspace, monkeypatch):
    asked = []
    monkeypatch.setattr(engine_module.machine, "default_device", lambda: asked.append(1) or "cuda:0")
    engine = engine_module.Engine(workspace)
    try:
        assert (engine.device, engine.known_device) == ("cpu", None)
        assert (engine.find_device(), engine.find_device(), engine.device) == ("cuda:0",) * 3
        assert engine.known_device == "cuda:0" and asked == [1]
    finally:
        engine.close()


def test_whoever_borrows_the_device_gets_it_empty_and_is_named(engine, monkeypatch):
    released = []
    monkeypatch.setattr(engine.models, "release", lambda: released.append(engine.lent_to))
    with engine.borrow_device(CancelToken(), "a proof") as device:
        assert (device, engine.lent_to, released) == ("cpu", "a proof", ["a proof"])
        assert not engine._device_lock.acquire("queue", 0)
    assert engine.lent_to == "" and engine._device_lock.acquire(engine_module.QUEUE, 0) and engine.lent_to == ""
    engine._device_lock.release()


def test_only_trainings_are_runs_and_the_folders_of_tools_are_jobs(engine, workspace, monkeypatch):
    for task in ("train", "generate"):
        stand_in(monkeypatch, task, lambda job, context: "done")
        engine.submit(task, JOBS[task](), title=task, preset="p")
        entry = act(engine)
        parent = workspace.runs if task == "train" else workspace.private / "jobs"
        assert (parent / entry.run / "job.json").is_file()
        assert engine.run_preset(entry.run) == "p" and engine.queue()[-1].title == task
    assert [run.title for run in engine.runs()] == ["train"]
    assert engine.run(engine.queue()[0].run) is not None and engine.run(engine.queue()[1].run) is None


def test_errors_of_a_job_are_its_problems_and_other_lines_its_lines(engine, monkeypatch):
    def run(job, context):
        context.journal.put(LogMessage("info", "loaded"))
        context.journal.put(LogMessage("error", "first", "do this"))
        raise ProblemsError([Problem("wrong", "there", "mend it", code="x.y")])

    stand_in(monkeypatch, "generate", run)
    engine.submit("generate", JOBS["generate"]())
    entry = act(engine)
    progress = engine.progress(entry.id)
    assert progress["state"] == entry.state == "failed" and "loaded" in progress["lines"]
    assert {"what": "first", "fix": "do this"} in progress["problems"] and len(progress["problems"]) == 2
    assert progress["text"] == ""


def test_the_notice_of_a_start_joins_a_damaged_list_and_captions_that_were_cut_off(engine):
    assert engine.notice == ""
    engine._queue.set_aside, engine._interruption = "list", "captions"
    assert engine.notice == "list captions"


def test_a_page_that_closes_stops_what_runs_and_waits_for_a_training_alone(engine, monkeypatch):
    waited = []
    thread = SimpleNamespace(is_alive=lambda: True, join=lambda timeout: waited.append(timeout))
    engine._queue.add("train", "waits", {})
    for task, seconds, waits in (
        ("train", None, None),
        ("generate", None, engine_module.CLOSE_SECONDS),
        ("train", 5, 5),
    ):
        entry = engine._queue.add(task, task, {}, state="running")
        monkeypatch.setattr(engine, "_inbox_thread", thread)
        monkeypatch.setattr(engine, "_device_thread", thread)
        monkeypatch.setattr(engine._owner, "release", lambda: waited.append("released"))
        monkeypatch.setattr(
            engine._light, "close", lambda seconds: waited.append(0 < seconds <= engine_module.CLOSE_SECONDS)
        )
        engine.close(seconds)
        assert waited == [waits, waits, True, "released"] and engine._closing
        assert engine._token_of(entry.id).wanted and set(engine._tokens) == {entry.id}
        waited.clear(), engine._tokens.clear(), engine._queue.change(entry.id, state="done")
    monkeypatch.undo()
