"""What ended a training in another of its processes. The first one only sees it leave, so it is told by a file."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from core.engine.explain import Explanation
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder


def clear_failure(folder: RunFolder) -> None:
    """The run begins, or goes on: what ended it before is over."""
    with suppress(OSError):
        _file(folder).unlink(missing_ok=True)


def record_failure(folder: RunFolder, words: Explanation, process: int | None) -> None:
    """Write it down before this process leaves the group; where another one has, that came first.

    process  the number of the one that ended, from 1; None where it is not known which
    """
    if recorded_failure(folder) is None:
        which = "" if process is None else f" (in process {process})"
        found = {"what": words.what + which, "fix": words.fix}
        with suppress(OSError):
            folder.logs.mkdir(exist_ok=True)
            atomic.write_text(_file(folder), json.dumps(found))


def recorded_failure(folder: RunFolder) -> Explanation | None:
    """What another process told since the run began; None where none did."""
    try:
        found = read_json_object(_file(folder))
        return Explanation(str(found["what"]), str(found["fix"]))
    except (ProblemsError, KeyError):
        return None


def _file(folder: RunFolder) -> Path:
    return folder.logs / "other_process.json"
