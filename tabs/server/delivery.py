"""Compression and caching of responses.

Only complete texts are compressed, not event streams. BREACH (reading a secret from the length of compressed responses) is no
threat here, since other sites cannot make a browser send requests (tabs/server/request_check.py).
"""

import asyncio
import gzip
import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import brotli  # type: ignore[import-untyped]
from starlette.datastructures import Headers, MutableHeaders

from tabs.server.frontend import Pack, pack, with_nonce
from tabs.server.request_check import PAGE_POLICY

TEXTS = (
    "text/html",
    "text/css",
    "text/plain",
    "text/javascript",
    "application/javascript",
    "application/json",
    "image/svg+xml",
)
MIN_BYTES = 1000
THREAD_BYTES = 100_000  # from here on compressed in a thread
MAX_COMPRESSED = 200
MAX_PAGES = 8
# As of gradio.route_utils.get_request_origin
ADDRESS_HEADERS = ("host", "x-forwarded-host", "x-forwarded-proto", "x-gradio-server")
HASHED = re.compile(r"/assets/.+-[A-Za-z0-9_-]{8,10}\.(js|css|woff2?|png|svg)$")
PACKED_FILE = re.compile(r"/assets/page-[0-9a-f]{10}\.(js|css)$")
FOREVER, A_DAY, ASK_FIRST = "public, max-age=31536000, immutable", "private, max-age=86400", "private, no-cache"


class Delivery:
    """ASGI middleware that compresses texts, sets Cache-Control and ETag, and answers 304 for an unchanged text."""

    def __init__(
        self,
        app: Any,
        kinds: Callable[[], frozenset[str]] = frozenset,
        settled: Callable[[], bool] = lambda: False,
        nonce: str = "",
    ):
        """
        kinds     () -> component types of the page
        settled   () -> whether the page's HTML is final
        nonce     of its scripts; the same as long as the server runs, since browsers cache the page
        """
        self.app, self.kinds, self.settled, self.nonce = app, kinds, settled, nonce or secrets.token_urlsafe(16)
        self._pages: OrderedDict[tuple[str | None, ...], tuple[Any, bytes]] = OrderedDict()
        self._cache: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer from the bundle or the cached page, else run the app and compress its response."""
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
        if cached := self._pages.get(page):
            await self._deliver(scope, dict(cached[0]), cached[1], send)
            return
        response = await buffered_response(self.app, scope, receive, send, _is_text)
        if response is None:
            return
        start, body = response
        if _is_page(scope, start):
            body = with_nonce((await self._pack_of_page()).insert_into(body), self.nonce)
            MutableHeaders(scope=start)["Content-Security-Policy"] = PAGE_POLICY.format(self.nonce)
            self._cache_page(page, dict(start), body)
        await self._deliver(scope, start, body, send)

    def _cache_page(self, page: tuple[str | None, ...], start: Any, body: bytes) -> None:
        """Cache the page's HTML by its key `page`, as Gradio needs 80 ms to render it; not for an empty key or before it is final."""
        if page and self.settled():
            self._pages[page] = (start, body)
            while len(self._pages) > MAX_PAGES:
                self._pages.popitem(last=False)

    async def _deliver(self, scope: Any, start: Any, body: bytes, send: Any) -> None:
        """Send a text response: compressed if the browser accepts it, or 304 if the browser has the same text.
        start: the response's start message"""
        requested, headers = Headers(scope=scope), MutableHeaders(scope=start)
        if scope["method"] == "GET" and start["status"] == 200:
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            headers["ETag"] = tag
            headers.setdefault("Cache-Control", _cache_control(scope))
            if tag in requested.get("if-none-match", ""):
                del headers["content-length"]
                await send(start | {"status": 304, "headers": headers.raw})
                await send({"type": "http.response.body", "body": b""})
                return
        encoding = _encoding(requested.get("accept-encoding", "")) if len(body) >= MIN_BYTES else ""
        if encoding:
            body = await self._compressed(body, encoding)
            headers["Content-Encoding"] = encoding
            headers.add_vary_header("Accept-Encoding")
        await send_response(send, start | {"headers": headers.raw}, body)

    async def _pack_of_page(self) -> Pack:
        """Return the bundle of Gradio's files that the page needs (tabs/server/frontend.py), cached."""
        return await asyncio.to_thread(pack, self.kinds())

    async def _compressed(self, body: bytes, encoding: str) -> bytes:
        """Return `body` compressed with `encoding`, "br" or "gzip"; cached by its hash."""
        key = (hashlib.sha256(body).hexdigest(), encoding)
        if key not in self._cache:
            thread = len(body) > THREAD_BYTES
            self._cache[key] = (
                await asyncio.to_thread(_compress, body, encoding) if thread else _compress(body, encoding)
            )
            while len(self._cache) > MAX_COMPRESSED:
                self._cache.popitem(last=False)
        return self._cache[key]


async def buffered_response(
    app: Any, scope: Any, receive: Any, send: Any, should_buffer: Callable[[Any], bool] = lambda start: True
) -> tuple[Any, bytes] | None:
    """Run an ASGI app and return (start message, body) of its response without sending it.

    If `should_buffer(start message)` is false, the response is sent as it comes and None is returned.
    """
    start: Any = None
    body = bytearray()

    async def collect(message: Any) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and should_buffer(message):
            start = message
        elif start is None:
            await send(message)
        else:
            body.extend(message.get("body", b""))

    await app(scope, receive, collect)
    return None if start is None else (start, bytes(body))


async def send_response(send: Any, start: Any, body: bytes) -> None:
    """Send a response with its Content-Length. start: the start message."""
    MutableHeaders(scope=start)["Content-Length"] = str(len(body))
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _page_of(scope: Any) -> tuple[str | None, ...]:
    """Return the cache key of the page's HTML, which depends on the request's host and login; () for requests for anything else."""
    if scope["method"] != "GET" or scope["path"] != "/" or scope["query_string"]:
        return ()
    headers = Headers(scope=scope)
    return (scope["scheme"], str(scope["logged_in"]), *(headers.get(name) for name in ADDRESS_HEADERS))


def _is_page(scope: Any, start: Any) -> bool:
    """Whether a response is HTML of the page itself: HTML files have a policy of their own, and must not get the nonce."""
    headers = Headers(raw=start["headers"])
    is_html = headers.get("content-type", "").startswith("text/html") and "content-security-policy" not in headers
    return scope["method"] == "GET" and start["status"] == 200 and is_html


def _is_text(start: Any) -> bool:
    """Whether a response is a complete text that is not compressed and not a download."""
    headers = Headers(raw=start["headers"])
    kind = headers.get("content-type", "").partition(";")[0].strip()
    is_whole = start["status"] != 206 and "content-encoding" not in headers and "content-disposition" not in headers
    return kind in TEXTS and is_whole


def _cache_control(scope: Any) -> str:
    """Return the Cache-Control header for a request's path. Files with a hash in their names never change."""
    if HASHED.search(scope["path"]) or (scope["path"].endswith("/theme.css") and scope["query_string"]):
        return FOREVER
    return A_DAY if "/static/" in scope["path"] else ASK_FIRST


def _encoding(accept_encoding: str) -> str:
    """Return "br", "gzip" or "" by an Accept-Encoding header."""
    encodings = {each.partition(";")[0].strip() for each in accept_encoding.split(",")}
    return "br" if "br" in encodings else "gzip" if "gzip" in encodings else ""


def _compress(body: bytes, encoding: str) -> bytes:
    return brotli.compress(body, quality=5) if encoding == "br" else gzip.compress(body, 6, mtime=0)
