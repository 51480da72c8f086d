"""Rate limits by session and address, delays after failed logins, and timeouts of connections.

A session is an open page: its login token or, without a login, a cookie set when a browser opens the page (or with the first tick
after the server restarts). Each session has rate limits of its own, so a flood takes nothing from an open page, even if both come
from the same address (a share link, a proxy, this machine).
"""

import asyncio
import functools
import math
import re
import secrets
import time
from collections.abc import Callable, Container, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import h11
from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

LOGIN = "/login"
LIMITS = {  # tokens per second, burst, concurrent requests; _cost() says what a request takes
    "session": (40.0, 2000.0, 64),
    "address": (5.0, 200.0, 16),  # requests without a session
    "all addresses": (20.0, 400.0, 24),
    "login": (20.0, 60.0, 32),  # by address; each attempt costs 1
    "all logins": (20.0, 60.0, 64),
}
MAX_SESSIONS = 8  # without a login
SESSION_COOKIE = re.compile(r"atelier-\d+|access-token[\w-]*")
MAX_CONNECTIONS = 256
MAX_SILENT = 100  # connections that wait for a request; when there are more, the oldest is closed
HEAD_TIMEOUT = 20.0  # seconds for the head of a request
WRITE_TIMEOUT = 60.0  # seconds in which a client reads nothing of a response
MAX_HEAD_BYTES = 1 << 16
WAKES = 1.0  # seconds between looks of the main loop


@dataclass
class RateLimit:
    """Token bucket that also limits concurrent requests. rate: tokens per second; burst: tokens of a full bucket; active: number of
    requests being answered."""

    rate: float  # tokens per second
    burst: float
    concurrency: float = math.inf
    clock: Callable[[], float] = time.monotonic
    active: int = 0  # requests
    _spent: float = 0.0
    _updated: float = 0.0

    def allows(self, cost: float) -> bool:
        """Whether there are `cost` tokens and another request may run now. Takes no tokens."""
        now = self.clock()
        self._spent, self._updated = max(self._spent - (now - self._updated) * self.rate, 0.0), now
        return self.active < self.concurrency and self._spent + cost <= self.burst

    def add(self, cost: float) -> None:
        """Take `cost` tokens."""
        self._spent += cost


class Limits:
    """The rate limits of one server.

    logins   () -> {valid login token: user}; None if the page has no login
    owner    the owner's user name
    """

    def __init__(
        self,
        logins: Callable[[], MutableMapping[str, str] | None] = lambda: None,
        owner: str = "",
    ):
        self.logins, self.owner, self.table = logins, owner, LIMITS
        self.sessions: dict[str, RateLimit] = {}  # without a login, oldest first
        self.limit = functools.lru_cache(1000)(lambda kind, source: RateLimit(*self.table[kind]))

    def session_of(self, request: Request) -> str:
        """Return the session of a request, from its cookies; "" if it has no valid one."""
        logins = self.logins()
        valid: Container[str] = self.sessions if logins is None else logins
        cookies = request.cookies.items()
        return next((value for name, value in cookies if SESSION_COOKIE.fullmatch(name) and value in valid), "")

    def user_of(self, session: str) -> str:
        """Return the user name of a session; "" for the owner, and without a login."""
        user = (self.logins() or {}).get(session, "")
        return "" if user == self.owner else user

    def end(self, session: str) -> None:
        """Log a session out."""
        (self.logins() or self.sessions).pop(session, None)

    def new_session(self) -> str:
        """Return a new session for a browser that opens a page without a login; "" for a page with one, or if MAX_SESSIONS are in use.

        An open page keeps a stream (Gradio's heartbeat); a session without any request makes room for a new one.
        """
        if self.logins() is not None:
            return ""
        if len(self.sessions) >= MAX_SESSIONS:
            idle = next((session for session, limit in self.sessions.items() if not limit.active), "")
            if not idle:
                return ""
            del self.sessions[idle]
        session = secrets.token_hex(16)
        self.sessions[session] = RateLimit(*self.table["session"])
        return session

    def acquire(self, method: str, path: str, session: str, address: str) -> list[RateLimit]:
        """Take tokens for a request and count it as active. Return the limits that count it, of which the caller lowers `active` after the
        response; [] if one of them refuses the request."""
        cost = _cost(method, path)
        if session:
            limits = [self.sessions.get(session) or self.limit("session", session)]
        elif method == "POST" and path.rstrip("/") == LOGIN:
            limits, cost = [self.limit("login", address), self.limit("all logins", "")], 1.0
        else:
            limits = [self.limit("address", address), self.limit("all addresses", "")]
        if not all(limit.allows(cost) for limit in limits):
            return []
        for limit in limits:
            limit.add(cost)
            limit.active += 1
        return limits


