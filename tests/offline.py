"""A machine without a network, for tests: attempts to connect are refused, and noted where a library hides the error."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def no_network(allow_attempts: bool = False) -> Iterator[list[str]]:
    """Refuse connections and name look-ups; without allow_attempts the block fails when one was tried.

    Threads that were there before, such as those of a page that another test opened, are left alone.
    """
    tried: list[str] = []
    others = {each for each in threading.enumerate() if each is not threading.current_thread()}

    def refusing(kept: Callable) -> Callable:
        def refuse(*arguments, **named):
            if threading.current_thread() in others:
                return kept(*arguments, **named)
            tried.append(str(arguments[1:] if isinstance(arguments[0], socket.socket) else arguments))
            raise OSError(101, "Network is unreachable")

        return refuse

    names = {"connect": socket.socket, "connect_ex": socket.socket, "getaddrinfo": socket, "create_connection": socket}
    kept = {name: getattr(owner, name) for name, owner in names.items()}
    for name, owner in names.items():
        setattr(owner, name, refusing(kept[name]))
    try:
        yield tried
    finally:
        for name, owner in names.items():
            if owner is socket.socket:
                delattr(owner, name)  # the class inherits these from the C type
            else:
                setattr(owner, name, kept[name])
    assert allow_attempts or not tried, f"the network was asked for {tried}"
