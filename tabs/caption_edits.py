"""Captions while they are edited: what each browser has open, what is not saved yet, and the way back.

A visit is one showing of a picture's caption in one browser. Messages of a browser can overtake each other (leaving the
box and pressing Next are two), so each names its visit; a visit that was left takes no more changes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from core.dataset.batches import Placed
from core.dataset.caption_files import Caption, read_caption, read_caption_file, save_caption, undo
from core.dataset.files import printable
from core.dataset.report import Row
from core.record.problems import ProblemsError
from tabs.reading import Reading

KEPT_VISITS = 500
ANSWER_SECONDS = 15.0  # after that an answer is taken for lost
KEPT_UNDO = 200
SAFETY_SECONDS = 5.0  # a browser that dies while someone types loses no more than this


def key_of(placed: Placed | Row) -> str:
    """A picture's address as a short text that any file and browser takes, whatever bytes its name holds."""
    return _short_key(placed.picture.key if isinstance(placed, Placed) else placed.key)


@lru_cache(maxsize=100_000)
def _short_key(key: tuple[str, str]) -> str:
    return hashlib.sha256("\n".join(key).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass
class Visit:
    """One showing.

    saved   the text that the box began with, or saved last
    disk    what the caption was then; another text there now is someone else's
    draft   what was typed and not saved yet
    theirs  the other text that a saving met; it waits for a choice
    """

    token: str
    key: str
    saved: str
    disk: str
    draft: str | None = None
    theirs: str | None = None
    undo_token: str = ""
    left: bool = False
    left_at: float = 0.0  # on the monotonic clock


class Edits:
    """All visits and the stack of undo. Safe to call from any thread.

    load, keep   read and write plain values that survive a restart: {"undo": [...], "redo": [...]}
    """

    def __init__(self, reading: Reading, load: Callable[[], dict[str, Any]], keep: Callable[[dict[str, Any]], None]):
        self._reading = reading
        self._load, self._keep = load, keep
        self._lock = threading.RLock()
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._timer: threading.Timer | None = None
        self._found: tuple[Any, dict[str, Placed]] = (None, {})

    # -- pictures

    def picture(self, key: str) -> Placed | None:
        """The picture of that key, if it is among those that train now."""
        report = self._reading.report
        with self._lock:
            if self._found[0] is not report:
                everything = (
                    (*report.validation, *reversed(report.placed)) if report else ()
                )  # the first resolution last
                self._found = (report, {key_of(each): each for each in everything})
            return self._found[1].get(key)

    def caption(self, placed: Placed) -> Caption:
        """The caption as it is on the disk now."""
        settings, picture = placed.concept.captions, placed.picture
        if picture.given is not None:
            return read_caption(picture, settings)
        return read_caption_file(picture, settings.caption_extension)  # the one file that is saved

    # -- visits

    def open(self, placed: Placed) -> tuple[str, Caption]:
        """Begin a visit: its token and the caption to show."""
        caption = self.caption(placed)
        text = plain(caption.text)
        visit = Visit(secrets.token_hex(6), key_of(placed), text, text)
        with self._lock:
            self._visits[visit.token] = visit
            while len(self._visits) > KEPT_VISITS:
                self._visits.popitem(last=False)
        return visit.token, caption

    def visit(self, token: str) -> Visit | None:
        """A visit that still takes changes."""
        with self._lock:
            found = self._visits.get(token)
            return found if found is not None and not found.left else None

    def typed(self, token: str, text: str) -> bool:
        """Note what the box holds; returns whether it is not saved yet. A timer saves it in case nothing else does."""
        with self._lock:
            visit = self.visit(token)
            if visit is None:
                return False
            visit.draft = text if plain(text) != visit.saved else None
            self._save_later()
            return visit.draft is not None

    def flush(self, token: str, text: str, *, always: bool = False) -> str:
        """Save the box's text when it differs; returns the name of the written file, "" when nothing was written: there was
        nothing to do, or the caption was changed elsewhere (`elsewhere`).

        always   also write a caption file where there is none, when the text is the folder's words unchanged
        """
        with self._lock:
            visit = self.visit(token)
            placed = self.picture(visit.key) if visit else None
            if visit is None or placed is None:
                return ""
            if plain(text) == visit.saved and not (always and self._worth_saving(visit, placed)):
                visit.draft = visit.theirs = None
                return ""
            visit.draft = text
            return self._save(visit, placed, text)

    def _worth_saving(self, visit: Visit, placed: Placed) -> bool:
        """Whether saving the text that was shown would change the disk."""
        now = self.caption(placed)
        return now.source in ("words", "none") or plain(now.text) != visit.disk

    def _save(self, visit: Visit, placed: Placed, text: str) -> str:
        now = plain(self.caption(placed).text)
        visit.theirs = now if now not in (visit.disk, plain(text)) else None
        if visit.theirs is not None:
            return ""
        token = save_caption(placed.picture.path, text, placed.concept.captions.caption_extension)
        visit.saved, visit.draft, visit.disk = plain(text), None, plain(self.caption(placed).text)
        if token and not visit.undo_token:  # one undo takes back all that was typed in one visit
            visit.undo_token = token
            self._push(placed, token)
        self._reading.caption_saved(placed.picture.key)
        return self.caption(placed).path.name

    def elsewhere(self, token: str) -> str | None:
        """The text that another window or program wrote while this one was typed, until a person has chosen."""
        visit = self.visit(token)
        return visit.theirs if visit is not None else None

    def choose(self, token: str, mine: bool) -> None:
        """Of two texts, keep the box's (the next `flush` saves it; undo brings the other back) or what is on the disk."""
        with self._lock:
            visit = self.visit(token)
            if visit is None or visit.theirs is None:
                return
            if mine:
                visit.disk, visit.theirs = visit.theirs, None
            else:
                self.leave(token)

    def leave(self, token: str) -> None:
        """End a visit: later messages of it change nothing."""
        with self._lock:
            visit = self._visits.get(token)
            if visit is not None:
                visit.left, visit.left_at = True, time.monotonic()

    def moving_on(self, token: str) -> bool:
        """Whether the visit was left just now, so that the answer with the next one is still on its way."""
        with self._lock:
            visit = self._visits.get(token)
            return visit is not None and visit.left and time.monotonic() - visit.left_at < ANSWER_SECONDS

    def save_drafts(self) -> None:
        """Save whatever was typed and not saved. One that cannot be saved stays a draft."""
        with self._lock:
            for visit in list(self._visits.values()):
                placed = self.picture(visit.key)
                if visit.draft is not None and not visit.left and placed is not None:
                    try:
                        self._save(visit, placed, visit.draft)
                    except ProblemsError:
                        continue

    def _save_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(SAFETY_SECONDS, self.save_drafts)
        self._timer.daemon = True
        self._timer.start()

    # -- the way back

    def _push(self, placed: Placed, token: str) -> None:
        step = [key_of(placed), printable(placed.picture.relative), quote_from_bytes(os.fsencode(token))]
        self._keep({"undo": [*self._load().get("undo", []), step][-KEPT_UNDO:], "redo": []})

    def _newest(self, steps: list[Any]) -> int:
        """Where the newest step about one of the pictures that train now stands, -1 when there is none."""
        for number in range(len(steps) - 1, -1, -1):
            key, _, token = steps[number]
            placed = self.picture(key)
            if placed is not None and _path(token).parent.parent == placed.picture.path.parent:
                return number
        return -1

    def next_step(self, which: str) -> str:
        """The picture whose saving "undo" or "redo" would take back or repeat; "" when there is none."""
        steps = list(self._load().get(which, []))
        number = self._newest(steps)
        return str(steps[number][1]) if number >= 0 else ""

    def step(self, which: str) -> str:
        """Take back the newest saving ("undo"), or repeat it ("redo"). Returns the picture's key, "" for none."""
        with self._lock:
            state = self._load()
            steps = list(state.get(which, []))
            number = self._newest(steps)
            if number < 0:
                return ""
            key, name, token = steps.pop(number)
            other = "redo" if which == "undo" else "undo"
            others = list(state.get(other, []))
            try:
                back = undo(str(_path(token)))
            finally:  # a text that is gone from the trash is not offered again
                self._keep({which: steps})
            if back:
                others.append([key, name, quote_from_bytes(os.fsencode(back))])
            self._keep({other: others[-KEPT_UNDO:]})
            for visit in self._visits.values():  # what is being typed elsewhere is not dropped: its saving asks
                visit.left = visit.left or (visit.key == key and visit.draft is None)
            placed = self.picture(key)
            if placed is not None:
                self._reading.caption_saved(placed.picture.key)
            return key


def _path(token: str) -> Path:
    """The record of an earlier caption, from the form it is kept in."""
    return Path(os.fsdecode(unquote_to_bytes(token)))


def plain(text: str) -> str:
    """A text as it is saved: one kind of line end, no blanks around it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()
