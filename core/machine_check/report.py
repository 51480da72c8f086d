"""Report of the check: JSON without user names, keys or paths, a table for the terminal, and rows for the page."""

import getpass
import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core import __version__
from core.machine_check.item import FAILED, OK, SKIPPED, WORDS, Finding, Item
from core.record.secrets import mask
from core.record.workspace import PROJECT, Workspace

KIND, VERSION = "atelier check", 1
VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF")
# A home folder, wherever it is named
HOME_FOLDER = re.compile(r"((?:/home|/Users|[A-Za-z]:\\+Users)[/\\]+)[^/\\\s'\":]+")


@dataclass(frozen=True)
class Line:
    """An item with its finding, which is None while the item runs, and the seconds it took."""

    item: Item
    finding: Finding | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the line for the JSON report: {"name", "title", "group", "seconds"} and the fields of its `Finding`; of a running item
        only the state "looking"."""
        finding = asdict(self.finding) if self.finding else {"state": "looking"}
        about = {"name": self.item.name, "title": self.item.title, "group": self.item.group}
        return about | finding | {"seconds": round(self.seconds, 2)}


def report_of(lines: Sequence[Line], workspace: Workspace, device: str, seconds: float) -> dict[str, Any]:
    """Return the JSON report of a check, with user names, keys and paths removed from every text: {"kind", "version", "atelier", "made",
    "device", "seconds", "counts": {state: number of items}, "skipped": titles, "environment", "items": [`Line.to_dict`]}.
    seconds: duration of the check"""
    states = Counter(line.finding.state for line in lines if line.finding)
    report = {
        "kind": KIND,
        "version": VERSION,
        "atelier": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device or "unknown",
        "seconds": round(seconds, 1),
        "counts": {state: states[state] for state in WORDS},
        "skipped": [line.item.title for line in lines if line.finding and line.finding.state == SKIPPED],
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "items": [line.to_dict() for line in lines],
    }
    return cleaned(report, replacements(workspace))


def replacements(workspace: Workspace) -> dict[str, str]:
    """Return {path of a folder on this machine: its placeholder in a report}, longest path first."""
    folders = {
        "<outputs>": workspace.outputs,
        "<models>": workspace.models,
        "<atelier>": PROJECT,
        "<python>": Path(sys.prefix),
        "<base python>": Path(sys.base_prefix),
        "<temp>": Path(tempfile.gettempdir()),
        "~": Path.home(),
    }
    names = {form: short for short, path in folders.items() for form in _spellings(path)}
    return dict(sorted(names.items(), key=lambda each: -len(each[0])))  # longest first: one may contain another


def _spellings(path: Path) -> set[str]:
    """Return the forms of a path that messages contain: links followed or not, either slash, escaped backslashes."""
    forms = [text for text in (str(path), os.path.realpath(path)) if len(text) > 3]
    return {form for text in forms for form in (text, text.replace("\\", "/"), text.replace("\\", "\\\\"))}


def cleaned(value: Any, placeholders: Mapping[str, str]) -> Any:
    """Return a value fit for JSON: every text passed through `private` (except dictionary keys), infinity and NaN as texts.
    placeholders: see `replacements`"""
    if isinstance(value, Mapping):
        return {str(name): cleaned(each, placeholders) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(each, placeholders) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return private(value, placeholders) if isinstance(value, str) else value


def private(text: str, placeholders: Mapping[str, str]) -> str:
    """Return `text` without keys and the user's name, and with folders of this machine replaced. `placeholders`: see `replacements`."""
    text = mask(text)
    for long, short in placeholders.items():
        text = text.replace(long, short)
    text = HOME_FOLDER.sub(r"\1...", text)
    name = _user_name()
    return re.sub(rf"(?<![\w]){re.escape(name)}(?![\w])", "...", text) if name else text


def _user_name() -> str:
    """Return the user's name; "" for a common one ("root") or one shorter than 4 characters."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
    return "" if len(name) < 4 or name.lower() in ("root", "user", "admin", "ubuntu", "administrator") else name


# -- for display


def exit_code(report: Mapping[str, Any]) -> int:
    """Return 1 if an item of a report (`report_of`) failed, else 0."""
    return 1 if report["counts"][FAILED] else 0


def table_lines(line: Line) -> list[str]:
    """Return the lines of the terminal table for an item: result, reason and fix; [] while the item runs."""
    finding = line.finding
    if finding is None:
        return []
    first = f"{WORDS[finding.state].ljust(11)} {line.item.title.ljust(38)} {finding.found or finding.reason}"
    more = [finding.reason] if finding.found and finding.reason else []
    more += [f"fix: {finding.fix}"] if finding.fix and finding.state != OK else []
    return [first.rstrip(), *(" " * 12 + each for each in more)]


def summary(report: Mapping[str, Any]) -> str:
    """Return the number of items in each state, the duration and the skipped items of a report (`report_of`), as a sentence."""
    counts = ", ".join(f"{count} {WORDS[state]}" for state, count in report["counts"].items() if count)
    skipped = f" Skipped: {', '.join(report['skipped'])}." if report["skipped"] else ""
    return f"{counts}, in {report['seconds']:.0f} seconds.{skipped}"
