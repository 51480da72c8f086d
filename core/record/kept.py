"""Checkpoints that the user marked to keep, with their names: kept.json in the run folder."""

import threading
import time
from pathlib import Path

from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError, unwritten
from core.record.stamps import cached_until_changed

FILE = "kept.json"
MOST_NAME, MAX_BYTES = 80, 100_000
_WRITING = threading.Lock()


def read_kept(run: Path) -> dict[str, str]:
    """Return {file relative to the run folder: its name} of the marked checkpoints that still exist; {} for a damaged kept.json."""
    return {file: name for file, name in _marks(run) or () if (run / file).exists()}


def last_kept(run: Path) -> str | None:
    """The checkpoint of a run that was marked last, relative to the run folder; None without one."""
    return next(reversed(read_kept(run)), None)


def kept_mark(file: str, name: str) -> str:
    """How lists mark a kept file: "kept", with its name if that is another one than the file's."""
    return "kept" if name == Path(file).stem else f"kept as {name}"


@cached_until_changed(2000, missing=(), name=FILE)  # lists of runs need hundreds every few seconds
def _marks(run: Path) -> tuple[tuple[str, str], ...] | None:
    """The (file, name) pairs in kept.json, also of files that are gone; None if it is damaged."""
    try:
        content = read_json_object(run / FILE, "delete the file", max_bytes=MAX_BYTES)
    except (ProblemsError, OSError):
        return None
    return tuple((file, name) for file, name in content.items() if isinstance(name, str))


def keep(run: Path, file: Path, name: str | None) -> None:
    """Mark a checkpoint of the run as kept under a name, "" for the file's name without extension; None removes the mark. A
    damaged kept.json is set aside. Raises ProblemsError if the name is too long or the mark cannot be saved."""
    path = file.relative_to(run).as_posix()
    mark = {} if name is None else {path: _checked(name) or file.stem}
    try:
        with _WRITING:
            if (marks := _marks(run)) is None:
                atomic.replace(run / FILE, run / f"kept-damaged-{time.time_ns()}.json")
            others = {each: title for each, title in marks or () if each != path}  # also of files that may come back
            atomic.write_json(run / FILE, others | mark)
    except OSError as error:
        raise unwritten(error, "The mark cannot be saved", str(run)) from None


def _checked(name: str) -> str:
    clean = " ".join("".join(sign for sign in name if sign.isprintable()).split())
    if len(clean) > MOST_NAME:
        what = f"The name has {len(clean):,} characters; the limit is {MOST_NAME}"
        raise ProblemsError.one(what, "name", "shorten it", "kept.name-too-long")
    return clean
