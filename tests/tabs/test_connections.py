"""Connections that ask nothing, never to the end, or too much, keep nobody else out."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from starlette.requests import Request
from test_request_check import JSON, ask
from work_parts import wait_until

from tabs.server import limits as server_limits
from tabs.server import request_check
from tabs.server.delivery import Delivery
from tabs.server.limits import LIMITS, MAX_SESSIONS, Limits, RateLimit


@pytest.fixture
def idle(served):
    """Opens connections and sends a part of a request on each; all are closed at the end."""
    opened = []

    def make(number: int, said: bytes = b"") -> list[socket.socket]:
        made = [socket.create_connection(("127.0.0.1", served.blocks.server_port), timeout=60) for _ in range(number)]
        for each in made:
            each.sendall(said)
        opened.extend(made)
        return made

    yield make
    for each in opened:
        each.close()


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(100) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.slow
def test_two_hundred_silent_connections_keep_nobody_out_and_end(served, idle, monkeypatch):
    monkeypatch.setattr(server_limits, "HEAD_TIMEOUT", 1.5)
    held = idle(100) + idle(100, b"GET / HTTP/1.1\r\nHost: 127")
    began = time.monotonic()
    assert ask(served, "GET", "/theme.css")[0] == 200 and time.monotonic() - began < 20
    wait_until(lambda: all(map(is_closed, held)))


@pytest.mark.slow
def test_a_letter_a_second_is_no_way_to_stay(served, idle, monkeypatch):
    monkeypatch.setattr(server_limits, "HEAD_TIMEOUT", 1.0)
    (first,) = idle(1, b"G")
    head = f"GET /theme.css HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {key_of(served)}\r\n\r\n"
    (again,) = idle(1, head.encode())  # answered once, then slowly another
    assert again.recv(12) == b"HTTP/1.1 200"

    def drips() -> bool:
        for each in (first, again):
            try:
                each.setblocking(True)
                each.sendall(b"E")
            except OSError:
                pass
        time.sleep(0.1)
        _drain(again)
        return is_closed(first) and is_closed(again)

    wait_until(drips)


def _drain(connection: socket.socket) -> None:
    connection.setblocking(False)
    try:
        while connection.recv(1 << 20):
            pass
    except OSError:
        pass


def test_of_too_many_the_one_that_waits_the_longest_ends(served, idle, monkeypatch):
    connections = served.blocks.server.server_state.connections

    def waiting() -> int:
        return sum(getattr(each, "_head_timer", None) is not None for each in list(connections))

    wait_until(lambda: not waiting())
    monkeypatch.setattr(server_limits, "MAX_SILENT", 5)
    first, *_ = idle(1)
    wait_until(lambda: waiting() == 1)
    held = idle(7)
    wait_until(lambda: is_closed(first))
    wait_until(lambda: waiting() <= 5)
    assert not is_closed(held[-1])
    assert ask(served, "GET", "/theme.css")[0] == 200


def test_connections_beyond_the_limit_are_closed_and_open_ones_are_answered(served, idle, monkeypatch):
    cookie, kept = key_of(served), http.client.HTTPConnection("127.0.0.1", served.blocks.server_port, timeout=60)

    def status() -> int:
        kept.request("GET", "/theme.css", headers={"Cookie": cookie})
        answer = kept.getresponse()
        answer.read()
        return answer.status

    assert status() == 200
    opened = kept.sock
    monkeypatch.setattr(server_limits, "MAX_CONNECTIONS", len(served.blocks.server.server_state.connections) + 2)
    held = idle(4)
    wait_until(lambda: sum(map(is_closed, held)) == 2)
    assert status() == 200 and kept.sock is opened
    kept.close()


@pytest.mark.slow
def test_a_long_answer_and_a_long_request_are_not_cut(served, idle, monkeypatch):
    """Only the head is waited for that long; what is being answered or sent has limits of its own."""
    monkeypatch.setattr(server_limits, "HEAD_TIMEOUT", 0.5)
    stream = f"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {key_of(served)}\r\n\r\n"
    (asks,) = idle(1, stream.encode())
    (sends,) = idle(1, b"POST /gradio_api/run/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\n\r\n{")
    assert asks.recv(12) == b"HTTP/1.1 200"
    time.sleep(1.5)
    sends.sendall(b"}}")
    assert sends.recv(10) == b"HTTP/1.1 4"


def test_an_answer_that_nobody_reads_is_given_up(served, monkeypatch):
    monkeypatch.setattr(server_limits, "WRITE_TIMEOUT", 0.5)
    large = served.workspace.images / "large.png"
    large.parent.mkdir(parents=True, exist_ok=True)
    large.write_bytes(b"x" * (40 << 20))
    server = served.blocks.server.server_state
    others = set(server.tasks)  # of pages that are open
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", served.blocks.server_port))
        deaf.sendall(f"GET /{served.page.file_url(large)} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        wait_until(lambda: set(server.tasks) - others)
        own = set(server.tasks) - others
        wait_until(lambda: not own & set(server.tasks))
    large.unlink()


def key_of(served) -> str:
    """The cookie of a browser that opens the page."""
    return ask(served, "GET", "/")[2]["set-cookie"].partition(";")[0]


def strangers(served, monkeypatch, units: float, running: int) -> None:
    """From now on those who are not known may ask this much: of one address and all together."""
    row = (0.001, units, running)
    monkeypatch.setattr(served.limits, "table", LIMITS | {"address": row, "all addresses": row})
    served.limits.limit.cache_clear()


@pytest.fixture
def reached(served, monkeypatch):
    """What anything behind the checks has seen; strangers have little, as on a page in use."""
    seen, whole = [], Delivery.__call__

    async def counted(delivery, scope, receive, send):
        seen.append(scope["path"])
        await whole(delivery, scope, receive, send)

    monkeypatch.setattr(Delivery, "__call__", counted)
    monkeypatch.setattr(request_check, "REFUSAL_DELAY", 0.0)
    strangers(served, monkeypatch, 30.0, 24)
    yield seen
    monkeypatch.undo()
    served.limits.limit.cache_clear()


@pytest.mark.slow
def test_of_strangers_that_have_had_their_share_nothing_is_read_and_an_open_page_is_answered(served, reached):
    """A page counts as ten files. All come from one address, as behind a reverse proxy or a share link."""
    cookie = key_of(served)
    assert [ask(served, "GET", "/")[0] for _ in range(2)] == [200, 200]
    reached.clear()
    for path in ("/", "/?x=1", "/config", "/theme.css"):
        status, content, headers = ask(served, "GET", path)
        assert status == 503 and int(headers["retry-after"]) > 0 and json.loads(content)["detail"]
    assert ask(served, "POST", "/atelier/pulse", b"{}")[0] == 503
    assert ask(served, "GET", "/theme.css", cookie=cookie[:-1] + "x")[0] == 503
    assert not reached
    for path in ("/", "/theme.css", "/gradio_api/app_id"):
        assert ask(served, "GET", path, cookie=cookie)[0] == 200
    with socket.create_connection(("127.0.0.1", served.blocks.server_port), timeout=60) as parts:
        for part in ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", f"Cookie: {cookie}\r\n\r\n"):
            parts.sendall(part.encode())
            time.sleep(0.3)
        assert parts.recv(12) == b"HTTP/1.1 200"


def test_a_page_that_stays_open_while_the_server_starts_again_is_known_by_its_next_tick(served):
    old = f"atelier-{served.blocks.server_port}=0123456789abcdef"
    got = ask(served, "POST", "/atelier/pulse", b"{}", cookie=old, **JSON)[2]
    known = got["set-cookie"].partition(";")[0]
    assert key_in(served.limits, known) and not key_in(served.limits, old)
    assert "set-cookie" not in ask(served, "POST", "/atelier/pulse", b"{}", cookie=known, **JSON)[2]


def test_of_several_requests_that_a_stranger_sends_at_once_one_is_answered(served, reached):
    head = b"GET /theme.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.blocks.server_port), timeout=60) as connection:
        connection.sendall(head * 50)
        got = b""
        while part := connection.recv(1 << 20):
            got += part
    assert got.count(b"HTTP/1.1 200") == 1 and b"connection: close" in got.lower() and reached == ["/theme.css"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="the CPU time of one thread")
def test_a_flood_of_strangers_costs_the_server_little_and_an_open_page_stays_quick(served, reached):
    """Measured: 0.5 ms of a core for each that is refused. Files are answered in 1 ms, calls in 15."""
    cookie, clock = key_of(served), time.pthread_getcpuclockid(served.blocks.server.thread.ident)
    reached.clear()
    while ask(served, "GET", "/theme.css")[0] == 200:
        pass
    before, seen = time.clock_gettime(clock), len(reached)
    assert all(ask(served, "GET", "/")[0] == 503 for _ in range(300))
    assert len(reached) == seen and (time.clock_gettime(clock) - before) / 300 < 0.003
    assert ask(served, "GET", "/theme.css", cookie=cookie)[0] == 200


def test_few_strangers_are_answered_at_once_and_open_pages_besides(served, idle, monkeypatch):
    body = b"POST /gradio_api/run/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{"
    cookie = key_of(served)
    strangers(served, monkeypatch, 1e9, 4)
    monkeypatch.setattr(request_check, "REFUSAL_DELAY", 0.2)
    held = idle(10, body)
    wait_until(lambda: sum(map(is_closed, held)) == 6)
    assert ask(served, "GET", "/theme.css")[0] == 503
    assert ask(served, "GET", "/theme.css", cookie=cookie)[0] == 200
    for each in held:
        each.close()
    wait_until(lambda: ask(served, "GET", "/theme.css")[0] == 200)
    monkeypatch.undo()
    served.limits.limit.cache_clear()


def test_of_a_page_that_holds_many_requests_the_rest_is_refused_and_other_pages_are_answered(served, idle, monkeypatch):
    """As a login whose connections would take all there are."""
    one, other = key_of(served), key_of(served)
    monkeypatch.setattr(request_check, "REFUSAL_DELAY", 0.2)
    monkeypatch.setattr(served.limits.sessions[one.partition("=")[2]], "concurrency", 4)
    head = "POST /gradio_api/run/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\nCookie: {}\r\n\r\n{{"
    held = idle(10, head.format(one).encode())
    wait_until(lambda: sum(map(is_closed, held)) == 6)
    assert ask(served, "GET", "/theme.css", cookie=one)[0] == 503
    assert ask(served, "GET", "/theme.css", cookie=other)[0] == 200


def test_who_repeats_a_refused_request_at_once_is_slowed_down_and_others_are_not(served, reached, monkeypatch):
    cookie = key_of(served)
    while ask(served, "GET", "/theme.css")[0] == 200:
        pass
    slept, over = [], threading.Event()

    async def until_over(seconds: float) -> None:
        slept.append(seconds)
        while not over.is_set():
            await asyncio.sleep(0.01)

    monkeypatch.setattr(request_check, "REFUSAL_DELAY", 2.0)
    monkeypatch.setattr(request_check, "asyncio", SimpleNamespace(sleep=until_over, wait_for=asyncio.wait_for))
    with ThreadPoolExecutor(20) as clients:
        refused = [clients.submit(ask, served, "GET", "/theme.css") for _ in range(20)]
        try:
            wait_until(lambda: slept == [2.0] * 20)
            assert ask(served, "GET", "/theme.css", cookie=cookie)[0] == 200
            assert not any(each.done() for each in refused)
        finally:
            over.set()
        assert {each.result()[0] for each in refused} == {503}
    monkeypatch.setattr(request_check, "REFUSAL_DELAY", 600.0)
    monkeypatch.setattr(request_check, "MAX_DELAYED", 0)  # as many as are allowed wait already
    assert ask(served, "GET", "/theme.css")[0] == 503


def test_a_limit_gives_what_it_holds_and_refills():
    now = [0.0]
    limit = RateLimit(rate=2, burst=10, concurrency=2, clock=lambda: now[0])

    def takes(cost: float) -> bool:
        if fits := limit.allows(cost):
            limit.add(cost)
            limit.active -= 1
        return fits

    assert [takes(4) for _ in range(3)] == [True, True, False]
    now[0] = 1.0
    assert takes(4) and not takes(1)
    now[0] = 1000.0
    assert takes(10) and not takes(1)
    now[0], limit.active = 2000.0, 2
    assert not takes(1)


def takes(limits: Limits, method: str, path: str, key: str = "", address: str = "") -> bool:
    """Whether a request that is answered at once is let in."""
    taken = limits.acquire(method, path, key, address)
    for limit in taken:
        limit.active -= 1
    return bool(taken)


CALL, PAGE, TICK = ("POST", "/gradio_api/run/predict"), ("GET", "/"), ("POST", "/atelier/pulse")


def test_strangers_of_one_address_leave_room_for_others_and_all_together_have_a_measure():
    limits = Limits()
    assert [takes(limits, *CALL, address="10.0.0.1") for _ in range(30)].count(True) == 20
    assert takes(limits, *CALL, address="10.0.0.2")
    assert [takes(limits, *PAGE, address=f"10.0.1.{number}") for number in range(100)].count(True) == 19


def test_of_the_places_for_strangers_one_address_leaves_some():
    limits = Limits()
    assert [bool(limits.acquire("GET", "/theme.css", "", "10.0.0.1")) for _ in range(30)].count(True) == 16
    assert limits.acquire("GET", "/theme.css", "", "10.0.0.2")


def test_tries_to_log_in_have_places_of_their_own_and_those_of_one_address_leave_some():
    limits = Limits(lambda: {})
    while takes(limits, *PAGE, address="10.0.0.1"):
        pass
    for _ in range(LIMITS["login"][2]):
        assert limits.acquire("POST", "/login/", "", "10.0.0.1")
    assert not limits.acquire("POST", "/login", "", "10.0.0.1") and limits.acquire("POST", "/login", "", "10.0.0.2")


def test_an_ordinary_page_is_never_refused_and_one_that_asks_without_a_pause_is():
    limits = Limits()
    now = [0.0]
    limits.limit("session", "a").clock = lambda: now[0]
    for second in range(600):  # two ticks and ten images; seven changes a second for five seconds of a minute, else few
        now[0] += 1.0
        assert all(takes(limits, *call, "a") for call in (TICK, TICK))
        assert all(takes(limits, "GET", "/atelier/thumb", "a") for _ in range(10))
        changes = 7 if second % 60 < 5 else int(second % 4 == 0)
        assert all(takes(limits, *CALL, "a") for _ in range(changes))
    assert [takes(limits, *CALL, "a") for _ in range(1000)].count(True) <= 200
    answered = 0
    for _ in range(60):  # 200 clients with one login: four calls a second, of 15 ms each
        now[0] += 1.0
        answered += [takes(limits, *CALL, "a") for _ in range(200)].count(True)
    assert answered <= 4 * 60
    assert takes(limits, *CALL, "b"), "others have their own"


def key_in(limits: Limits, cookie: str) -> str:
    return limits.session_of(Request({"type": "http", "headers": [(b"cookie", cookie.encode())]}))


def test_browsers_that_have_the_page_open_keep_their_places():
    limits = Limits()
    keys = [limits.new_session() for _ in range(MAX_SESSIONS)]
    streams = {key: limits.acquire("GET", "/gradio_api/heartbeat/x", key, "") for key in keys}
    assert all(keys) and limits.new_session() == ""
    for limit in streams[keys[3]]:  # closed
        limit.active -= 1
    new = limits.new_session()
    assert new and key_in(limits, f"atelier-7860={new}") == new
    assert key_in(limits, f"a=b; atelier-1={keys[3]}") == ""
    logged_in = Limits(lambda: {"token": "mira"})
    assert logged_in.new_session() == "" and key_in(logged_in, "a=b; access-token-unsecure-x_Y=token") == "token"
    assert key_in(logged_in, f"atelier-1={keys[0]}; access-token-x=other") == ""


class Looping:
    """A server whose main loop looks whether it should exit as often as `tick` returns, as uvicorn's does."""

    def __init__(self):
        self.should_exit, self.looks, self.ended = False, 0, False
        self.thread = threading.Thread(target=lambda: asyncio.run(self.loop()), daemon=True)

    async def loop(self) -> None:
        while not await self.on_tick(self.looks):
            pass
        self.ended = True

    async def on_tick(self, counter: int) -> bool:
        self.looks += 1
        return self.should_exit

    def close(self) -> None:
        self.should_exit = True
        self.thread.join(timeout=30)


@pytest.mark.parametrize(("wakes", "enough"), [(0.01, 3), (3600.0, 0)])
def test_the_main_loop_wakes_seldom_and_at_once_when_the_server_is_closed(monkeypatch, wakes, enough):
    monkeypatch.setattr(server_limits, "WAKES", wakes)
    server = Looping()
    server_limits.slow_main_loop(server)
    server.thread.start()
    wait_until(lambda: server.looks >= enough)
    server.close()
    assert server.ended and (wakes < 1 or server.looks <= 1)
