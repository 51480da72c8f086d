"""What was found out about a file, remembered as long as its size and time stay the same.

One small SQLite file, which may be deleted at any time. Where a disk cannot hold one (network drives without locks), it
lies among the machine's temporary files for as long as the process lives.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Protocol

from core.record.atomic import remove

_WAIT_SECONDS = 5
_ELSEWHERE: dict[Path, Path] = {}  # files that their disk cannot hold -> where they lie instead
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
        self._wanted = Path(path) if path is not None else None

    @property
    def path(self) -> Path | None:
        """Where it lies."""
        return _ELSEWHERE.get(self._wanted, self._wanted) if self._wanted is not None else None

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
            self._moved_after(error)
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
            self._insert(rows)
        except (sqlite3.Error, OSError) as error:
            if self._moved_after(error):
                with suppress(sqlite3.Error, OSError):
                    self._insert(rows)

    def _insert(self, rows: Sequence[tuple]) -> None:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)

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

    def _moved_after(self, error: Exception) -> bool:
        """Start again after what went wrong: anew where the file is damaged (removed: it was only a memory), elsewhere
        (True) where the disk cannot hold one. Another process that writes for long is neither."""
        if self.path is None or self._wanted is None:
            return False
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            try:
                remove(self.path)
                return False
            except OSError:
                pass
        elif self.path != self._wanted or _holds_databases(self.path.parent):
            return False
        _ELSEWHERE[self._wanted] = _own_folder() / f"{uuid.uuid4().hex}.sqlite"
        return True


def _holds_databases(folder: Path) -> bool:
    """Whether a new one can be written there."""
    probe = folder / f".tmp-{uuid.uuid4().hex}.sqlite"
    try:
        with closing(sqlite3.connect(str(probe), timeout=0.1)) as connection, connection:
            connection.execute("CREATE TABLE tried (one INTEGER)")
        return True
    except (sqlite3.Error, OSError):
        return False
    finally:
        with suppress(OSError):
            remove(probe)


@cache
def _own_folder() -> Path:
    """Of this process, gone when it ends."""
    folder = tempfile.mkdtemp(prefix="atelier-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
