"""Checkpoints that the user marked to keep, with their names: kept.json in the run folder."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError, unwritten
from core.record.stamps import Stamp, stamp_or_none

FILE = "kept.json"
MOST_NAME, MAX_BYTES = 80, 100_000


def read_kept(run: Path) -> dict[str, str]:
    """Return {file relative to the run folder: its name} of the marked checkpoints that still exist; {} for a damaged kept.json."""
    path = run / FILE
    stamp = stamp_or_none(path)
    return {file: name for file, name in (_read(path, stamp) if stamp else ()) if (run / file).exists()}


@lru_cache(maxsize=2000)
def _read(path: Path, stamp: Stamp) -> tuple[tuple[str, str], ...]:
    """Read kept.json, cached until the file changes: lists of runs ask for hundreds every few seconds."""
    try:
        held = read_json_object(path, "delete the file", max_bytes=MAX_BYTES)
    except (ProblemsError, OSError):
        return ()
    return tuple((file, name) for file, name in held.items() if isinstance(name, str))


def keep(run: Path, file: Path, name: str | None) -> None:
    """Mark a checkpoint of the run as kept under a name; None removes the mark. Raises ProblemsError."""
    place = file.relative_to(run).as_posix()
    names = {each: name_of for each, name_of in read_kept(run).items() if each != place}
    if name is not None:
        names[place] = _checked(name) or file.stem
    try:
        atomic.write_json(run / FILE, names)
    except OSError as error:
        raise unwritten(error, "The mark cannot be saved", str(run)) from None


def _checked(name: str) -> str:
    clean = " ".join("".join(sign for sign in name if sign.isprintable()).split())
    if len(clean) > MOST_NAME:
        what = f"The name has {len(clean):,} characters; the limit is {MOST_NAME}"
        raise ProblemsError.one(what, "name", "shorten it", "kept.name-too-long")
    return clean
