"""Saving of captions, and their undo.

The browser (assets/captions.js) sends the typed text with the texts that it knows of the file. The text is written only if the file
still has one of these; otherwise another program has changed the file, and the user chooses between the two texts.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.dataset.buckets.batches import Placed
from core.dataset.captions.files import Caption, caption_change, editable_caption, normalized_text, save_caption
from core.dataset.captions.history import MAX_CAPTION_BYTES, Change, ChangeResult, History
from core.dataset.sources.files import printable
from core.dataset.sources.metadata import CACHE_LIST
from core.record.problems import ProblemsError
from core.record.stamps import stamp_or_none
from tabs.dataset.reading import MAX_IMAGES, Reading, key_of

NO_HISTORY = "caption.no-history"
MAX_VISITS = 500
MAX_UNDO = 200


@dataclass(frozen=True)
class Saved:
    """Result of saving a caption.

    disk     caption on disk now
    file     name of the written file, "" if nothing was written
    refused  whether nothing was written because another program has changed the caption on disk
    """

    disk: str
    file: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Step:
    """A change in the undo or redo stack.

    key   key of the first image that it changed
    name  title of the change
    id    of the change in the history; "" for no step
    """

    key: str = ""
    name: str = ""
    id: str = ""


class Edits:
    """Saves captions, with undo and redo stacks. Thread-safe.

    load, keep: functions that read and store the stacks as JSON values, {"undo": [...], "redo": [...]}
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
        self._stepping = threading.Lock()  # one undo at a time; it may take seconds, in which captions are saved
        self._positions: dict[str, int] | None = (
            None  # {id of a change: lines read of it}; None before the first reading
        )
        self._open_file: tuple[Any, ...] = ()  # key of the open image, and its caption file's time and size
        self._local_ids: set[str] = set()  # changes by this object
        self._visits: OrderedDict[str, tuple[str, str]] = OrderedDict()  # {visit with an undo step: (key, change)}
        self._report: Any = None
        self._present: dict[str, Placed] = {}  # images of the newest report
        self._stems: dict[str, Placed] = {}  # the same by path without extension
        # Images of earlier reports too, whose late saves are accepted
        self._known_images: OrderedDict[str, Placed] = OrderedDict()

    # -- images

    def image(self, key: str) -> Placed | None:
        """Return the image with this key in the newest report; None if there is none."""
        report = self._reading.report
        with self._lock:
            if self._report is not report:
                images = (*report.validation, *reversed(report.placed)) if report else ()
                self._report = report
                self._present = {key_of(each): each for each in images}  # first resolution last
                self._stems = {os.path.splitext(each.image.path)[0]: each for each in images}
                self._known_images.update(self._present)
                while len(self._known_images) > MAX_IMAGES:
                    self._known_images.popitem(last=False)
            return self._present.get(key)

    def known_image(self, key: str) -> Placed | None:
        """Return the image with this key in the newest or an earlier report; None if there is none."""
        with self._lock:
            return self.image(key) or self._known_images.get(key)

    def caption(self, placed: Placed) -> Caption:
        """Return the image's caption on disk."""
        return editable_caption(placed.image, placed.concept.captions)

    def read_only(self, placed: Placed) -> str:
        """Return why the image's caption cannot be edited: metadata is used instead of a caption file. "" if it can."""
        if placed.image.metadata_caption is None:
            return ""
        source = placed.concept.source
        listed = CACHE_LIST if source.cache_info else "your dataset class"
        where = printable(Path(source.metadata_file).name) if source.metadata_file else listed
        return f"This caption comes from {where}, which is used instead of a caption file"

    # -- saving

    def save(self, key: str, text: str, known_texts: Collection[str], visit: str) -> Saved | None:
        """Write a caption; returns None for an unknown image. Raises ProblemsError if it cannot be edited or is too long.

        known_texts  texts that the file may have: the one shown in the browser, and those that the browser has sent since
        visit        id of one opening of the image in one browser; everything typed in it is one undo step
        """
        with self._lock:
            placed = self.known_image(key)
            if placed is None:
                return None
            if reason := self.read_only(placed):
                fix = "edit it there, then press Reload on the Dataset tab"
                raise ProblemsError.one(reason, printable(placed.image.relative), fix, code="caption.read-only")
            current = self.caption(placed)
            if current.problem is not None and current.missing:  # a file that is not a caption is not overwritten
                raise ProblemsError.one(
                    current.problem.what, current.problem.where, current.problem.fix, current.problem.code
                )
            disk = caption_text(current)
            if normalized_text(text) == disk:
                return Saved(disk)
            if disk not in {normalized_text(each) for each in known_texts}:
                _require_image(placed)
                return Saved(disk, refused=True)
            if len(text.encode("utf-8")) > MAX_CAPTION_BYTES:
                what = "The caption is larger than 1 MB, so it is not used as a caption"
                raise ProblemsError.one(what, printable(placed.image.relative), "shorten it", code="caption.too-long")
            extension, (_, change_id) = placed.concept.captions.caption_extension, self._visits.get(visit, ("", ""))
            result = save_caption(self._history, placed.image.path, text, extension, over=disk, resume=change_id)
            if result.changed_since:  # between reading and writing
                return Saved(caption_text(self.caption(placed)), refused=True)
            self._local_ids.add(result.id)
            if result.id and not change_id:
                self._visits[visit] = (key, result.id)
                self._push(placed, printable(placed.image.relative), result.id)
                while len(self._visits) > MAX_VISITS:
                    self._visits.popitem(last=False)
            self._reading.captions_saved([placed.image.path])
            current = self.caption(placed)
            return Saved(caption_text(current), current.path.name)

    def discard_typed(self, key: str, text: str) -> None:
        """Discard the typed text in favor of the caption on disk. The text goes into the history, from which undo can write it."""
        with self._lock:
            placed = self.known_image(key)
            if placed is None or self.read_only(placed) or normalized_text(text) == caption_text(self.caption(placed)):
                return
            change = caption_change(placed.image.path, text, placed.concept.captions.caption_extension)
            given_up = Change(change.path, change.new, change.old)
            id = self._history.record("Typed here, then another program's was used", given_up)
            self._local_ids.add(id)
            self._push(placed, printable(placed.image.relative), id)

    # -- changes by tasks and other programs

    def follow(self) -> None:
        """Read captions again that tasks and other processes have written since the last call; a finished task becomes one undo step."""
        with self._lock:
            first = self._positions is None
            positions: dict[str, int] = self._positions if self._positions is not None else {}
            self._positions = positions
            new_changes = [
                (id, lines)
                for id, lines in self._history.new_lines(positions)
                if not first and id not in self._local_ids
            ]
            paths = [Path(line["path"]) for _, lines in new_changes for line in lines if "path" in line]
            if paths:
                self._reading.captions_saved(paths)
            for id, lines in new_changes:
                if any("finished" in line for line in lines):
                    self._push_run(id)

    def reload_changed(self, key: str) -> None:
        """Read the caption of the image with this key again if another program has changed the file."""
        placed = self.image(key)
        if placed is None or placed.image.metadata_caption is not None:
            return
        open_file = key, stamp_or_none(placed.caption.path)
        if open_file != self._open_file:
            self._open_file, caption = open_file, self.caption(placed)
            if (caption.source, caption.text) != (placed.caption.source, placed.caption.text):
                self._reading.captions_saved([placed.image.path])

    def _push_run(self, id: str) -> None:
        """Add the finished captioning task with history id `id` to the undo stack, if it is this user's."""
        with suppress(ProblemsError):
            entry, changes = self._history.entry(id), self._history.changes(id)
            first = next((image for each in changes if (image := self._image_with_caption(each.path))), None)
            is_own = entry.about.get("person", "") == self._history.person
            if first is not None and is_own and "undoes" not in entry.about:
                self._push(first, entry.title, id)

    # -- undo

    def changed(self, result: ChangeResult, title: str) -> None:
        """Add a change of many captions to the undo stack, and read the captions again."""
        with self._lock:
            self._local_ids.add(result.id)
            self._reading.captions_saved(result.written)
            first = next((each for path in result.written if (each := self._image_with_caption(path))), None)
            if first is not None:
                self._push(first, title, result.id)  # one step undoes all of it, and shows this image

    def _image_with_caption(self, caption_file: Path) -> Placed | None:
        """Return the image that a caption file belongs to; None if there is none."""
        self.image("")  # updates `_stems` to the newest report
        return self._stems.get(os.path.splitext(caption_file)[0])

    def _push(self, placed: Placed, name: str, id: str) -> None:
        """Add the change `id`, titled `name`, to the undo stack, and clear the redo stack. placed: the first changed image"""
        self._keep({"undo": [*self._load().get("undo", []), [key_of(placed), name, id]][-MAX_UNDO:], "redo": []})

    def next_step(self, stack: str) -> Step:
        """Return the newest step of stack "undo" or "redo" whose image is in the newest report; an empty Step without one."""
        with self._lock:
            steps = reversed(self._load().get(stack, []))
            return next((Step(*each) for each in steps if self.image(each[0]) is not None), Step())

    def step(self, stack: str, progress: Callable[[int, int], None]) -> tuple[Step, ChangeResult] | None:
        """Undo or redo the newest change (`stack`: "undo" or "redo"); None if there is none. Raises ProblemsError.

        Captions can be saved meanwhile. progress: called with (done, total) files. Returns (step, result).
        """
        with self._stepping:
            step = self.next_step(stack)
            if not step.id:
                return None
            try:
                with self._reading.paused_for_writing(self._history.file_count(step.id)):
                    result = self._history.undo(step.id, progress)
            except ProblemsError as error:
                if NO_HISTORY in error.codes:
                    self._drop(stack, step.id)
                raise
            self._move_to_other_stack(stack, step, result)
            return step, result

    def _drop(self, stack: str, id: str) -> None:
        """Remove the change `id` from stack "undo" or "redo"."""
        with self._lock:
            self._keep({stack: [each for each in self._load().get(stack, []) if each[2] != id]})

    def _move_to_other_stack(self, from_stack: str, step: Step, result: ChangeResult) -> None:
        """Move an undone or redone change to the other stack."""
        to_stack = "redo" if from_stack == "undo" else "undo"
        with self._lock:
            self._drop(from_stack, step.id)
            self._local_ids.add(result.id)
            if result.id:
                self._keep({to_stack: [*self._load().get(to_stack, []), [step.key, step.name, result.id]][-MAX_UNDO:]})
            for visit in [each for each, (image_key, _) in self._visits.items() if image_key == step.key]:
                del self._visits[visit]  # later typing is a new step
            self._reading.captions_saved(result.written)


def _require_image(placed: Placed) -> None:
    """Raise ProblemsError if the image file no longer exists."""
    if not placed.image.path.exists():
        missing = "image" if placed.image.path.parent.is_dir() else "folder"
        what, fix = f"The {missing} no longer exists", "restore it, or reload the folder on Dataset"
        raise ProblemsError.one(what, printable(placed.image.relative), fix, "caption.image-gone")


def caption_text(caption: Caption) -> str:
    """Return the text of a caption file; "" if there is none and the folder's class tokens are used."""
    return "" if caption.missing else normalized_text(caption.text)
