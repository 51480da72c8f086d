"""Captions while they are edited: the server's side. A save names the image, the text, and what it was typed over.

The browser holds what is typed (assets/captions.js). Here a text is written only where the file still holds one of the
texts that the browser knows; any other text there is someone else's, and a person chooses between the two.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.dataset.buckets.batches import Placed
from core.dataset.captions.files import Caption, caption_change, editable_caption, save_caption
from core.dataset.captions.history import MAX_CAPTION_BYTES, Change, Done, History
from core.dataset.sources.files import printable
from core.dataset.sources.metadata import CACHE_LIST
from core.record.problems import ProblemsError
from tabs.dataset.reading import KEPT_IMAGES, Reading, key_of

NOT_KEPT = "caption.no-history"
KEPT_VISITS = 500
KEPT_UNDO = 200


@dataclass(frozen=True)
class Saved:
    """What became of a save.

    disk     the caption as it is on the disk now
    file     the file that was written, "" when it held the text already
    refused  `disk` is neither the text nor what it was typed over, so nothing was written
    """

    disk: str
    file: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Step:
    """A change that was taken back or repeated: the key of its first image, its name, and what became of it."""

    key: str
    name: str
    done: Done


class Edits:
    """Saving captions, and the stack of undo. Safe to call from any thread.

    load, keep   read and write plain values that survive a restart: {"undo": [...], "redo": [...]}
    """

    def __init__(
        self,
        reading: Reading,
        history: History,
        load: Callable[[], dict[str, Any]],
        keep: Callable[[dict[str, Any]], None],
    ):
        self._reading, self._history = reading, history
        self._load, self._keep = load, keep
        self._lock = threading.RLock()
        self._stepping = threading.Lock()  # one step back at a time; it may take seconds, in which captions are saved
        self._seen: dict[str, int] | None = None  # how much of each change is known; None: not looked yet
        self._looked: tuple[Any, ...] = ()  # the open image, and its caption file's time and size
        self._own: set[str] = set()  # changes that are made here
        self._visits: OrderedDict[str, tuple[str, str]] = OrderedDict()  # with a step of undo -> image's key, change
        self._report: Any = None
        self._present: dict[str, Placed] = {}  # images of the newest report
        self._stems: dict[str, Placed] = {}  # the same by path without extension
        self._known: OrderedDict[str, Placed] = OrderedDict()  # and of earlier ones: their late saves still count

    # -- images

    def image(self, key: str) -> Placed | None:
        """The image of that key, if it is among those that train now."""
        report = self._reading.report
        with self._lock:
            if self._report is not report:
                everything = (*report.validation, *reversed(report.placed)) if report else ()
                self._report = report
                self._present = {key_of(each): each for each in everything}  # first resolution last
                self._stems = {os.path.splitext(each.image.path)[0]: each for each in everything}
                self._known.update(self._present)
                while len(self._known) > KEPT_IMAGES:
                    self._known.popitem(last=False)
            return self._present.get(key)

    def known(self, key: str) -> Placed | None:
        """The image of that key, also when its folder is no longer the chosen one."""
        with self._lock:
            return self.image(key) or self._known.get(key)

    def caption(self, placed: Placed) -> Caption:
        """The caption as it is on the disk now."""
        return editable_caption(placed.image, placed.concept.captions)

    def fixed(self, placed: Placed) -> str:
        """Why this caption cannot be edited here, "" when it can: a file next to the image would not be read."""
        if placed.image.metadata_caption is None:
            return ""
        source = placed.concept.source
        listed = CACHE_LIST if source.cache_info else "your dataset class"
        where = printable(Path(source.metadata_file).name) if source.metadata_file else listed
        return f"This caption comes from {where}, which is used instead of a caption file"

    # -- saving

    def save(self, key: str, text: str, over: Collection[str], visit: str) -> Saved | None:
        """Write a caption; None for an image that is not known.

        over     texts that the file may hold: the one that was shown, and what this browser has sent since
        visit    one showing of the image in one browser: one undo takes back all that was typed in it
        """
        with self._lock:
            placed = self.known(key)
            if placed is None:
                return None
            if why := self.fixed(placed):
                fix = "edit it there, then press Reload on the Dataset tab"
                raise ProblemsError.one(why, printable(placed.image.relative), fix, code="caption.read-only")
            now = self.caption(placed)
            if now.problem is not None and now.missing:  # a file that is no caption is not replaced by one
                raise ProblemsError.one(now.problem.what, now.problem.where, now.problem.fix, now.problem.code)
            disk = own_text(now)
            if plain(text) == disk:
                return Saved(disk)
            if disk not in {plain(each) for each in over}:
                _check_still_there(placed)
                return Saved(disk, refused=True)
            if len(text.encode("utf-8")) > MAX_CAPTION_BYTES:
                what = "The caption is larger than 1 MB, so it is not used as a caption"
                raise ProblemsError.one(what, printable(placed.image.relative), "shorten it", code="caption.too-long")
            extension, (_, before) = placed.concept.captions.caption_extension, self._visits.get(visit, ("", ""))
            done = save_caption(self._history, placed.image.path, text, extension, over=disk, resume=before)
            if done.changed_since:  # in this moment
                return Saved(own_text(self.caption(placed)), refused=True)
            self._own.add(done.id)
            if done.id and not before:
                self._visits[visit] = (key, done.id)
                self._push(placed, printable(placed.image.relative), done.id)
                while len(self._visits) > KEPT_VISITS:
                    self._visits.popitem(last=False)
            self._reading.captions_saved([placed.image.path])
            now = self.caption(placed)
            return Saved(own_text(now), now.path.name)

    def give_up(self, key: str, text: str) -> None:
        """Keep the caption on disk. The typed text goes into the history, and undo writes it."""
        with self._lock:
            placed = self.known(key)
            if placed is None or self.fixed(placed) or plain(text) == own_text(self.caption(placed)):
                return
            change = caption_change(placed.image.path, text, placed.concept.captions.caption_extension)
            given_up = Change(change.path, change.new, change.old)
            id = self._history.keep("Typed here, then another program's was used", given_up)
            self._own.add(id)
            self._push(placed, printable(placed.image.relative), id)

    # -- what others write

    def follow(self) -> None:
        """Captions that tasks and other processes have written since: they are read again, and a whole run is a step of undo."""
        with self._lock:
            first = self._seen is None
            seen: dict[str, int] = self._seen if self._seen is not None else {}
            self._seen = seen
            news = [(id, lines) for id, lines in self._history.news(seen) if not first and id not in self._own]
            paths = [Path(line["path"]) for _, lines in news for line in lines if "path" in line]
            if paths:
                self._reading.captions_saved(paths)
            for id, lines in news:
                if any("finished" in line for line in lines):
                    self._push_run(id)

    def look_at(self, key: str) -> None:
        """Whether another program has changed the caption of an image: it is read again then."""
        placed = self.image(key)
        if placed is None or placed.image.metadata_caption is not None:
            return
        try:
            found = os.stat(placed.caption.path)
            stamp: tuple[Any, ...] = (key, found.st_mtime_ns, found.st_size)
        except OSError:
            stamp = (key,)
        if stamp != self._looked:
            self._looked, now = stamp, self.caption(placed)
            if (now.source, now.text) != (placed.caption.source, placed.caption.text):
                self._reading.captions_saved([placed.image.path])

    def _push_run(self, id: str) -> None:
        """A run that has ended, as a step of undo."""
        with suppress(ProblemsError):
            entry, changes = self._history.entry(id), self._history.changes(id)
            found = next((image for each in changes if (image := self._beside(each.path))), None)
            if found is not None and "undoes" not in entry.about:
                self._push(found, entry.title, id)

    # -- the way back

    def changed(self, done: Done, title: str) -> None:
        """Many captions were changed as one: a step of undo, and what is shown of them follows."""
        with self._lock:
            self._own.add(done.id)
            self._reading.captions_saved(done.written)
            first = next((each for path in done.written if (each := self._beside(path))), None)
            if first is not None:
                self._push(first, title, done.id)

    def _beside(self, caption_file: Path) -> Placed | None:
        """The image that a caption file stands next to."""
        self.image("")  # the newest report's
        return self._stems.get(os.path.splitext(caption_file)[0])

    def _push(self, placed: Placed, name: str, id: str) -> None:
        self._keep({"undo": [*self._load().get("undo", []), [key_of(placed), name, id]][-KEPT_UNDO:], "redo": []})

    def _newest(self, steps: list[Any]) -> int:
        """Where the newest step about one of the images that train now stands, -1 when there is none."""
        return next((n for n in range(len(steps) - 1, -1, -1) if self.image(steps[n][0]) is not None), -1)

    def next_step(self, which: str) -> str:
        """The image whose saving "undo" or "redo" would take back or repeat; "" when there is none."""
        steps = list(self._load().get(which, []))
        number = self._newest(steps)
        return str(steps[number][1]) if number >= 0 else ""

    def files_of_step(self, which: str) -> int:
        """How many files the next step of "undo" or "redo" is of."""
        steps = list(self._load().get(which, []))
        number = self._newest(steps)
        return self._history.count(str(steps[number][2])) if number >= 0 else 0

    def step(self, which: str, progress: Callable[[int, int], None]) -> Step | None:
        """Take back the newest change ("undo"), or repeat it ("redo"); None where there is none. Saves go on meanwhile."""
        with self._stepping:
            with self._lock:
                steps = list(self._load().get(which, []))
                number = self._newest(steps)
            if number < 0:
                return None
            key, name, id = steps[number]
            try:
                with self._reading.undisturbed(self._history.count(str(id))):
                    back = self._history.undo(str(id), progress)
            except ProblemsError as error:
                if NOT_KEPT in error.codes:
                    self._drop(which, id)  # it is not offered again
                raise
            self._stepped(which, [key, name, id], back)
            return Step(key, name, back)

    def _drop(self, which: str, id: str) -> None:
        with self._lock:
            self._keep({which: [each for each in self._load().get(which, []) if each[2] != id]})

    def _stepped(self, which: str, step: list[str], back: Done) -> None:
        """A change is undone: its opposite can be done now."""
        key, name, id = step
        other = "redo" if which == "undo" else "undo"
        with self._lock:
            self._drop(which, id)
            self._own.add(back.id)
            if back.id:
                self._keep({other: [*self._load().get(other, []), [key, name, back.id]][-KEPT_UNDO:]})
            for visit in [each for each, (of, _) in self._visits.items() if of == key]:
                del self._visits[visit]  # what is typed from here on is a step of its own
            self._reading.captions_saved(back.written)


def _check_still_there(placed: Placed) -> None:
    """Raises ProblemsError where the caption is gone because the image or its folder is."""
    if not placed.image.path.exists():
        gone = "image" if placed.image.path.parent.is_dir() else "folder"
        what, fix = f"The {gone} no longer exists", "restore it, or reload the folder on Dataset"
        raise ProblemsError.one(what, printable(placed.image.relative), fix, "caption.image-gone")


def own_text(caption: Caption) -> str:
    """The text of the image's own caption; "" where only its folder has words for it."""
    return "" if caption.missing else plain(caption.text)


def plain(text: str) -> str:
    """A text as it is saved: one kind of line end, no blanks around it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()
