"""The environment of a job: folders, device, journal, commands, and callbacks for progress."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.record import atomic
from core.record.cancel import CancelToken
from core.record.commands import CommandReader, NoCommands
from core.record.events import ImageGenerated, LogMessage, Stage, StateChanged
from core.record.journal import Journal
from core.record.problems import Problem
from core.record.processes import Processes
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace

STAGE_SECONDS = 0.25
PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """The result of a job. state: "done" or "stopped"; lines: results as text; facts: the same results as JSON values."""

    state: str = "done"
    lines: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Reports:
    """Callbacks by which work reports progress and checks for a stop. This base class ignores reports and never stops."""

    def stage(
        self, text: str, done: int = 0, total: int = 0, step: int = 0, steps: int = 0, *, of_bytes: bool = False
    ) -> None:
        """Report the current stage `text` and its progress, `done` of `total`, in bytes with `of_bytes`.
        step, steps: sampling step of the image that is being generated, and their number"""

    def say(self, text: str, level: str = "info", fix: str = "", code: str = "") -> None:
        """Write `text` to the log. level: "info", "warning" or "error"; fix, code: as in `Problem`, "" for none"""

    def warn(self, problem: Problem) -> None:
        """Write a problem to the log as a warning; the job goes on."""
        self.say(problem.what, "warning", problem.fix, problem.code)

    def generated(self, path: Path, seed: int) -> None:
        """Report an image that was generated with `seed` and saved at `path`."""

    def preview(self, jpeg: bytes) -> None:
        """Report an approximate preview, as JPEG bytes, of the image that is being generated."""

    @property
    def cancel(self) -> CancelToken:
        """Token by which work checks for a stop; here one that is never cancelled."""
        return CancelToken()


NO_REPORTS = Reports()


@dataclass
class JobContext(Reports):
    """The environment of one job.

    folder      the job's run folder
    store       keeps a model loaded between generate jobs
    token       set by a stop
    processes   the processes of a distributed training
    pauses      whether `check` waits while the job is paused; False for trainings, which wait at the end of a step
    pending     commands read from the file but not handled yet
    """

    workspace: Workspace
    folder: RunFolder
    journal: Journal
    commands: CommandReader | NoCommands
    device: str = "cpu"
    token: CancelToken = field(default_factory=CancelToken)
    store: Any = None
    processes: Processes = field(default_factory=Processes)
    pauses: bool = True
    pending: list[str] = field(default_factory=list)
    _stage_time: float = 0.0
    _stage_text: str = ""
    _moved: bool = False

    def stage(
        self, text: str, done: int = 0, total: int = 0, step: int = 0, steps: int = 0, *, of_bytes: bool = False
    ) -> None:
        """Report the current stage to the journal: with the same `text` at most every STAGE_SECONDS, but always once `done` reaches
        `total`. Arguments as in `Reports.stage`."""
        now = time.monotonic()
        if text == self._stage_text and done < total and now - self._stage_time < STAGE_SECONDS:
            return
        self._stage_time, self._stage_text = now, text
        self.journal.put(Stage(text, done, total, step, steps, of_bytes))

    def say(self, text: str, level: str = "info", fix: str = "", code: str = "") -> None:
        """Write a message to the journal. Arguments as in `Reports.say`."""
        self.journal.put(LogMessage(level, text, fix, code))

    def warn_if_moved(self) -> None:
        """Warn, once, if the job's folder was moved, renamed or deleted while it runs: what it writes then makes a new one."""
        if not self._moved and self.folder.is_moved:
            self._moved = True
            what = f"The run's folder was moved, renamed or deleted; the files from here on are in a new {self.folder.path}"
            fix = "move the files of both folders together once the run has ended"
            self.say(what, "warning", fix, "run.folder-moved")

    def generated(self, path: Path, seed: int) -> None:
        """Write the image to the journal and delete the preview file."""
        self.journal.put(ImageGenerated(str(path), seed))
        with suppress(OSError):
            self.folder.preview.unlink(missing_ok=True)

    def preview(self, jpeg: bytes) -> None:
        """Write the JPEG bytes to the run folder's preview file; errors are ignored."""
        with suppress(OSError):  # a full disk ends no job for this
            atomic.write_bytes(self.folder.preview, jpeg, synced=False)

    def take_commands(self) -> list[str]:
        """Return the names of the commands that arrived since the last call; "stop" also cancels the token."""
        self._read_commands()
        commands, self.pending = self.pending, []
        return commands

    @contextmanager
    def after_stop(self) -> Iterator[None]:
        """Context for the short final part of a stopped job, with a new token: only another stop cancels it."""
        stopped, self.token = self.token, CancelToken()
        try:
            yield
        finally:
            self.token = stopped

    def check(self) -> None:
        """Wait while the job is paused; raise Cancelled after a stop. For use between units of work outside the training loop.

        Commands other than pause, resume and stop remain for `take_commands`.
        """
        self._read_commands()
        if self.pauses and self._pause_requested():
            self._wait()
        self.token.check()

    @property
    def cancel(self) -> CancelToken:
        """A cancel token whose `check` is `JobContext.check`, so functions that take a token also wait while the job is paused."""
        return _Checked(self)

    def _read_commands(self) -> None:
        """Add new commands to `pending`; a "stop" cancels the token."""
        self.pending += self.commands.new()
        if "stop" in self.pending:
            self.token.cancel()

    def _pause_requested(self) -> bool:
        """Whether the last pending "pause" or "resume" is a "pause"."""
        return [name for name in self.pending if name in ("pause", "resume")][-1:] == ["pause"]

    def _wait(self) -> None:
        """Wait until the job is resumed or stopped. Writes "paused", and after a resume "running", to the journal."""
        self.journal.put(StateChanged("paused"))
        while self._pause_requested() and not self.token.wanted:
            time.sleep(PAUSE_SECONDS)
            self._read_commands()
        self.pending = [name for name in self.pending if name not in ("pause", "resume")]
        if not self.token.wanted:
            self.journal.put(StateChanged("running"))


class _Checked(CancelToken):
    """A token whose `check` is `JobContext.check`, which also waits while the job is paused."""

    def __init__(self, context: JobContext):
        self._context = context

    def cancel(self) -> None:
        self._context.token.cancel()

    @property
    def wanted(self) -> bool:
        return self._context.token.wanted

    def check(self) -> None:
        self._context.check()
