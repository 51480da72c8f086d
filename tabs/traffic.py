"""How much the page takes at once: requests, tries to log in, uploads. What asks for more gets a plain answer at once."""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse

from core.record.units import size_words
from tabs.budget import Budget
from tabs.visitors import Visitors

AT_ONCE = 48  # requests that are answered at the same time
STRANGERS = 16  # of them, those of strangers: not logged in, or of no browser that has opened the page
UPLOADS = 16  # of them, uploads, which may take long
SILENCE = 20.0  # seconds without a byte of a message that is still arriving
ARRIVAL = 60.0  # seconds until a message that is no upload has arrived
MOST_LOGIN = 16 << 10  # bytes
STREAMS = 256  # connections that stay open: one for each browser, and its uploads
STRANGE_STREAMS = 64  # of them, those of strangers
OPEN_ENDED = ("/gradio_api/heartbeat/", "/gradio_api/upload_progress")
LOGIN = "/login"
UPLOAD = "/gradio_api/upload"
MOST_MESSAGE = 8 << 20  # bytes of a message that is no upload
MOST_SHARED = 4 << 30  # bytes of one upload to a shared page
MOST_SHARED_HOUR = 16 << 30  # bytes that one address uploads in an hour
SPARE = 1 << 30  # bytes that stay free on the disk
BUSY = b'{"detail": "The page is busy. Try again in a moment.", "error": "The page is busy. Try again in a moment."}'


@dataclass
class Tries:
    """Tries to log in. Each counts as failed until it has succeeded, so that many at once do not slip through."""

    most: int = 10  # failures of one address within `window` seconds
    most_of_all: int = 200  # of all together: from then on each waits the longest
    window: float = 900.0
    longest: float = 8.0
    clock: Callable[[], float] = time.monotonic
    _failed: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def begin(self, address: str) -> float | None:
        """Seconds to wait before the password is looked at; None: not now."""
        now = self.clock()
        for known in [each for each, times in self._failed.items() if not times or times[-1] < now - self.window]:
            del self._failed[known]
        mine = self._failed[address]
        while mine and mine[0] < now - self.window:
            mine.popleft()
        if len(mine) >= self.most:
            return None
        wait = min(0.25 * 2 ** len(mine), self.longest) if mine else 0.0
        many = sum(len(times) for times in self._failed.values()) >= self.most_of_all
        mine.append(now)
        return self.longest if many else wait

    def succeeded(self, address: str) -> None:
        self._failed.pop(address, None)

    def retry_after(self, address: str) -> int:
        times = self._failed.get(address)
        return max(1, round(times[0] + self.window - self.clock())) if times else 1


class GivenUp(Exception):
    """A message of which no more is read."""


class TooLarge(GivenUp):
    pass


class TooSlow(GivenUp):
    pass


