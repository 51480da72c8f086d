"""A run's folder: settings, journal, samples, checkpoints, training states. Nothing about a run is stored elsewhere."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.lock import HeldElsewhere, Lock, held_message, is_held
from core.record.problems import ProblemsError, unwritten
from core.record.stamps import stamp_or_none

MOST_RECENT = 200  # runs that may be the one that ran last


class RunFolder:
    """Paths, job and lock of a run's folder, outputs/runs/<time>_<name>/."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._lock: Lock | None = None

    name = property(lambda self: self.path.name)
    job_file = property(lambda self: self.path / "job.json")
    dataset_file = property(lambda self: self.path / "dataset.json")
    machine_file = property(lambda self: self.path / "machine.json")
    journal_file = property(lambda self: self.path / "events.jsonl")
    samples = property(lambda self: self.path / "samples")
    logs = property(lambda self: self.path / "logs")
    checkpoints = property(lambda self: self.path / "checkpoints")
    preview = property(lambda self: self.path / "preview.jpg")  # of the image that is being generated
    states = property(lambda self: self.path / "state")
    star_file = property(lambda self: self.path / "starred")  # there if the user starred the run

    @classmethod
    def create(cls, runs: Path, name: str, job: dict[str, Any], now: float | None = None) -> RunFolder:
        """Create a run folder with its job.json. Raises ProblemsError if it cannot be written.

        runs   folder of all runs
        name   of the run; the folder's name is the time and `safe_name` of it
        job    a preset's content (kind, schema_version, groups)
        now    time in the folder's name, in seconds since 1970; None: the current time
        """
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
        stem = f"{stamp}_{safe_name(name)}"
        for candidate in islice(atomic.numbered(stem), 999):
            path = runs / candidate
            try:
                atomic.make_folders(runs)
                path.mkdir()
                atomic.sync_folder(runs)
            except FileExistsError:
                continue
            except OSError as error:
                raise outputs_unwritable(runs, error) from None
            folder = cls(path)
            try:
                atomic.write_json(folder.job_file, job)
            except OSError as error:
                with suppress(OSError):
                    path.rmdir()
                raise outputs_unwritable(runs, error) from None
            return folder
        what = "A thousand runs were started in this second"
        raise ProblemsError.one(what, str(runs), "wait a moment", "run.no-free-name")

    @property
    def damaged(self) -> bool:
        """Whether this is a run folder without job.json: its files are usable, but the run cannot be resumed."""
        return self.exists and not self.job_file.is_file()

    def job(self) -> dict[str, Any]:
        """Return the content of job.json. Raises ProblemsError if it is missing or damaged."""
        return read_json_object(self.job_file, f"start '{self.name}' again from a preset")

    @property
    def exists(self) -> bool:
        """Whether the folder is a run's: it has job.json, a journal or checkpoints."""
        return self.job_file.is_file() or self.journal_file.is_file() or self.checkpoints.is_dir()

    @property
    def preset(self) -> str:
        """Name of the preset that the run was started from; "" if unknown."""
        try:
            return str(self.job().get("preset") or "")
        except ProblemsError:
            return ""

    def lock(self) -> list[str]:
        """Lock the folder, so that the run counts as running. Return messages for the user if the drive has no file locks. Raises
        ProblemsError if another process holds the lock or it cannot be written."""
        lock = Lock(self.path / "lock")
        try:
            messages = lock.acquire()
        except HeldElsewhere as held:
            more, wait = held_message(held)
            what = f"'{self.name}' is already running{more}"
            raise ProblemsError.one(what, str(self.path), f"watch it in Monitor{wait}", "run.already-running") from None
        except OSError as error:
            raise unwritten(error, "The run's folder cannot be written", str(self.path)) from None
        self._lock = lock
        return messages

    def unlock(self) -> None:
        """Release the lock, if this object holds it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def is_moved(self) -> bool:
        """Whether the folder was moved, renamed or deleted since this object locked it."""
        return self._lock is not None and not self._lock.is_there

    def remove_half_written(self) -> None:
        """Delete temporary files of checkpoints, states, samples and the run itself that a killed process left; put back a folder that it
        had only moved aside. Only for the process that holds the lock."""
        for folder in (self.checkpoints, self.states, self.samples):
            atomic.put_back(folder)
            for leftover in folder.glob(".tmp-*"):
                with suppress(OSError):
                    atomic.remove_any(leftover)
        atomic.remove_leftovers(self.path, files_only=True)  # by age: the page writes here too

    @property
    def held(self) -> bool:
        """Whether the run is running: this or another process has locked the folder."""
        return self._lock is not None or is_held(self.path / "lock")


def outputs_unwritable(runs: Path, error: OSError) -> ProblemsError:
    """Return the ProblemsError for an output folder that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return unwritten(error, "", str(runs))
    what = f"The output folder is not writable: {error.strerror}"
    return ProblemsError.one(what, str(runs), "choose another folder with --outputs", code="outputs.not-writable")


