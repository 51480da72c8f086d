"""Which browsers are known: those that have opened the page carry a cookie, so that a flood from their address (a reverse proxy,
a share link, this machine) takes nothing from them. The cookie opens nothing."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.requests import Request

SENIORS = 8  # browsers that come first while a job runs: those that were there before the others
FORGOTTEN = 300.0  # seconds without a request


class Visitors:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._secret, self._clock = secrets.token_bytes(32), clock
        self._seen: OrderedDict[str, float] = OrderedDict()  # the seniors, when each was heard of last

    def of(self, request: Request) -> str:
        """The name of the browser, "" where it has none that was given here."""
        name, _, key = request.cookies.get(self._cookie(request), "").partition(".")
        genuine = hmac.compare_digest(key.encode("utf-8", "replace"), self._sign(name).encode())
        return name if name and genuine else ""

    def is_senior(self, browser: str) -> bool:
        """Whether this browser is one of the first. Who floods the page later, with as many names, is not."""
        now = self._clock()
        for each in [each for each, when in self._seen.items() if when < now - FORGOTTEN]:
            del self._seen[each]
        if browser and (browser in self._seen or len(self._seen) < SENIORS):
            self._seen[browser] = now
        return browser in self._seen

    def leave(self, browser: str) -> None:
        """A browser closed a page; another one takes its place, unless it is heard of again."""
        self._seen.pop(browser, None)

    def new(self, request: Request) -> str:
        """A Set-Cookie header with a name for a browser that opens the page."""
        name = secrets.token_hex(8)
        return f"{self._cookie(request)}={name}.{self._sign(name)}; Path=/; HttpOnly; SameSite=Lax"

    @staticmethod
    def _cookie(request: Request) -> str:
        return cookie_at((request.scope.get("server") or ("", 0))[1])

    def _sign(self, name: str) -> str:
        return hmac.new(self._secret, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]


def cookie_at(port: int | None) -> str:
    """The cookie's name: pages at other ports of one machine share their cookies."""
    return f"atelier-{port}"
