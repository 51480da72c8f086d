"""The queue of jobs in order, stored on disk so that a restart does not lose any."""

import threading
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, StrictInt, TypeAdapter

from core import tasks
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError, unwritten
from core.record.regular import MissingFile
from core.settings.base import Settings
from core.settings.job import TrainJob
from core.settings.presets.migrations import to_version_2

MAX_ENDED = 50  # ended jobs in the list; older ones are dropped
MOST_WAITING = 20  # jobs of a shared page: its guests could fill weeks
MOST_OF_ONE = 8  # of them, those of one guest
Moment = Annotated[FiniteFloat, Field(strict=True, ge=0, lt=2**53)]
GUEST: ContextVar[str] = ContextVar("browser of a shared page whose request is handled", default="")


@dataclass(frozen=True)
class QueueEntry:
    """A job in the queue.

    id        identifier
    task      name of its task
    job       its settings as plain values
    run       name of its run folder; "" before it has one
    state     "waiting", "cancelled" (while waiting), or the state of the run
    added     in seconds since 1970
    message   why it failed or was stopped
    guest     user of a shared page who added it; "" for the owner
    person    the same if guests had a page each; stays when the login is removed
    lane      lane that it runs in; "" for its task's
    ended     when it ended, in seconds since 1970; 0 before
    tries     how often the program ended during it, since step `tried_at` of its newest training state (-1: none)
    """

    id: str
    task: str
    title: str
    job: dict[str, dict[str, Any]]
    state: str = "waiting"
    run: str = ""
    added: Moment = 0.0
    message: str = ""
    preset: str = ""
    guest: str = ""
    lane: tasks.Lane | Literal[""] = ""
    tries: StrictInt = 0
    tried_at: StrictInt = -1
    person: str = ""
    ended: Moment = 0.0

    def visible(self, people: Collection[str]) -> Self:
        """Return this job as the user of the current request may see it: for a generation of another person, the title, which is a prompt,
        is replaced by the task's.
        people: logins with a page each"""
        if may_change(self.guest, people) or "prompt" not in self.job.get("generate", {}):
            return self
        task = tasks.tasks().get(self.task)  # None if an extension was removed
        return replace(self, title=task.title if task else self.task)


_ENTRY = TypeAdapter(QueueEntry)


def _entry(values: Any) -> QueueEntry:
    """Return a `QueueEntry` from its fields in queue.json, without those of a later version. Raises ValueError for fields of other types (a
    file edited by hand)."""
    entry = _ENTRY.validate_python(values)
    task, job = to_version_2(entry.task, entry.job)
    return replace(entry, task=task, job=job)


def new_identity() -> str:
    """Return a random id for a job: 12 hexadecimal digits."""
    return uuid.uuid4().hex[:12]


def lane_of(entry: QueueEntry) -> str:
    """Return the lane of a job. Jobs of unregistered tasks go to the device's lane, where they fail."""
    task = tasks.tasks().get(entry.task)
    return entry.lane or (task.lane if task else "device")


def title_of(task: str, job: Settings) -> str:
    """Return a default title for a job: the output name of a training, the prompt of a generation, else the task's, cut to 60
    characters."""
    if isinstance(job, TrainJob):
        return job.saving.output_name
    prompt = getattr(getattr(job, "generate", None), "prompt", "")
    return (prompt or tasks.named(task).title_of(job))[:60]


@contextmanager
def as_guest(name: str) -> Iterator[None]:
    """Context in which queued jobs belong to a user of a shared page; "" is the owner."""
    token = GUEST.set(name)
    try:
        yield
    finally:
        GUEST.reset(token)


def may_manage(entry: QueueEntry) -> bool:
    """Whether the user of the current request may cancel and move this job: the owner all, guests only their own."""
    return GUEST.get() in ("", entry.guest)


def check_may_manage(entry: QueueEntry) -> None:
    """Raise ProblemsError if the user of the current request may not manage this job."""
    if not may_manage(entry):
        raise _not_yours(f"'{entry.title}' is the job of somebody else", entry.title, "queue.not-yours")


def _not_yours(what: str, where: str, code: str) -> ProblemsError:
    """Return the error that only somebody else, or the owner, may do this."""
    return ProblemsError.one(what, where, "ask them, or log in as the owner", code)


