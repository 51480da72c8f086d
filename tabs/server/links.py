"""Addresses of images and files, and the routes behind them.

The page shows images that lie anywhere the person pointed at, so Gradio's own file route (which opens whole folders)
is not used for them. An address holds the path and a signature made with a secret of this server: only paths that the
page itself handed out are served, only to someone who is logged in (gate.py), and only inside the open folders.
"""

from __future__ import annotations

import hashlib
import hmac
import mimetypes
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from core.dataset.images.opening import BrokenImage
from core.dataset.images.thumbnails import thumbnail
from core.engine.queue import GUEST
from core.record.problems import ProblemsError
from tabs.roots import Roots
from tabs.server.guard import guarded

SHOWN_BY_BROWSERS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif"}
SIZES = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
DAY = 24 * 3600
UNKEPT = {"Cache-Control": "no-store"}
UNREADABLE = (  # stands in for an image that is broken; gray that can be read on light and on dark
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 120 120"><text x="60" y="64" text-anchor="middle"'
    ' font-family="sans-serif" font-size="13" fill="#7d8894">cannot be read</text></svg>'
)


class Links:
    """Makes the addresses and answers them."""

    def __init__(self, roots: Roots, thumbs: Path):
        self.roots, self.thumbs = roots, thumbs
        self._secret = secrets.token_bytes(32)
        self._answers: list[Route] = []

    def file_url(self, path: str | os.PathLike) -> str:
        """The address of a file as it is: a finished image, a LoRA to download."""
        return "atelier/file?" + self._query(path, "")

    def thumb_url(self, path: str | os.PathLike, size: int = 256) -> str:
        """The address of an image made smaller: its longer side is at most `size` pixels."""
        return "atelier/thumb?" + self._query(path, str(next((known for known in SIZES if known >= size), SIZES[-1])))

    def answer(self, name: str, fn: Callable[[dict[str, Any]], dict[str, Any] | str]) -> None:
        """Let `fn` answer what the page's script posts to atelier/<name>: with an object, or with its JSON; "" is no news. Every
        error is answered as `problems`."""

        async def answered(request: Request) -> Response:
            # Another site's form cannot send this type, and its script would have to ask first.
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return PlainTextResponse("Send JSON.", 415)
            try:
                asked = await request.json()
            except (ValueError, RecursionError):
                asked = None
            if not isinstance(asked, dict):
                return PlainTextResponse("Send a JSON object.", 400)
            GUEST.set(request.scope.get("guest", ""))  # of this request's task alone
            return await run_in_threadpool(_guarded, name, lambda: _response(fn(asked)))

        self._answers.append(Route(f"/atelier/{name}", answered, methods=["POST"]))

    def routes(self) -> list[Route]:
        file = Route("/atelier/file", lambda request: _guarded("file", lambda: self._file(request), 500))
        thumb = Route("/atelier/thumb", lambda request: _guarded("thumb", lambda: self._thumb(request), 500))
        return [file, thumb, *self._answers]

    def _query(self, path: str | os.PathLike, size: str) -> str:
        text = os.path.abspath(path)
        query = {"path": text, "size": size, "v": _version(text), "key": self._sign(text, size)}
        # Linux allows names that are no UTF-8; their bytes travel as they are.
        return urlencode({name: value for name, value in query.items() if value}, errors="surrogateescape")

    def _sign(self, path: str, size: str) -> str:
        said = f"{size}\n{path}".encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, said, hashlib.sha256).hexdigest()[:32]

    def _allowed(self, request: Request) -> Path | Response:
        """The path that is asked for, or the refusal."""
        asked = dict(parse_qsl(request.url.query, errors="surrogateescape"))
        path, size, key = asked.get("path", ""), asked.get("size", ""), asked.get("key", "")
        signed = hmac.compare_digest(key.encode("utf-8", "surrogatepass"), self._sign(path, size).encode())
        if not signed or not self.roots.holds(path):
            return PlainTextResponse("Unknown address.", 403)
        if not os.path.isfile(path):
            return PlainTextResponse("The file is gone.", 404)
        return Path(path)

    def _file(self, request: Request) -> Response:
        path = self._allowed(request)
        if isinstance(path, Response):
            return path
        if path.suffix.lower() in SHOWN_BY_BROWSERS:
            return FileResponse(path, media_type=mimetypes.guess_type(path.name)[0], headers=_headers(request))
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    def _thumb(self, request: Request) -> Response:
        path = self._allowed(request)
        if isinstance(path, Response) and path.status_code == 404:  # moved while a page still shows it
            return Response(UNREADABLE, media_type="image/svg+xml", headers=UNKEPT)
        if isinstance(path, Response):
            return path
        try:
            small = thumbnail(path, int(request.query_params.get("size") or 256), self.thumbs)
        except BrokenImage:
            return Response(UNREADABLE, media_type="image/svg+xml", headers=UNKEPT)
        if isinstance(small, bytes):
            return Response(small, headers=_headers(request), media_type="image/jpeg")
        return FileResponse(small, media_type="image/jpeg", headers=_headers(request))


def _guarded(name: str, fn: Callable[[], Response], status: int = 200) -> Response:
    """What `fn` returns; every error as `problems`, with this status."""
    try:
        return guarded(fn, f"atelier/{name}")
    except ProblemsError as error:
        return JSONResponse({"problems": [problem.to_dict() for problem in error.problems]}, status, UNKEPT)


def _response(found: dict[str, Any] | str) -> Response:
    if isinstance(found, str):
        return Response(found, 200 if found else 204, UNKEPT, "application/json")
    return JSONResponse(found, headers=UNKEPT)


def _version(path: str | os.PathLike) -> str:
    """Changes when the file does, so that browsers may keep what they have. Empty for a missing file."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{state.st_mtime_ns:x}-{state.st_size:x}"


def _headers(request: Request) -> dict[str, str]:
    keep = f"private, max-age={DAY}" if request.query_params.get("v") else "no-store"
    return {"Cache-Control": keep}