def _cost(method: str, path: str) -> float:
    """Return the tokens that a request costs: 1 for a file (about 1 ms of CPU time), 10 for the page itself and every message (15 ms)."""
    return 1.0 if method in ("GET", "HEAD") and path not in ("/", "/config") else 10.0


@dataclass
class Delays:
    """Delays of logins, by address. Each attempt counts as failed until it succeeds, so that concurrent attempts wait too.

    longest     seconds of the longest delay
    forgotten   seconds after which failures no longer count
    The right password is never refused: others behind the same share link can only delay it.
    """

    longest: float = 8.0  # with 32 waiting at once, four guesses a second
    forgotten: float = 900.0
    clock: Callable[[], float] = time.monotonic
    _failed: dict[str, tuple[int, float]] = field(default_factory=dict)  # count, time of the last one

    def begin(self, address: str) -> float:
        """Record an attempt and return how many seconds it has to wait."""
        now = self.clock()
        self._failed = {each: failed for each, failed in self._failed.items() if failed[1] > now - self.forgotten}
        count = self._failed.get(address, (0, now))[0]
        self._failed[address] = (count + 1, now)
        return min(0.25 * 2 ** min(count, 9), self.longest) if count else 0.0

    def succeeded(self, address: str) -> None:
        """Forget the failures of an address."""
        self._failed.pop(address, None)


def limit_connections(server: Any) -> None:
    """Install the connection limits on a uvicorn server."""
    server.config.http_protocol_class = Connection
    server.config.h11_max_incomplete_event_size = MAX_HEAD_BYTES


def slow_main_loop(server: Any) -> None:
    """Make the main loop of a running uvicorn server check every WAKES seconds, and when it is closed, whether it should exit.

    uvicorn's ten times a second are most of the time that an idle page takes.
    """
    on_tick, close, closing = server.on_tick, server.close, asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def tick(counter: int) -> bool:
        loops[:] = [asyncio.get_running_loop()]
        if not server.should_exit:
            with suppress(TimeoutError):
                await asyncio.wait_for(closing.wait(), WAKES)
        return bool(await on_tick(0))

    def close_at_once() -> None:
        server.should_exit = True
        for loop in loops:
            loop.call_soon_threadsafe(closing.set)
        close()

    server.on_tick, server.close = tick, close_at_once


class Connection(H11Protocol):
    """uvicorn's connection with timeouts for the head of a request and for a client that does not read the response."""

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the head timer; close the connection if there are more than MAX_CONNECTIONS."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:  # uvicorn's own limit would refuse requests of open connections too
            transport.close()
        self._update_head_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_head_timer()

    def _update_head_timer(self) -> None:
        """Start the timer, or stop it once a complete head has arrived. uvicorn's timeout only ends idle connections before the next first
        byte."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self.transport.close)
            silent: list[Any] = [each for each in self.connections if getattr(each, "_head_timer", None)]
            if len(silent) > MAX_SILENT:
                oldest = min(silent, key=lambda each: each._head_timer.when())
                oldest.transport.close()
                oldest._stop_head_timer()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the write timer, which aborts the connection after WRITE_TIMEOUT."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
