"""What was found out about a file, remembered as long as its size and time stay the same.

One small SQLite file, which may be deleted at any time. A disk that cannot hold one (some network drives) costs the
memory, never the job.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from core.record.atomic import remove

_WAIT_SECONDS = 5
_AT_ONCE = 500  # variables in one question; SQLite's limit is 999 in old builds


class FileFacts(Protocol):
    """A file as a scan saw it."""

    @property
    def path(self) -> Path: ...
    @property
    def bytes(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


class Memo:
    """kind of fact, file -> text. path None: nothing is remembered."""

    def __init__(self, path: Path | str | None):
        self.path = Path(path) if path is not None else None

    def known(self, kind: str, files: Sequence[FileFacts]) -> dict[Path, str]:
        """What is known about those files that have not changed since."""
        if self.path is None or not self.path.exists():
            return {}
        wanted = {os.fsencode(file.path): file for file in files}
        found: dict[Path, str] = {}
        names = list(wanted)
        try:
            with closing(self._connect()) as connection:
                for start in range(0, len(names), _AT_ONCE):
                    part = names[start : start + _AT_ONCE]
                    marks = ",".join("?" * len(part))
                    question = f"SELECT path, bytes, mtime_ns, value FROM files WHERE kind = ? AND path IN ({marks})"
                    for name, size, mtime_ns, value in connection.execute(question, (kind, *part)):
                        file = wanted[name]
                        if (size, mtime_ns) == (file.bytes, file.mtime_ns):
                            found[file.path] = value
        except sqlite3.Error as error:
            self._start_again_if_damaged(error)
        return found

    def remember(self, kind: str, facts: Mapping[Path, str], files: Iterable[FileFacts]) -> None:
        """Keep what was found out about those of the files that `facts` names."""
        if self.path is None or not facts:
            return
        rows = [
            (kind, os.fsencode(file.path), file.bytes, file.mtime_ns, facts[file.path])
            for file in files
            if file.path in facts
        ]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self._start_again_if_damaged(error)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(str(self.path), timeout=_WAIT_SECONDS)
        try:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS files (kind TEXT, path BLOB, bytes INTEGER, mtime_ns INTEGER, value TEXT,"
                " PRIMARY KEY (kind, path)) WITHOUT ROWID"
            )
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _start_again_if_damaged(self, error: Exception) -> None:
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if damaged and self.path is not None:
            try:
                remove(self.path)
            except OSError:
                self.path = None
