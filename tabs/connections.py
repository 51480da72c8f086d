"""Connections as the server takes them. Those on which nothing happens: each has a limited time for the head of its request and
for reading its answer, and those that wait for a request a limited number. Who opens hundreds and says nothing, or a letter a
second, keeps nobody out. Those of strangers while a job runs and they have had their share: refused before the request is read."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from tabs.budget import Budget
from tabs.traffic import BUSY
from tabs.visitors import cookie_at

PATIENCE = 20.0  # seconds for the head of a request
STALLED = 60.0  # seconds in which nothing of an answer is read
MOST = 200  # connections that wait for one; beyond them the one that waits the longest ends


def limit(server: Any, budget: Budget) -> None:
    """From now on connections to this uvicorn server are limited ones."""
    server.config.http_protocol_class = type("LimitedHere", (Limited,), {"waiting": {}, "budget": budget})


class Limited(H11Protocol):
    """uvicorn's connection, which by itself ends only once it has answered a first request and hears no more."""

    waiting: dict[Limited, asyncio.TimerHandle]  # of one server, the longest first
    budget: Budget
    _stalls: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        wait = 0.0 if self.cycle else self._stranger_waits(data)
        if not wait:
            super().data_received(data)
        elif not self.transport.is_closing():
            self.transport.write(_refusal(wait))
            self.transport.close()

    def _stranger_waits(self, data: bytes) -> float:
        """Seconds for which the request of this head is refused to all without a cookie of this page, and it has none. A head
        that arrived in parts is read as others are: its cookie may be still to come."""
        method, _, rest = data.partition(b" ")
        if self.server is None or b"\r\n\r\n" not in rest or cookie_at(self.server[1]).encode() in rest:
            return 0.0
        path = rest.partition(b" ")[0].partition(b"?")[0]
        return self.budget.wait_of_strangers(method.decode("latin-1"), path.decode("latin-1"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self._stall_no_more()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The other side has not read what it was sent."""
        super().pause_writing()
        self._stalls = self.loop.call_later(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        self._stall_no_more()
        super().resume_writing()

    def handle_events(self) -> None:
        super().handle_events()
        if self._is_asked():
            self._wait_no_more()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_asked():
            self._wait()

    def _is_asked(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._wait_no_more()
        if self.transport.is_closing():
            return
        self.waiting[self] = self.loop.call_later(PATIENCE, self._end)
        if len(self.waiting) > MOST:
            next(iter(self.waiting))._end()

    def _wait_no_more(self) -> None:
        if timer := self.waiting.pop(self, None):
            timer.cancel()

    def _stall_no_more(self) -> None:
        if self._stalls:
            self._stalls.cancel()

    def _end(self) -> None:
        self._wait_no_more()
        if self.transport.get_write_buffer_size():  # closing would wait until it is read
            self.transport.abort()
        else:
            self.transport.close()


def _refusal(wait: float) -> bytes:
    head = f"HTTP/1.1 503 Busy\r\ncontent-type: application/json\r\ncontent-length: {len(BUSY)}\r\nretry-after: {math.ceil(wait)}"
    return f"{head}\r\nconnection: close\r\n\r\n".encode() + BUSY