def safe_name(text: str) -> str:
    """Return `text` as part of a file name that is valid on every system: letters and digits of any script, blanks, - and _; at most 60
    characters, "run" if none is left."""
    text = unicodedata.normalize("NFC", text).strip()
    text = re.sub(r"[^\w\- ]+", "_", text).strip("_ ")
    return text[:60].rstrip() or "run"


def list_runs(runs: Path) -> list[RunFolder]:
    """Return the run folders in `runs`, newest first, including damaged ones."""
    return list(newest_runs(runs))


def newest_runs(runs: Path) -> Iterator[RunFolder]:
    """Yield the run folders in `runs`, newest first, including damaged ones; each is checked only when it is reached."""
    for name in sorted(os.listdir(runs), reverse=True) if runs.is_dir() else ():
        if (folder := RunFolder(runs / name)).exists:
            yield folder


def latest_run(runs: Path) -> RunFolder | None:
    """Return the run whose journal changed last, among the MOST_RECENT newest with a job.json; None without one. It need not be the newest:
    an older run may have been resumed."""
    complete = [folder for folder in islice(newest_runs(runs), MOST_RECENT) if not folder.damaged]
    return max(complete, key=lambda folder: (stamp_or_none(folder.journal_file) or (0, 0))[1], default=None)


def run_of(path: Path | None, runs: Path) -> Path | None:
    """Return the folder of the run in `runs` that the checkpoint `path` belongs to; None if `path` is not a checkpoint of a run."""
    inside = path is not None and path.parent.name == "checkpoints" and path.is_relative_to(runs)
    return path.parent.parent if path is not None and inside else None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


COMPLETE = "complete.json"


def seal_state(folder: Path) -> None:
    """Mark a training state as complete: write complete.json with the size and SHA-256 of every file."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != COMPLETE)
    atomic.write_json(
        folder / COMPLETE, {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
    )


def is_whole(folder: Path, *, quick: bool = False) -> bool:
    """Whether a training state is complete: complete.json lists files, and each exists with its size and SHA-256.
    quick: compare sizes alone, as the files may be gigabytes"""
    try:
        listed = read_json_object(folder / COMPLETE)
        return bool(listed) and all(
            (folder / name).stat().st_size == facts["bytes"] and (quick or sha256_of(folder / name) == facts["sha256"])
            for name, facts in listed.items()
        )
    except (ProblemsError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def state_step(folder: Path) -> int:
    """Return the step in the name of a state folder ("step250"); -1 without one."""
    match = re.match(r"step(\d+)", folder.name)
    return int(match.group(1)) if match else -1


def states_in(states: Path) -> list[Path]:
    """Return the training state folders in `states`, newest step first, complete or not."""
    if not states.is_dir():
        return []
    folders = [path for path in states.iterdir() if path.is_dir() and state_step(path) >= 0]
    return sorted(folders, key=lambda path: (state_step(path), path.name), reverse=True)


def newest_state(states: Path, *, quick: bool = False) -> Path | None:
    """Return the newest complete training state in `states`, or None. quick: as in `is_whole`"""
    return next((folder for folder in states_in(states) if is_whole(folder, quick=quick)), None)


def state_to_resume(states: Path, *, quick: bool = False) -> Path | None:
    """Return the newest complete training state of a run; None without any. Raises ProblemsError where all are damaged, as training must
    not restart silently.
    states: folder of its states; quick: as in `is_whole`"""
    state = newest_state(states, quick=quick)
    if state is None and states_in(states):
        what = "All training states of this run are damaged"
        fix = "start a new run from its last checkpoint (network.network_weights, model.base_model)"
        raise ProblemsError.one(what, str(states), fix, code="state.damaged")
    return state
