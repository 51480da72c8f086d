"""What a request may bring: tries to log in, messages, uploads. How many: test_connections.py; what they hold: test_wrong_arguments.py."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from starlette.requests import Request
from test_request_check import JSON, ask
from work_parts import finished, wait_until

from tabs.server import request_check
from tabs.server.hosts import Hosts
from tabs.server.limits import LIMITS, Delays, Limits
from tabs.server.request_check import RequestCheck

TOKEN = "access-token-unsecure-x=sesame"


def scope(path: str, method: str = "POST", address: str = "10.0.0.9", **headers: str) -> dict:
    headers = {"host": "localhost"} | headers
    listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    found = {"type": "http", "path": path, "method": method, "headers": listed, "client": (address, 1)}
    return found | {"server": ("127.0.0.1", 7860)}


def unshared(app, folder, **more) -> RequestCheck:
    """Without a login."""
    return RequestCheck(app, Hosts(), Limits(), folder, **{"shared": False} | more)


def shared(app, folder, **more) -> RequestCheck:
    """With a login."""
    return RequestCheck(app, Hosts(), Limits(lambda: {"sesame": "mira"}), folder, shared=True, **more)


def called(app, request: dict, body: bytes = b"") -> int:
    """The status that an application answers with."""
    return finished(calling(app, request, body))


async def calling(app, request: dict, body: bytes = b"") -> int:
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    await app(request, receive, send)
    return sent[0]["status"]


def test_a_guest_is_a_browser_whatever_its_login_and_the_owner_is_none(tmp_path):
    seen, cookies = [], []

    async def app(scope, receive, send):
        seen.append(scope["guest"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limits = Limits(lambda: {"one": "mira", "two": "mira", "mine": "owner"}, "owner")

    def guest(login: str, browser: str = "", shared: bool = True) -> str:
        words = f"access-token-x={login}" + (f"; atelier-guest-7860={browser}" if browser else "")

        async def send(message):
            cookies.extend(value for name, value in message.get("headers", []) if name == b"set-cookie")

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        cookies.clear()
        finished(
            RequestCheck(app, Hosts(), limits, tmp_path, shared=shared)(scope("/", "GET", cookie=words), receive, send)
        )
        return seen.pop()

    assert guest("one", "a") == guest("two", "a") != guest("one", "b") and not cookies
    assert "a" != guest("one", "a") != guest("one") != guest("two")
    assert len(cookies) == 1 and b"HttpOnly" in cookies[0]
    assert guest("mine", "a") == guest("one", "a", shared=False) == ""


def answering(status: int):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def test_each_failed_login_waits_longer_and_none_is_refused():
    now = [0.0]
    delays = Delays(clock=lambda: now[0])
    waits = [delays.begin("a") for _ in range(50)]
    assert waits[0] == 0 and waits == sorted(waits) and waits[1] > 0 and waits[-1] == delays.longest <= 10
    assert delays.begin("b") == 0
    now[0] = 901
    assert delays.begin("a") == 0
    assert delays.begin("a") > 0
    delays.succeeded("a")
    assert delays.begin("a") == 0


def test_failures_are_told_without_the_password_and_the_right_one_opens_after_them(tmp_path):
    said: list[str] = []
    app = shared(answering(400), tmp_path, delays=Delays(longest=0.0), log=said.append)
    body = b"username=mira&password=hunter22"
    assert [called(app, scope("/login"), body) for _ in range(30)] == [400] * 30
    assert len(said) == 30 and all("10.0.0.9" in line for line in said)
    assert not any("hunter22" in line or "mira" in line for line in said)
    app.app = answering(200)
    assert called(app, scope("/login"), body) == 200


def cookie_of(app, path: str = "/", **headers: str) -> str:
    """The cookie that a browser which opens the page is given, as it sends it."""
    sent = []

    async def asked() -> None:
        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        await app(scope(path, "GET", **headers), receive, send)

    finished(asked())
    given = dict(sent[0]["headers"]).get(b"set-cookie", b"").decode()
    assert not given or ("HttpOnly" in given and "SameSite=Lax" in given)
    return given.partition(";")[0]


def test_a_browser_that_opens_a_page_without_a_login_is_known_from_then_on_and_may_keep_a_stream(tmp_path):
    app = unshared(answering(200), tmp_path)
    given = cookie_of(app)
    assert given and not cookie_of(app, cookie=given), "given once"
    assert not cookie_of(app, "/theme.css") and not cookie_of(
        shared(answering(200), tmp_path), cookie=f"{TOKEN}; atelier-guest-7860=a"
    )
    stream = "/gradio_api/heartbeat/x"
    assert called(app, scope(stream, "GET", cookie=given)) == 200
    assert unread(app, scope(stream, "GET")) == unread(app, scope(stream, "GET", cookie=given[:-1] + "x")) == 401


def unread(app, request: dict) -> int:
    """The status that is answered without a byte of the message being read."""

    async def asked() -> int:
        sent = []

        async def send(message):
            sent.append(message)

        async def receive():
            pytest.fail("the message was read")

        await app(request, receive, send)
        return sent[0]["status"]

    return finished(asked())


def test_who_is_not_logged_in_is_refused_before_the_message_is_read(tmp_path):
    app = shared(answering(200), tmp_path)
    for path in ("/gradio_api/startup-events", "/gradio_api/upload", "/gradio_api/run/predict", "/atelier/captions"):
        assert unread(app, scope(path, content_length="60000000")) == 401
        assert called(app, scope(path, cookie=TOKEN), b"{}") == 200
    for path in ("/gradio_api/heartbeat/x", "/gradio_api/upload_progress", "/atelier/file", "/atelier/thumb"):
        assert unread(app, scope(path, "GET")) == 401
    assert called(app, scope("/login"), b"username=a&password=b") == 200
    assert called(app, scope("/login", address="10.0.0.8"), b"x" * (request_check.MAX_LOGIN_BYTES + 1)) == 413
    assert called(app, scope("/", "GET")) == 200


@pytest.mark.parametrize("path", ["/login", "/gradio_api/run/predict"])
@pytest.mark.parametrize("pause", [60.0, 0.05])
def test_a_message_that_does_not_arrive_or_comes_letter_by_letter_is_given_up(tmp_path, monkeypatch, path, pause):
    monkeypatch.setattr(request_check, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr(request_check, "BODY_TIMEOUT", 0.5)

    async def reads(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    async def slow() -> int:
        sent = []

        async def receive():
            await asyncio.sleep(pause)
            return {"type": "http.request", "body": b"u", "more_body": True}

        async def send(message):
            sent.append(message)

        app = shared(reads, tmp_path)
        await asyncio.wait_for(app(scope(path, cookie=TOKEN), receive, send), 50)
        return sent[0]["status"]

    assert finished(slow()) == 408


def test_who_leaves_in_the_middle_of_a_message_is_no_fault_of_ours(tmp_path):
    async def reads(scope, receive, send):
        await Request(scope, receive).body()

    async def leaving() -> None:
        messages = iter(({"type": "http.request", "body": b"[", "more_body": True}, {"type": "http.disconnect"}))

        async def receive():
            return next(messages)

        await shared(reads, tmp_path)(scope("/atelier/captions", cookie=TOKEN), receive, None)

    finished(leaving())


def test_uploads_are_measured_before_and_while_they_come(tmp_path, monkeypatch):
    app = unshared(answering(200), tmp_path, shared=True)
    assert called(app, scope("/gradio_api/upload", content_length="10"), b"x" * 10) == 200
    assert called(app, scope("/gradio_api/upload", content_length=str(request_check.MAX_UPLOAD_BYTES + 1))) == 413
    monkeypatch.setattr(request_check, "MAX_UPLOAD_BYTES", 100)
    assert called(app, scope("/gradio_api/upload"), b"x" * 101) == 413  # no length was told
    monkeypatch.setattr(request_check, "MAX_HOURLY_UPLOAD_BYTES", 250)
    assert called(app, scope("/gradio_api/upload", content_length="90"), b"x" * 90) == 200
    assert called(app, scope("/gradio_api/upload", content_length="90"), b"x" * 90) == 429
    assert called(app, scope("/gradio_api/upload", content_length="90", address="10.0.0.8"), b"x" * 90) == 200
    monkeypatch.setattr(RequestCheck, "_free_bytes", lambda self: request_check.RESERVED_DISK_BYTES)
    assert called(app, scope("/gradio_api/upload", content_length="90", address="10.0.0.7"), b"") == 507


@pytest.mark.parametrize(("free", "status"), [(20, 200), (19, 507)])
def test_an_upload_takes_twice_its_room_next_to_what_stays_free(tmp_path, monkeypatch, free, status):
    monkeypatch.setattr(RequestCheck, "_free_bytes", lambda self: (1 << 30) + free)
    app = unshared(answering(200), tmp_path, shared=True)
    assert called(app, scope("/gradio_api/upload", content_length="10"), b"x" * 10) == status


def test_the_logins_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    from core.cli.page import _logins

    file = tmp_path / "login"

    def read(text: str) -> tuple[list, list]:
        file.write_text(text)
        problems: list = []
        return _logins({"auth-file": str(file)}, problems), [each.code for each in problems]

    assert read("mira:secret\n") == ([("mira", "secret")], [])
    assert read("\ufeffmira:se:cret\n\n olga : two\n") == ([("mira", "se:cret"), ("olga", " two")], [])
    assert [read(each)[1] for each in ("", "\n", "mira", ":x", "mira:")] == [["cli.bad-auth"]] * 5
    assert read("a:b\nA:c\ncon:d\nx/y:e\nf")[1] == ["cli.bad-user"] * 3 + ["cli.bad-auth"]
    monkeypatch.setenv("ATELIER_AUTH", "mira:other")
    assert _logins({}, []) == [("mira", "other")] and _logins({"auth": "a:b"}, []) == [("a", "b")]
    problems: list = []
    assert not _logins({"auth-file": str(tmp_path / "gone")}, problems) and problems


@pytest.mark.slow
def test_a_login_gives_a_cookie_of_this_site_alone(tmp_path_factory, monkeypatch):
    from page_server import Served

    # How long each waits is told by its own clock above
    monkeypatch.setattr(request_check, "Delays", partial(Delays, longest=0.5))
    page = Served(tmp_path_factory.mktemp("login"), shared=True, auth=("mira", "secret"))
    try:
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        body = urllib.parse.urlencode({"username": "mira", "password": "secret"}).encode()
        status, _, headers = ask(page, "POST", "/login", body, **form)
        assert status == 200 and "SameSite=Lax" in headers["set-cookie"] and "HttpOnly" in headers["set-cookie"]
        assert "samesite=none" not in headers["set-cookie"].lower()
        assert ask(page, "POST", "/login", body, Origin="http://evil.example", **form)[0] == 403
        assert ask(page, "POST", "/login", body.replace(b"secret", b"wrong"), **form)[0] == 400
        cookie = headers["set-cookie"].split(";")[0]
        call = json.dumps({"data": ["{}"], "fn_index": 0}).encode()
        assert ask(page, "POST", "/gradio_api/run/predict", call, **JSON)[0] == 401
        assert ask(page, "POST", "/gradio_api/run/predict", call, Cookie=cookie, **JSON)[0] != 401
        assert ask(page, "GET", "/gradio_api/heartbeat/x")[0] == 401
        wrong = body.replace(b"secret", b"no")
        with ThreadPoolExecutor(20) as guessing:  # as many as guess for longer than this, and one of them is right
            guesses = [guessing.submit(ask, page, "POST", "/login", wrong, **form) for _ in range(60)]
            guesses.insert(30, guessing.submit(ask, page, "POST", "/login", body, **form))
            assert [each.result()[0] for each in guesses] == [400] * 30 + [200] + [400] * 30
    finally:
        page.close()


@pytest.mark.parametrize("path", ["/", "/gradio_api/run/predict"])
def test_a_fault_of_our_own_stays_one(tmp_path, path):
    app = unshared(answering(500), tmp_path)
    assert called(app, scope(path)) == 500


@pytest.mark.slow
def test_an_ordinary_page_is_never_refused_while_a_job_runs(served, visit, monkeypatch):
    monkeypatch.setattr(served.limits, "table", served.limits.table | {"session": LIMITS["session"]})
    served.engine.step_seconds = 60.0
    seen = visit()
    answers: list[int] = []
    seen.tab.on("response", lambda answer: answers.append(answer.status))
    tab = seen.open()
    served.engine.submit("train", served.page.project.job)
    wait_until(lambda: served.engine.status().get("job"))
    for name in ("Dataset", "Captions", "Generate", "Tools", "Monitor", "Train"):
        tab.get_by_role("tab", name=name, exact=True).click()
        tab.wait_for_function("(name) => location.hash === '#' + name", arg=name)
    for _ in range(3):
        tab.reload()
        tab.wait_for_selector("body[data-atelier=ready]")
    assert len(answers) > 30 and 503 not in answers


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="the CPU time of one thread")
def test_a_server_that_nobody_asks_sleeps(served):
    """0.2% of a core; Gradio's queue alone took 5%. CPU time, which other programs hardly change; the least of three looks."""
    clock = time.pthread_getcpuclockid(served.blocks.server.thread.ident)

    def share() -> float:
        before = time.clock_gettime(clock)
        time.sleep(1.0)
        return time.clock_gettime(clock) - before

    assert min(share() for _ in range(3)) < 0.025


def test_a_login_names_its_guest_and_not_its_key(tmp_path):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["guest"])
        await answering(200)(scope, receive, send)

    for cookie in ("access-token-x=sesame", "access-token-x=other", ""):
        called(shared(app, tmp_path), scope("/config", "GET", cookie=cookie))
    assert seen[0] and "sesame" not in seen[0] and seen[1:] == ["", ""]
