"""When a message goes: what could not be done is done now, or nothing stands against a start any more."""

from __future__ import annotations

from types import SimpleNamespace

import gradio as gr
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.testclient import TestClient
from work_parts import heard, image, make_page, wait_until

from core.engine.queue import GUEST, QueueEntry
from core.engine.waiting import Wait
from core.record.kept import keep
from core.record.problems import ProblemsError
from tabs import pulse
from tabs.context import as_listener
from tabs.monitor import tab as monitor
from tabs.train import starts


@pytest.fixture
def page(tmp_path):
    made = make_page(tmp_path)
    made.engine.status = lambda: {"device": "cpu"}
    made.engine.find_device = lambda: "cpu"
    return made


def first(value: str) -> str:
    if value == "bad":
        raise ProblemsError.one("This cannot be", "a field", "write another")
    return value


def second(value: str) -> str:
    return value


def broken(value: str) -> str:
    raise ValueError(f"half \ud83d of {value}")


def test_any_error_of_a_listener_is_said_in_words_and_logged_with_its_cause(page, capsys):
    browser = page.browsers.of("one")
    assert heard(as_listener(page, broken, [None]), "a")[0] == gr.skip()
    assert [each["code"] for each in browser.message["problems"]] == ["page.failed"]
    assert "ValueError" in browser.message["problems"][0]["what"]
    assert "test_said.broken" in (logged := capsys.readouterr().err) and "Traceback" in logged
    tick, before = as_listener(page, broken, [None], drop_if_overtaken=True), browser.message
    heard(tick, "b")
    first = browser.message
    heard(tick, "b")
    assert first is not before and browser.message is first, "a tick is told once"
    assert capsys.readouterr().err.count("Traceback") == 1


def test_a_file_that_another_program_has_open_is_named_with_what_to_do(page, monkeypatch, capsys):
    monkeypatch.setattr("core.record.problems.IN_USE", "close programs that use it, or ")

    def delete(_):
        raise PermissionError(13, "The file is used by another process", "fox.json")

    heard(as_listener(page, delete, [None]), "a")
    (problem,) = page.browsers.of("one").message["problems"]
    assert problem["what"] == "A file cannot be changed (The file is used by another process)"
    assert (problem["where"], problem["fix"][:30]) == ("fox.json", "close programs that use it, or")
    assert "Traceback" not in capsys.readouterr().err


def test_any_error_of_an_address_is_answered_in_words(page, capsys):
    links = page.links

    def fails(asked):
        raise {"value": ValueError, "os": OSError, "deep": RecursionError}[asked["kind"]]("half \ud83d")

    def refuses(asked):
        raise ProblemsError.one("This cannot be", "a field", "write another", "a.code")

    links.answer("fails", fails)
    links.answer("refuses", refuses)
    links.answer("odd", lambda asked: {"name": "half \ud83d", "value": object()})
    links._thumb = links._file = lambda request: fails({"kind": "os"})
    client = TestClient(Starlette(routes=links.routes()))
    for kind in ("value", "os", "deep", "none"):
        answer = client.post("/atelier/fails", json={"kind": kind})
        assert answer.status_code == 200 and [each["code"] for each in answer.json()["problems"]] == ["page.failed"]
    assert client.post("/atelier/refuses", json={}).json()["problems"][0]["code"] == "a.code"
    assert client.post("/atelier/odd", json={}).json()["problems"][0]["code"] == "page.failed"
    for name in ("thumb", "file"):
        assert "could not be done" in client.get(f"/atelier/{name}").text
    assert "atelier/fails failed" in capsys.readouterr().err


def test_a_message_goes_when_the_same_is_done_and_stays_when_something_else_is(page):
    browser = page.browsers.of("one")
    one, two = as_listener(page, first, [None]), as_listener(page, second, [None])
    assert heard(one, "bad")[0] == gr.skip() and browser.message["kind"] == "error"
    heard(two, "fine")
    heard(as_listener(page, first, [None]), "fine", session="another browser")
    assert browser.message["kind"] == "error"
    assert heard(one, "fine")[0] == "fine" and browser.message["kind"] == "over"
    page.browsers.say(browser, "done", "All is well")
    heard(one, "fine")
    assert browser.message["kind"] == "done"


def tick(page, browser) -> dict:
    return pulse.all_parts(page, {"tab": "Train"}, browser)


