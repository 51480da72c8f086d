"""An item of the check, its inputs and its result: a function that examines one thing and returns a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.record.workspace import Workspace

OK, SLOWER, ABSENT, FAILED, SKIPPED = "ok", "slower", "absent", "failed", "skipped"
WORDS = {OK: "ok", SLOWER: "limited", ABSENT: "unavailable", FAILED: "failed", SKIPPED: "skipped"}


@dataclass(frozen=True)
class Finding:
    """The result of an item.

    state       OK; SLOWER: works with limits, often slower; ABSENT: not available, which is not an error; FAILED; SKIPPED
    found       summary of what was measured
    reason      why the state is not OK
    fix         what to do
    facts       measured values by name, for the JSON and for later items
    traceback   traceback of an error, or output of a process that ended
    """

    state: str
    found: str = ""
    reason: str = ""
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    traceback: str = ""

    def limited(self, reason: str, fix: str) -> Finding:
        """Return this finding with the state SLOWER: it works, but not as well as it should."""
        return replace(self, state=SLOWER, reason=reason, fix=fix)

    def failed(self, reason: str, fix: str) -> Finding:
        """Return this finding with the state FAILED."""
        return replace(self, state=FAILED, reason=reason, fix=fix)


def absent(reason: str, fix: str = "nothing to do: it is optional") -> Finding:
    """Return a finding with the state ABSENT."""
    return Finding(ABSENT, "", reason, fix)


@dataclass(frozen=True)
class CheckContext:
    """The inputs of an item.

    device    torch device, "cuda", "mps" or "cpu"
    folder    for temporary files
    earlier   {name: facts} of the items that ran before
    """

    device: str
    workspace: Workspace
    folder: Path
    earlier: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Item:
    """One line of the check.

    name, title, group   its key, text and heading
    run                  the examination
    seconds              time limit, after which the process is killed
    needs                names of items that must be OK or SLOWER, or this one is not run
    gpu                  whether the item is left out unless torch has a CUDA device
    """

    name: str
    title: str
    group: str
    run: Callable[[CheckContext], Finding]
    seconds: float = 30.0
    needs: tuple[str, ...] = ()
    gpu: bool = False
