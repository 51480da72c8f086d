"""What is checked of every request before anything answers it: how many come (limits.py), the host it names and the site it comes
from (hosts.py), whether the page uses that address, the login, and what it may bring. What asks for more gets a plain answer at once."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import secrets
import shutil
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from core.record.units import size_words
from tabs.server.hosts import Hosts
from tabs.server.limits import LOGIN, Delays, Limits

SAFE_METHODS = ("GET", "HEAD")
FRAMED = "frame-ancestors 'self'; object-src 'none'; base-uri 'self'; "
GUARDS = {
    "X-Frame-Options": "SAMEORIGIN",
    "Content-Security-Policy": FRAMED + "script-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
# Of the page itself: only its own scripts run, which carry the nonce; Gradio makes functions of the texts that it calls `js`.
SCRIPTS = FRAMED + "script-src 'self' blob: 'unsafe-eval' 'nonce-{}'; script-src-attr 'none'"
UPLOAD = "/gradio_api/upload"
USED = re.compile(  # of the addresses that Gradio answers: no queue, no API docs, no files by path, no server functions
    r"/|/(config|login|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/pwa_icon(/(192|512))?|/(assets|static|atelier)/[ -~]{1,200}"
    r"|/gradio_api/(run/predict|upload|upload_progress|startup-events|app_id|heartbeat/[\w-]{1,64})"
)
OPEN_ENDED = ("/gradio_api/heartbeat/", "/gradio_api/upload_progress")  # streams
OPENS = ("/", "/atelier/pulse")  # with the page, or a tick of one that was open as the server started again
SILENCE = 20.0  # seconds without a byte of a message that is still arriving
ARRIVAL = 60.0  # seconds until a message that is no upload has arrived
MOST_LOGIN = 16 << 10  # bytes
MOST_MESSAGE = 8 << 20  # bytes of a message that is no upload
MOST_SHARED = 4 << 30  # bytes of one upload to a shared page
MOST_SHARED_HOUR = 16 << 30  # bytes that one address uploads in an hour
SPARE = 1 << 30  # bytes that stay free on the disk
YEAR = 365 * 24 * 3600


class GivenUp(Exception):
    """A message of which no more is read: it is too large, or too slow."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


