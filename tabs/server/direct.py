"""Lets Gradio start in every network: it creates HTTP clients as it is imported, and calls the page as it starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tabs.server.hosts import LOOPBACK

WITHOUT_PROXIES = {"NO_PROXY": "*", "no_proxy": "*", "SSL_CERT_FILE": None}


@contextmanager
def without_proxies() -> Iterator[None]:
    """Context in which HTTP clients are created as if the environment named no proxy and no certificates: a SOCKS proxy, an IPv6 range in
    NO_PROXY, or a certificate file that is missing lets none be created, although the page needs no network."""
    before = {name: os.environ.get(name) for name in WITHOUT_PROXIES}
    _set(WITHOUT_PROXIES)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    """Set environment variables {name: value}; None deletes one."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def calls_itself() -> Iterator[None]:
    """Context in which `httpx.get` asks servers of this machine directly: a proxy, which others are asked through, does not reach them."""
    import httpx

    get = httpx.get

    def direct_get(url: Any, **options: Any) -> Any:
        return get(url, **{"trust_env": httpx.URL(url).host not in LOOPBACK, **options})

    httpx.get = direct_get
    try:
        yield
    finally:
        httpx.get = get
