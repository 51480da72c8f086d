"""What the server remembers of each open browser: which of its changes have arrived, and in what order."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

KEPT_BROWSERS = 200
KEPT_CHANGES = 200
DOUBLE_PRESS_SECONDS = 1.5


@dataclass
class Browser:
    """One open page. `arrived`: the numbers of its latest changes; `newest`: the last number seen for each field."""

    session: str
    arrived: deque = field(default_factory=lambda: deque(maxlen=KEPT_CHANGES))
    newest: dict[str, int] = field(default_factory=dict)
    said: dict[str, Any] | None = None
    json_problems: list[dict[str, Any]] = field(default_factory=list)
    json_applied: str = ""  # the token of the JSON pane's text that was taken over last
    pressed: tuple[float, str, str] = (0.0, "", "")  # when, what, the token of the start it made


class Browsers:
    def __init__(self) -> None:
        self._all: OrderedDict[str, Browser] = OrderedDict()
        self._news = threading.Condition()

    def of(self, session: str | None) -> Browser:
        """The browser of a session; the ones not heard of for longest are forgotten."""
        with self._news:
            browser = self._all.setdefault(session or "", Browser(session or ""))
            self._all.move_to_end(session or "")
            while len(self._all) > KEPT_BROWSERS:
                self._all.popitem(last=False)
            return browser

    def is_newest(self, browser: Browser, path: str, number: int) -> bool:
        """Whether this change of a field is not older than one already applied (messages may overtake each other)."""
        with self._news:
            if number < browser.newest.get(path, 0):
                return False
            browser.newest[path] = number
            return True

    def arrive(self, browser: Browser, number: int) -> None:
        with self._news:
            browser.arrived.append(number)
            self._news.notify_all()

    def wait_for(self, browser: Browser, numbers: list[int], seconds: float) -> bool:
        """Wait until all these changes have been handled; False when they did not come."""
        with self._news:
            return self._news.wait_for(lambda: set(numbers) <= set(browser.arrived), timeout=seconds)

    def double_press(self, browser: Browser, what: str, token: str) -> str:
        """The token of the start that this press repeats (a double click), or "" for a press of its own."""
        with self._news:
            when, before, earlier = browser.pressed
            if before == what and time.monotonic() - when < DOUBLE_PRESS_SECONDS:
                return earlier
            browser.pressed = (time.monotonic(), what, token)
            return ""

    def say(
        self,
        browser: Browser,
        kind: str,
        text: str = "",
        *,
        title: str = "",
        problems: Any = (),
        identity: str = "",
        go: str = "",
    ) -> None:
        """A message for this browser's panel. "error" stays until closed, "done" and "info" go; `go` opens a tab."""
        listed = [problem.to_dict() for problem in problems]
        said = {
            "id": identity or f"{time.time():.6f}",
            "kind": kind,
            "title": title,
            "text": text,
            "problems": listed,
            "go": go,
        }
        browser.said = said


def unpack(text: Any) -> dict[str, Any]:
    """A message of the page's script as a dict; whatever else arrives counts as empty."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def whole(value: Any) -> int:
    """A whole number from a browser, 0 where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0
