"""State of each open browser on the server: which of its changes have arrived, in what order, and its current message."""

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from core.record.problems import ProblemsError

MAX_BROWSERS = 200
MAX_ARRIVED = 200
DOUBLE_PRESS_SECONDS = 1.5
TURN_SECONDS = 2.0


@dataclass
class Browser:
    """One open page in a browser.

    arrived   numbers of its latest changes
    newest    {field: number of its latest change}
    """

    session: str
    arrived: deque = field(default_factory=lambda: deque(maxlen=MAX_ARRIVED))
    newest: dict[str, int] = field(default_factory=dict)
    message: dict[str, Any] | None = None  # in its panel
    failed: str = ""  # the action that the error in the panel is about; its next success closes the error
    failed_at: int = 0  # the project's revision at that time
    # what became of the text that it opened last: the request's token, what it can be read as, problems (tabs/train/imports.py)
    opened: dict[str, Any] | None = None
    json_problems: list[dict[str, Any]] = field(default_factory=list)
    json_applied: str = ""  # token of the JSON pane's text that was applied last
    pressed: tuple[float, str, str] = (0.0, "", "")  # of the last start: time, job, token
    stopping: list[str] = field(default_factory=list)  # trainings that it has stopped and that still run
    # Jobs that it removed from the queue, and their places there
    cancelled: list[tuple[str, int]] = field(default_factory=list)
    turn: int = 0  # number of the latest board event that was handled
    previewed: set[str] = field(default_factory=set)  # ControlNets in Generate whose control image is shown
    folderless: tuple[str, str, str] | None = None  # run, file and folder of the last copy refused for a missing folder
    deleted_runs: list[list[str]] = field(default_factory=list)  # names in the trash, of each of its deletions in Runs
    moved_images: list[str] = field(default_factory=list)  # tokens of its last move of images to the trash in Dataset
    lora_query: str = ""  # typed into the search of LoRAs in Generate
    acts: dict[str, int] = field(default_factory=dict)  # {scope: number of begun and ended actions}
    redraws: Counter[str] = field(default_factory=Counter)  # how often a tab, or "" each, had to be drawn as a whole
    # (tab, number of a listener to its ticks) -> `redraws_of` the tab when it did that last
    drawn: dict[tuple[str, int], int] = field(default_factory=dict)

    def redraws_of(self, tab: str) -> int:
        """Return how often the tab had to be drawn as a whole."""
        return self.redraws[""] + self.redraws[tab]

    def is_drawn(self, listener: tuple[str, int]) -> bool:
        """Whether this browser got a result of the listener, (tab, number), since the tab last had to be drawn as a whole."""
        return self.drawn.get(listener, 0) == self.redraws_of(listener[0])


