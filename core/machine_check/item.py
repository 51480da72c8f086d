"""An item of the check: a small function that examines one thing and returns its finding."""

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

    state       ok; slower: it works, but slower; absent: not available, and nothing is wrong; failed; skipped
    found       what there is, with numbers       reason  why it is not ok       fix  what to do
    facts       the numbers by name, for the JSON and later items
    traceback   of an error
    """

    state: str
    found: str = ""
    reason: str = ""
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    traceback: str = ""

    def limited(self, reason: str, fix: str) -> Finding:
        """The same finding, of something that works but not as well as it should."""
        return replace(self, state=SLOWER, reason=reason, fix=fix)

    def failed(self, reason: str, fix: str) -> Finding:
        """The same finding, of something that should work and does not."""
        return replace(self, state=FAILED, reason=reason, fix=fix)


def absent(reason: str, fix: str = "nothing to do: it is optional") -> Finding:
    return Finding(ABSENT, "", reason, fix)


@dataclass(frozen=True)
class CheckContext:
    """The inputs of an item. folder: for its temporary files; earlier: {item: facts} of the items that ran before."""

    device: str
    workspace: Workspace
    folder: Path
    earlier: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Item:
    """One line of the check.

    seconds   time limit; then its process is killed
    needs     items that must be ok for this one to run
    gpu       only shown if torch has a CUDA device
    """

    name: str
    title: str
    group: str
    run: Callable[[CheckContext], Finding]
    seconds: float = 30.0
    needs: tuple[str, ...] = ()
    gpu: bool = False
