"""Allowed Host and Origin headers.

A web site can point its own name at 127.0.0.1 (DNS rebinding), and any site can send a form here. So the page answers only
requests for its own names that come from itself: `request_check.py` refuses requests from other sites, with or without a login.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)\.?(?::(\d{1,5}))?", re.IGNORECASE)
DEFAULT_PORTS = {"http": "80", "https": "443"}


def host_and_port(authority: str) -> tuple[str, str] | None:
    """Return (name in lower case, port or "") of a Host header, or of an origin without its scheme; None if it is invalid."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    name, port = match.group(1).lower().strip("[]"), match.group(2) or ""
    if ":" in name or name.replace(".", "").isdigit():
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return None
        name = str(getattr(address, "ipv4_mapped", None) or address)
    return name, port


def machine_names() -> set[str]:
    """Return this machine's host names in its network."""
    name = socket.gethostname().lower().rstrip(".")
    return {name, f"{name.split('.')[0]}.local"} if host_and_port(name) else set()


@dataclass
class Hosts:
    """The host names of the page.

    listens  whether the page is open to the network: then the machine's names, and the address a request arrived at, are allowed
    named    further names of --host, each with or without a port
    share    () -> URL of the share link; "" if there is none
    """

    listens: bool = False
    named: Iterable[str] = ()
    share: Callable[[], str] = lambda: ""
    _machine: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self._machine = LOOPBACK | (machine_names() if self.listens else set())

    def admits(self, authority: str, arrived_at: str = "") -> bool:
        """Whether a Host header is one of the page's names. arrived_at: the local address of the connection."""
        host = host_and_port(authority)
        if host is None:
            return False
        if host[0] in self._machine or any(_matches(host, each) for each in self._configured()):
            return True
        address = arrived_at.partition("%")[0]  # without the interface of a link-local address
        return self.listens and host_and_port(f"[{address}]" if ":" in address else address) == (host[0], "")

    def is_same_site(self, origin: str, authority: str) -> bool:
        """Whether an Origin header is the page's own: its host is in the Host header `authority`, or a configured name (of a proxy)."""
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        site = host_and_port(parts.netloc) if parts.scheme in DEFAULT_PORTS else None
        if site is None or parts.path or parts.query:
            return False
        default_port = DEFAULT_PORTS[parts.scheme]
        host = host_and_port(authority)
        matches_host = host is not None and (site[0], site[1] or default_port) == (host[0], host[1] or default_port)
        without_default = (site[0], "" if site[1] == default_port else site[1])
        return matches_host or without_default in self._configured()

    def _configured(self) -> list[tuple[str, str]]:
        """Return (name, port or "") of --host and of the share link."""
        share = urlsplit(self.share() or "").netloc
        return [host for text in (*self.named, share) if text and (host := host_and_port(text))]


def _matches(host: tuple[str, str], configured: tuple[str, str]) -> bool:
    """Whether a host, (name, port), is the configured one. A configured host without a port matches every port."""
    return host == configured or (not configured[1] and host[0] == configured[0])
