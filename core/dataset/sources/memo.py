"""A cache of facts about files, valid while a file's size and time are unchanged.

It is one small SQLite file, which may be deleted at any time. On a disk that does not support SQLite (network drives without
locks), a temporary file of the process is used.
"""

import os
import sqlite3
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from core.record.atomic import remove
from core.record.temporary import HeldFolder

_WAIT_SECONDS = 5
THREADS = 4  # that measure files: they wait for disks and network drives, not the CPU
_ELSEWHERE: dict[Path, Path] = {}  # files their disk does not support -> where they are instead
_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # of each kind of fact
_AT_ONCE = 500  # variables in one query; SQLite's limit is 999 in old builds


class FileFacts(Protocol):
    """A file with its size and time when it was scanned."""

    @property
    def path(self) -> Path: ...
    @property
    def bytes(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


class Memo:
    """Cached facts in the SQLite file `path`: (kind of fact, file) -> text. With `path` None nothing is cached."""

    def __init__(self, path: Path | str | None):
        self._requested = Path(path) if path is not None else None

    @property
    def path(self) -> Path | None:
        """The database file in use, or None."""
        return _ELSEWHERE.get(self._requested, self._requested) if self._requested is not None else None

    def known(self, kind: str, files: Sequence[FileFacts]) -> dict[Path, str]:
        """Return {path: cached fact, as text} of the files that have not changed since.
        kind: name of the fact, under which it was stored"""
        if self.path is None or not self.path.exists():
            return {}
        file_of = {os.fsencode(file.path): file for file in files}
        facts: dict[Path, str] = {}
        names = list(file_of)
        try:
            with closing(self._connect()) as connection:
                for start in range(0, len(names), _AT_ONCE):
                    part = names[start : start + _AT_ONCE]
                    marks = ",".join("?" * len(part))
                    query = f"SELECT path, bytes, mtime_ns, value FROM files WHERE kind = ? AND path IN ({marks})"
                    for name, size, mtime_ns, value in connection.execute(query, (kind, *part)):
                        file = file_of[name]
                        if (size, mtime_ns) == (file.bytes, file.mtime_ns):
                            facts[file.path] = value
        except sqlite3.Error as error:
            self._recovered(error)
        return facts

    def remember(self, kind: str, facts: Mapping[Path, str], files: Iterable[FileFacts]) -> None:
        """Store facts, {path: text}, of those of `files` that `facts` contains. Database errors are ignored. kind: name of the fact"""
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
            if self._recovered(error):
                with suppress(sqlite3.Error, OSError):
                    self._insert(rows)

    def facts(
        self,
        kind: str,
        files: Sequence[Any],
        measure: Callable[[Any], Any],
        check: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        to_text: Callable[[Any], str | None] = lambda fact: fact if isinstance(fact, str) else None,
        from_text: Callable[[str], Any] = str,
        threads: int = THREADS,
        at_once: int = 16 * THREADS,
    ) -> dict[Path, Any]:
        """Return {path: fact} of all files, measured by threads if not cached.

        kind        name of the fact, under which it is cached
        measure     returns the fact of a file, or an OSError, which is returned in its place and not cached
        check       may raise to cancel; facts measured so far stay cached
        progress    called with (done, total)
        to_text     converts a fact to text; None for a result that is not to be cached, such as an error
        from_text   converts text back; None for damaged text, which counts as not cached
        at_once     number of files between two writes
        """

        def measured(file: Any) -> Any:
            if check:
                check()  # after a cancel only those end that had begun
            return measure(file)

        results = self._read(kind, files, from_text)
        unread = [file for file in files if file.path not in results]
        done, remaining = len(files) - len(unread), iter(unread)
        with ThreadPoolExecutor(threads) as pool:
            while part := list(islice(remaining, at_once)):
                with self._one_at_a_time(kind, check):
                    results |= self._read(kind, part, from_text)  # another thread may have measured these meanwhile
                    unmeasured = [file for file in part if file.path not in results]
                    done += len(part) - len(unmeasured)
                    if progress:
                        progress(done, len(files))
                    texts: dict[Path, str] = {}
                    futures = {pool.submit(measured, file): file.path for file in unmeasured}
                    for future in as_completed(futures):
                        if future.exception() is None:
                            path, done = futures[future], done + 1
                            results[path] = future.result()
                            if (text := to_text(results[path])) is not None:
                                texts[path] = text
                            if progress:
                                progress(done, len(files))
                    self.remember(kind, texts, unmeasured)
                    for future in futures:
                        future.result()  # raises what ended it
        return results

    def _read(self, kind: str, files: Sequence[FileFacts], from_text: Callable[[str], Any]) -> dict[Path, Any]:
        """Return {path: fact} of the files whose cached text is valid."""
        facts = {path: from_text(text) for path, text in self.known(kind, files).items()}
        return {path: fact for path, fact in facts.items() if fact is not None}

    @contextmanager
    def _one_at_a_time(self, kind: str, check: Callable[[], None] | None) -> Iterator[None]:
        """Hold the lock of a kind of fact, so that only one thread measures it, if facts are cached. check: may raise to cancel"""
        lock = _locks[kind] if self.path is not None else threading.Lock()
        waiting = True
        while waiting:
            if check:
                check()
            waiting = not lock.acquire(timeout=0.1)
        try:
            yield
        finally:
            lock.release()

    def _insert(self, rows: Sequence[tuple]) -> None:
        """Write rows (kind, path, bytes, mtime_ns, text) to the database."""
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)

    def _connect(self) -> sqlite3.Connection:
        """Open the database, with its table created."""
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

    def _recovered(self, error: Exception) -> bool:
        """Recover from a database error; return whether a temporary file replaces the database from now on.

        A damaged database is deleted. A temporary file is used if the disk does not support databases, not if another process holds
        the lock.
        """
        if self.path is None or self._requested is None:
            return False
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            try:
                remove(self.path)
                return False
            except OSError:
                pass
        elif self.path != self._requested or _holds_databases(self.path.parent):
            return False
        _ELSEWHERE[self._requested] = _temporary_folder().path / f"{uuid.uuid4().hex}.sqlite"
        return True


def _holds_databases(folder: Path) -> bool:
    """Return whether an SQLite database can be created in a folder."""
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
    """Return a temporary folder of this process, deleted when the process ends."""
    return HeldFolder("index")
