"""Runs the check: each item in a separate process within its time limit, all within three minutes. A crash or hang of that process ends
neither the page nor the check."""

import faulthandler
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.engine.explain import explain
from core.machine_check.item import ABSENT, FAILED, OK, SKIPPED, SLOWER, WORDS, CheckContext, Finding, Item
from core.machine_check.items import all_items
from core.machine_check.report import Line, report_of
from core.record import atomic, machine
from core.record.cancel import CancelToken
from core.record.lock import HeldElsewhere, Lock
from core.record.problems import ProblemsError
from core.record.run_folder import list_runs
from core.record.worker import Gone, Worker, serve_requests
from core.record.workspace import Workspace

BUDGET_SECONDS = 180.0
WORKER = [sys.executable, "-m", "core.machine_check.run"]
Listener = Callable[[Sequence[Line], int], None]  # (lines so far, the last one still running; how many there will be)
WHERE, REPORT = "check", "report this, with the JSON of the check"


def refuse_while_training(workspace: Workspace) -> None:
    """Raise ProblemsError while a run of this workspace is training, as both would slow down and measured times be wrong."""
    running = next((folder.name for folder in list_runs(workspace.runs) if folder.held), None)
    if running is not None:
        what = f"'{running}' is training, which would distort the check"
        fix = "wait until it is done, or stop it; it can be resumed"
        raise ProblemsError.one(what, WHERE, fix, "check.training-runs")


def run_check(
    workspace: Workspace,
    device: str = "",
    *,
    token: CancelToken | None = None,
    listener: Listener = lambda lines, total: None,
    items: Sequence[Item] | None = None,
    budget: float = BUDGET_SECONDS,
    worker: Sequence[str] = WORKER,
) -> dict[str, Any]:
    """Run all items and return the JSON report. Raises Cancelled, and ProblemsError if the check cannot start.

    device          "" for the best available
    listener        called before and after each item
    budget          seconds for all items
    items, worker   replacements in tests
    """
    refuse_while_training(workspace)
    lock, folder = _locked_folder(workspace)
    begun = time.monotonic()
    examiner = Examiner(workspace, device, folder, worker, token or CancelToken())
    try:
        examiner.examine(all_items() if items is None else items, begun + budget, listener)
    finally:
        examiner.end()
        with suppress(OSError):
            atomic.remove_folder(folder)
        if lock is not None:
            lock.release()
    return report_of(examiner.lines, workspace, examiner.device, time.monotonic() - begun)


def _locked_folder(workspace: Workspace) -> tuple[Lock | None, Path]:
    """Return (lock, an empty folder for the check); (None, a temporary folder) if outputs are not writable.

    Raises ProblemsError while another check runs.
    """
    folder = workspace.private / "check"
    lock = Lock(workspace.private / "check.lock")
    try:
        workspace.private.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except HeldElsewhere:
        what = "A check is already running"
        raise ProblemsError.one(what, WHERE, "wait until it is done", "check.already-running") from None
    except OSError:  # reported by the item "disk"; the rest can still be checked
        return None, Path(tempfile.mkdtemp(prefix="atelier-check-"))
    with suppress(OSError):
        atomic.remove_folder(folder)  # left by a killed check
    folder.mkdir(parents=True, exist_ok=True)
    return lock, folder


