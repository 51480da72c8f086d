"""The card of Tools that checks this machine: starts the check and shows its progress and report."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.machine_check.item import OK, WORDS, Item
from core.machine_check.report import Line, summary
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError
from tabs.pieces import piece

if TYPE_CHECKING:
    from tabs.context import Page
    from tabs.server.browsers import Browser

WHERE = "Check this machine"


class MachineCheck:
    """The newest check, shared by all browsers. items: checks to run in place of all, None for all (set by tests)"""

    items: Sequence[Item] | None = None

    def __init__(self, page: Page):
        self.page = page
        self.file = page.workspace.private / "atelier-check.json"
        self._lock = threading.Lock()
        self._task: Any = None
        self._lines: list[dict[str, Any]] = []
        self._total = 0
        self._text = ""

    def start(self, data: dict[str, Any], browser: Browser) -> None:
        """Start a check, unless one is running. Raises ProblemsError while a job uses the device. data, browser: not used"""
        job = self.page.engine.status()["job"]
        if job is not None:
            what = f"'{job['title']}' is running, so times and memory of a check would be wrong"
            fix = "wait until it is done, or stop it; a training can be resumed"
            raise ProblemsError.one(what, WHERE, fix, "check.device-busy")
        with self._lock:
            if self._running():
                return
            self._lines, self._total, self._text = [], 0, "Waiting for the device."
            self._task = self.page.engine.light(self._run, title=WHERE)

    def cancel(self, data: dict[str, Any], browser: Browser) -> None:
        """Cancel the running check, if any. data, browser: not used"""
        if self._task is not None:
            self._task.cancel()

    def _running(self) -> bool:
        """Return whether a check is running."""
        return self._task is not None and not self._task.done

    def _run(self, task: Any) -> None:
        """Run the check in the background, with the device borrowed, and write its report."""
        from core.machine_check.run import run_check

        with self.page.engine.borrow_device(task.token, "the check of this machine") as device:
            report = run_check(self.page.workspace, device, token=task.token, listener=self._report, items=self.items)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(self.file, report)

    def _report(self, lines: Sequence[Line], total: int) -> None:
        """Store the check's progress. lines: results so far; total: number of checks"""
        self._lines = [line.to_dict() for line in lines]
        self._total = total
        self._text = f"{len(lines)} of {total}: {lines[-1].item.title}" if lines else ""

    def parts(self, tab: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Return the card's part of the page's periodic update while Tools is open, {"machine_check": data}; else {}."""
        return {"machine_check": self._facts()} if tab == "Tools" else {}

    def _facts(self) -> dict[str, Any]:
        """Return `_data` of the running check, else of a failed one, else of the last report; without lines if there is none."""
        if self._running():
            share = max(0, len(self._lines) - 1) / self._total if self._total else 0.0
            return self._data(self._lines, self._text, running=True, share=share)
        error = self._task.error if self._task is not None else None
        if error is not None:
            lines = [line for line in self._lines if line["state"] != "looking"]
            first = error.problems[0]
            text = "Cancelled." if self._task.token.wanted else f"{first.what}. {first.fix}".strip()
            return self._data(lines, text)
        try:
            report = read_json_object(self.file)
            return self._data(report["items"], f"{report['made']}: {summary(report)}", file=True)
        except (ProblemsError, OSError, KeyError, TypeError, AttributeError):  # none yet, or of another version
            return self._data([], "")

    def _data(
        self, lines: list[dict[str, Any]], text: str, *, running: bool = False, share: float = 0.0, file: bool = False
    ) -> dict[str, Any]:
        """Return what the card's script shows: {"running", "share": fraction done, "words": `text`, "lines": [`_row`], "file": URL of the
        report or ""}.

        lines   items as `Line.to_dict` returns them
        file    whether the report can be downloaded
        """
        data = {"running": running, "share": share, "words": text, "lines": [_row(line) for line in lines]}
        return data | {"file": self.page.file_url(self.file) if file else ""}


def _row(line: dict[str, Any]) -> dict[str, Any]:
    """Return {"name", "title", "group", "state", "words": text of the state, "found": notes} of a result for the card's table.
    line: as `Line.to_dict` returns it"""
    row: dict[str, Any] = {name: str(line.get(name, "")) for name in ("name", "title", "group", "state")}
    notes = [
        line.get("found"),
        line.get("reason"),
        f"Fix: {line['fix']}" if line.get("fix") and row["state"] != OK else "",
    ]
    return row | {"words": WORDS.get(row["state"], "checking"), "found": [str(note) for note in notes if note]}


def build(page: Page) -> MachineCheck:
    """Create the card, register its commands, and return its handlers."""
    check = MachineCheck(page)
    page.commands |= {"machine_check": check.start, "machine_check_cancel": check.cancel}
    page.pulse_parts.append(check.parts)
    gr.HTML(piece("machine_check"), elem_id="machine-check-holder", apply_default_css=False)
    return check