def test_the_message_of_a_refused_start_goes_once_nothing_is_left_to_mend(page, tmp_path):
    browser = page.browsers.of("one")
    image(tmp_path / "set" / "a.png", (512, 512), caption="a fox")
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    page.project.edit("model.base_model", "models/starter")
    page.project.edit("optimizer.learning_rate", "a lot")
    page.project.edit("schedule.max_train_epochs", "no")
    starts.press(page, browser, {"how": "start", "stamp": page.project.stamp, "token": "t"})
    wait_until(lambda: browser.message["title"] == "Not started")
    page.project.edit("optimizer.learning_rate", "1e-4")
    wait_until(lambda: not tick(page, browser)["checks"]["checking"])
    assert tick(page, browser)["said"]["title"] == "Not started"  # one is left
    page.project.edit("schedule.max_train_epochs", "3")
    wait_until(lambda: tick(page, browser)["said"]["kind"] == "over")


def test_findings_of_another_folder_are_not_shown_as_those_of_this_one(page, tmp_path):
    for name, images in (("one", 1), ("two", 2)):
        for number in range(images):
            image(tmp_path / name / f"{number}.png", (512, 512), caption="a fox")
    checks, found = page.checks, {}

    def look() -> dict:
        return found.update(checks.latest(page.project.job)) or found

    page.project.edit("dataset.folder", str(tmp_path / "one"))
    wait_until(lambda: not look()["checking"])
    assert found["trained"] == 1
    page.project.edit("schedule.max_train_epochs", "3")
    assert checks.latest(page.project.job)["checking"] and checks.latest(page.project.job)["trained"] == 1
    page.project.edit("dataset.folder", str(tmp_path / "two"))
    seen = [checks.latest(page.project.job)]
    assert seen[0] == {"checking": True, "rechecks": 0}
    wait_until(lambda: seen.append(checks.latest(page.project.job)) or not seen[-1]["checking"])
    assert seen[-1]["trained"] == 2 and all("trained" not in each for each in seen[:-1])


def test_a_start_beside_a_proof_says_what_it_waits_for(page, tmp_path):
    browser = page.browsers.of("one")
    image(tmp_path / "set" / "a.png", (512, 512), caption="a fox")
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    page.project.edit("model.base_model", "models/starter")
    page.engine.submit = lambda task, job, preset: "e1"
    page.engine.waits = lambda: {"e1": Wait("the resume test")}
    starts.press(page, browser, {"how": "start", "stamp": page.project.stamp, "token": "t"})
    wait_until(lambda: browser.message["kind"] == "done")
    assert browser.message["text"].endswith(f", {Wait('the resume test').message}.")
    assert browser.message["go"] == "", "Monitor would show another run"
    page.engine.waits = lambda: {"e1": Wait()}
    browser.pressed = (0.0, "", "")
    starts.press(page, browser, {"how": "start", "stamp": page.project.stamp, "token": "u"})
    wait_until(lambda: browser.message["go"] == "Monitor")


@pytest.mark.parametrize(
    ("asks", "added", "shown"),
    [
        ("", "", ("", True)),
        ("", "abcdef", ("guest abcd", True)),
        ("abcdef", "abcdef", ("yours", True)),
        ("abcdef", "", ("the owner's", False)),
        ("abcdef", "123456", ("guest 1234", False)),
        ("", "mira", ("mira", True)),
        ("mira", "mira", ("yours", True)),
    ],
)
def test_the_queue_says_whose_a_job_is(asks, added, shown):
    token = GUEST.set(asks)
    try:
        entry, names = QueueEntry("e", "train", "fox", {}, guest=added), {"people": {"mira"}}
        row = monitor._row(entry, SimpleNamespace(owner="", **names))
        by_name = monitor._row(entry, SimpleNamespace(owner="olga", **names))
    finally:
        GUEST.reset(token)
    assert (row["by"], row["own"]) == shown and by_name["by"] == row["by"].replace("the owner's", "olga")


@pytest.mark.parametrize(
    ("asks", "paused_by", "shown"),
    [
        ("", "", ("", True)),
        ("mira", "", ("the owner", False)),
        ("mira", None, ("", True)),
        ("", "mira", ("mira", True)),
        ("mira", "mira", ("", True)),
    ],
)
def test_the_queue_says_who_paused_it(page, asks, paused_by, shown):
    engine = page.engine
    engine.people, engine.paused_by, engine.queue_paused = {"mira"}, paused_by, True
    engine.status = lambda: {"job": None}
    token = GUEST.set(asks)
    try:
        queue = monitor.queue(page)
    finally:
        GUEST.reset(token)
    assert (queue["paused_by"], queue["resumable"]) == shown