@dataclass
class Examiner:
    """Runs items in a worker process, and starts a new process when it ended or was killed."""

    workspace: Workspace
    device: str
    folder: Path
    command: Sequence[str]
    token: CancelToken
    worker: Worker | None = None
    lines: list[Line] = field(default_factory=list)

    @property
    def gpu(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.startswith("cuda")

    def examine(self, items: Sequence[Item], end: float, listener: Listener) -> None:
        """Run the items in order and append them to `lines`; GPU items only with a CUDA device. Raises Cancelled.

        end        time.monotonic() after which items are skipped
        listener   called before and after each item
        """
        for item in items:
            self.token.check()
            if item.gpu and not self.gpu:
                continue
            total = sum(self.gpu or not each.gpu for each in items)
            listener([*self.lines, Line(item)], total)
            begun = time.monotonic()
            finding = self._finding_of_needs(item) or self._run_in_process(item, end)
            self.lines.append(Line(item, finding, time.monotonic() - begun))
            listener(self.lines, total)

    def _finding_of_needs(self, item: Item) -> Finding | None:
        """Return the finding for an item whose prerequisite is neither OK nor SLOWER; None if the item can run."""
        for line in self.lines:
            if line.item.name not in item.needs or line.finding is None or line.finding.state in (OK, SLOWER):
                continue
            state, title = line.finding.state, line.item.title
            return Finding(
                ABSENT if state == ABSENT else SKIPPED, "", f"requires {title}, which is {WORDS[state]}", f"see {title}"
            )
        return None

    def _run_in_process(self, item: Item, end: float) -> Finding:
        """Run an item in the worker within its time limit, and return the finding."""
        left = end - time.monotonic()
        if left <= 0:
            return _no_time()
        if self.worker is None:
            paths = (self.device, str(self.workspace.outputs), str(self.workspace.models), str(self.folder))
            self.worker = Worker([*self.command, *paths], self.folder)
        limit = min(item.seconds, left)
        earlier = {line.item.name: line.finding.facts for line in self.lines if line.finding}
        answer = self.worker.ask({"item": item.name, "earlier": earlier}, limit, self.token)
        if isinstance(answer, Gone):
            self.end()
            return _no_time() if answer.hung and limit < item.seconds else worker_lost(answer, limit)
        self.device = str(answer["device"]) or self.device
        finding = Finding(**answer["finding"])
        if finding.facts.get("poisoned"):  # CUDA is unusable for the rest of that process
            self.end()
        return finding

    def end(self) -> None:
        """End the worker process, if there is one."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None


def _no_time() -> Finding:
    """Return the finding for an item that does not fit into the check's time budget."""
    return Finding(SKIPPED, "", "the check ran out of time", "close other programs and check again")


def worker_lost(answer: Gone, seconds: float) -> Finding:
    """Return the finding for an item whose process ended or exceeded its limit of `seconds`."""
    if answer.hung:
        reason = f"no answer within {seconds:.0f} seconds, so its process was killed"
        return Finding(FAILED, "", reason, REPORT, {}, answer.output)
    fix = "run ./launch.sh update (Windows: launch.bat update); if it fails again, report this"
    return Finding(FAILED, "", f"its process ended with {answer.exit_text}", fix, {}, answer.output)


# ---- in the process itself


def answer_items(arguments: Sequence[str], items: Sequence[Item]) -> None:
    """Main loop of the worker process: answers each request {"item", "earlier"} with {"device", "finding"}.

    arguments   command line arguments: device ("" for the best available), outputs, models, folder for temporary files
    items       all items that may be requested
    """
    device, outputs, models, folder = arguments
    faulthandler.enable()
    items_by_name = {item.name: item for item in items}
    workspace = Workspace.of(outputs, models)

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        """Run the requested item and return {"device", "finding"}."""
        nonlocal device
        item = items_by_name[question["item"]]
        if not device and (item.needs or item.name == "torch"):
            with suppress(Exception):  # a torch that does not load is reported by its own item
                device = machine.default_device()
        finding = run_guarded(item, CheckContext(device or "cpu", workspace, Path(folder), question["earlier"]))
        return {"device": device, "finding": asdict(finding)}

    serve_requests(answer)


def run_guarded(item: Item, context: CheckContext) -> Finding:
    """Run an item and return its finding; for an exception, a failed finding with the explanation and traceback."""
    try:
        return item.run(context)
    except Exception as error:
        cause = explain(error)
        reason = cause.what if cause.known else f"{type(error).__name__}: {str(error)[:500]}"
        facts = {"poisoned": True} if cause.poisoned or is_cuda_error(error) else {}
        return Finding(FAILED, "", reason, cause.fix if cause.known else REPORT, facts, traceback.format_exc())


def is_cuda_error(error: BaseException) -> bool:
    """Return whether an error may leave CUDA unusable in this process, as a fault in a kernel does; False for out of memory."""
    text = str(error).lower()
    return ("cuda error" in text or "hip error" in text or "cublas_status" in text) and "out of memory" not in text


if __name__ == "__main__":
    answer_items(sys.argv[1:], all_items())