class Browsers:
    """The open browsers by session."""

    def __init__(self) -> None:
        self._all: OrderedDict[str, Browser] = OrderedDict()
        self._news = threading.Condition()

    def of(self, session: str | None) -> Browser:
        """Return the browser of a session, created if necessary. At most MAX_BROWSERS are stored: the least recently used are dropped."""
        with self._news:
            browser = self._all.setdefault(session or "", Browser(session or ""))
            self._all.move_to_end(session or "")
            while len(self._all) > MAX_BROWSERS:
                self._all.popitem(last=False)
            return browser

    def is_newest(self, browser: Browser, path: str, number: int) -> bool:
        """Record change `number` of the field `path`. Return False if a newer one was recorded: messages may arrive out of order."""
        with self._news:
            if number < browser.newest.get(path, 0):
                return False
            browser.newest[path] = number
            return True

    @contextmanager
    def in_turn(self, browser: Browser, number: int) -> Iterator[None]:
        """Context for handling event `number` of a browser: waits, up to TURN_SECONDS, until events with lower numbers are handled.

        A button's message may arrive before the message of the field that was just typed in.
        """
        with self._news:
            self._news.wait_for(lambda: browser.turn >= number - 1, timeout=TURN_SECONDS)
        try:
            yield
        finally:
            with self._news:
                browser.turn = max(browser.turn, number)
                self._news.notify_all()

    def mark_handled(self, browser: Browser, number: int) -> None:
        """Record that change `number` of a browser was handled."""
        with self._news:
            browser.arrived.append(number)
            self._news.notify_all()

    def wait_for(self, browser: Browser, numbers: list[int], seconds: float) -> bool:
        """Wait up to `seconds` until the changes with these numbers are handled; return whether they are."""
        with self._news:
            return self._news.wait_for(lambda: set(numbers) <= set(browser.arrived), timeout=seconds)

    @contextmanager
    def acting(self, browser: Browser, scope: str) -> Iterator[None]:
        """Context in which a user's action is handled: results of ticks that began before or during it are discarded (`overtaken`).
        scope: which ticks: ANY_TAB (tabs/context.py) or COMMANDS (tabs/pulse.py)"""
        self._count(browser, scope)
        try:
            yield
        finally:
            self._count(browser, scope)

    def _count(self, browser: Browser, scope: str) -> None:
        """Count the beginning or end of an action. scope: as in `acting`"""
        with self._news:
            browser.acts[scope] = browser.acts.get(scope, 0) + 1

    def redraw_others(self, browser: Browser, tab: str) -> None:
        """Make the next ticks of all other browsers return the whole tab, which `browser` has changed."""
        with self._news:
            for each in self._all.values():
                each.redraws[tab] += each is not browser

    def overtaken(self, browser: Browser, scope: str) -> Callable[[], bool]:
        """Return a function () -> whether an action of this scope (see `acting`) began or ended since this call. A tick is then discarded:
        it would replace the response to the action by an older state."""
        before = browser.acts.get(scope, 0)
        return lambda: browser.acts.get(scope, 0) != before

    def double_press(self, browser: Browser, job: str, token: str) -> str:
        """Return the token of the previous start if this start of the same job follows within DOUBLE_PRESS_SECONDS (a double click);
        else record this one and return "".

        job     what is started
        token   identifies this start
        """
        with self._news:
            pressed_at, last_job, last_token = browser.pressed
            if last_job == job and time.monotonic() - pressed_at < DOUBLE_PRESS_SECONDS:
                return last_token
            browser.pressed = (time.monotonic(), job, token)
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
        undo_by: str = "",
        redraws: bool = False,
        notes: Sequence[str] = (),
        link: tuple[str, str] | None = None,
        opens: tuple[str, str] | None = None,
    ) -> None:
        """Show a message in the panel of a browser.

        kind      an "error" stays until it is closed or the action `about` succeeds; "done" and "info" disappear unless they
                  have problems, notes or a link
        problems  `Problem`s to list
        identity  of the message; by default the time
        go        tab that a button opens
        about     action whose success closes an error
        revision  of the project at an error
        undo      step of the form's undo, for a button *Undo* while it is the last step
        undo_by   command of such a button for other changes than the form's
        redraws   whether its tabs show other data now: the next ticks return them as a whole
        link      (URL, name) of a file to download
        opens     (URL, text) of a link within the page
        """
        browser.redraws[""] += redraws
        problem_dicts = [problem.to_dict() for problem in problems]
        message = {
            "at": self._next(browser),
            "id": identity or f"{time.time():.6f}",
            "kind": kind,
            "title": title,
            "text": text,
            "problems": problem_dicts,
            "go": go,
            "undo": undo,
            "undo_by": undo_by,
            "notes": list(notes),
            "link": link,
            "open": opens,
        }
        browser.message = message
        browser.failed, browser.failed_at = (about, revision) if kind == "error" else ("", 0)

    def succeeded(self, browser: Browser, about: str) -> None:
        """Close the error message about the action `about`, if the browser's panel has one."""
        if about and browser.failed == about:
            browser.message = {"at": self._next(browser), "id": f"{time.time():.6f}", "kind": "over"}
            browser.failed = ""

    @contextmanager
    def reporting(self, browser: Browser, about: str, text: str = "") -> Iterator[None]:
        """Context that shows a ProblemsError of its body as an error message with `text`; after success it closes the message about
        `about`."""
        try:
            yield
        except ProblemsError as error:
            self.say(browser, "error", text, problems=error.problems, about=about)
        else:
            self.succeeded(browser, about)

    @staticmethod
    def _next(browser: Browser) -> float:
        """Return the time stamp of a new message, later than the previous one's: browsers ignore older messages."""
        return max(time.time(), (browser.message or {}).get("at", 0.0) + 0.001)
