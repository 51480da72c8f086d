"""The failure of another process of a distributed training, stored in a file: the first process only notices that it left the group."""

import json
from contextlib import suppress
from pathlib import Path

from core.engine.explain import Explanation
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder


def clear_failure(folder: RunFolder) -> None:
    """Delete a recorded failure, when the run starts or resumes."""
    with suppress(OSError):
        _file(folder).unlink(missing_ok=True)


def record_failure(folder: RunFolder, explanation: Explanation, process: int | None) -> None:
    """Record why a process failed, before it leaves the group; does nothing if another failure was recorded first.
    process: number of the process, from 1; None if unknown"""
    if recorded_failure(folder) is None:
        which = "" if process is None else f" (in process {process})"
        content = {"what": explanation.what + which, "fix": explanation.fix}
        with suppress(OSError):
            folder.logs.mkdir(exist_ok=True)
            atomic.write_text(_file(folder), json.dumps(content))


def recorded_failure(folder: RunFolder) -> Explanation | None:
    """Return the failure that another process has recorded since the run started; None without one."""
    try:
        content = read_json_object(_file(folder))
        return Explanation(str(content["what"]), str(content["fix"]))
    except (ProblemsError, KeyError):
        return None


def _file(folder: RunFolder) -> Path:
    """Return the path of the file with the recorded failure."""
    return folder.logs / "other_process.json"
