"""A cache of facts about files, valid while a file's size and time are unchanged.

One small SQLite file, which may be deleted at any time. Where a disk does not support one (network drives without
locks), it is a temporary file of the process.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from core.record.atomic import remove
from core.record.temporary import HeldFolder

_WAIT_SECONDS = 5
THREADS = 4  # that measure files
_ELSEWHERE: dict[Path, Path] = {}  # files their disk does not support -> where they are instead
_AT_ONCE = 500  # variables in one query; SQLite's limit is 999 in old builds


class FileFacts(Protocol):
    """A file as a scan saw it."""

    @property
    def path(self) -> Path: ...
    @property
    def bytes(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


class Memo:
    """Cached facts in the SQLite file `path`: (kind of fact, file) -> text. path None: nothing is cached."""

    def __init__(self, path: Path | str | None):
        self._wanted = Path(path) if path is not None else None

    @property
    def path(self) -> Path | None:
        """The database file in use."""
        return _ELSEWHERE.get(self._wanted, self._wanted) if self._wanted is not None else None

    def known(self, kind: str, files: Sequence[FileFacts]) -> dict[Path, str]:
        """Cached facts of those files that have not changed since."""
        if self.path is None or not self.path.exists():
            return {}
        wanted = {os.fsencode(file.path): file for file in files}
        facts: dict[Path, str] = {}
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
                            facts[file.path] = value
        except sqlite3.Error as error:
            self._moved_after(error)
        return facts

    def remember(self, kind: str, facts: Mapping[Path, str], files: Iterable[FileFacts]) -> None:
        """Store the facts of those files that `facts` contains."""
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

    def facts(
        self,
        kind: str,
        files: Sequence[Any],
        measure: Callable[[Any], str | OSError],
        check: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[Path, Any]:
        """{path: its fact}, measured where it is not cached. An OSError that `measure` returns takes the fact's place and is not
        cached.

        check   called between chunks of files; may raise to cancel; facts so far are kept
        progress   called with (done, total)
        """
        known: dict[Path, Any] = dict(self.known(kind, files))
        unread = [file for file in files if file.path not in known]
        remaining, done = iter(unread), len(files) - len(unread)
        with ThreadPoolExecutor(THREADS) as pool:
            while part := list(islice(remaining, 16 * THREADS)):
                if check:
                    check()
                measured = dict(zip((file.path for file in part), pool.map(measure, part), strict=True))
                self.remember(kind, {path: fact for path, fact in measured.items() if isinstance(fact, str)}, part)
                known |= measured
                done += len(part)
                if progress:
                    progress(done, len(files))
        return known

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
        """Recover from an error: a damaged database is deleted; where the disk does not support one, a temporary file takes
        its place (True). A lock held by another process is neither."""
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
        _ELSEWHERE[self._wanted] = _temporary_folder().path / f"{uuid.uuid4().hex}.sqlite"
        return True


def _holds_databases(folder: Path) -> bool:
    """Whether an SQLite database can be created there."""
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
def _temporary_folder() -> HeldFolder:
    """A temporary folder of this process, deleted when it ends."""
    return HeldFolder("index")
