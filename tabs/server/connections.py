"""How much the server takes: connections at once, requests in a second. What is more gets a 503 before anything reads it.

Each open page has a measure of its own, so that a flood takes nothing from it, not even one from its own address (a share
link, a proxy, this machine). A page with a login is known by the login, one without by a cookie that a browser gets as it
opens the page, or with the first tick after the server has started again. All others are strangers: few at once, with little
for each address, and one request for each connection."""

from __future__ import annotations

import asyncio
import functools
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import h11
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

AT_ONCE = 256  # connections
SILENT = 100  # of them, those that have not asked yet; beyond them the one that waits the longest ends
STRANGERS = 16  # of them, those of strangers that are being answered
PATIENCE = 20.0  # seconds for the head of the first request
STALLED = 60.0  # seconds in which nothing of an answer is read
LONGEST_HEAD = 1 << 16  # bytes
FILE, CALL = 1.0, 10.0  # about 1 ms of a core; a call of a handler and the page itself take more
PAGE = (100.0, 1500.0)  # of one open page: in each second, and at once
ADDRESS, ADDRESSES = (5.0, 200.0), (20.0, 400.0)  # of the strangers of one address, and of all
TRIES = (20.0, 60.0)  # to log in, of all, at a cost of 1
TRYING, TRYING_EACH = 64, 32  # at once: of all, and of one address
LOGIN = "/login"
BROWSERS = 8  # that have a page without a login open
KEYS = re.compile(rb"(?:^|[ ;])(?:atelier-\d+|access-token[\w-]*)=([\w-]+)")
BUSY = b'{"detail": "The page is busy. Try again in a moment.", "error": "The page is busy. Try again in a moment."}'
REFUSAL = (
    b"HTTP/1.1 503 Busy\r\ncontent-type: application/json\r\ncontent-length: %d\r\nretry-after: 2\r\nconnection: close\r\n\r\n%s"
    % (len(BUSY), BUSY)
)


@dataclass
class Rate:
    """`most` at once, and `per_second` come back in each second."""

    per_second: float
    most: float
    clock: Callable[[], float] = time.monotonic
    _spent: float = 0.0
    _at: float = 0.0

    def takes(self, cost: float) -> bool:
        now = self.clock()
        self._spent, self._at = max(self._spent - (now - self._at) * self.per_second, 0.0), now
        if self._spent + cost > self.most:
            return False
        self._spent += cost
        return True


class Limits:
    """Which requests of one server are answered.

    logins   the tokens of those who are logged in; None: the page has no login
    is_owner whether a token is that of the owner's login
    """

    def __init__(
        self,
        logins: Callable[[], Container[str] | None] = lambda: None,
        is_owner: Callable[[str], bool] = lambda token: False,
    ):
        self.logins, self.is_owner = logins, is_owner
        self.silent: dict[Limited, None] = {}  # the longest first
        self.strangers: set[Limited] = set()
        self.trying: dict[Limited, str] = {}  # the address of each that waits for a login
        self.browsers: dict[str, int] = {}  # connections of each that opened a page without a login, the oldest first
        self.page = functools.lru_cache(1000)(lambda key: Rate(*PAGE))
        self.address = functools.lru_cache(1000)(lambda address: Rate(*ADDRESS))
        self.addresses, self.tries = Rate(*ADDRESSES), Rate(*TRIES)

    def key_in(self, cookies: bytes) -> str:
        """The login or the browser's key that stands in there; "" for a stranger."""
        logins = self.logins()
        known = self.browsers if logins is None else logins
        return next((key for found in KEYS.findall(cookies) if (key := found.decode()) in known), "")

    def key_of(self, request: Request) -> str:
        return self.key_in(request.headers.get("cookie", "").encode("latin-1"))

    def lets_in(self, request: Request) -> bool:
        """Whether the page has no login, or this request comes from one."""
        return self.logins() is None or bool(self.key_of(request))

    def new_key(self) -> str:
        """A key for a browser that opens a page without a login; "" while there are enough. Who has no connection leaves its place."""
        if self.logins() is not None:
            return ""
        if len(self.browsers) >= BROWSERS:
            gone = next((key for key, connections in self.browsers.items() if not connections), "")
            if not gone:
                return ""
            del self.browsers[gone]
        key = secrets.token_hex(16)
        self.browsers[key] = 0
        return key

    def take(self, head: bytes, key: str, address: str) -> bool:
        method, path = _asked(head)
        cost = FILE if method in ("GET", "HEAD") and path not in ("/", "/config") else CALL
        if key:
            return self.page(key).takes(cost)
        if logs_in(head):
            few = len(self.trying) < TRYING and Counter(self.trying.values())[address] < TRYING_EACH
            return few and self.tries.takes(1)
        few = len(self.strangers) < STRANGERS
        return few and self.address(address).takes(cost) and self.addresses.takes(cost)

    def count(self, key: str, change: int) -> None:
        if key in self.browsers:
            self.browsers[key] += change


def _asked(head: bytes) -> tuple[str, str]:
    """Method and path."""
    method, _, rest = head.partition(b" ")
    return method.decode("latin-1"), rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")


def logs_in(head: bytes) -> bool:
    method, path = _asked(head)
    return method == "POST" and path.rstrip("/") == LOGIN


def limit(server: Any, limits: Limits) -> None:
    """From now on connections to this uvicorn server are limited ones."""
    server.config.http_protocol_class = type("LimitedHere", (Limited,), {"limits": limits})
    server.config.limit_concurrency = AT_ONCE


class Limited(H11Protocol):
    """uvicorn's connection, of which the head of each request is looked at before it is parsed."""

    limits: Limits
    _head, _key = b"", ""
    _patience: asyncio.TimerHandle | None = None
    _stalls: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._patience = self.loop.call_later(PATIENCE, transport.close)
        self.limits.silent[self] = None
        if len(self.limits.silent) > SILENT:
            next(iter(self.limits.silent))._asks().close()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.conn.their_state is not h11.IDLE:  # of a request that was let in
            super().data_received(data)
            return
        self._head += data
        if b"\r\n\r\n" not in self._head and len(self._head) <= LONGEST_HEAD:
            return
        head, self._head = self._head, b""
        self._asks()
        self._known_by(self.limits.key_in(head))
        address = self.client[0] if self.client else ""
        if not self.limits.take(head, self._key, address):
            self.transport.write(REFUSAL)
            self.transport.close()
            return
        super().data_received(head)
        if not self._key and self.cycle:
            if logs_in(head):
                self.limits.trying[self] = address
            else:
                self.limits.strangers.add(self)
            self.headers.append((b"connection", b"close"))

    def _known_by(self, key: str) -> None:
        self.limits.count(self._key, -1)
        self.limits.count(key, 1)
        self._key = key

    def _asks(self) -> Any:
        """It is waited for no longer; its transport."""
        self.limits.silent.pop(self, None)
        if self._patience:
            self._patience.cancel()
        return self.transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._asks()
        self._known_by("")
        self.limits.strangers.discard(self)
        self.limits.trying.pop(self, None)
        self._reads()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The other side has not read what it was sent."""
        super().pause_writing()
        self._stalls = self.loop.call_later(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        self._reads()
        super().resume_writing()

    def _reads(self) -> None:
        if self._stalls:
            self._stalls.cancel()
