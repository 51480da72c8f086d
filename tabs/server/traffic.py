"""What a request may bring: tries to log in, messages, uploads. What asks for more gets a plain answer at once."""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import shutil
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from core.record.units import size_words
from tabs.server.connections import LOGIN, Limits

SILENCE = 20.0  # seconds without a byte of a message that is still arriving
ARRIVAL = 60.0  # seconds until a message that is no upload has arrived
MOST_LOGIN = 16 << 10  # bytes
YEAR = 365 * 24 * 3600
OPENS = ("/", "/atelier/pulse")  # with the page, or a tick of one that was open as the server started again
OPEN_ENDED = ("/gradio_api/heartbeat/", "/gradio_api/upload_progress")
UPLOAD = "/gradio_api/upload"
MOST_MESSAGE = 8 << 20  # bytes of a message that is no upload
MOST_SHARED = 4 << 30  # bytes of one upload to a shared page
MOST_SHARED_HOUR = 16 << 30  # bytes that one address uploads in an hour
SPARE = 1 << 30  # bytes that stay free on the disk


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


class GivenUp(Exception):
    """A message of which no more is read."""


class TooLarge(GivenUp):
    pass


class TooSlow(GivenUp):
    pass


class Traffic:
    """ASGI middleware behind the gate. How many requests come, connections.py limits."""

    def __init__(
        self,
        app: Any,
        folder: Path,
        *,
        shared: bool,
        limits: Limits,
        delays: Delays | None = None,
        say: Callable[[str], Any] = print,
    ):
        self.app, self.folder, self.shared, self.say = app, folder, shared, say
        self.limits, self.delays = limits, delays or Delays()
        self._uploaded: dict[str, deque[list[float]]] = defaultdict(deque)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, posts = scope["path"], scope["method"] == "POST"
        key, closed = self.limits.key_of(Request(scope)), self.limits.logins() is not None
        streams = path.startswith(OPEN_ENDED)
        scope["logged_in"] = bool(key) or not closed
        cookie, guests = f"atelier-guest-{scope['server'][1]}", closed and self.shared
        browser = Request(scope).cookies.get(cookie, "")
        scope["guest"] = _guest(browser or key) if key and guests and not self.limits.is_owner(key) else ""
        if (
            guests and path == "/" and not browser
        ):  # who logs in again is the same guest, with the same share of the queue
            send = _with_cookie(
                send, f"{cookie}={secrets.token_hex(16)}; Path=/; HttpOnly; SameSite=Lax; Max-Age={YEAR}"
            )
        if not key and (streams or (closed and _needs_login(scope["method"], path))):  # before a byte of it is read
            await _refuse(401, "Not authenticated", None)(scope, receive, send)
        elif streams:
            await self.app(scope, receive, send)
        elif posts and path.rstrip("/") == LOGIN:
            await self._login(scope, receive, send)
        elif posts and path.rstrip("/") == UPLOAD:
            await self._upload(scope, receive, send)
        else:
            if path in OPENS and not key and (new := self.limits.new_key()):
                send = _with_cookie(send, f"atelier-{scope['server'][1]}={new}; Path=/; HttpOnly; SameSite=Lax")
            await self._answer(scope, receive, send, MOST_MESSAGE)

    async def _login(self, scope: Any, receive: Any, send: Any) -> None:
        address = _address(scope)

        async def heard(message: Any) -> None:
            if message["type"] == "http.response.start":
                if message["status"] < 400:
                    self.delays.succeeded(address)
                else:
                    self.say(f"{time.strftime('%H:%M:%S')}  A login from {address} failed.")
            await send(message)

        await asyncio.sleep(self.delays.begin(address))
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
        except ClientDisconnect:
            pass  # nobody is left to answer
        except GivenUp as error:
            if not began:
                late = isinstance(error, TooSlow)
                words = "The message did not arrive in time." if late else "This is too large."
                await _refuse(408 if late else 413, words, None)(scope, receive, send)
        return taken


def _address(scope: Any) -> str:
    return (scope.get("client") or ("?",))[0]


def _needs_login(method: str, path: str) -> bool:
    """Messages, but for the login itself: they only take room while nobody is logged in."""
    return method not in ("GET", "HEAD") and path.rstrip("/") != LOGIN


def _guest(secret: str) -> str:
    """What a guest is called: nothing by which another one could pass for them."""
    return hashlib.blake2s(secret.encode(), digest_size=6).hexdigest()


def _with_cookie(send: Any, cookie: str) -> Any:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message["headers"], (b"set-cookie", cookie.encode())]}
        await send(message)

    return sent


def _refuse(status: int, words: str, retry_after: int | None) -> JSONResponse:
    headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}
    return JSONResponse({"detail": words, "error": words}, status, headers)
