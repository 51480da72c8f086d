"""What is checked of every request before anything answers it: the host it names, and the site it comes from.

A web site can point its own name at 127.0.0.1 (DNS rebinding), and any site can send a form here. So the page answers only
under its own names, and only to itself: requests from other sites get nothing, with or without a login.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)\.?(?::(\d{1,5}))?", re.IGNORECASE)
DEFAULT_PORTS = {"http": "80", "https": "443"}
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
USED = re.compile(  # of the addresses that Gradio answers: no queue, no API docs, no files by path, no server functions
    r"/|/(config|login|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/pwa_icon(/(192|512))?|/(assets|static|atelier)/[ -~]{1,200}"
    r"|/gradio_api/(run/predict|upload|upload_progress|startup-events|app_id|heartbeat/[\w-]{1,64})"
)


def host_and_port(authority: str) -> tuple[str, str] | None:
    """("name", "port" or "") of a Host header or of an origin behind its scheme, in lower case; None for anything else."""
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        return None
    name, port = found.group(1).lower().strip("[]"), found.group(2) or ""
    if ":" in name or name.replace(".", "").isdigit():
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return None
        name = str(getattr(address, "ipv4_mapped", None) or address)
    return name, port


def machine_names() -> set[str]:
    """What this machine is called in its network."""
    name = socket.gethostname().lower().rstrip(".")
    return {name, f"{name.split('.')[0]}.local"} if host_and_port(name) else set()


@dataclass
class Hosts:
    """The names under which the page answers.

    listens  others in the network may come: the address that a request arrived at counts too, and the machine's name
    named    further ones, as given by --host: a name, or a name with its port
    share    the address of the share link, "" while there is none
    """

    listens: bool = False
    named: Iterable[str] = ()
    share: Callable[[], str] = lambda: ""
    _own: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._own = LOOPBACK | (machine_names() if self.listens else set())

    def admits(self, authority: str, arrived_at: str = "") -> bool:
        """Whether a request that names this host is for this page."""
        asked = host_and_port(authority)
        if asked is None:
            return False
        if asked[0] in self._own or any(_fits(asked, given) for given in self._given()):
            return True
        address = arrived_at.partition("%")[0]  # without the network card of a link-local address
        return self.listens and host_and_port(f"[{address}]" if ":" in address else address) == (asked[0], "")

    def is_own_site(self, origin: str, authority: str) -> bool:
        """Whether an Origin header is this page's: the host that is asked, or one that stands before it (a proxy)."""
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        site = host_and_port(parts.netloc) if parts.scheme in DEFAULT_PORTS else None
        if site is None or parts.path or parts.query:
            return False
        usual = DEFAULT_PORTS[parts.scheme]
        asked = host_and_port(authority)
        same = asked is not None and (site[0], site[1] or usual) == (asked[0], asked[1] or usual)
        bare = (site[0], "" if site[1] == usual else site[1])
        return same or any(bare == given for given in self._given())

    def _given(self) -> list[tuple[str, str]]:
        share = urlsplit(self.share() or "").netloc
        return [found for text in (*self.named, share) if text and (found := host_and_port(text))]


def _fits(asked: tuple[str, str], given: tuple[str, str]) -> bool:
    """A name that was given without a port holds at every port."""
    return asked == given or (not given[1] and asked[0] == given[0])


class Gate:
    """ASGI middleware around everything else."""

    def __init__(self, app: Any, hosts: Hosts):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self.refusal(scope)
        if refusal is None and scope["type"] == "http":
            await self.app(scope, receive, _guarded(send))
        elif scope["type"] == "http":
            await refusal(scope, receive, _guarded(send))
        else:  # the page uses no WebSocket
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    def refusal(self, scope: Any) -> Any:
        """The answer to a request that is not for this page, or None."""
        headers = Headers(scope=scope)
        host = headers.getlist("host")
        arrived_at = str((scope.get("server") or ("",))[0])
        if len(host) != 1 or not self.hosts.admits(host[0], arrived_at):
            shown = host[0][:100] if host else ""
            fix = "Open the address printed at startup, or start with --host NAME."
            return PlainTextResponse(f"This page does not answer under the name '{shown}'. {fix}", 403)
        if not self._from_here(scope["method"] if scope["type"] == "http" else "GET", headers, host[0]):
            return PlainTextResponse("Requests from other sites are refused.", 403)
        if not USED.fullmatch(scope["path"]):
            return PlainTextResponse("There is no such address.", 404)
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


def _guarded(send: Any) -> Any:
    """Answers that no other site may frame or sniff, and cookies that it does not send along."""

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in GUARDS.items():
                headers.setdefault(name, value)
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
