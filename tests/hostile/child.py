"""Reads hostile files, hundreds of them in a process of its own, and says of each reading how it ended, its time and its memory.

A line before and after each reading, so that the one that hangs or ends the process is known; the rest is read in another.
Time is the process's own (CPU), since the machine may have other work; a reading that waits is ended by the clock.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

SECONDS, MEGABYTES = 2.0, 200
MORE = {"metadata": 300}  # a whole dataset's captions and tags in one JSON file
LONGER = {"forecast": 6.0}  # which goes through a whole U-Net of the sizes that a config states
# Far above the limits: what reaches these is ended, so that no case takes the machine with it.
_CPU_SECONDS, _WALL_SECONDS, _ROOM = 15, 120, 3 << 30
ROOT = Path(__file__).parents[2]


class Reading(NamedTuple):
    family: str
    case: int
    file: str
    reader: str
    end: str  # "read", "refused", or what went wrong
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def is_fault(self) -> bool:
        too_slow = self.seconds > LONGER.get(self.reader, SECONDS)
        return self.end not in ("read", "refused") or too_slow or self.megabytes > MORE.get(self.family, MEGABYTES)


def readings(
    cases: Iterable[tuple[str, int]], crashes: int = 8, heard: Callable[[Reading], Any] = lambda reading: None
) -> list[Reading]:
    """Every reading of the cases (family, number); each is told at once as well."""
    todo = [(family, case, [""][:0]) for family, case in cases]
    found: list[Reading] = []
    for _ in range(crashes):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.hostile.child"]
        with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+", errors="replace") as errors:
            given.write("\n".join(map(json.dumps, todo)))
            given.seek(0)
            told: list[Any] = []
            streams = {"stdin": given, "stdout": subprocess.PIPE, "stderr": errors}
            with subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **streams) as process:
                for line in process.stdout or ():
                    told.append(json.loads(line))
                    if len(told[-1]) > 4:
                        found.append(Reading(*told[-1]))
                        heard(found[-1])
            if process.returncode == 0:
                return found
            errors.seek(0)
            last = errors.read()[-3000:]
        assert told and len(told[-1]) == 4, f"ended outside of a reading:\n{last}"
        found.append(Reading(*told[-1], f"hung or ended the process ({process.returncode}) {last[-300:]}"))
        family, case = found[-1][:2]
        place = next(at for at, each in enumerate(todo) if each[:2] == (family, case))
        done = [each.reader for each in found if each[:2] == (family, case)]
        todo = [(family, case, done), *todo[place + 1 :]]
    return found


def read(reader: Callable[[Any], Any], given: Any) -> tuple[str, float, float]:
    from core.record.problems import ProblemsError
    from tests.hostile.changes import said

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _peak(), time.process_time()
    signal.alarm(_WALL_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
    try:
        reader(given)
        end = "read"
    except ProblemsError as refusal:
        try:
            said(refusal.problems)
            end = "refused" if refusal.problems else "refused without a word"
        except (AssertionError, UnicodeError) as error:
            end = f"badly told: {error}"
    except BaseException as raw:  # whatever it is, it is the finding
        frames = traceback.extract_tb(raw.__traceback__)
        ours = [f"{Path(each.filename).name}:{each.lineno}" for each in frames if "/core/" in each.filename]
        end = f"{type(raw).__name__}: {str(raw)[:200]} at {(ours or frames)[-1]}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    seconds = time.process_time() - start
    return end, round(seconds, 2), round((_peak() - before) / 1e6)


def _peak() -> int:
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def readings_here(cases: Iterable[tuple[str, int]]) -> list[Reading]:
    """Every reading of the cases in this process, which has the libraries loaded: for a few files that end no process."""
    out = io.StringIO()
    limit = resource.getrlimit(resource.RLIMIT_AS)
    try:
        _read_cases(((family, case, []) for family, case in cases), out)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    told = map(json.loads, out.getvalue().splitlines())
    return [Reading(*each) for each in told if len(each) > 4]


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what readers print is none of ours
    _read_cases(map(json.loads, sys.stdin), out)


def _read_cases(cases: Iterable[tuple[str, int, list[str]]], out: IO[str]) -> None:
    """cases: (family, number, readers that have read it). A line of JSON before and after each reading."""
    from tests.hostile.families import FAMILIES

    ready: dict[str, dict[str, Callable[[Any], Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="hostile-") as root:
        for family, case, done in cases:
            make, readers = FAMILIES[family]
            if family not in ready:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
                ready[family] = readers()
                for reader in ready[family].values():  # a good file: imports and caches are paid for here
                    _tell(None, [], reader, _made(make, root, 0))
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, resource.RLIM_INFINITY))
            given = _made(make, root, case)
            for name, reader in ready[family].items():
                if name not in done:
                    _tell(out, [family, case, _named(given), name], reader, given)


def _made(make: Callable[[Path, int], Any], root: str, case: int) -> Any:
    folder = Path(root) / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return make(folder, case)


def _tell(out: Any, what: list[Any], reader: Callable[[Any], Any], given: Any) -> None:
    if out:
        print(json.dumps(what), file=out, flush=True)
    ended = read(reader, given)
    if out:
        print(json.dumps([*what, *ended]), file=out, flush=True)
    elif ended[0] not in ("read", "refused"):
        print(f"{reader}: {ended}", file=sys.stderr)


def _named(given: object) -> str:
    return given.name.encode("utf-8", "replace").decode()[:80] if isinstance(given, Path) else str(given)[:80]


if __name__ == "__main__":
    main()
