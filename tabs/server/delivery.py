"""How answers travel: packed, and kept by the browser as long as they hold.

Only whole texts are packed (never a stream of events). That lengths of packed answers could tell a secret to who may put words
next to it (BREACH) does not count here: other sites cannot make a browser ask (tabs/server/gate.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import brotli  # type: ignore[import-untyped]
from starlette.datastructures import Headers, MutableHeaders

from tabs.server.frontend import Pack, pack, with_nonce
from tabs.server.gate import PAGE_POLICY

TEXTS = (
    "text/html",
    "text/css",
    "text/plain",
    "text/javascript",
    "application/javascript",
    "application/json",
    "image/svg+xml",
)
SMALLEST = 1000
LARGE = 100_000  # packed in another thread
KEPT = 200
KEPT_PAGES = 8
ADDRESS_HEADERS = (
    "host",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-gradio-server",
)  # gradio.route_utils.get_request_origin
HASHED = re.compile(r"/assets/.+-[A-Za-z0-9_-]{8,10}\.(js|css|woff2?|png|svg)$")
PACKED_FILE = re.compile(r"/assets/page-[0-9a-f]{10}\.(js|css)$")
FOREVER, A_DAY, ASK_FIRST = "public, max-age=31536000, immutable", "private, max-age=86400", "private, no-cache"


class Delivery:
    """ASGI middleware that packs texts, answers 304 where a browser has them already, and says how long they hold."""

    def __init__(
        self,
        app: Any,
        kinds: Callable[[], frozenset[str]] = frozenset,
        settled: Callable[[], bool] = lambda: False,
        nonce: str = "",
    ):
        """kinds: of the components that the page has. settled: whether the page's HTML stays as it is. nonce: of its scripts; one
        for as long as the server runs, since browsers keep the page."""
        self.app, self.kinds, self.settled, self.nonce = app, kinds, settled, nonce or secrets.token_urlsafe(16)
        self._pages: OrderedDict[tuple[str | None, ...], tuple[Any, bytes]] = OrderedDict()
        self._packed: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "POST"):
            await self.app(scope, receive, send)
            return
        if scope["method"] == "GET" and PACKED_FILE.search(scope["path"]):
            file = (await self._pack_of_page()).files.get(scope["path"].rpartition("/")[2])
            if file is not None:
                headers = [(b"content-type", file[0].encode())]
                began = {"type": "http.response.start", "status": 200, "headers": headers}
                await self._deliver(scope, began, file[1], send)
                return
        page = _page_of(scope)
        if kept := self._pages.get(page):
            await self._deliver(scope, dict(kept[0]), kept[1], send)
            return
        answer = await buffered_response(self.app, scope, receive, send, _is_text)
        if answer is None:
            return
        start, body = answer
        if _is_page(scope, start):
            body = with_nonce((await self._pack_of_page()).into(body), self.nonce)
            MutableHeaders(scope=start)["Content-Security-Policy"] = PAGE_POLICY.format(self.nonce)
            self._keep(page, dict(start), body)
        await self._deliver(scope, start, body, send)

    def _keep(self, page: tuple[str | None, ...], start: Any, whole: bytes) -> None:
        """Gradio takes 80 ms to write the page, which is the same each time."""
        if page and self.settled():
            self._pages[page] = (start, whole)
            while len(self._pages) > KEPT_PAGES:
                self._pages.popitem(last=False)

    async def _deliver(self, scope: Any, start: Any, body: bytes, send: Any) -> None:
        asked, headers = Headers(scope=scope), MutableHeaders(scope=start)
        if scope["method"] == "GET" and start["status"] == 200:
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            headers["ETag"] = tag
            headers.setdefault("Cache-Control", _holds(scope))
            if tag in asked.get("if-none-match", ""):
                del headers["content-length"]
                await send(start | {"status": 304, "headers": headers.raw})
                await send({"type": "http.response.body", "body": b""})
                return
        encoding = _encoding(asked.get("accept-encoding", "")) if len(body) >= SMALLEST else ""
        if encoding:
            body = await self._pack(body, encoding)
            headers["Content-Encoding"] = encoding
            headers.add_vary_header("Accept-Encoding")
        await send_response(send, start | {"headers": headers.raw}, body)

    async def _pack_of_page(self) -> Pack:
        """Gradio's files in few (tabs/server/frontend.py), made once."""
        return await asyncio.to_thread(pack, self.kinds())

    async def _pack(self, body: bytes, encoding: str) -> bytes:
        """Packed once for all who ask for the same."""
        key = (hashlib.sha256(body).hexdigest(), encoding)
        if key not in self._packed:
            packed = await asyncio.to_thread(_pack, body, encoding) if len(body) > LARGE else _pack(body, encoding)
            self._packed[key] = packed
            while len(self._packed) > KEPT:
                self._packed.popitem(last=False)
        return self._packed[key]


async def buffered_response(
    app: Any, scope: Any, receive: Any, send: Any, wanted: Callable[[Any], bool] = lambda start: True
) -> tuple[Any, bytes] | None:
    """The first message of an answer with its whole body, of which nothing is sent yet; None if it is not wanted, and sent."""
    start: Any = None
    body = bytearray()

    async def heard(message: Any) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and wanted(message):
            start = message
        elif start is None:
            await send(message)
        else:
            body.extend(message.get("body", b""))

    await app(scope, receive, heard)
    return None if start is None else (start, bytes(body))


async def send_response(send: Any, start: Any, body: bytes) -> None:
    MutableHeaders(scope=start)["Content-Length"] = str(len(body))
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _page_of(scope: Any) -> tuple[str | None, ...]:
    """What the page's HTML depends on: the address it is asked at, and whether somebody is logged in; () for other files."""
    if scope["method"] != "GET" or scope["path"] != "/" or scope["query_string"]:
        return ()
    asked = Headers(scope=scope)
    return (scope["scheme"], str(scope["logged_in"]), *(asked.get(name) for name in ADDRESS_HEADERS))


def _is_page(scope: Any, start: Any) -> bool:
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return scope["method"] == "GET" and start["status"] == 200 and kind.startswith("text/html")


def _is_text(start: Any) -> bool:
    headers = Headers(raw=start["headers"])
    kind = headers.get("content-type", "").partition(";")[0].strip()
    whole = start["status"] != 206 and "content-encoding" not in headers and "content-disposition" not in headers
    return kind in TEXTS and whole


def _holds(scope: Any) -> str:
    """How long a text may be kept: names with a hash in them never change their content."""
    if HASHED.search(scope["path"]) or (scope["path"].endswith("/theme.css") and scope["query_string"]):
        return FOREVER
    return A_DAY if "/static/" in scope["path"] else ASK_FIRST


def _encoding(accepted: str) -> str:
    words = {word.partition(";")[0].strip() for word in accepted.split(",")}
    return "br" if "br" in words else "gzip" if "gzip" in words else ""


def _pack(body: bytes, encoding: str) -> bytes:
    import gzip

    return brotli.compress(body, quality=5) if encoding == "br" else gzip.compress(body, 6, mtime=0)