def check_room(entries: Sequence[QueueEntry]) -> None:
    """Raise ProblemsError if a user of a shared page may not add a job: MOST_WAITING jobs wait, or MOST_OF_ONE of this guest."""
    waiting, guest = [entry.guest for entry in entries if entry.state == "waiting"], GUEST.get()
    if len(waiting) >= MOST_WAITING:
        what, code = f"The queue is full ({MOST_WAITING} jobs are waiting)", "queue.full"
    elif guest and waiting.count(guest) >= MOST_OF_ONE:
        what, code = f"{MOST_OF_ONE} of your jobs are waiting, the most on a shared page", "queue.full-for-guest"
    else:
        return
    raise ProblemsError.one(what, "queue", "wait until one ends, or remove one from the queue", code=code)


def person_in(people: Collection[str]) -> str:
    """Return the user of the current request if `people`, the logins with a page each, include it; else ""."""
    return GUEST.get() if GUEST.get() in people else ""


def may_change(person: str, people: Collection[str]) -> bool:
    """Whether the user of the current request may change what belongs to `person`. Only users in `people`, the logins with a page each, are
    limited: to their own."""
    return GUEST.get() not in people or GUEST.get() == person


def check_may_change(run: str, person: str, people: Collection[str]) -> None:
    """Raise ProblemsError if the user of the current request may not change this run of `person`."""
    if not may_change(person, people):
        raise _not_yours(f"'{run}' is the run of somebody else", run, "runs.not-yours")


def whose_run(person: str, people: Collection[str]) -> str:
    """Return "The run of anna" for a run that the user of the current request may not change; else ""."""
    return "" if may_change(person, people) else f"The run of {person or 'the owner'}"


def may_resume(paused_by: str | None) -> bool:
    """Whether the user of the current request may resume the queue: a guest may not if the owner ("") has paused it."""
    return paused_by != "" or not GUEST.get()


