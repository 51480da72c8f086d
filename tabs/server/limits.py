"""How much the server takes: a table of what each source of requests may ask for, and connections that end where nothing is asked or read.

A source is an open page or an address. A page with a login is known by the login, one without by a cookie that a browser gets as it
opens the page, or with the first tick after the server has started again. So a flood takes nothing from an open page, not even one
from its own address (a share link, a proxy, this machine)."""

from __future__ import annotations

import asyncio
import functools
import math
import re
import secrets
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

import h11
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

LOGIN = "/login"
FILE, OWN, CALL = (
    1.0,
    3.0,
    10.0,
)  # units: a file, a tick or other message of our own, a listener of Gradio or the page itself
TABLE = {  # source: units that come back in each second, units at once, requests answered at once
    "page": (40.0, 1500.0, 64),
    "address": (5.0, 200.0, 16),
    "addresses": (20.0, 400.0, 24),  # all together
    "tries": (20.0, 60.0, 32),  # to log in, of one address
    "all tries": (20.0, 60.0, 64),
}
BROWSERS = 8  # that have a page without a login open
KEY = re.compile(r"atelier-\d+|access-token[\w-]*")
AT_ONCE = 256  # connections
SILENT = 100  # of them, those that wait for a request; beyond them the one that waits the longest ends
PATIENCE = 20.0  # seconds for the head of a request
STALLED = 60.0  # seconds in which nothing of an answer is read
LONGEST_HEAD = 1 << 16  # bytes


@dataclass
class Meter:
    """What one source has asked for: units, and requests that are being answered."""

    per_second: float
    most: float
    most_running: float = math.inf
    clock: Callable[[], float] = time.monotonic
    running: int = 0
    _spent: float = 0.0
    _at: float = 0.0

    def has_room(self, cost: float) -> bool:
        now = self.clock()
        self._spent, self._at = max(self._spent - (now - self._at) * self.per_second, 0.0), now
        return self.running < self.most_running and self._spent + cost <= self.most

    def add(self, cost: float) -> None:
        self._spent += cost
        self.running += 1


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
        self.logins, self.is_owner, self.table = logins, is_owner, TABLE
        self.browsers: dict[str, Meter] = {}  # of each that opened a page without a login, the oldest first
        self.meter = functools.lru_cache(1000)(lambda row, source: Meter(*self.table[row]))

    def key_of(self, request: Request) -> str:
        """The login or the browser's key among the cookies; "" for a stranger."""
        logins = self.logins()
        known = self.browsers if logins is None else logins
        cookies = request.cookies.items()
        return next((value for name, value in cookies if KEY.fullmatch(name) and value in known), "")

    def new_key(self) -> str:
        """A key for a browser that opens a page without a login; "" while there are enough. An open page keeps a stream (Gradio's
        heartbeat); who has none leaves its place."""
        if self.logins() is not None:
            return ""
        if len(self.browsers) >= BROWSERS:
            gone = next((key for key, meter in self.browsers.items() if not meter.running), "")
            if not gone:
                return ""
            del self.browsers[gone]
        key = secrets.token_hex(16)
        self.browsers[key] = Meter(*self.table["page"])
        return key

    def take(self, method: str, path: str, key: str, address: str) -> list[Meter]:
        """The meters that count this request until its answer is sent; none: it is refused."""
        cost = _cost(method, path)
        if key:
            meters = [self.browsers.get(key) or self.meter("page", key)]
        elif method == "POST" and path.rstrip("/") == LOGIN:
            meters, cost = [self.meter("tries", address), self.meter("all tries", "")], 1.0
        else:
            meters = [self.meter("address", address), self.meter("addresses", "")]
        if not all(meter.has_room(cost) for meter in meters):
            return []
        for meter in meters:
            meter.add(cost)
        return meters


def _cost(method: str, path: str) -> float:
    if method in ("GET", "HEAD"):
        return CALL if path in ("/", "/config") else FILE
    return OWN if path.startswith("/atelier/") else CALL


@dataclass
class Delays:
    """How long the next try to log in from an address waits. Each counts as failed until it has succeeded, so that many at
    once do not slip through. The right password is never refused: who fails behind the same share link only delays it."""

    longest: float = 8.0  # with 32 waiting at once, four guesses a second
    forgotten: float = 900.0
    clock: Callable[[], float] = time.monotonic
    _failed: dict[str, tuple[int, float]] = field(default_factory=dict)  # how often, and when last

    def begin(self, address: str) -> float:
        now = self.clock()
        self._failed = {each: kept for each, kept in self._failed.items() if kept[1] > now - self.forgotten}
        failed = self._failed.get(address, (0, now))[0]
        self._failed[address] = (failed + 1, now)
        return min(0.25 * 2 ** min(failed, 9), self.longest) if failed else 0.0

    def succeeded(self, address: str) -> None:
        self._failed.pop(address, None)


def limit_connections(server: Any) -> None:
    """From now on connections to this uvicorn server are limited ones."""
    server.config.http_protocol_class = Connection
    server.config.limit_concurrency = AT_ONCE
    server.config.h11_max_incomplete_event_size = LONGEST_HEAD


class Connection(H11Protocol):
    """uvicorn's connection, which ends when the head of a request takes too long or nothing of an answer is read."""

    _patience: asyncio.TimerHandle | None = None  # while the head of a request is waited for
    _stalls: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_head()

    def _wait_for_head(self) -> None:
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._end_patience()
        elif self._patience is None:
            self._patience = self.loop.call_later(PATIENCE, self.transport.close)
            silent = [each for each in self.connections if getattr(each, "_patience", None)]
            if len(silent) > SILENT:
                first = min(silent, key=lambda each: each._patience.when())
                first.transport.close()
                first._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_patience()
        self._end_stall()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The other side has not read what it was sent."""
        super().pause_writing()
        self._stalls = self.loop.call_later(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _end_stall(self) -> None:
        if self._stalls is not None:
            self._stalls.cancel()
