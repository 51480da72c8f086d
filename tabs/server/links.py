"""Signed URLs of images and files, and their routes.

The page shows images from any folder that the user chose, so Gradio's file route, which opens whole folders, is not used. A URL
has the path and a signature by a secret of this server: only paths that the page has linked are served, only to users who are
logged in (request_check.py), and only from allowed folders.
"""

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
from core.record.stamps import version
from core.record.workspace import CURRENT_WORKSPACE
from tabs.roots import Roots
from tabs.server.error_answers import errors_as_problems

SHOWN_BY_BROWSERS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif"}
PAGES = {".html"}  # of people's folders: nothing in them runs or loads, whatever they contain
PAGES_POLICY = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)
SIZES = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
DAY = 24 * 3600
NO_STORE = {"Cache-Control": "no-store"}
UNREADABLE = (  # shown in place of a broken image, in a gray that is readable on light and dark backgrounds
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 120 120"><text x="60" y="64" text-anchor="middle"'
    ' font-family="sans-serif" font-size="13" fill="#7d8894">cannot be read</text></svg>'
)


class Links:
    """Creates signed URLs and answers requests for them. thumbs: folder of cached thumbnails."""

    def __init__(self, roots: Roots, thumbs: Path):
        self.roots, self.thumbs = roots, thumbs
        self._secret = secrets.token_bytes(32)
        self._post_routes: list[Route] = []

    def file_url(self, path: str | os.PathLike) -> str:
        """Return the URL of a file, such as an image or a LoRA to download."""
        return "atelier/file?" + self._query(path, "")

    def thumb_url(self, path: str | os.PathLike, size: int = 256) -> str:
        """Return the URL of a thumbnail. Its longer side has at most the smallest of SIZES that is at least `size`, else the largest."""
        return "atelier/thumb?" + self._query(path, str(next((each for each in SIZES if each >= size), SIZES[-1])))

    def answer(self, name: str, fn: Callable[[dict[str, Any]], dict[str, Any] | str]) -> None:
        """Add the route POST atelier/<name>. `fn` gets the parsed body and returns an object or its JSON; "" gives status 204. Errors are
        answered by {"problems": [...]}."""

        async def endpoint(request: Request) -> Response:
            # A form of another site cannot send this type, and a script would need a CORS preflight.
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return PlainTextResponse("Send JSON.", 415)
            try:
                body = await request.json()
            except (ValueError, RecursionError):
                body = None
            if not isinstance(body, dict):
                return PlainTextResponse("Send a JSON object.", 400)
            GUEST.set(request.scope.get("guest", ""))  # of this request's task alone
            CURRENT_WORKSPACE.set(self.roots.workspace)
            return await run_in_threadpool(_or_problems, name, lambda: _response(fn(body)))

        self._post_routes.append(Route(f"/atelier/{name}", endpoint, methods=["POST"]))

    def routes(self) -> list[Route]:
        """Return all routes: files, thumbnails, and those added by `answer`."""
        file = Route("/atelier/file", lambda request: _or_problems("file", lambda: self._file(request), 500))
        thumb = Route("/atelier/thumb", lambda request: _or_problems("thumb", lambda: self._thumb(request), 500))
        return [file, thumb, *self._post_routes]

    def _query(self, path: str | os.PathLike, size: str) -> str:
        """Return the query of a signed URL. size: of the thumbnail; "" for a file."""
        text = os.path.abspath(path)
        query = {"path": text, "size": size, "v": version(text), "key": self._sign(text, size)}
        # Linux allows file names that are not UTF-8; their bytes are escaped.
        return urlencode({name: value for name, value in query.items() if value}, errors="surrogateescape")

    def _sign(self, path: str, size: str) -> str:
        """Return the signature of a path and size."""
        signed = f"{size}\n{path}".encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, signed, hashlib.sha256).hexdigest()[:32]

    def _allowed(self, request: Request) -> Path | Response:
        """Return the requested path, or the response that refuses the request."""
        query = dict(parse_qsl(request.url.query, errors="surrogateescape"))
        path, size, key = query.get("path", ""), query.get("size", ""), query.get("key", "")
        signed = hmac.compare_digest(key.encode("utf-8", "surrogatepass"), self._sign(path, size).encode())
        if not signed or not self.roots.holds(path):
            return PlainTextResponse("Unknown address.", 403)
        if not os.path.isfile(path):
            return PlainTextResponse("The file is gone.", 404)
        return Path(path)

    def _file(self, request: Request) -> Response:
        """Return a response with the file: for display if it is an image or HTML page, else as a download."""
        path = self._allowed(request)
        if isinstance(path, Response):
            return path
        if path.suffix.lower() in SHOWN_BY_BROWSERS:
            return FileResponse(path, media_type=mimetypes.guess_type(path.name)[0], headers=_headers(request))
        if path.suffix.lower() in PAGES:
            return FileResponse(
                path, media_type="text/html", headers=NO_STORE | {"Content-Security-Policy": PAGES_POLICY}
            )
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    def _thumb(self, request: Request) -> Response:
        """Return a response with a thumbnail (JPEG), or a placeholder if the image is gone or unreadable."""
        path = self._allowed(request)
        if isinstance(path, Response) and path.status_code == 404:  # moved while a page still shows it
            return Response(UNREADABLE, media_type="image/svg+xml", headers=NO_STORE)
        if isinstance(path, Response):
            return path
        try:
            small = thumbnail(path, int(request.query_params.get("size") or 256), self.thumbs)
        except BrokenImage:
            return Response(UNREADABLE, media_type="image/svg+xml", headers=NO_STORE)
        if isinstance(small, bytes):
            return Response(small, headers=_headers(request), media_type="image/jpeg")
        return FileResponse(small, media_type="image/jpeg", headers=_headers(request))


def _or_problems(name: str, fn: Callable[[], Response], status: int = 200) -> Response:
    """Return `fn()`; for any exception a response {"problems": [...]} with this status. name: of the route, for the terminal."""
    try:
        return errors_as_problems(fn, f"atelier/{name}")
    except ProblemsError as error:
        return JSONResponse({"problems": [problem.to_dict() for problem in error.problems]}, status, NO_STORE)


def _response(content: dict[str, Any] | str) -> Response:
    """Return an uncached response: an object as JSON, a text as it is, "" with status 204."""
    if isinstance(content, str):
        return Response(content, 200 if content else 204, NO_STORE, "application/json")
    return JSONResponse(content, headers=NO_STORE)


def _headers(request: Request) -> dict[str, str]:
    """Return the Cache-Control header: a day if the URL has a version, which changes with the file."""
    keep = f"private, max-age={DAY}" if request.query_params.get("v") else "no-store"
    return {"Cache-Control": keep}
