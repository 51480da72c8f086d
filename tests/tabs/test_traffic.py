"""How much the page takes at once: tries to log in, uploads, requests. What messages may hold: test_wrong_arguments.py."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
from functools import partial

import pytest
from test_gate import JSON, ask
from work_parts import finished, wait_until

from tabs import traffic
from tabs.budget import Bucket, Budget, cost_of
from tabs.traffic import Traffic, Tries


def scope(path: str, method: str = "POST", address: str = "10.0.0.9", **headers: str) -> dict:
    listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "method": method, "headers": listed, "client": (address, 1)}


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


def answering(status: int):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return app


def test_each_failed_login_waits_longer_and_an_address_has_ten():
    now = [0.0]
    tries = Tries(clock=lambda: now[0])
    waits = [tries.begin("a") for _ in range(11)]
    assert waits[0] == 0 and waits[10] is None
    assert waits[1:10] == sorted(waits[1:10]) and waits[1] > 0 and max(waits[:10]) == tries.longest
    assert tries.begin("b") == 0 and tries.retry_after("a") == 900
    now[0] = 901
    assert tries.begin("a") == 0
    tries.succeeded("b")
    assert tries.begin("b") == 0


def test_many_addresses_together_are_slowed_too():
    tries = Tries(clock=lambda: 0.0, most_of_all=5)
    assert [tries.begin(str(number)) for number in range(7)] == [0.0] * 5 + [tries.longest] * 2


def test_failures_are_told_without_the_password_and_then_refused(tmp_path):
    said: list[str] = []
    app = Traffic(answering(400), tmp_path, shared=True, tries=Tries(most=2, longest=0.0), say=said.append)
    body = b"username=mira&password=hunter22"
    assert [called(app, scope("/login"), body) for _ in range(3)] == [400, 400, 429]
    assert len(said) == 2 and all("10.0.0.9" in line and "hunter22" not in line and "mira" not in line for line in said)
    assert called(app, scope("/login", address="10.0.0.8"), body) == 400
    app.app = answering(200)
    known = cookie_of(app)
    assert called(app, scope("/login"), body) == 429
    assert called(app, scope("/login", cookie=known), body) == 200, "who was in before is not locked out by others"


def test_more_requests_than_fit_get_a_503_at_once(tmp_path):
    async def slow(scope, receive, send):
        await asyncio.sleep(0.2)
        await answering(200)(scope, receive, send)

    async def crowd(**headers: str) -> list[int]:
        app = Traffic(slow, tmp_path, shared=True, logged_in=lambda request: "sesame" in request.cookies)
        return await asyncio.gather(*(calling(app, scope("/", "GET", **headers)) for _ in range(200)))

    for headers, most in (({"cookie": "sesame=1"}, traffic.AT_ONCE), ({}, traffic.STRANGERS)):
        found = finished(crowd(**headers))
        assert found.count(200) == most and found.count(503) == 200 - most


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


@pytest.mark.parametrize("runs", [False, True])
def test_a_flood_from_the_same_address_takes_nothing_from_a_browser_that_was_there(tmp_path, runs):
    """As behind a reverse proxy, a share link, or on this machine: every request comes from 127.0.0.1."""
    now, flood = [0.0], {"waits": 0.0}

    async def slow(scope, receive, send):
        await asyncio.sleep(flood["waits"])
        await answering(200)(scope, receive, send)

    app = Traffic(slow, tmp_path, shared=False, budget=Budget(lambda: runs, lambda: now[0]))
    owner = cookie_of(app)
    assert owner and not cookie_of(app, cookie=owner), "given once"
    flood["waits"] = 0.2

    async def crowd() -> tuple[list[int], list[int]]:
        def strange(**more):
            return calling(app, scope("/gradio_api/run/predict", **more), b"{}")

        many = [asyncio.create_task(strange()) for _ in range(200)]
        many += [asyncio.create_task(strange(cookie=owner[:-1] + "x")) for _ in range(20)]
        await asyncio.sleep(0.05)
        mine = await asyncio.gather(*(strange(cookie=owner) for _ in range(10)))
        return await asyncio.gather(*many), mine

    theirs, mine = finished(crowd())
    assert mine == [200] * 10
    assert theirs.count(200) == traffic.STRANGERS and theirs.count(503) == 220 - traffic.STRANGERS
    flood["waits"] = 0.0
    for _ in range(30):  # half a minute: names taken anew for each request help no flood
        now[0] += 1.0
        names = [cookie_of(app) for _ in range(3)]
        for name in filter(None, names):
            called(app, scope("/gradio_api/run/predict", cookie=name), b"{}")
        assert [called(app, scope("/gradio_api/run/predict", cookie=owner), b"{}") for _ in range(10)] == [200] * 10


def test_who_came_first_keeps_its_place_and_strangers_leave_streams_to_others(tmp_path):
    from tabs.visitors import FORGOTTEN, SENIORS, Visitors

    now = [0.0]
    visitors = Visitors(lambda: now[0])
    assert [visitors.is_senior(str(number)) for number in range(SENIORS + 3)] == [True] * SENIORS + [False] * 3
    now[0] = FORGOTTEN + 1
    assert visitors.is_senior("late") and not visitors.is_senior("")
    assert [visitors.is_senior(str(number)) for number in range(SENIORS)].count(False) == 1
    visitors.leave("late")
    assert visitors.is_senior("new")

    async def held() -> list[int]:
        async def open_ended(scope, receive, send):
            await answering(200)(scope, receive, send)
            await asyncio.sleep(0.3)

        app = Traffic(answering(200), tmp_path, shared=False)
        owner = (await asyncio.to_thread(cookie_of, app)) or ""
        app.app = open_ended
        strange = [asyncio.create_task(calling(app, scope("/gradio_api/heartbeat/x", "GET"))) for _ in range(300)]
        await asyncio.sleep(0.1)
        mine = await calling(app, scope("/gradio_api/heartbeat/y", "GET", cookie=owner))
        return [mine, (await asyncio.gather(*strange)).count(200)]

    assert finished(held()) == [200, traffic.STRANGE_STREAMS]


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
    app = Traffic(answering(200), tmp_path, shared=True, logged_in=lambda request: "sesame" in request.cookies)
    for path in ("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/run/x", "/atelier/captions"):
        assert unread(app, scope(path, content_length="60000000")) == 401
        assert called(app, scope(path, cookie="sesame=1"), b"{}") == 200
    for path in ("/gradio_api/heartbeat/x", "/gradio_api/upload_progress"):
        assert unread(app, scope(path, "GET")) == 401
    assert called(app, scope("/login"), b"username=a&password=b") == 200
    assert called(app, scope("/login", address="10.0.0.8"), b"x" * (traffic.MOST_LOGIN + 1)) == 413
    assert called(app, scope("/", "GET")) == 200


def test_messages_that_do_not_arrive_are_given_up_and_take_few_places(tmp_path, monkeypatch):
    monkeypatch.setattr(traffic, "SILENCE", 0.3)

    async def crowd() -> tuple[list[int], int]:
        tries = Tries(most=100, longest=0.0)
        app = Traffic(
            answering(200), tmp_path, shared=True, tries=tries, logged_in=lambda request: bool(request.cookies)
        )

        async def stuck() -> int:
            sent, parts = [], [{"type": "http.request", "body": b"u", "more_body": True}]

            async def receive():
                return parts.pop() if parts else await asyncio.sleep(60)

            async def reads(scope, receive, send):
                while (await receive())["more_body"]:
                    pass

            async def send(message):
                sent.append(message)

            app.app = reads
            await app(scope("/login"), receive, send)
            return sent[0]["status"]

        held = [asyncio.create_task(stuck()) for _ in range(60)]
        await asyncio.sleep(0.1)
        app.app = answering(200)
        mine = await calling(app, scope("/gradio_api/run/x", cookie="sesame=1"), b"{}")
        return await asyncio.gather(*held), mine

    held, mine = finished(crowd())
    assert mine == 200, "strangers leave room for who is logged in"
    assert held.count(408) == traffic.STRANGERS and held.count(503) == 60 - traffic.STRANGERS


def test_a_message_that_comes_letter_by_letter_ends_and_slow_uploads_leave_room(tmp_path, monkeypatch):
    monkeypatch.setattr(traffic, "ARRIVAL", 0.5, raising=False)
    monkeypatch.setattr(traffic, "UPLOADS", 3, raising=False)

    app = Traffic(answering(200), tmp_path, shared=True)
    known = cookie_of(app)

    async def crowd() -> tuple[list[int], list[int]]:
        going = True

        async def slow(path: str) -> int:
            sent = []

            async def receive():
                await asyncio.sleep(0.05)
                return {"type": "http.request", "body": b"u", "more_body": going}

            async def reads(scope, receive, send):
                while (await receive())["more_body"]:
                    pass
                await answering(200)(scope, receive, send)

            async def send(message):
                sent.append(message)

            app.app = reads
            await app(scope(path, cookie=known), receive, send)
            return sent[0]["status"]

        uploads = [asyncio.create_task(slow(traffic.UPLOAD)) for _ in range(5)]
        held = await asyncio.wait_for(asyncio.gather(*(slow("/gradio_api/run/x") for _ in range(3))), 10)
        going = False
        return held, await asyncio.gather(*uploads)

    held, uploads = finished(crowd())
    assert held == [408] * 3 and sorted(uploads) == [200] * 3 + [503] * 2


def test_uploads_are_measured_before_and_while_they_come(tmp_path, monkeypatch):
    app = Traffic(answering(200), tmp_path, shared=True)
    assert called(app, scope("/gradio_api/upload", content_length="10"), b"x" * 10) == 200
    assert called(app, scope("/gradio_api/upload", content_length=str(traffic.MOST_SHARED + 1))) == 413
    monkeypatch.setattr(traffic, "MOST_SHARED", 100)
    assert called(app, scope("/gradio_api/upload"), b"x" * 101) == 413  # no length was told
    monkeypatch.setattr(traffic, "MOST_SHARED_HOUR", 250)
    assert called(app, scope("/gradio_api/upload", content_length="90"), b"x" * 90) == 200
    assert called(app, scope("/gradio_api/upload", content_length="90"), b"x" * 90) == 429
    assert called(app, scope("/gradio_api/upload", content_length="90", address="10.0.0.8"), b"x" * 90) == 200
    monkeypatch.setattr(Traffic, "_free", lambda self: traffic.SPARE)
    assert called(app, scope("/gradio_api/upload", content_length="90", address="10.0.0.7"), b"") == 507


def test_the_login_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    from core.cli.page import _login

    file = tmp_path / "login"
    file.write_text("mira:secret\n")
    assert _login({"auth-file": str(file)}, [])[0] == "mira:secret"
    monkeypatch.setenv("ATELIER_AUTH", "mira:other")
    assert _login({}, [])[0] == "mira:other" and _login({"auth": "a:b"}, [])[0] == "a:b"
    problems: list = []
    assert _login({"auth-file": str(tmp_path / "gone")}, problems)[0] is None and problems


def test_a_login_gives_a_cookie_of_this_site_alone(tmp_path_factory, monkeypatch):
    from page_server import Served

    monkeypatch.setattr(
        traffic, "Tries", partial(Tries, longest=0.01)
    )  # how long each waits is told by its own clock above
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
        for number in range(12):
            forged = form | {"X_Forwarded_For": f"10.9.8.{number}"}
            found = ask(page, "POST", "/login", body.replace(b"secret", b"no"), **forged)[0]
        assert found == 429, "an address that is only told does not count"
    finally:
        page.close()


@pytest.mark.parametrize("path", ["/", "/gradio_api/run/x"])
def test_a_fault_of_our_own_stays_one(tmp_path, path):
    app = Traffic(answering(500), tmp_path, shared=False)
    assert called(app, scope(path)) == 500


def test_a_bucket_gives_what_it_holds_and_refills_at_its_rate():
    now = [0.0]
    bucket = Bucket(rate=2, most=10, clock=lambda: now[0])
    assert [bucket.take("a", 4) for _ in range(3)] == [0, 0, 1.0]  # 2 are left, 2 are missing
    assert bucket.take("b", 10) == 0
    now[0] = 1.0
    assert bucket.take("a", 4) == 0 and bucket.take("a", 4) == 2.0
    now[0] = 1000.0
    assert bucket.take("a", 10) == 0 and bucket.take("a", 1) == 0.5
    for number in range(3000):
        bucket.take(str(number), 1)
        now[0] += 1
    assert len(bucket._left) <= 1001


def test_while_a_job_runs_floods_are_refused_and_without_one_nothing_is():
    now, running = [0.0], [False]
    budget = Budget(lambda: running[0], lambda: now[0])
    assert not any(budget.wait("GET", "/", "a") for _ in range(1000))
    running[0], now[0] = True, 2.0
    given = [budget.wait("GET", "/", "a", senior=True) for _ in range(1000)]
    assert given.count(0) == 20 and given[:20] == [0] * 20 and max(given) < 1
    assert budget.wait("POST", "/gradio_api/run/predict", "b", senior=True) == 0
    many = [budget.wait("GET", "/", str(number)) for number in range(1000)]
    assert many.count(0) < 20  # all together have their measure too
    for _ in range(600):  # a page that is worked with: a look each second, and ten changes of fields
        now[0] += 1.0
        assert not any(budget.wait("POST", "/gradio_api/run/predict", "a", senior=True) for _ in range(11))
        assert budget.wait("GET", "/", str(now)) >= 0  # others ask for all that there is
    assert cost_of("GET", "/config") == cost_of("GET", "/") > cost_of("POST", "/x") > cost_of("GET", "/theme.css")


def test_a_refusal_is_an_answer_with_the_time_to_wait(tmp_path):
    sent: list = []

    async def send(message):
        sent.append(message)

    async def flood() -> None:
        app = Traffic(answering(200), tmp_path, shared=False, budget=Budget(lambda: True, lambda: 0.0), say=pytest.fail)
        for _ in range(21):
            sent.clear()
            await app(scope("/", "GET"), None, send) if _ == 20 else await calling(app, scope("/", "GET"))

    finished(flood())
    assert sent[0]["status"] == 503 and int(dict(sent[0]["headers"])[b"retry-after"]) >= 1
    assert json.loads(sent[1]["body"])["detail"]


@pytest.mark.slow
def test_an_ordinary_page_is_never_refused_while_a_job_runs(served, visit):
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


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="the CPU time of one thread")
def test_a_server_that_nobody_asks_sleeps(served):
    """0.2% of a core; Gradio's queue alone took 5%. CPU time, which other programs hardly change; the least of three looks."""
    clock = time.pthread_getcpuclockid(served.blocks.server.thread.ident)

    def share() -> float:
        before = time.clock_gettime(clock)
        time.sleep(1.0)
        return time.clock_gettime(clock) - before

    assert min(share() for _ in range(3)) < 0.025
