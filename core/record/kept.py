"""Checkpoints that the user marked to keep, with their names: kept.json in the run folder."""

import json
import threading
import time
from contextlib import suppress
from pathlib import Path

from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError, write_errors
from core.record.regular import read_regular
from core.record.run_about import checked_text
from core.record.stamps import cached_until_changed

FILE = "kept.json"
MOST_NAME, MAX_BYTES = 80, 100_000
RECORDS = (FILE, "choices.jsonl", "assess.json", "verdict.json")  # of a run, which name its checkpoints by file
MOST_RECORD = 64_000_000  # bytes
_WRITING = threading.Lock()


def read_kept(run: Path) -> dict[str, str]:
    """Return {file relative to the run folder: name} of the checkpoints that are marked and exist; {} if kept.json is damaged."""
    return {file: name for file, name in _marks(run) or () if (run / file).exists()}


def last_kept(run: Path) -> str | None:
    """Return the existing checkpoint that was marked last, relative to the run folder; None without one."""
    return next(reversed(read_kept(run)), None)


def kept_mark(file: str, name: str) -> str:
    """Return the mark of a kept checkpoint in lists: "kept", or "kept as {name}" if `name` differs from the file's."""
    return "kept" if name == Path(file).stem else f"kept as {name}"


@cached_until_changed(2000, missing=(), name=FILE)  # lists of runs need hundreds every few seconds
def _marks(run: Path) -> tuple[tuple[str, str], ...] | None:
    """Return the (file, name) pairs of kept.json, including deleted files; () if kept.json is missing, None if it is damaged."""
    try:
        content = read_json_object(run / FILE, "delete the file", max_bytes=MAX_BYTES)
    except (ProblemsError, OSError):
        return None
    return tuple((file, name) for file, name in content.items() if isinstance(name, str))


def keep(run: Path, file: Path, name: str | None) -> None:
    """Mark a checkpoint of the run as kept.

    name   "" for the file's name without extension; None removes the mark
    A damaged kept.json is renamed and a new one begun. Raises ProblemsError if the name is too long or kept.json cannot be written.
    """
    path = file.relative_to(run).as_posix()
    mark = {} if name is None else {path: checked_text("name", name, MOST_NAME, "kept.name-too-long") or file.stem}
    with write_errors("The mark cannot be saved", str(run)), _WRITING:
        if (marks := _marks(run)) is None:
            atomic.replace(run / FILE, run / f"kept-damaged-{time.time_ns()}.json")
        others = {each: title for each, title in marks or () if each != path}  # also of files that may come back
        atomic.write_json(run / FILE, others | mark)


def follow_renamed(run: Path, old: str, new: str) -> None:
    """Replace the file name `old` of a checkpoint by `new` in the run's marks, blind choices, assessment and comparison. Raises
    ProblemsError if one of them cannot be written."""
    for record in RECORDS:
        changed = before = b""
        with suppress(ProblemsError):  # there is none
            changed = before = read_regular(run / record, MOST_RECORD)
            for folder in ("", "checkpoints/"):
                for escapes in (False, True):
                    was, now = (
                        json.dumps(folder + name, ensure_ascii=escapes).encode("utf-8", "backslashreplace")
                        for name in (old, new)
                    )
                    changed = changed.replace(was, now)
        if changed != before:
            with write_errors("The marks of the earlier final checkpoint cannot be saved", str(run)), _WRITING:
                atomic.write_bytes(run / record, changed)
