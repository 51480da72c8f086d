"""What the server remembers of each open browser: which of its changes have arrived, and in what order."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from core.record.problems import ProblemsError

KEPT_BROWSERS = 200
KEPT_CHANGES = 200
DOUBLE_PRESS_SECONDS = 1.5
TURN_SECONDS = 2.0


@dataclass
class Browser:
    """One open page. `arrived`: the numbers of its latest changes; `newest`: the last number seen for each field."""

    session: str
    arrived: deque = field(default_factory=lambda: deque(maxlen=KEPT_CHANGES))
    newest: dict[str, int] = field(default_factory=dict)
    said: dict[str, Any] | None = None
    failed: str = ""  # what the error in the panel was about; a later success of the same closes it
    failed_at: int = 0  # the project's revision then
    json_problems: list[dict[str, Any]] = field(default_factory=list)
    json_applied: str = ""  # the token of the JSON pane's text that was taken over last
    pressed: tuple[float, str, str] = (0.0, "", "")  # when, what, the token of the start it made
    stopping: list[str] = field(default_factory=list)  # trainings that it has stopped and that have not ended yet
    turn: int = 0  # the number of the latest act on a board that was handled
    previewed: set[str] = field(default_factory=set)  # ControlNets in Generate whose control image is shown
    acts: dict[str, int] = field(default_factory=dict)  # how often something that was done began or ended, by place


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

    @contextmanager
    def in_turn(self, browser: Browser, number: int) -> Iterator[None]:
        """Handle this act after those before it: messages may overtake each other, and a button what was just typed. One that
        takes long or never comes is waited for a moment."""
        with self._news:
            self._news.wait_for(lambda: browser.turn >= number - 1, timeout=TURN_SECONDS)
        try:
            yield
        finally:
            with self._news:
                browser.turn = max(browser.turn, number)
                self._news.notify_all()

    def arrive(self, browser: Browser, number: int) -> None:
        with self._news:
            browser.arrived.append(number)
            self._news.notify_all()

    def wait_for(self, browser: Browser, numbers: list[int], seconds: float) -> bool:
        """Wait until all these changes have been handled; False when they did not come."""
        with self._news:
            return self._news.wait_for(lambda: set(numbers) <= set(browser.arrived), timeout=seconds)

    @contextmanager
    def acting(self, browser: Browser, place: str) -> Iterator[None]:
        """While something that a person did is carried out and answered: see `overtaken`."""
        self._count(browser, place)
        try:
            yield
        finally:
            self._count(browser, place)

    def _count(self, browser: Browser, place: str) -> None:
        with self._news:
            browser.acts[place] = browser.acts.get(place, 0) + 1

    def overtaken(self, browser: Browser, place: str) -> Callable[[], bool]:
        """Asked later: whether a person has done something since. What was read before would be painted over the answer
        to it, so it is not sent; the next tick tells what holds then."""
        before = browser.acts.get(place, 0)
        return lambda: browser.acts.get(place, 0) != before

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
        about: str = "",
        revision: int = 0,
        undo: str = "",
        notes: Sequence[str] = (),
        link: tuple[str, str] | None = None,
        opens: tuple[str, str] | None = None,
    ) -> None:
        """A message for this browser's panel. "error" stays until it is closed or what it is `about` succeeds, "done" and
        "info" go unless they list problems or notes or lead somewhere; `go` opens a tab. `undo`, a step of the form's undo, is
        offered as a button for as long as it is the last. link: (address, name) of a file to download.
        opens: (address, words) of a place in the page."""
        listed = [problem.to_dict() for problem in problems]
        said = {
            "at": self._next(browser),
            "id": identity or f"{time.time():.6f}",
            "kind": kind,
            "title": title,
            "text": text,
            "problems": listed,
            "go": go,
            "undo": undo,
            "notes": list(notes),
            "link": link,
            "open": opens,
        }
        browser.said = said
        browser.failed, browser.failed_at = (about, revision) if kind == "error" else ("", 0)

    def succeeded(self, browser: Browser, about: str) -> None:
        """What failed before is done now, so its message goes."""
        if about and browser.failed == about:
            browser.said = {"at": self._next(browser), "id": f"{time.time():.6f}", "kind": "over"}
            browser.failed = ""

    @contextmanager
    def telling(self, browser: Browser, about: str, text: str = "") -> Iterator[None]:
        """What goes wrong meanwhile is said below this text; where nothing does, what failed before goes."""
        try:
            yield
        except ProblemsError as error:
            self.say(browser, "error", text, problems=error.problems, about=about)
        else:
            self.succeeded(browser, about)

    @staticmethod
    def _next(browser: Browser) -> float:
        """The time of a message; later than that of the one before, so that an older one never takes its place."""
        return max(time.time(), (browser.said or {}).get("at", 0.0) + 0.001)
