"""Whatever is sent to the page's listeners and addresses: a 4xx and one line, never a traceback, and nothing is changed.

A sample of all listeners in each test run, another one for each commit; the slow cases send to every listener.
"""

from __future__ import annotations

import ast
import http.client
import json
import random
import subprocess
from pathlib import Path

import gradio as gr
import pytest
from made_runs import make_run
from test_request_check import JSON
from work_parts import wait_until

from core.engine.engine import Engine
from tabs.monitor import tab as monitor
from tabs.server import message_check
from tabs.train import tab as train

TABS = Path(train.__file__).parents[1]
HOW_MANY = pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])
COMMIT = subprocess.run(["git", "rev-parse", "HEAD"], cwd=TABS, capture_output=True, text=True).stdout.strip()
RUN = "20260101-120000_fox"
CALL = "/gradio_api/run/predict"
META = {"meta": {"_type": "gradio.FileData"}}
VALUES = [0, -1, 2**31, 1e300, True, "", "x", "../../x", "a\0b", [], [[1]], {}, {"a": {"b": [None]}}, None]
FILES = [
    {"path": path, **META} for path in ("/etc/passwd", "../x", "http://127.0.0.1:1/x", "", "a\0b", "\\\\host\\share\\x")
]
FILES += [{"path": "x", "meta": None}, {"path": 5, **META}, {"path": "/etc/passwd"}, {**META}, {"path": ["x"], **META}]


class Still(Engine):
    """An engine that starts nothing."""

    def start(self) -> None:
        pass


