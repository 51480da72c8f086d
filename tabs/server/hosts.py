"""The names under which the page answers.

A web site can point its own name at 127.0.0.1 (DNS rebinding), and any site can send a form here. So the page answers only
under its own names, and only to itself: `gate.py` refuses requests from other sites, with or without a login.
"""

from __future__ import annotations

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
