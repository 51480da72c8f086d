"""Checks every request before the app gets it: its rate (limits.py), Host and Origin (hosts.py), URL path, login, and the size of its body.
A refused request gets a plain response. Which files a request may name is checked by tabs/roots.py."""

import asyncio
import hashlib
import math
import re
import secrets
import shutil
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from core.record.units import size_text
from tabs.server.hosts import Hosts
from tabs.server.limits import LOGIN, Delays, Limits

SAFE_METHODS = ("GET", "HEAD")
LOGOUT = "/atelier/logout"  # Gradio's own ends all sessions of the user, whom others may be too
FRAME_POLICY = "frame-ancestors 'self'; object-src 'none'; base-uri 'self'; "
SECURITY_HEADERS = {
    "X-Frame-Options": "SAMEORIGIN",
    "Content-Security-Policy": FRAME_POLICY + "script-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
# Policy of the page itself: only scripts with the nonce run. Gradio needs unsafe-eval for its `js` arguments.
PAGE_POLICY = FRAME_POLICY + "script-src 'self' blob: 'unsafe-eval' 'nonce-{}'; script-src-attr 'none'"
UPLOAD = "/gradio_api/upload"
ALLOWED_PATHS = re.compile(  # what the page needs of Gradio: no queue, no API docs, no files by path, no server functions
    r"/|/(config|login|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/pwa_icon(/(192|512))?|/(assets|static|atelier)/[ -~]{1,200}"
    r"|/gradio_api/(run/predict|upload|upload_progress|startup-events|app_id|heartbeat/[\w-]{1,64})"
)
STREAMS = ("/gradio_api/heartbeat/", "/gradio_api/upload_progress")
# Where a browser gets a session: the page, or the tick of one open during a restart
ENTRY_PATHS = ("/", "/atelier/pulse")
REFUSAL_DELAY = 2.0  # seconds until a 503: clients that repeat a refused request at once take less CPU time
MAX_DELAYED = 200  # refusals at once, of MAX_CONNECTIONS
READ_TIMEOUT = 20.0  # seconds without a byte of an unfinished body
BODY_TIMEOUT = 60.0  # seconds for a whole body, except uploads
MAX_LOGIN_BYTES = 16 << 10
MAX_BODY_BYTES = 8 << 20  # except uploads
MAX_UPLOAD_BYTES = 4 << 30  # to a shared page
MAX_HOURLY_UPLOAD_BYTES = 16 << 30  # of one address to a shared page
RESERVED_DISK_BYTES = 1 << 30
YEAR = 365 * 24 * 3600


class RequestAborted(Exception):
    """Raised if a request's body is too large or too slow; the rest is not read. status: HTTP status of the response."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class RequestCheck:
    """ASGI middleware that checks requests before all other middleware."""

    def __init__(
        self,
        app: Any,
        hosts: Hosts,
        limits: Limits,
        folder: Path,
        *,
        shared: bool,
        people: Mapping[str, Any] = {},
        delays: Delays | None = None,
        log: Callable[[str], Any] = print,
    ):
        """
        folder   a folder on the disk that stores uploads
        people   {user: app of their page}; `app` is for all others, and for logins
        """
        self.app, self.hosts, self.limits, self.folder, self.shared, self.log = app, hosts, limits, folder, shared, log
        self.people, self.delays, self._delayed = people, delays or Delays(), 0
        self._uploads: dict[str, deque[list[float]]] = defaultdict(deque)  # address: [time, bytes] of each

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Check the request; pass it on within its rate limits or answer it with the refusal. WebSockets are closed."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no WebSocket
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        session = self.limits.session_of(Request(scope))
        limits = self.limits.acquire(scope["method"], scope["path"], session, _address(scope))
        refusal = self.refusal(scope, session) if limits else await self._busy()
        # Requests without a session do not keep their connection.
        send = _with_security_headers(send, close=not session or refusal is not None)
        try:
            if refusal is None:
                await self._dispatch(scope, receive, send, session)
            else:
                await refusal(scope, receive, send)
        finally:
            for limit in limits:
                limit.active -= 1

    async def _busy(self) -> Response:
        """Return the 503 response to a request over its rate limit, after REFUSAL_DELAY unless MAX_DELAYED others wait already."""
        if self._delayed < MAX_DELAYED:
            self._delayed += 1
            try:
                await asyncio.sleep(REFUSAL_DELAY)
            finally:
                self._delayed -= 1
        return _refuse(503, "The page is busy. Try again in a moment.", 2)

    def refusal(self, scope: Any, session: str) -> Response | None:
        """Return the response that refuses a request: for another host, from another site, for an unknown path, or without a required
        login; None if it is allowed.
        session: "" without one."""
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        host = headers.getlist("host")
        server_address = str((scope.get("server") or ("",))[0])
        if len(host) != 1 or not self.hosts.admits(host[0], server_address):
            name = host[0][:100] if host else ""
            fix = "Open the address printed at startup, or start with --host NAME."
            return PlainTextResponse(f"This page does not answer under the name '{name}'. {fix}", 403)
        if not self._same_site(method, headers, host[0]):
            return PlainTextResponse("Requests from other sites are refused.", 403)
        if not ALLOWED_PATHS.fullmatch(path):
            return PlainTextResponse("There is no such address.", 404)
        # Gradio protects the page itself, and shows the form of the login there.
        needs_login = path.startswith("/atelier/") or not (method in SAFE_METHODS or path.rstrip("/") == LOGIN)
        if not session and (path.startswith(STREAMS) or (needs_login and self.limits.logins() is not None)):
            return _refuse(401, "Not authenticated")
        return None

    def _same_site(self, method: str, headers: Headers, host: str) -> bool:
        """Whether a request comes from the page itself, comes from no browser, or follows a link on another site. host: its Host header."""
        origins = headers.getlist("origin")
        if origins:
            return len(origins) == 1 and self.hosts.is_same_site(origins[0], host)
        if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
            return True
        opens_page = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return method in SAFE_METHODS and opens_page

    async def _dispatch(self, scope: Any, receive: Any, send: Any, session: str) -> None:
        """Store login and user in `scope`, set cookies, and forward the request with the limits of its kind (stream, login, upload ...)."""
        path, port, has_login = scope["path"], scope["server"][1], self.limits.logins() is not None
        scope["logged_in"] = bool(session) or not has_login
        cookie, has_guests = f"atelier-guest-{port}", has_login and self.shared and not self.people
        browser, user = Request(scope).cookies.get(cookie, ""), self.limits.user_of(session)
        scope["guest"] = user if user in self.people else _guest_name(browser or session) if has_guests and user else ""
        # Who logs in again is the same guest, with the same share of the queue.
        if has_guests and path == "/" and not browser:
            send = _with_cookie(send, f"{cookie}={secrets.token_hex(16)}; Path=/; HttpOnly; Max-Age={YEAR}")
        if path.startswith(STREAMS):
            await self._app_for(scope)(scope, receive, send)
        elif scope["method"] == "POST" and path.rstrip("/") == LOGIN:
            await self._login(scope, receive, send)
        elif scope["method"] == "POST" and path == LOGOUT:
            self.limits.end(session)
            await Response(status_code=204)(scope, receive, send)
        elif scope["method"] == "POST" and path == UPLOAD:
            await self._upload(scope, receive, send)
        else:
            if path in ENTRY_PATHS and not session and (new := self.limits.new_session()):
                send = _with_cookie(send, f"atelier-{port}={new}; Path=/; HttpOnly")
            await self._forward(scope, receive, send, MAX_BODY_BYTES)

    def _app_for(self, scope: Any) -> Any:
        """Return the app that answers: the logged-in person's, else the server's, which also answers logins."""
        return self.app if scope["path"].rstrip("/") == LOGIN else self.people.get(scope["guest"], self.app)

    async def _login(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a login on after the delay for its address, and record whether it succeeded."""
        address = _address(scope)

        def counted(start: Any) -> Any:
            if start["status"] < 400:
                self.delays.succeeded(address)
            else:
                self.log(f"{time.strftime('%H:%M:%S')}  A login from {address} failed.")
            return start

        await asyncio.sleep(self.delays.begin(address))
        await self._forward(scope, receive, _on_start(send, counted), MAX_LOGIN_BYTES)

    async def _upload(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass an upload on, or refuse it if it is over the limit of its address or the free disk space."""
        address = _address(scope)
        length = Headers(scope=scope).get("content-length", "")
        size = int(length) if length.isdigit() else 0
        limit, refusal = self._upload_limit(address), None
        if size > limit:
            status = 413 if size > MAX_UPLOAD_BYTES else 429
            refusal = _refuse(status, f"At most {size_text(limit)} can be uploaded now.", 3600)
        elif 2 * size + RESERVED_DISK_BYTES > self._free_bytes():  # the upload and its copy in a dataset
            refusal = _refuse(507, f"The disk has no room for {size_text(size)}.")
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        upload = [time.monotonic(), size]  # counted from the start, for concurrent uploads
        self._uploads[address].append(upload)
        upload[1] = await self._forward(scope, receive, send, limit, math.inf)

    def _upload_limit(self, address: str) -> float:
        """Return how many bytes this address may upload now."""
        if not self.shared:
            return max(self._free_bytes() - RESERVED_DISK_BYTES, 0)
        recent = self._uploads[address]
        while recent and recent[0][0] < time.monotonic() - 3600:
            recent.popleft()
        return max(min(MAX_UPLOAD_BYTES, MAX_HOURLY_UPLOAD_BYTES - sum(size for _, size in recent)), 0)

    def _free_bytes(self) -> int:
        """Return the free bytes on the disk that stores uploads."""
        existing = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        return shutil.disk_usage(existing).free

    async def _forward(
        self, scope: Any, receive: Any, send: Any, max_bytes: float, timeout: float | None = None
    ) -> int:
        """Pass a request on and return the number of bytes received.

        A body of more than `max_bytes` is answered by 413; one that pauses for READ_TIMEOUT, or takes more than `timeout` seconds (None:
        BODY_TIMEOUT), by 408.
        """
        received, started, complete = 0, False, False
        aborted: RequestAborted | None = None
        end = time.monotonic() + (BODY_TIMEOUT if timeout is None else timeout)

        async def receive_limited() -> Any:
            nonlocal received, complete, aborted
            try:  # after the whole body, the next message is the client's disconnect
                left = None if complete else min(READ_TIMEOUT, end - time.monotonic())
                message = await asyncio.wait_for(receive(), left)
            except TimeoutError:
                aborted = RequestAborted(408, "The message did not arrive in time.")
                raise aborted from None
            complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > max_bytes:
                aborted = RequestAborted(413, "This is too large.")
                raise aborted
            return message

        async def send_unless_aborted(message: Any) -> None:
            nonlocal started
            started = started or aborted is None
            if started:
                await send(message)

        with suppress(ClientDisconnect, RequestAborted):
            await self._app_for(scope)(scope, receive_limited, send_unless_aborted)
        if aborted is not None and not started:
            await _refuse(aborted.status, str(aborted))(scope, receive, send)
        return received


def _on_start(send: Any, change: Callable[[Any], Any]) -> Any:
    """Return an ASGI `send` that passes on `change(message)` instead of the start message, which has status and headers."""

    async def send_changed(message: Any) -> None:
        await send(change(message) if message["type"] == "http.response.start" else message)

    return send_changed


def _with_security_headers(send: Any, close: bool) -> Any:
    """Return an ASGI `send` that adds security headers, removes CORS headers and restricts cookies to this site; with `close`, the
    connection ends after the response."""

    def add_headers(start: Any) -> Any:
        headers = MutableHeaders(scope=start)
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        if close:
            headers["Connection"] = "close"
        start["headers"] = [
            (name, samesite_lax(value) if name.lower() == b"set-cookie" else value)
            for name, value in start["headers"]
            if not name.lower().startswith(b"access-control-")
        ]
        return start

    return _on_start(send, add_headers)


def samesite_lax(cookie: bytes) -> bytes:
    """Return a Set-Cookie header with SameSite=Lax."""
    parts = [part for part in cookie.split(b";") if not part.strip().lower().startswith(b"samesite")]
    return b";".join([*parts, b" SameSite=Lax"])


def _with_cookie(send: Any, cookie: str) -> Any:
    """Return an ASGI `send` that adds a Set-Cookie header."""
    return _on_start(send, lambda start: start | {"headers": [*start["headers"], (b"set-cookie", cookie.encode())]})


def _address(scope: Any) -> str:
    """Return the client's address; "?" if unknown."""
    return (scope.get("client") or ("?",))[0]


def _guest_name(secret: str) -> str:
    """Return a guest's name: a hash, which does not reveal the cookie or session `secret`."""
    return hashlib.blake2s(secret.encode(), digest_size=6).hexdigest()


def _refuse(status: int, message: str, retry_after: int | None = None) -> JSONResponse:
    """Return an error response that ends the connection, since the rest of the body is not read. retry_after: seconds."""
    headers = {"Connection": "close"} | ({"Retry-After": str(retry_after)} if retry_after is not None else {})
    return JSONResponse({"detail": message, "error": message}, status, headers)
