"""Connections that ask nothing, or never to the end, keep nobody else out."""

from __future__ import annotations

import json
import socket
import time

import pytest
from test_gate import ask
from work_parts import wait_until

from tabs import connections
from tabs.budget import Bucket


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


def test_two_hundred_silent_connections_keep_nobody_out_and_end(served, idle, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 1.5)
    held = idle(100) + idle(100, b"GET / HTTP/1.1\r\nHost: 127")
    began = time.monotonic()
    assert ask(served, "GET", "/theme.css")[0] == 200 and time.monotonic() - began < 20
    wait_until(lambda: all(map(is_closed, held)))


def test_a_letter_a_second_is_no_way_to_stay(served, idle, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 1.0)
    (first,) = idle(1, b"G")
    (again,) = idle(1, b"GET /theme.css HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")  # answered once, then slowly another
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
    waiting = served.blocks.server.config.http_protocol_class.waiting
    wait_until(lambda: not waiting)
    monkeypatch.setattr(connections, "MOST", 5)
    first, *_ = idle(1)
    wait_until(lambda: len(waiting) == 1)
    held = idle(7)
    wait_until(lambda: is_closed(first))
    assert len(waiting) <= 5 and not is_closed(held[-1])
    assert ask(served, "GET", "/theme.css")[0] == 200


def test_a_long_answer_and_a_long_request_are_not_cut(served, idle, monkeypatch):
    """Only the head is waited for that long; what is being answered or sent has limits of its own."""
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    (asks,) = idle(1, b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    (sends,) = idle(1, b"POST /gradio_api/run/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\n\r\n{")
    assert asks.recv(12) == b"HTTP/1.1 200"
    time.sleep(1.5)
    sends.sendall(b"}}")
    assert sends.recv(10) == b"HTTP/1.1 4"


def test_an_answer_that_nobody_reads_is_given_up(served, monkeypatch):
    monkeypatch.setattr(connections, "STALLED", 0.5, raising=False)
    large = served.workspace.images / "large.png"
    large.parent.mkdir(parents=True, exist_ok=True)
    large.write_bytes(b"x" * (40 << 20))
    server = served.blocks.server.server_state
    wait_until(lambda: not server.tasks)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", served.blocks.server_port))
        deaf.sendall(f"GET /{served.page.file_url(large)} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        wait_until(lambda: server.tasks)
        wait_until(lambda: not server.tasks, 20)
    large.unlink()


def test_of_strangers_that_have_had_their_share_nothing_is_read_while_a_job_runs(served, monkeypatch):
    """A page costs 20 units and a flood of requests for it leaves fewer; who has the page open is answered all the same."""
    from tabs.traffic import Traffic

    reached, whole = [], Traffic.__call__

    async def counted(traffic, scope, receive, send):
        reached.append(scope["path"])
        await whole(traffic, scope, receive, send)

    monkeypatch.setattr(Traffic, "__call__", counted)
    cookie = ask(served, "GET", "/")[2]["set-cookie"].partition(";")[0]
    budget = served.blocks.server.config.http_protocol_class.budget
    monkeypatch.setattr(budget, "_is_needed", lambda: True)
    monkeypatch.setattr(budget, "_others", Bucket(rate=0.001, most=60))
    assert ask(served, "GET", "/theme.css", cookie=cookie)[0] == 200
    while (answer := ask(served, "GET", "/"))[0] == 200:
        pass
    assert reached == ["/", "/theme.css", "/", "/", "/"], "three pages are 60 units; the fourth was refused unread"
    assert answer[0] == 503 and int(answer[2]["retry-after"]) > 0 and json.loads(answer[1])["detail"]
    reached.clear()
    assert [ask(served, "GET", path)[0] for path in ("/", "/?x=1", "/config")] == [503] * 3 and not reached
    assert ask(served, "GET", "/", cookie=cookie)[0] == 200 and reached == ["/"]
    with socket.create_connection(("127.0.0.1", served.blocks.server_port), timeout=60) as parts:
        for part in ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", f"Cookie: {cookie}\r\n\r\n"):
            parts.sendall(part.encode())
            time.sleep(0.3)
        assert parts.recv(12) == b"HTTP/1.1 200"
