"""The runs of a workspace: facts of every training, and views of those that are open on the page."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from core.engine.deleted import no_such_run
from core.engine.light import LightTask
from core.engine.queue import QueueEntry
from core.engine.run_facts import RunFacts, read_facts, stamps, write_facts
from core.engine.run_summary import RunState, RunSummary, newest_state_step, summary_of, with_current_about
from core.engine.view import ENDED, RunView, facts_of
from core.record import atomic
from core.record.journal import last_of_kind
from core.record.problems import ProblemsError, write_errors
from core.record.regular import LONGEST_NAME, name_length
from core.record.run_about import title_of
from core.record.run_folder import RunFolder, list_runs, newest_runs
from core.record.workspace import Workspace

MAX_VIEWS = 8  # journals of trainings that are held at once, besides the one that runs


class Runs:
    """The trainings on disk, with caches. Methods may be called from any thread.

    running  (run name) -> whether a job of this process runs it
    writes   whether facts are cached in the runs' folders too
    """

    def __init__(self, workspace: Workspace, running: Callable[[str], bool], writes: bool = True):
        self._workspace, self._running, self._writes = workspace, running, writes
        self._views: OrderedDict[str, RunView] = OrderedDict()  # least recently used first
        self._views_lock = threading.Lock()
        self._facts: dict[str, RunFacts] = {}
        self._rows: dict[str, tuple[RunFacts, RunSummary]] = {}
        self._writing = threading.Lock()  # held while facts are written or a folder is moved

    # -- journals

    def folder(self, name: str) -> RunFolder:
        """Return the folder of a run or other job. Raises ProblemsError for an unknown name or one with path separators."""
        with suppress(ValueError):  # half a surrogate
            if name == Path(name).name and name not in ("", ".", "..") and name_length(name) <= LONGEST_NAME:
                for parent in (self._workspace.runs, self._workspace.private / "jobs"):
                    folder = RunFolder(parent / name)
                    if folder.exists:
                        return folder
        raise no_such_run(name, self._workspace)

    def view(self, name: str) -> RunView:
        """Return the view of a run, with its journal read at the first call. Raises ProblemsError for an unknown run.

        Later lines arrive by the listener of a job that runs in this process; for others call `refresh`.
        """
        known = self._views.get(name)  # of a running job it is shown also if its folder was deleted by hand
        folder = known.folder if known is not None and self._running(name) else self.folder(name)
        with self._views_lock:
            view = self._views.setdefault(name, RunView(folder))
            self._views.move_to_end(name)
            self._drop_idle_views()
        view.begin()  # not within the lock: a long journal would delay requests for other runs
        return view

    def _drop_idle_views(self) -> None:
        """Drop views of trainings that do not run, except the MAX_VIEWS most recently used ones."""
        views = {name: view for name, view in self._views.items() if view.folder.path.parent == self._workspace.runs}
        idle = [name for name in views if not self._running(name)]
        for name in idle[:-MAX_VIEWS]:
            del self._views[name]

    def refresh(self, name: str) -> RunView:
        """Return the view of a run with the lines that another process has appended to its journal. Raises ProblemsError."""
        view = self.view(name)
        if not self._running(name):
            view.catch_up()
        return view

    def is_held(self, view: RunView) -> bool:
        """Whether this or another process runs the run of `view`."""
        return self._running(view.folder.name) or (view.state not in ENDED and view.folder.held)

    def time_left(self, entry: QueueEntry) -> tuple[float, bool]:
        """Return (estimated seconds left of a running job, 0 if unknown; whether it is paused)."""
        try:
            view = self.view(entry.run)
        except ProblemsError:  # it has no folder yet, or was deleted by hand
            return 0.0, False
        planned = entry.task != "train" or view.total > 0  # before that it counts what it encodes
        return view.seconds_left if planned else 0.0, view.state == "paused"

    def newest_state(self, name: str) -> int:
        """Return the step of a run's newest training state; -1 for a run without a state and for an unknown run."""
        try:
            return newest_state_step(self.folder(name))
        except ProblemsError:  # it has none yet, or was deleted
            return -1

    def forget(self, name: str) -> None:
        """Drop the cached view of a run."""
        with self._views_lock:
            self._views.pop(name, None)

    def delete_ended(self, folders: Sequence[RunFolder]) -> None:
        """Delete these folders, except those whose job still runs (a long download)."""
        for folder in folders:
            if not folder.held:
                with suppress(OSError):
                    atomic.remove_folder(folder.path)
                    self.forget(folder.name)

    def move_away(self, folder: RunFolder, target: Path) -> None:
        """Rename a run's folder to `target` and drop its view. Raises ProblemsError."""
        with write_errors("The run cannot be moved", folder.name, "nothing was changed"), self._writing:
            atomic.make_folders(target.parent)
            atomic.replace(folder.path, target)
        self.forget(folder.name)

    # -- the list

    def all(self) -> list[RunSummary]:
        """Return a summary of every training on disk, newest first."""
        summaries = []
        for folder in list_runs(self._workspace.runs):
            with suppress(OSError):  # it was deleted meanwhile
                summaries.append(self._summary(folder))
        return summaries

    def one(self, name: str) -> RunSummary | None:
        """Return the summary of a training on disk; None if there is none of that name."""
        with suppress(ProblemsError, OSError):
            folder = self.folder(name)
            return self._summary(folder) if folder.path.parent == self._workspace.runs else None
        return None

    def _summary(self, folder: RunFolder) -> RunSummary:
        """Return the row of a run, reading its journal if necessary."""
        summary, current = self._row_without_journal(folder)
        if not current:
            self.read(folder)
            summary, _ = self._row_without_journal(folder)
        return summary or self._summary_from_view(folder)

    def without_journals(
        self, seconds: float, folders: Sequence[RunFolder] | None = None
    ) -> tuple[dict[str, RunSummary], list[RunFolder]]:
        """Return ({name: row} of the runs that are known without reading a journal, folders whose journals must still be read).

        seconds   limit of time for reading summary.json files
        folders   run folders to consider; None: all trainings
        """
        summaries: dict[str, RunSummary] = {}
        unread: list[RunFolder] = []
        end, listed = time.monotonic() + seconds, list_runs(self._workspace.runs) if folders is None else folders
        for folder in listed:
            with suppress(OSError):
                summary, current = self._row_without_journal(folder, may_read=time.monotonic() < end)
                summaries |= {folder.name: summary} if summary else {}
                unread += [] if current else [folder]
        if folders is None:
            self._drop_deleted({folder.name for folder in listed})
        return summaries, unread

    def _drop_deleted(self, existing: Collection[str]) -> None:
        """Drop cached facts and rows of runs whose names are not in `existing`."""
        for name in [each for each in [*self._facts] if each not in existing]:
            self._facts.pop(name, None)
            self._rows.pop(name, None)

    def read_all(self, folders: list[RunFolder], task: LightTask) -> None:
        """Read the journals of these folders in order, checking `task` for a cancellation."""
        for folder in folders:
            task.check()
            with suppress(OSError):
                self.read(folder)

    def read(self, folder: RunFolder) -> None:
        """Read a run's journal: into its view if a process runs it, else into the cached facts and row, which are also written to its
        folder."""
        facts = read_facts(folder)
        if not (facts and facts.state in ENDED) and folder.held:
            self.refresh(folder.name)
            return
        if facts is None:
            facts = facts_of(folder)
            if self._writes:
                with self._writing:
                    write_facts(folder, facts)
        self._facts[folder.name] = facts
        self._row(folder, facts)

    def _row_without_journal(self, folder: RunFolder, may_read: bool = True) -> tuple[RunSummary | None, bool]:
        """Return (row of a run without reading its journal, None if unknown; whether the row is current).
        may_read: whether its summary.json may be read"""
        if self._running(folder.name):
            return self._summary_from_view(folder), True
        facts, current = self._cached_facts(folder, may_read)
        if facts is None and not may_read:
            return None, False
        if not (current and facts and facts.state in ENDED) and folder.held:  # by another process
            if folder.name in self._views:
                return self._summary_from_view(folder), True
            current = False
        return (self._row(folder, facts) if facts else None), current

    def _row(self, folder: RunFolder, facts: RunFacts) -> RunSummary:
        """Return the row of a run that no process runs, cached for these facts."""
        cached_facts, row = self._rows.get(folder.name, (None, None))
        if row is not None and cached_facts is facts:
            return with_current_about(folder, row)
        row = summary_of(folder, facts)
        if facts.started:  # else its start is the folder's time, which changes
            self._rows[folder.name] = (facts, row)
        return row

    def _summary_from_view(self, folder: RunFolder) -> RunSummary:
        """Return the row of a run from its view."""
        view = self.refresh(folder.name)
        held = self.is_held(view)
        return summary_of(folder, view.facts(held, stamps(folder)), held)

    def _cached_facts(self, folder: RunFolder, may_read: bool = True) -> tuple[RunFacts | None, bool]:
        """Return (facts of a run from memory or summary.json, None without any; whether they are current).
        may_read: whether its summary.json may be read"""
        known = self._facts.get(folder.name)
        if known is not None and known.is_current(folder):
            return known, True
        stored = read_facts(folder) if may_read else None
        if stored is not None:
            self._facts[folder.name] = stored
        return stored or known, stored is not None

    def states(self, most: int) -> list[RunState]:
        """Return name, title and state of the newest `most` trainings on disk, from their facts or the ends of their journals."""
        folders = islice(newest_runs(self._workspace.runs), most)
        return [RunState(folder.name, title_of(folder), self._state(folder)) for folder in folders]

    def _state(self, folder: RunFolder) -> str:
        """Return the state of a run, reading as little as possible."""
        if not self._running(folder.name):
            if folder.damaged and not folder.held:
                return "damaged"
            facts, current = self._cached_facts(folder)
            state = (
                facts.state if facts and current else (last_of_kind(folder.journal_file, "state") or {}).get("state")
            )
            if state in ENDED:
                return str(state)
            if not folder.held:
                return "interrupted"
        return self.refresh(folder.name).true_state(True)
