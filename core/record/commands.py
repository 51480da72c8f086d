"""Commands to a run: appended to its commands.jsonl with ids, read after each step, for the page, a terminal and other processes."""

import json
import time
import uuid
from pathlib import Path

from core.record.problems import ProblemsError, write_errors
from core.record.regular import open_regular

NAMES = ("pause", "resume", "stop", "save", "sample")


def send(folder: Path, name: str) -> str:
    """Append the command `name`, one of NAMES, to commands.jsonl in the run folder; return the command's id. Raises ProblemsError if it
    cannot be written, ValueError for another name."""
    if name not in NAMES:
        raise ValueError(f"unknown command {name!r}")
    identity = uuid.uuid4().hex
    line = json.dumps({"id": identity, "time": round(time.time(), 3), "name": name})
    with write_errors("The command cannot be written", str(folder)):
        with open(folder / "commands.jsonl", "a", encoding="utf-8", newline="\n") as handle:
            handle.write(line + "\n")
    return identity


MAX_BYTES = 1 << 20  # read at once; a command has 100


class NoCommands:
    """A `CommandReader` that never returns commands: in distributed training, only the first process reads them."""

    def new(self) -> list[str]:
        return []


class CommandReader:
    """Reads the commands appended to a run's commands.jsonl after this object was created."""

    def __init__(self, folder: Path):
        self._path = folder / "commands.jsonl"
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def new(self) -> list[str]:
        """Return the names of the commands since the last call, oldest first. Costs one stat if there are none."""
        try:
            if self._path.stat().st_size <= self._offset:
                return []
            with open_regular(self._path) as handle:
                handle.seek(self._offset)
                data = handle.read(MAX_BYTES)
        except (OSError, ProblemsError):
            return []
        complete_lines = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete_lines)
        names = []
        for text in complete_lines.splitlines():
            try:
                name = json.loads(text)["name"]
            except (ValueError, RecursionError, KeyError, TypeError):
                continue
            if isinstance(name, str) and name in NAMES:
                names.append(name)
        return names