class Asked:
    """One connection to the page."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> int:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        self.connection.request(method, path, body, named)
        answer = self.connection.getresponse()
        answer.read()
        return answer.status

    def call(self, message: object) -> int:
        return self.send("POST", CALL, json.dumps(message).encode(), **JSON)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from page_server import Served

    folder = tmp_path_factory.mktemp("arguments")
    make_run(folder / "outputs" / "runs", RUN, saved=(60,), drawn=(60,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message_check, "LOGGED_REFUSALS", (1.0, 1e9))
        page = Served(folder, engine=lambda workspace: Still(workspace, device="cpu", holder="a test"))
    yield page
    page.close()


@pytest.fixture
def asked(page):
    return Asked(page.blocks.server_port)


@pytest.fixture
def chance():
    return random.Random(COMMIT)


def chosen(page, chance, most: int, every: bool = False) -> list:
    """Listeners: all, or one of each name and as many more as fit."""
    own = [each for each in page.blocks.fns.values() if each.fn is not None]
    if every:
        return own
    chance.shuffle(own)
    named = {(each.name.split("_")[0], len(each.inputs)): each for each in own}
    return [*named.values(), *own][:most]


def good(fn, **more: object) -> dict:
    """A message to a listener as the page sends it."""
    values = [None if isinstance(block, gr.State) else "" for block in fn.inputs]
    data = [value if isinstance(block, gr.Textbox) else None for block, value in zip(fn.inputs, values, strict=True)]
    return {"data": data, "fn_index": fn._id, "session_hash": "wrong", "trigger_id": fn.targets[0][0], **more}


def deep(levels: int) -> list:
    nested: list = []
    for _ in range(levels):
        nested = [nested]
    return nested


def misfits(fn, chance, every: bool) -> list[dict]:
    """Messages that no script of the page would send to this listener."""
    count = len(fn.inputs)
    found = [
        good(fn, data=data) for data in (None, "x", {}, 5, [None] * (count + 1), [None] * (count - 1) if count else 0)
    ]
    for number, block in enumerate(fn.inputs):
        for value in [*VALUES, *FILES, [FILES[0]], deep(60), deep(400), "x" * (message_check.MAX_TEXT + 1)]:
            if not message_check.accepts(block, value):
                found.append(good(fn))
                found[-1]["data"][number] = value
    events = [5, "x", [], True, [FILES[0]], {"act": FILES[0]}, {"a": [[FILES[1]]]}, {"path": "x"}, {"x": deep(400)}]
    found += [good(fn, event_data=event) for event in events]
    found += [good(fn, trigger_id=wrong) for wrong in ("x", [], {}, -1, 1.5, True, 2**70)]
    found += [good(fn, session_hash=wrong) for wrong in (5, None, [], {}, "", "x" * 65, "a/b", "\0", "x\n")]
    found += [good(fn, **more) for more in ({"event_id": "x"}, {"batched": True}, {"simple_format": True}, {"x": 1})]
    return found if every else chance.sample(found, min(len(found), 6))


def kept(page) -> list:
    """Every file of the page, and what it keeps in memory."""
    folders = (page.workspace.outputs, page.workspace.presets)

    def listed() -> list[Path]:
        return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]

    # what the page knows of model files and runs it writes by itself, some time after it has looked at them
    wait_until(lambda: not [path for path in listed() if path.name.startswith(".tmp-")])
    files = [path for path in listed() if path.name not in ("models.json", "forecasts.json", "summary.json")]
    times = [(path, path.stat().st_mtime_ns) for path in files if not path.name.startswith(".tmp-")]
    return [*times, page.page.project.job, page.page.project.revision, [each.id for each in page.engine.queue()]]


@HOW_MANY
def test_messages_that_no_listener_takes_are_refused_and_change_nothing(page, asked, chance, capfd, every):
    before = kept(page)
    sent = 0
    for fn in chosen(page, chance, 30, every):
        for message in misfits(fn, chance, every):
            assert 400 <= asked.call(message) < 500, (fn.name, str(message)[:300])
            sent += 1
    listener = chosen(page, chance, 1)[0]
    for number in (None, -1, 10**6, "x", [], {}, 1.0, True, 2**70):
        assert 400 <= asked.call(good(listener, fn_index=number)) < 500, number
    for message in (None, [], "x", 5, {}, [good(listener)], deep(900)):
        assert 400 <= asked.call(message) < 500, str(message)[:100]
    whole = json.dumps(good(listener, event_data={"x": "FILL"}))
    fills = (
        "NaN",
        "Infinity",
        "1e999",
        "9" * 5000,
        '"\\ud800"',
        "[" * 90_000,
        "{",
        '"\xff',
        "[1" + ",1" * message_check.MAX_VALUES + "]",
    )
    for fill in fills:
        body = whole.replace('"FILL"', fill).encode("latin-1")
        assert 400 <= asked.send("POST", CALL, body, **JSON) < 500, fill[:20]
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed
    assert printed.count("A request was refused") == sent + 9 + 7 + len(fills)
    assert kept(page) == before


def acts() -> list[str]:
    """Every word with which a handler compares what it is asked to do."""
    found = {*train.ACTIONS, *monitor.COMMANDS, *(f"class_{word}" for word in ("make",))}
    for path in TABS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Compare)
                and isinstance(node.left, ast.Name)
                and node.left.id in ("act", "name", "kind")
            ):
                found |= {
                    each.value
                    for each in ast.walk(node)
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
    return sorted(found - {"tensorboard", ""})


WORDS = [
    "",
    "x",
    "../../x",
    "a\0b",
    "0",
    "-1",
    "99999999",
    "1e999",
    "nan",
    "²",
    "x" * 5000,
    "0:folder",
    "0:x",
    "9:x",
    ":",
    RUN,
]


def values(chance, depth: int = 0) -> object:
    if depth < 3 and chance.random() < 0.3:
        return (
            [values(chance, depth + 1)] if chance.random() < 0.5 else {chance.choice("abn"): values(chance, depth + 1)}
        )
    return chance.choice([*VALUES, *WORDS])


NAMES = (
    "act arg value name n stamp filled open how token preset field title run entry position ask have tab filled"
    " key text saves over visit always asked file content json level model loaded have wants tab run files"
).split()


def filled(chance) -> dict:
    """An object with names that handlers look for and values of any kind."""
    return {name: values(chance) for name in chance.sample(NAMES, chance.randint(1, 8))}


@pytest.mark.slow
def test_messages_of_the_right_form_with_anything_in_them_are_no_fault(page, asked, chance, capfd):
    """What scripts of the page put into texts and events, each of its own kind there."""
    words = acts()
    assert len(words) > 60
    for fn in chosen(page, chance, 50, every=True):
        for _ in range(6):
            message = good(fn, event_data=filled(chance) | {"act": chance.choice(words), "name": chance.choice(words)})
            for number, block in enumerate(fn.inputs):
                if isinstance(block, gr.Textbox):
                    inside = json.dumps(filled(chance)) if number == len(fn.inputs) - 1 else chance.choice(WORDS)
                    message["data"][number] = inside
                elif not isinstance(block, gr.State):
                    fit = [
                        value for value in (*VALUES, *WORDS, *FILES, ["x"], [5]) if message_check.accepts(block, value)
                    ]
                    message["data"][number] = chance.choice(fit)
            status = asked.call(message)
            printed = "".join(capfd.readouterr())
            assert status in (200, 422) and "Traceback" not in printed, (fn.name, message, printed[-3000:])
            assert printed.count("A request was refused") == (status == 422), (fn.name, message, printed)


@pytest.mark.slow
def test_the_addresses_of_our_own_take_anything(page, asked, chance, capfd):
    acted = ("look", "save", "open", "follow", "undo", "redo", "utf8", "show", "find", "page")
    for _ in range(500):
        message = filled(chance) | {"act": chance.choice(acted)}
        body = json.dumps(message).encode()
        assert asked.send("POST", "/atelier/captions", body, **JSON) in (200, 400), message
        tab = chance.choice(["Train", "Monitor", "Runs", "Tools", "Captions", "Dataset"])
        body = json.dumps({"session": "s", "tab": tab, "wants": values(chance)} | filled(chance)).encode()
        assert asked.send("POST", "/atelier/pulse", body, **JSON) in (200, 204), body
    for text in (
        "[" * 100_000,
        "NaN",
        "null",
        '{"act": NaN}',
        '{"key": "\\ud800", "act": "find", "value": "\\ud800"}',
        "\xff",
        "",
    ):
        for name in ("captions", "pulse"):
            assert asked.send("POST", f"/atelier/{name}", text.encode("latin-1"), **JSON) in (200, 204, 400), text[:20]
    for session in ("", "x" * 65, "a/b", "\0", 5, None, {}, []):
        assert asked.send("POST", "/atelier/pulse", json.dumps({"session": session}).encode(), **JSON) == 204
    for query in (
        "",
        "path=x&key=y",
        "path=%00&key=%ff",
        "path=" + "a" * 9000,
        "path=%2e%2e%2fx&size=x&key=",
        "size=9&size=8",
    ):
        for name in ("file", "thumb"):
            assert asked.send("GET", f"/atelier/{name}?{query}") in (403, 404), query
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_uploads_and_logins_of_any_form_are_no_fault(page, asked, capfd):
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'
    forms = [b"", b"x", part[:40], part.replace(b'; filename="a.png"', b""), part.replace(b"files", b"other")]
    forms += [
        part.replace(b"a.png", name) for name in (b"", b"..", b"/", b"a" * 3000, b"\xff\xfe", b"a\0b", b"CON", b".")
    ]
    forms += [part.replace(b"Content-Disposition", b"X"), part * 3, part.replace(b"\r\n", b"\n")]
    for path in ("/gradio_api/upload", "/gradio_api/upload?upload_id=x", "/login"):
        for form in forms if path != "/login" else forms[2:3]:  # each try to log in waits longer
            for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "x/\xff"):
                assert asked.send("POST", path, form, Content_Type=kind) < 500, (path, form, kind)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert asked.call(good(next(each for each in page.blocks.fns.values() if each.name == "command"))) == 200