def test_a_start_of_a_guest_leaves_the_owners_pause(page, tmp_path):
    image(tmp_path / "set" / "a.png", (512, 512), caption="a fox")
    page.project.edit("dataset.folder", str(tmp_path / "set"))
    page.project.edit("model.base_model", "models/starter")
    page.engine.submit = lambda task, job, preset: "e1"
    page.engine.waits = lambda: {"e1": Wait(queue_paused=True)}
    page.engine.paused_by, browser, resumed = "", page.browsers.of("one"), []
    page.engine.resume_queue = lambda: resumed.append(GUEST.get())
    for asks in ("mira", ""):
        token, browser.pressed = GUEST.set(asks), (0.0, "", "")
        starts.press(page, browser, {"how": "start", "stamp": page.project.stamp, "token": f"t{asks}"})
        GUEST.reset(token)
        words = "Added to the queue" if asks else "Started"
        wait_until(lambda words=words: words in str(browser.message))
    assert resumed == [""]


def test_start_queues_for_the_login_that_asked(page, monkeypatch):
    """It checks on a thread of its own."""
    seen = []
    monkeypatch.setattr(starts, "_check_and_submit", lambda *given: seen.append(GUEST.get()))
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"a", b"b")]}
    request = gr.Request(Request(scope | {"guest": "a login"}), session_hash="one")

    def press(value: str) -> None:
        starts.press(page, page.browsers.of("one"), {"how": "start", "stamp": page.project.stamp})

    heard(as_listener(page, press, [None]), "", request=request)
    wait_until(lambda: seen)
    assert seen == ["a login"] and GUEST.get() == ""


def test_a_command_is_handled_for_its_browser_and_its_login(page, monkeypatch):
    listened, seen = [], []
    bus = SimpleNamespace(command=lambda fn, *more, **others: listened.append(fn))
    monkeypatch.setattr(page, "pulse_bus", bus, raising=False)
    monkeypatch.setattr(pulse.monitor, "command", lambda page, data, browser: seen.append((GUEST.get(), page.browser)))
    pulse.build(page)
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"a", b"b")]}
    request = gr.Request(Request(scope | {"guest": "a login"}), session_hash="one")
    listened[0](request, gr.EventData(None, {"name": "cancel"}))
    assert seen == [("a login", page.browsers.of("one"))] and GUEST.get() == ""


def test_a_training_that_ended_is_named_until_one_of_its_checkpoints_is_kept(page):
    def entry(run: str, added: float, state: str = "done", task: str = "train") -> QueueEntry:
        return QueueEntry(f"{run}{task}", task, f"the {run}", {}, state, run, added)

    def trained(*entries: QueueEntry) -> str:
        page.engine.queue = lambda: entries
        return (pulse.status(page)["trained"] or {}).get("run", "")

    first, second = entry("fox", 1.0), entry("owl", 2.0)
    assert trained() == "" and trained(first) == "fox"
    assert trained(first, second, entry("grid", 3.0, task="grid")) == "owl"
    assert trained(second, first) == "fox", "moved up in the queue, the owl was trained first"
    assert trained(first, entry("owl", 2.0, "failed")) == "" and trained(first, entry("", 2.0, "waiting")) == "fox"
    file = page.workspace.runs / "owl" / "checkpoints" / "owl.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    keep(page.workspace.runs / "owl", file, "")
    assert trained(first, second) == ""


def test_a_job_of_somebody_else_is_not_offered_to_be_stopped(page):
    page.engine.queue = lambda: [QueueEntry("e1", "train", "fox", {}, "running", guest="one")]
    page.engine.status = lambda: {"device": "CPU", "memory_used": 0, "memory_total": 0, "job": {"entry": "e1"}}
    for guest, own in (("", True), ("one", True), ("two", False)):
        asking = GUEST.set(guest)
        assert pulse.status(page)["job"]["own"] is own, guest
        assert ("stop" in monitor.actions(page, "running", page.engine.queue()[0], {})) is own, guest
        GUEST.reset(asking)


def test_the_start_and_the_end_of_a_job_are_sentences_for_its_user(page):
    states = [
        ("train", "done"),
        ("train", "failed"),
        ("generate", "done"),
        ("inspect", "stopped"),
        ("train", "running"),
        ("generate", "waiting"),
        ("grid", "running"),
    ]
    page.engine.queue = lambda: [
        QueueEntry(f"e{n}", task, "fox", {}, state, message="Out of memory" if state == "failed" else "", guest="one")
        for n, (task, state) in enumerate(states)
    ]
    page.engine.status = lambda: {"device": "CPU", "memory_used": 0, "memory_total": 0, "job": None}

    def ends():
        return pulse.all_parts(page, {"tab": "Tools"}, page.browsers.of("b"))["ended"]["sentences"]

    assert list(ends().values()) == [
        "Training fox finished",
        "Training fox failed: Out of memory",
        "Generation finished",
        "fox stopped",
        "Generation is in the queue",
        "fox started",
    ]
    asking = GUEST.set("two")
    assert ends() == {}
    GUEST.reset(asking)