class Traffic:
    """ASGI middleware behind the gate."""

    def __init__(
        self,
        app: Any,
        folder: Path,
        *,
        shared: bool,
        tries: Tries | None = None,
        say: Callable[[str], Any] = print,
        budget: Budget | None = None,
        logged_in: Callable[[Request], bool] = lambda request: True,
    ):
        self.app, self.folder, self.shared, self.say = app, folder, shared, say
        self._logged_in, self.visitors = logged_in, Visitors()
        self.tries, self.budget = tries or Tries(), budget or Budget()
        self._now = self._strangers = self._uploads = self._open = self._strange_open = 0
        self._uploaded: dict[str, deque[list[float]]] = defaultdict(deque)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, request = scope["path"], Request(scope)
        logged_in, browser = self._logged_in(request), self.visitors.of(request)
        if not logged_in and _needs_login(scope["method"], path):  # before a byte of what they send is read
            await _refuse(401, "Not authenticated", None)(scope, receive, send)
            return
        strange = not (logged_in and (browser or self.shared))
        who = _address(scope) if strange or not browser else browser
        wait = self.budget.wait(scope["method"], path, who, not strange and self.visitors.is_senior(browser))
        if wait:
            await _busy(send, wait)
            return
        if path.startswith(OPEN_ENDED):
            await self._stream(scope, receive, send, strange, browser)
            return
        logs_in = path.rstrip("/") == LOGIN and scope["method"] == "POST"
        if logs_in and not await self._may_try(scope, receive, send):  # who waits for a login takes no place of others
            return
        uploads = path.rstrip("/") == UPLOAD and scope["method"] == "POST"
        if self._now >= AT_ONCE or (strange and self._strangers >= STRANGERS) or (uploads and self._uploads >= UPLOADS):
            await _busy(send, 2)
            return
        if path == "/" and logged_in and not browser:
            send = _with_cookie(send, self.visitors.new(request))
        self._now += 1
        self._strangers += strange
        self._uploads += uploads
        try:
            if logs_in:
                await self._login(scope, receive, send)
            elif uploads:
                await self._upload(scope, receive, send)
            else:
                await self._answer(scope, receive, send, MOST_MESSAGE)
        finally:
            self._now -= 1
            self._strangers -= strange
            self._uploads -= uploads

    async def _stream(self, scope: Any, receive: Any, send: Any, strange: bool, browser: str) -> None:
        if self._open >= STREAMS or (strange and self._strange_open >= STRANGE_STREAMS):
            await _refuse(503, "The page has too many visitors right now.", 10)(scope, receive, send)
            return
        self._open += 1
        self._strange_open += strange
        try:
            await self.app(scope, receive, send)
        finally:
            self._open -= 1
            self._strange_open -= strange
            if not strange:
                self.visitors.leave(browser)

    async def _may_try(self, scope: Any, receive: Any, send: Any) -> bool:
        """Wait as long as this address has to; False, and answered, where it may not try now."""
        who = self._who(scope)
        wait = self.tries.begin(who)
        if wait is None:
            after = self.tries.retry_after(who)
            words = f"Too many failed logins. Try again in {after // 60 + 1} minutes."
            await _refuse(429, words, after)(scope, receive, send)
            return False
        await asyncio.sleep(wait)
        return True

    def _who(self, scope: Any) -> str:
        """A browser that was logged in before, whose tries those of others at its address do not use up; or the address."""
        return self.visitors.of(Request(scope)) or _address(scope)

    async def _login(self, scope: Any, receive: Any, send: Any) -> None:
        async def heard(message: Any) -> None:
            if message["type"] == "http.response.start":
                if message["status"] < 400:
                    self.tries.succeeded(self._who(scope))
                else:
                    self.say(f"{time.strftime('%H:%M:%S')}  A login from {_address(scope)} failed.")
            await send(message)

        await self._answer(scope, receive, heard, MOST_LOGIN)

    async def _upload(self, scope: Any, receive: Any, send: Any) -> None:
        address = _address(scope)
        said = Headers(scope=scope).get("content-length", "")
        size = int(said) if said.isdigit() else 0
        most, refusal = self._most(address), None
        if size > most:
            refusal = _refuse(
                413 if size > MOST_SHARED else 429, f"At most {size_words(most)} can be uploaded now.", 3600
            )
        elif 2 * size + SPARE > self._free():  # as it arrives, and as it is taken in
            refusal = _refuse(507, f"The disk has no room for {size_words(size)}.", None)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        counted = [time.monotonic(), size]  # from the start: others that come meanwhile find less
        self._uploaded[address].append(counted)
        counted[1] = await self._answer(scope, receive, send, most, math.inf)

    def _most(self, address: str) -> float:
        """Bytes that this address may upload now."""
        if not self.shared:
            return max(self._free() - SPARE, 0)
        recent = self._uploaded[address]
        while recent and recent[0][0] < time.monotonic() - 3600:
            recent.popleft()
        return max(min(MOST_SHARED, MOST_SHARED_HOUR - sum(size for _, size in recent)), 0)

    def _free(self) -> int:
        there = next(place for place in (self.folder, *self.folder.parents) if place.exists())
        return shutil.disk_usage(there).free

    async def _answer(self, scope: Any, receive: Any, send: Any, most: float, arrival: float | None = None) -> int:
        """Hand the request on; bytes that came with it."""
        taken, began, whole = 0, False, False
        end = time.monotonic() + (ARRIVAL if arrival is None else arrival)

        async def counted() -> Any:
            nonlocal taken, whole
            try:  # once it is there, what is waited for is that the browser leaves
                message = await asyncio.wait_for(receive(), None if whole else min(SILENCE, end - time.monotonic()))
            except TimeoutError:
                raise TooSlow from None
            whole = not message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > most:
                raise TooLarge
            return message

        async def heard(message: Any) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
            await send(message)

        try:
            await self.app(scope, counted, heard)
        except GivenUp as error:
            if not began:
                late = isinstance(error, TooSlow)
                words = "The message did not arrive in time." if late else "This is too large."
                await _refuse(408 if late else 413, words, None)(scope, receive, send)
        return taken


def _address(scope: Any) -> str:
    return (scope.get("client") or ("?",))[0]


def _needs_login(method: str, path: str) -> bool:
    """What only takes room while nobody is logged in: messages, but for the login itself, and open streams."""
    return path.startswith(OPEN_ENDED) or (method not in ("GET", "HEAD") and path.rstrip("/") != LOGIN)


def _with_cookie(send: Any, cookie: str) -> Any:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message["headers"], (b"set-cookie", cookie.encode())]}
        await send(message)

    return sent


async def _busy(send: Any, wait: float) -> None:
    """The cheapest answer that there is: many of them must not slow what runs."""
    length, after = str(len(BUSY)).encode(), str(math.ceil(wait)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"retry-after", after)]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": BUSY})


def _refuse(status: int, words: str, retry_after: int | None) -> JSONResponse:
    headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}
    return JSONResponse({"detail": words, "error": words}, status, headers)