@dataclass(frozen=True)
class StoredQueue:
    """The content of queue.json.

    paused_by  user who paused it, as in `QueueEntry.guest`; None if it was paused by a crash, or is not paused
    cut_off    ids of the jobs that were running when the program ended
    """

    entries: list[QueueEntry] = field(default_factory=list)
    paused: bool = False
    paused_by: str | None = None
    cut_off: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read queue.json; an empty queue if it is missing. Raises ProblemsError, KeyError, TypeError or ValueError if it is damaged."""
        try:
            raw = read_json_object(path)
        except MissingFile:
            return cls()
        paused, by, cut_off = bool(raw.get("paused")), raw.get("paused_by"), raw.get("cut_off")
        by = by if paused and isinstance(by, str) else None
        ids = tuple(str(each) for each in cut_off) if isinstance(cut_off, list) else ()
        return cls([_entry(each) for each in raw["entries"]], paused, by, ids)

    def after_end(self) -> Self:
        """Return the queue as it is after its process has ended: running jobs become "interrupted", and if others wait it is paused."""
        running = [entry for entry in self.entries if entry.state == "running"]
        if not running:
            return self
        now = time.time()
        entries = [replace(each, state="interrupted", ended=now) if each in running else each for each in self.entries]
        paused = self.paused_by is not None or any(entry.state == "waiting" for entry in entries)
        cut_off = (*self.cut_off, *(entry.id for entry in running))
        return replace(self, entries=entries, paused=paused, cut_off=cut_off)

    @property
    def why_paused(self) -> str:
        """Text such as "the program ended unexpectedly while 'fox' trained"; "" if a user paused the queue or it is not paused."""
        cut_off = [entry for entry in self.entries if entry.id in self.cut_off]
        if not (self.paused and self.paused_by is None and cut_off):
            return ""
        first = next((entry for entry in cut_off if lane_of(entry) == "device"), cut_off[0])
        return f"the program ended unexpectedly while '{first.title}' {'trained' if first.task == 'train' else 'ran'}"


class Queue:
    """A thread-safe queue, stored in a file. `add` returns once the job is on disk; other changes that a full disk does not take stay in
    memory and are written with the next one. lock: to be held from reading the queue to changing it"""

    def __init__(self, path: Path):
        self._path = path
        self.lock = threading.RLock()
        self._entries: list[QueueEntry] = []
        self.paused = False
        self.paused_by: str | None = None  # these as in StoredQueue
        self.cut_off: tuple[str, ...] = ()
        self.set_aside = ""  # a message about a damaged file
        self._closed = False  # no further job begins
        self._read()

    def _read(self) -> None:
        """Load the queue of an earlier process (`StoredQueue.after_end`). A damaged file is renamed."""
        try:
            stored = StoredQueue.read(self._path)
        except (ProblemsError, KeyError, TypeError, ValueError):
            self._entries = []
            atomic.replace(self._path, aside := self._path.with_suffix(f".broken-{time.time_ns()}"))
            self.set_aside = f"The job list could not be read and was moved to {aside.name}."
            return
        current = stored.after_end()
        self._entries, self.paused = current.entries, current.paused
        self.paused_by, self.cut_off = current.paused_by, current.cut_off
        if current is not stored:
            self._write_if_possible()

    def _write(self) -> None:
        """Drop ended jobs beyond the MAX_ENDED that ended last and write the queue. Raises OSError."""
        ended = [entry for entry in self._entries if entry.state not in ("waiting", "running")]
        ended.sort(key=lambda entry: entry.ended or entry.added)
        dropped = {entry.id for entry in ended[:-MAX_ENDED]}
        self._entries = [entry for entry in self._entries if entry.id not in dropped]
        atomic.write_json(self._path, asdict(self.stored()))

    def _write_if_possible(self) -> None:
        """`_write`; what a full disk does not take is written with the next change."""
        with suppress(OSError):
            self._write()

    def stored(self) -> StoredQueue:
        """Return the queue as it is written to its file."""
        with self.lock:
            return StoredQueue(list(self._entries), self.paused, self.paused_by, self.cut_off)

    def entries(self) -> list[QueueEntry]:
        with self.lock:
            return list(self._entries)

    def get(self, identity: str) -> QueueEntry:
        """Return the job with this id. Raises ProblemsError for an unknown one."""
        with self.lock:
            for entry in self._entries:
                if entry.id == identity:
                    return entry
        raise ProblemsError.one("This job is no longer in the queue", identity, "reload the list", "queue.no-such-job")

    def add(
        self,
        task: str,
        title: str,
        job: dict[str, Any],
        run: str = "",
        state: str = "waiting",
        message: str = "",
        preset: str = "",
        identity: str = "",
        people: Collection[str] = (),
    ) -> QueueEntry:
        """Add a job and return its entry once it is on disk. Raises ProblemsError and leaves the queue unchanged if it cannot be written.

        Arguments as in `QueueEntry`. identity: its id, "" for a new one; people: logins with a page each. If a job has this id, that one is
        returned: it is read from the inbox again if the program ended before its file there was deleted.
        """
        if same := [entry for entry in self.entries() if entry.id == identity]:
            return same[0]
        guest, person = GUEST.get(), person_in(people)
        entry = QueueEntry(
            identity or new_identity(), task, title, job, state, run, time.time(), message, preset, guest, person=person
        )
        with self.lock:
            before = self._entries
            self._entries = [*before, entry]
            try:
                self._write()
            except OSError as error:
                self._entries = before
                raise unwritten(error, "The queue cannot be written", str(self._path)) from None
        return entry

    def change(self, identity: str, **changes: Any) -> QueueEntry:
        """Replace fields of an entry and return the new entry. If the disk is full, queue.json gets the change only with the next one.
        Raises ProblemsError for an unknown id. changes: fields of `QueueEntry`"""
        if "state" in changes:
            changes["ended"] = 0.0 if changes["state"] in ("waiting", "running") else time.time()
        with self.lock:
            entry = replace(self.get(identity), **changes)
            self._entries = [entry if old.id == identity else old for old in self._entries]
            self._write_if_possible()
        return entry

    def cancel_waiting(self, identity: str) -> bool:
        """Cancel a waiting job; return False if it does not wait."""
        with self.lock:
            if self.get(identity).state != "waiting":
                return False
            self.change(identity, state="cancelled")
            return True

    def forget(self, identities: Collection[str]) -> None:
        """Remove the jobs with these ids from the queue, except those that wait or run."""
        with self.lock:
            remaining = [
                each for each in self._entries if each.id not in identities or each.state in ("waiting", "running")
            ]
            if len(remaining) < len(self._entries):
                self._entries = remaining
                self._write_if_possible()

    def move(self, identity: str, position: int) -> None:
        """Move a waiting job to `position` (from 0) among those that wait for the same lane; does nothing if it does not wait.

        A guest's job moves only within the positions of the guest's own jobs.
        """
        with self.lock:
            entry = self.get(identity)
            if entry.state != "waiting":
                return
            lane = lane_of(entry)
            waiting = [old for old in self._entries if old.state == "waiting" and lane_of(old) == lane]
            others = [old for old in self._entries if old not in waiting]
            moved = [old for old in waiting if old is not entry]
            moved.insert(max(0, min(position, len(moved))), entry)
            if guest := GUEST.get():  # the jobs of others keep their places
                guests = iter([each for each in moved if each.guest == guest])
                moved = [next(guests) if each.guest == guest else each for each in waiting]
            self._entries = others + moved
            self._write_if_possible()

    def next(self) -> QueueEntry | None:
        """Return the next job that waits for the device; None if there is none or the queue is paused or closed."""
        waiting = (entry for entry in self.entries() if entry.state == "waiting" and lane_of(entry) == "device")
        return None if self.paused or self._closed else next(waiting, None)

    def take(self) -> QueueEntry | None:
        """Mark the `next` job as running and return it; None if there is none."""
        with self.lock:
            entry = self.next()
            return self.change(entry.id, state="running") if entry else None

    def put_on_cpu(self, identity: str) -> QueueEntry | None:
        """Move a job that waits for the device to the lane of child processes and return it; None if it does not wait for the device.

        Raises ProblemsError for a job that needs the device, or another user's.
        """
        with self.lock:
            check_may_manage(entry := self.get(identity))
            if not tasks.named(entry.task).on_cpu:
                what = f"'{entry.title}' needs the device"
                raise ProblemsError.one(what, entry.title, "wait for its turn", "queue.needs-device")
            waits = entry.state == "waiting" and lane_of(entry) == "device"
            return self.change(identity, lane="process") if waits else None

    def begin(self, identity: str) -> QueueEntry | None:
        """Mark a waiting job as running and return it; None if it does not wait, or after `close`."""
        with self.lock:
            waits = self.get(identity).state == "waiting" and not self._closed
            return self.change(identity, state="running") if waits else None

    def close(self) -> list[QueueEntry]:
        """Let no further job begin, and return the running ones."""
        with self.lock:
            self._closed = True
            return [entry for entry in self._entries if entry.state == "running"]

    def pause(self, paused: bool) -> None:
        """Pause or resume the queue; does nothing for a guest if the owner has paused it."""
        with self.lock:
            if may_resume(self.paused_by):
                self.paused, self.paused_by, self.cut_off = paused, GUEST.get() if paused else None, ()
                self._write_if_possible()

    def resume(self) -> None:
        """Resume the queue. Raises ProblemsError for a guest if the owner has paused it."""
        if not may_resume(self.paused_by):
            raise _not_yours("The owner has paused the queue", "queue", "queue.not-yours")
        self.pause(False)

    def resume_with(self, identity: str, *, alone: bool) -> None:
        """`move_interrupted`, and resume the queue; a pause by a user only ends if the run is `alone`."""
        with self.lock:
            self.move_interrupted(identity)
            if self.paused_by is None or alone:
                self.pause(False)

    def move_interrupted(self, identity: str) -> None:
        """Move a run that was just added to the head of a paused queue, a guest's before the guest's own jobs, if the end of the program
        has paused the queue or interrupted the run."""
        with self.lock:
            run = self.get(identity).run
            earlier = [each for each in self._entries if each.run == run and each.id != identity]
            interrupted = bool(earlier) and max(earlier, key=lambda each: each.added).state == "interrupted"
            if self.paused and (self.paused_by is None or interrupted):
                self.move(identity, 0)