class Gate:
    """ASGI middleware around everything else."""

    def __init__(
        self,
        app: Any,
        hosts: Hosts,
        limits: Limits,
        folder: Path,
        *,
        shared: bool,
        delays: Delays | None = None,
        say: Callable[[str], Any] = print,
    ):
        self.app, self.hosts, self.limits, self.folder, self.shared, self.say = app, hosts, limits, folder, shared, say
        self.delays = delays or Delays()
        self._uploaded: dict[str, deque[list[float]]] = defaultdict(deque)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no WebSocket
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        key = self.limits.key_of(Request(scope))
        meters = self.limits.take(scope["method"], scope["path"], key, _address(scope))
        refusal = self.refusal(scope, key) if meters else _refuse(503, "The page is busy. Try again in a moment.", 2)
        send = _guarded(send, closes=not key or refusal is not None)  # a stranger asks once with each connection
        try:
            if refusal is None:
                await self._let_in(scope, receive, send, key)
            else:
                await refusal(scope, receive, send)
        finally:
            for meter in meters:
                meter.running -= 1

    def refusal(self, scope: Any, key: str) -> Response | None:
        """The answer to a request that is not for this page, or from nobody who may ask it; None for others."""
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        host = headers.getlist("host")
        arrived_at = str((scope.get("server") or ("",))[0])
        if len(host) != 1 or not self.hosts.admits(host[0], arrived_at):
            shown = host[0][:100] if host else ""
            fix = "Open the address printed at startup, or start with --host NAME."
            return PlainTextResponse(f"This page does not answer under the name '{shown}'. {fix}", 403)
        if not self._from_here(method, headers, host[0]):
            return PlainTextResponse("Requests from other sites are refused.", 403)
        if not USED.fullmatch(path):
            return PlainTextResponse("There is no such address.", 404)
        # Messages, but for the login itself, and files: they only take room while nobody is logged in.
        private = path.startswith("/atelier/") or not (method in SAFE_METHODS or path.rstrip("/") == LOGIN)
        if not key and (path.startswith(OPEN_ENDED) or (private and self.limits.logins() is not None)):
            return _refuse(401, "Not authenticated")
        return None

    def _from_here(self, method: str, headers: Headers, host: str) -> bool:
        """Whether the page itself asks, or no browser does. A link on another site may lead here: that reads nothing."""
        origins = headers.getlist("origin")
        if origins:
            return len(origins) == 1 and self.hosts.is_own_site(origins[0], host)
        if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
            return True
        document = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return method in SAFE_METHODS and document

    async def _let_in(self, scope: Any, receive: Any, send: Any, key: str) -> None:
        path, port, closed = scope["path"], scope["server"][1], self.limits.logins() is not None
        scope["logged_in"] = bool(key) or not closed
        cookie, guests = f"atelier-guest-{port}", closed and self.shared
        browser = Request(scope).cookies.get(cookie, "")
        scope["guest"] = _guest(browser or key) if key and guests and not self.limits.is_owner(key) else ""
        # Who logs in again is the same guest, with the same share of the queue.
        if guests and path == "/" and not browser:
            send = _with_cookie(send, f"{cookie}={secrets.token_hex(16)}; Path=/; HttpOnly; Max-Age={YEAR}")
        if path.startswith(OPEN_ENDED):
            await self.app(scope, receive, send)
        elif scope["method"] == "POST" and path.rstrip("/") == LOGIN:
            await self._login(scope, receive, send)
        elif scope["method"] == "POST" and path == UPLOAD:
            await self._upload(scope, receive, send)
        else:
            if path in OPENS and not key and (new := self.limits.new_key()):
                send = _with_cookie(send, f"atelier-{port}={new}; Path=/; HttpOnly")
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
            status = 413 if size > MOST_SHARED else 429
            refusal = _refuse(status, f"At most {size_words(most)} can be uploaded now.", 3600)
        elif 2 * size + SPARE > self._free():  # as it arrives, and as it is taken in
            refusal = _refuse(507, f"The disk has no room for {size_words(size)}.")
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
        given_up: GivenUp | None = None
        end = time.monotonic() + (ARRIVAL if arrival is None else arrival)

        async def counted() -> Any:
            nonlocal taken, whole, given_up
            try:  # once it is there, what is waited for is that the browser leaves
                message = await asyncio.wait_for(receive(), None if whole else min(SILENCE, end - time.monotonic()))
            except TimeoutError:
                given_up = GivenUp(408, "The message did not arrive in time.")
                raise given_up from None
            whole = not message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > most:
                given_up = GivenUp(413, "This is too large.")
                raise given_up
            return message

        async def heard(message: Any) -> None:
            nonlocal began
            began = began or given_up is None
            if began:  # else it is about a message that was cut off here
                await send(message)

        with suppress(ClientDisconnect, GivenUp):  # after the first nobody is left to answer
            await self.app(scope, counted, heard)
        if given_up is not None and not began:
            await _refuse(given_up.status, str(given_up))(scope, receive, send)
        return taken


def _guarded(send: Any, closes: bool) -> Any:
    """Answers that no other site may frame or sniff, and cookies that it does not send along. closes: the connection ends then."""

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in GUARDS.items():
                headers.setdefault(name, value)
            if closes:
                headers["Connection"] = "close"
            message["headers"] = [
                (name, lax(value) if name.lower() == b"set-cookie" else value)
                for name, value in message["headers"]
                if not name.lower().startswith(b"access-control-")
            ]
        await send(message)

    return sent


def lax(cookie: bytes) -> bytes:
    """A Set-Cookie header whose cookie goes along with requests of this site only (and with links that lead here)."""
    parts = [part for part in cookie.split(b";") if not part.strip().lower().startswith(b"samesite")]
    return b";".join([*parts, b" SameSite=Lax"])


def _with_cookie(send: Any, cookie: str) -> Any:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message["headers"], (b"set-cookie", cookie.encode())]}
        await send(message)

    return sent


def _address(scope: Any) -> str:
    return (scope.get("client") or ("?",))[0]


def _guest(secret: str) -> str:
    """What a guest is called: nothing by which another one could pass for them."""
    return hashlib.blake2s(secret.encode(), digest_size=6).hexdigest()


def _refuse(status: int, words: str, retry_after: int | None = None) -> JSONResponse:
    """No more of this connection is read."""
    headers = {"Connection": "close"} | ({"Retry-After": str(retry_after)} if retry_after is not None else {})
    return JSONResponse({"detail": words, "error": words}, status, headers)
