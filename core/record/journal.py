"""A run's journal: events are buffered in memory and written as JSON lines every second and at state changes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.record.events import VERSION, Event
from core.record.former import with_current_names
from core.record.problems import ProblemsError
from core.record.regular import open_regular
from core.record.secrets import mask

JOURNAL = "events.jsonl"  # in the folder of a run
FLUSH_SECONDS = 1.0
END_BYTES = 1 << 16
MAX_LINE = 16 << 20  # anything after a longer line is damage and is not read
Line = dict[str, Any]


class Journal:
    """Appends events to a run's events.jsonl, which no other object writes. Thread-safe; a thread flushes every FLUSH_SECONDS."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time):
        self.path = folder / JOURNAL
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._listeners: list[Callable[[Line], None]] = []
        self._closed = threading.Event()
        cut_torn_line(self.path)
        self._seq = max((line["seq"] for line in read_lines(self.path)), default=0)
        self._thread = threading.Thread(target=self._flush_often, name="journal", daemon=True)
        self._thread.start()

    def listen(self, listener: Callable[[Line], None]) -> None:
        """Call `listener` with each new line, in the writer's thread."""
        self._listeners.append(listener)

    def put(self, event: Event) -> Line:
        """Pass an event to the listeners and return its line, with the user's API keys masked. The line is written to disk at the next
        flush; if the event is urgent, at once."""
        with self._lock:
            self._seq += 1
            line = {
                "v": VERSION,
                "seq": self._seq,
                "time": round(self._clock(), 3),
                "kind": event.kind,
                **event.facts(),
            }
            text = json.dumps(line, ensure_ascii=False, allow_nan=True)
            if (masked := mask(text)) != text:  # a library's message that quotes a key
                text, line = masked, json.loads(masked)
            self._waiting.append(text)
        for listener in self._listeners:
            listener(line)
        if event.urgent:
            self.flush()
        return line

    def flush(self) -> None:
        """Write the pending lines. They stay pending if that fails: a full disk must not end a training."""
        with self._lock:
            if not self._waiting:
                return
            text = "\n".join(self._waiting) + "\n"
            try:
                # backslashreplace: invalid Unicode in a file name becomes a JSON escape
                with open(self.path, "a", encoding="utf-8", errors="backslashreplace", newline="\n") as handle:
                    handle.write(text)
            except OSError:
                cut_torn_line(self.path)
                return
            self._waiting.clear()

    @property
    def unwritten(self) -> bool:
        """Whether lines are pending, such as those that did not fit on a full disk."""
        return bool(self._waiting)

    def _flush_often(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            self.flush()

    def close(self) -> None:
        """Stop the flushing thread and write the pending lines."""
        self._closed.set()
        self._thread.join(timeout=5)
        self.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SilentJournal(Journal):
    """A journal that discards all events, for jobs whose run has another journal that is written."""

    def __init__(self) -> None:
        self._listeners = []

    def put(self, event: Event) -> Line:
        return {}

    def flush(self) -> None:
        return

    def close(self) -> None:
        return


def cut_torn_line(path: Path) -> None:
    """Truncate a file of lines after its last newline: a killed process may have left an incomplete line."""
    try:
        with open(path, "rb+") as handle:
            end = handle.seek(0, os.SEEK_END)
            if end == 0:
                return
            begin = handle.seek(max(0, end - MAX_LINE))
            keep = begin + handle.read().rfind(b"\n") + 1
            if keep != end and (keep > begin or begin == 0):
                handle.truncate(keep)
    except OSError:
        return


class Tail:
    """Reads a journal's new events, for one thread at a time."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0

    def lines(self) -> Iterator[Line]:
        """Yield the events appended since the last call. Damaged lines are skipped; an incomplete last line is left for a later call."""
        try:
            handle = open_regular(self._path)
        except ProblemsError:
            return
        with handle:
            if handle.seek(0, os.SEEK_END) < self._offset:  # another file by that name
                self._offset = 0
            handle.seek(self._offset)
            while text := handle.readline(MAX_LINE):
                if not text.endswith(b"\n"):
                    return
                self._offset += len(text)
                if line := _line(text):
                    yield line


def read_lines(path: Path, since_seq: int = 0) -> Iterator[Line]:
    """Yield a journal's events whose seq is above `since_seq`; damaged and incomplete lines are skipped."""
    return (line for line in Tail(path).lines() if line["seq"] > since_seq)


def last_of_kind(path: Path, kind: str) -> Line | None:
    """Return the newest event of `kind` in the last END_BYTES of a journal; None if there is none."""
    try:
        with open_regular(path) as handle:
            begin = max(0, handle.seek(0, os.SEEK_END) - END_BYTES)
            handle.seek(begin)
            lines = handle.read().split(b"\n")[:-1]  # anything behind the last newline is incomplete
    except (OSError, ProblemsError):
        return None
    for text in reversed(lines[1:] if begin else lines):
        if kind.encode() in text and (line := _line(text)) and line.get("kind") == kind:
            return line
    return None


def _line(text: bytes) -> Line | None:
    """Parse a journal line; None if it is damaged or not an event."""
    try:
        line = json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return with_current_names(line) if isinstance(line, dict) and isinstance(line.get("seq"), int) else None
