"""The engine: the queue, a thread for device jobs, one for jobs of other processes, lanes for jobs without the device."""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import tasks
from core.dataset.captions.history import interruption_message
from core.engine.child import run_in_child
from core.engine.deleted import name_in_trash
from core.engine.execute import execute
from core.engine.explain import Explanation, explain
from core.engine.extend import check_not_queued, extend, extended, job_to_resume
from core.engine.in_use import require_unused
from core.engine.launch import is_launched, supervise
from core.engine.light import CLOSE_SECONDS, LANES, LightLane, LightTask, with_limits
from core.engine.moved_model import present_job, with_moved_model
from core.engine.owner import DeviceLock, Ownership
from core.engine.put_back import cut_off, mark_broken_off, move_cut_off_first, requeue_cut_off
from core.engine.queue import (
    Queue,
    QueueEntry,
    check_may_change,
    check_may_manage,
    check_room,
    lane_of,
    may_manage,
    person_in,
    title_of,
)
from core.engine.run_summary import RunState, RunSummary, about_of, newest_state_step
from core.engine.runs import Runs
from core.engine.view import RunView, read_watch
from core.engine.waiting import Wait, waits
from core.generation.model.store import ModelStore
from core.record import atomic, commands, machine
from core.record.cancel import CancelToken
from core.record.lazy_torch import torch
from core.record.problems import ProblemsError, with_fixes, write_errors
from core.record.run_about import write_about, write_person
from core.record.run_folder import RunFolder, latest_run, list_runs
from core.record.temporary import remove_leftover_folders
from core.record.workspace import Workspace
from core.settings.base import Settings
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.named import Limits, admit
from core.settings.presets.files import dump, parse, to_values
from core.settings.presets.migrations import to_version_2

POISONED = 75
WAIT_SECONDS, INBOX_SECONDS, IDLE_SECONDS = 0.5, 1.0, 10.0  # between looks for the device, handed in jobs, a queued job
QUEUE = "queue"  # holds the device; whoever else does has borrowed it
MAX_JOB_FOLDERS, MAX_IDENTITY = 100, 40


class Engine:
    """Runs the jobs of a workspace. Holds outputs/.atelier/lock until `close`. Every method may be called from any thread."""

    def __init__(self, workspace: Workspace, device: str | None = None, holder: str = "a page"):
        """Lock the outputs folder; nothing runs before `start`. Raises ProblemsError if it is in use or cannot be written.
        device: None detects it when first needed; holder: this engine's description in messages of other processes."""
        self.workspace = workspace
        self._owner = Ownership(workspace, holder, page=True)
        self._device = device
        self._queue = Queue(workspace.private / "queue.json")
        self._interruption = self._not_resumed = ""
        self._light = LightLane()
        self._wake = threading.Condition()
        self._device_lock = DeviceLock()
        self._closing = False
        self._device_job: QueueEntry | None = None  # running on the device
        self._in_lanes: dict[str, QueueEntry] = {}  # running in other lanes, by id
        self._tokens: dict[str, CancelToken] = {}
        self._runs = Runs(workspace, lambda name: self._running(name) is not None)
        self._reading: LightTask | None = None  # reads journals for the list of runs
        self.listing = threading.Lock()  # held while a thread waits for `runs_so_far`
        self._last_run = ""
        self.end_listeners: list[Callable[[QueueEntry], None]] = []  # called with each job of the device that has ended
        self.limits: Limits | None = None  # what jobs may name while a shared page is served
        self.people: frozenset[str] = frozenset()  # guests with a page each, who change only their own runs
        self.owner = ""  # the owner's login, where people have a page each
        self.models = ModelStore()  # kept between generations
        self._device_thread = threading.Thread(target=self._run_device_jobs, name="device", daemon=True)
        self._inbox_thread = threading.Thread(target=self._read_inbox, name="inbox", daemon=True)

    # -- life

    def start(self, resume: bool = False) -> None:
        """Start the threads and the waiting jobs that need no device. resume: also put back the trainings that ended with the program."""
        if resume:
            self._not_resumed = requeue_cut_off(self._queue, self.workspace.runs, self._runs.newest_state)
        elif not self._queue.paused:
            self._queue.cut_off = ()
        self._interruption = interruption_message(self.workspace.captions)
        remove_leftover_folders()
        for entry in (each for each in self.queue() if each.state == "waiting"):
            self._begin_in_lane(entry)
        self._inbox_thread.start()
        self._device_thread.start()

    @property
    def notice(self) -> str:
        """Warnings for the user: a damaged queue file, an interrupted change of captions, a moved outputs folder ...; "" without any."""
        return " ".join(filter(None, (self._owner.lost, self._queue.set_aside, self._interruption, self._not_resumed)))

    def announce(self, holder: str) -> None:
        """Store `holder`, such as the page's address, for other processes that find the outputs folder in use."""
        self._owner.write_note(holder)

    def close(self, wait_seconds: float | None = 120.0) -> None:
        """Save and stop running jobs, keep the queue, release the outputs folder.
        wait_seconds: limit for each thread; None: none while a training saves, else CLOSE_SECONDS."""
        self._closing = True
        started = time.monotonic()
        running = self._queue.close()
        self._queue.cut_off += tuple(entry.id for entry in running if not self._token_of(entry.id).wanted)
        for entry in running:
            self._token_of(entry.id).cancel()
        if wait_seconds is None and not any(entry.task == "train" for entry in running):
            wait_seconds = CLOSE_SECONDS
        with self._wake:
            self._wake.notify_all()
        for thread in (self._inbox_thread, self._device_thread):
            if thread.is_alive():
                thread.join(timeout=wait_seconds)
        self._light.close(max(1.0, CLOSE_SECONDS - (time.monotonic() - started)))
        self._owner.release()

    @property
    def device(self) -> str:
        """The device if it is known, else "cpu". Loads nothing."""
        return self._device or "cpu"

    @property
    def known_device(self) -> str | None:
        """The device; None before it is detected. Loads nothing."""
        return self._device

    def find_device(self) -> str:
        """Return the device that jobs run on; the first call loads torch to detect it."""
        self._device = self._device or machine.default_device()
        return self._device

    @contextmanager
    def borrow_device(self, token: CancelToken, what: str) -> Iterator[str]:
        """Context that holds the device for work outside of the queue (`what`, for messages) and yields its name. Waits for a running job
        and unloads the models kept between generations. Raises Cancelled."""
        while not self._device_lock.acquire(what, WAIT_SECONDS):
            token.check()
        try:
            self.models.release()
            yield self.find_device()
        finally:
            self._device_lock.release()

    @property
    def lent_to(self) -> str:
        """The work outside of the queue that holds the device (`borrow_device`); "" if there is none."""
        return "" if self._device_lock.holder == QUEUE else self._device_lock.holder

    # -- queue

    def submit(self, task: str, job: Settings, title: str = "", preset: str = "", identity: str = "") -> str:
        """Queue a job; return its id. title: "" for the usual one; preset: name or ""; identity: "" for a new id. Raises ProblemsError."""
        with self._queue.lock:
            self._admit_new(job)
            title = title or title_of(task, job)
            entry = self._queue.add(task, title, to_values(job), preset=preset, identity=identity, people=self.people)
        self._begin_in_lane(entry)
        self._notify()
        return entry.id

    def _admit_new(self, job: Settings) -> None:
        """Raise ProblemsError if a shared page may not queue this job: a path outside of its limits, or too many waiting jobs."""
        admit(job, self._request_limits)
        if self.limits is not None:
            check_room(self.queue())

    @property
    def _request_limits(self) -> Limits | None:
        """Limits on what jobs of the user of the current request may name; None if the page is not shared."""
        return self.limits and self.limits.for_person(replace(self.workspace, person=person_in(self.people)))

    def _begin_in_lane(self, entry: QueueEntry) -> None:
        """Start a waiting job in its light lane; does nothing for device jobs, which the device's thread takes from the queue."""
        if (lane := lane_of(entry)) != "device":
            self._light.submit(self._run_in_lane, entry.id, title=entry.title, kind=LANES[lane])

    def _run_in_lane(self, entry_id: str, task: LightTask) -> None:
        """Run a job in this thread of a light lane; does nothing if it was cancelled while waiting."""
        entry = self._queue.begin(entry_id)
        if entry is None:
            return
        self._in_lanes[entry.id] = entry
        try:
            self._run_or_fail(entry)
        finally:
            self._in_lanes.pop(entry.id, None)

    def queue(self) -> list[QueueEntry]:
        """Return all jobs, in order, as the user of the current request may see them."""
        return [entry.visible(self.people) for entry in self._queue.entries()]

    def forget(self, entry_ids: Collection[str]) -> None:
        """Remove ended jobs from the queue's list; a guest only removes their own. Files stay."""
        self._queue.forget({each.id for each in self.queue() if each.id in entry_ids and may_manage(each)})

    def waits(self) -> dict[str, Wait]:
        """Return {id of a waiting job: what it waits for}."""
        return waits(self.queue(), self._runs.time_left, paused=self._queue.paused, lent_to=self.lent_to)

    def move(self, entry_id: str, position: int) -> None:
        """Move a waiting job to `position` (`Queue.move`). Raises ProblemsError for another user's."""
        check_may_manage(self._queue.get(entry_id))
        self._queue.move(entry_id, position)

    def start_on_cpu(self, entry_id: str) -> None:
        """Start a job that waits for the device on the CPU now. Raises ProblemsError if it needs the device or is another user's."""
        if moved := self._queue.put_on_cpu(entry_id):
            self._begin_in_lane(moved)

    def cancel(self, entry_id: str, only_waiting: bool = False) -> None:
        """Cancel a waiting job, or stop a running one; nothing if it has ended. Raises ProblemsError if unknown or another user's, and with
        `only_waiting` if it runs."""
        check_may_manage(self._queue.get(entry_id))
        if self._queue.cancel_waiting(entry_id):
            return self._report_ended(entry_id)
        entry = self._queue.get(entry_id)
        if entry.state == "running" and only_waiting:
            what = "This job has started since the list was shown, and was not stopped"
            raise ProblemsError.one(what, entry.title, "stop it where it is shown as running", "queue.has-started")
        if entry.state == "running":
            self._token_of(entry_id).cancel()

    def _token_of(self, entry_id: str) -> CancelToken:
        """Return a job's cancel token, creating it if necessary: a stop may arrive before the job starts."""
        return self._tokens.setdefault(entry_id, CancelToken())

    @property
    def queue_paused(self) -> bool:
        return self._queue.paused

    @property
    def paused_by(self) -> str | None:
        """Who paused the queue (`StoredQueue.paused_by`)."""
        return self._queue.paused_by

    @property
    def why_paused(self) -> str:
        """Why the queue is paused after a crash, as text (`StoredQueue.why_paused`); else ""."""
        return replace(self._queue.stored(), entries=self.queue()).why_paused

    @property
    def interrupted(self) -> list[QueueEntry]:
        """The trainings that `continue_first` would put back, of those that the user of the current request may manage."""
        entries = cut_off(self._queue, self.workspace.runs) if self.why_paused else []
        return [entry for entry in entries if may_manage(entry)]

    def continue_first(self) -> None:
        """Put the trainings that ended with the program back at the head of the queue, and resume it; only if that paused the queue."""
        if self.why_paused:
            move_cut_off_first(self._queue, self.workspace.runs)
            self.resume_queue()

    def pause_queue(self) -> None:
        """Pause the queue. Raises ProblemsError if a waiting job is another user's."""
        for entry in self.queue():
            if entry.state == "waiting":
                check_may_manage(entry)
        self._queue.pause(True)

    def resume_queue(self) -> None:
        """Resume the queue. Raises ProblemsError for a guest if the owner has paused it."""
        self._queue.resume()
        self._notify()

    def continue_run(self, run_name: str, changes: dict[str, Any] | None = None) -> str:
        """Queue an interrupted, stopped or failed run to be resumed, or a finished one with a greater length; return the job's id.

        changes   {group: {setting: value}} that may change when a run resumes (core/engine/extend.py)
        A queue that a user has paused is resumed only if no other job waits in it. The run is the first if the end of the program paused
        the queue or interrupted it (`resume_with`). Raises ProblemsError for a run that is active or unknown, and for impossible changes.
        """
        entry_id = self._queue_run(run_name, changes)
        wait = self.waits().get(entry_id)
        self._queue.resume_with(entry_id, alone=wait is not None and not (wait.on or wait.ahead))
        self._notify()
        return entry_id

    def _queue_run(self, run_name: str, changes: dict[str, Any] | None = None, identity: str = "") -> str:
        """`continue_run`, but a paused queue stays paused. identity: id of the job; "" for a new one."""
        folder = self.editable_run(run_name)
        with self._queue.lock:
            check_not_queued(folder, self.queue())
            job = job_to_resume(folder)
            self._admit_new(extended(job, changes, folder) if changes else job)
            job = extend(folder, changes, self._request_limits) if changes else job
            job = with_moved_model(job, folder, self.workspace)
            title, values = title_of("train", job), to_values(job)
            entry = self._queue.add("train", title, values, run=run_name, identity=identity, people=self.people)
        self._notify()
        return entry.id

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    # -- the inbox's thread: a job that is handed in can be moved and cancelled while another one runs

    def _read_inbox(self) -> None:
        """The inbox thread: queue jobs handed in by other processes until the engine closes."""
        while not self._closing:
            with suppress(OSError, ProblemsError):  # a disk that fails for now ends no thread: it is tried again
                self._owner.read_inbox(self._queue_handed_in)
            with self._wake:
                self._wake.wait(INBOX_SECONDS)

    # -- the device thread

    def _run_device_jobs(self) -> None:
        """The device thread: run waiting device jobs one by one until the engine closes."""
        while not self._closing:
            if not self._device_lock.acquire(QUEUE, WAIT_SECONDS):
                continue
            try:
                entry = self._queue.take()
                if entry is not None:
                    self._run_on_device(entry)
            finally:
                self._device_lock.release()
            if entry is None:
                with self._wake:  # what is queued after this look notifies only once this waits
                    if not self._closing and self._queue.next() is None:
                        self._wake.wait(IDLE_SECONDS)

    def _run_on_device(self, entry: QueueEntry) -> None:
        self._device_job = entry
        try:
            self._run_or_fail(entry)
        finally:
            self._device_job = None
        self._report_ended(entry.id)

    def _report_ended(self, entry_id: str) -> None:
        """Call the listeners in `end_listeners` with a job; not while the engine closes."""
        with suppress(Exception):  # a listener's error must not end the thread
            entry = self._queue.get(entry_id)
            for listener in self.end_listeners if not self._closing else ():
                listener(entry)

    def _run_or_fail(self, entry: QueueEntry) -> None:
        """Run a job to its end. An error outside of the job (no folder, invalid settings) makes it "failed" with that message."""
        try:
            self._run(entry)
        except BaseException as error:  # no folder, wrong settings, or a library's panic, which is no Exception
            self._queue.change(entry.id, state="failed", message=explain(error).what)
        finally:
            self._tokens.pop(entry.id, None)

    def _queue_handed_in(self, item: Any) -> None:
        """Queue a job, or a run to resume, from the JSON of `owner.hand_in`. A refused job is listed as "failed" with the error."""
        try:
            identity = str(item.get("id") or "")[:MAX_IDENTITY]
            if item.get("run"):
                self._queue.move_interrupted(self._queue_run(item["run"], identity=identity))
                return
            task, values = to_version_2(item["task"], item["job"])
            title, preset = str(item.get("title") or ""), str(item.get("preset") or "")
            self.submit(task, build(tasks.named(task).job, values), title, preset, identity)
        except ProblemsError as error:
            task, message = str(item.get("task")), with_fixes(error)
            self._queue.add(task, str(item.get("title") or task), {}, "", "failed", message, identity=identity)
        except (AttributeError, KeyError, TypeError):
            return

    def _run(self, entry: QueueEntry) -> None:
        """Run a job to its end, in this thread or a child process, and store its state. Ends this process if CUDA is unusable then."""
        job, workspace = build(tasks.named(entry.task).job, entry.job), self.workspace_of(entry)
        admit(job, self.limits and self.limits.for_person(workspace))  # the page may be shared since it waits
        lane = lane_of(entry)
        device = self._ready_device() if lane == "device" else "cpu"
        folder = self._runs.folder(entry.run) if entry.run else self._new_folder(entry, job)
        entry = self._queue.change(entry.id, run=folder.name)
        self._runs.forget(folder.name)  # a view with lines that a full disk did not take would skip the new ones
        view = self._runs.view(folder.name)
        channel: Any = {"listener": view.apply, "token": self._token_of(entry.id)}
        if lane == "device":
            self._device_job = entry
            self._last_run = folder.name if entry.task == "train" else self._last_run
            state, explanation = self._train_or_execute(entry.task, job, folder, workspace, device, channel)
        else:
            self._in_lanes[entry.id] = entry
            if lane == "process":
                state, explanation = run_in_child(folder, workspace, **channel)
            else:
                state, explanation = execute(entry.task, job, folder, workspace, device, **channel)
        # The job.json of a download is without the link's key.
        changes = {"job": parse(folder.job(), folder.name).values} if lane == "downloads" else {}
        self._queue.change(entry.id, state=state, message=explanation.what if explanation else "", **changes)
        if explanation is not None and explanation.poisoned:
            self._restart(entry, explanation)

    def workspace_of(self, entry: QueueEntry) -> Workspace:
        """Return the workspace of the person who queued a job, also if their login was removed since; else the owner's."""
        return replace(self.workspace, person=entry.person or (entry.guest if entry.guest in self.people else ""))

    def _ready_device(self) -> str:
        """Return the device's name, after checking that it exists and setting torch's number of threads."""
        torch.set_num_threads(machine.threads())
        machine.check_device(self.find_device())
        return self.find_device()

    def _train_or_execute(
        self, task: str, job: Settings, folder: RunFolder, workspace: Workspace, device: str, channel: Any
    ) -> tuple[str, Explanation | None]:
        """Run a device job in this thread, or in several processes on several GPUs. Return (state, explanation of a failure or None).
        channel: {"listener": of journal lines, "token": cancel token}."""
        store = self.models if task in ("generate", "grid", "class_images") else None
        if store is None:
            self.models.release()  # trainings and captioners load models of their own: the kept one makes room
        if is_launched(task, job):
            assert isinstance(job, TrainJob)
            return supervise(job, folder, workspace, device, **channel)
        return execute(task, job, folder, workspace, device, **channel, store=store)

    def _restart(self, entry: QueueEntry, explanation: Explanation) -> None:
        """End this process, in which CUDA is unusable; the launcher starts a new one, which continues the queue."""
        print(explanation.what, flush=True)
        mark_broken_off(self._queue, entry, self._runs.newest_state)
        self._owner.release()
        os._exit(POISONED)

    def _new_folder(self, entry: QueueEntry, job: Settings) -> RunFolder:
        """Create a job's run folder. Of jobs other than trainings, folders beyond the newest MAX_JOB_FOLDERS are deleted."""
        runs = self.workspace.runs if entry.task == "train" else self.workspace.private / "jobs"
        if entry.task != "train":
            self._runs.delete_ended(list_runs(runs)[MAX_JOB_FOLDERS:])
        folder = RunFolder.create(runs, entry.title, dump(job, task=entry.task, preset=entry.preset))
        if entry.task == "train" and (person := self.workspace_of(entry).person or (not entry.guest and self.owner)):
            write_person(folder, person)
        return folder

    # -- runs

    def editable_run(self, run_name: str) -> RunFolder:
        """Return the folder of a run. Raises ProblemsError if it is unknown, or the user of the current request may not change it."""
        folder = self._runs.folder(run_name)
        check_may_change(run_name, about_of(folder)[0].person, self.people)
        return folder

    def _running(self, run_name: str) -> QueueEntry | None:
        """Return the running job of a run; None if it is not running."""
        entries = [self._device_job, *list(self._in_lanes.values())]
        return next((entry for entry in entries if entry is not None and entry.run == run_name), None)

    def progress(self, entry_id: str) -> dict[str, Any]:
        """Return {"run", "lane", "stopping": whether a stop was requested, and the keys of `RunView.progress`} of a job."""
        entry = self._queue.get(entry_id)
        view = self._runs.refresh(entry.run) if entry.run else RunView(RunFolder(Path()))
        state = "paused" if (entry.state, view.state) == ("running", "paused") else entry.state
        token = self._tokens.get(entry_id)
        stopping = state == "running" and token is not None and token.wanted
        facts = {"run": entry.run, "lane": lane_of(entry), "stopping": stopping, **view.progress(state)}
        if state == "failed" and not facts["problems"]:  # it has no folder, or nothing could be written there
            facts["problems"] = [{"what": entry.message, "fix": ""}]
        return facts

    def command(self, run_name: str, name: str) -> str:
        """Send a command (one of `commands.NAMES`) to a run and return the command's id. Raises ProblemsError for an unknown run or
        another user's, ValueError for another name."""
        for entry in self.queue():
            if entry.run == run_name and entry.state == "running":
                check_may_manage(entry)
        folder, running = self._runs.folder(run_name), self._running(run_name)
        if name == "stop" and running is not None:
            self._token_of(running.id).cancel()  # at once: it may not read commands yet, and the disk may be full
        return commands.send(folder.path, name)

    def current_run(self) -> str | None:
        """Return the name of the running training, else of this engine's last one, else of the last one on disk; None without any."""
        job = self._device_job
        if job is not None and job.task == "train" and job.run:
            return job.run
        if self._last_run and (self.workspace.runs / self._last_run).is_dir():
            return self._last_run
        latest = latest_run(self.workspace.runs)
        return latest.name if latest else None

    def snapshot(self, run_name: str) -> dict[str, Any]:
        """Return `RunView.snapshot` of a run with "resumable_step" (of its newest training state, -1 without one) and "person"."""
        view = self._runs.refresh(run_name)
        facts = view.snapshot(self._runs.is_held(view))
        return facts | {"resumable_step": newest_state_step(view.folder), "person": about_of(view.folder)[0].person}

    def watch(self, run_name: str) -> dict[str, Any]:
        """Return `read_watch` of a training: its losses by timestep band and by image; {} without any."""
        return read_watch(self._runs.folder(run_name))

    def run_job(self, run_name: str) -> TrainJob:
        """Return the validated settings of a training, with the present path of a base model that was moved."""
        return present_job(self._runs.folder(run_name), self.workspace)

    def run_preset(self, run_name: str) -> str:
        """Return the name of the preset that a training was started from; "" if unknown."""
        return self._runs.folder(run_name).preset

    def runs(self) -> list[RunSummary]:
        """Return a summary of every training on disk, newest first."""
        return self._runs.all()

    def run(self, run_name: str) -> RunSummary | None:
        """Return the summary of a training on disk; None if there is none of that name."""
        return self._runs.one(run_name)

    def runs_so_far(self, seconds: float) -> tuple[list[RunSummary], int]:
        """Return (summaries of the trainings that can be read within about `seconds`, newest first; number of the others, which a light
        lane reads)."""
        with self.listing:  # a second page finds what the first one has read
            summaries, unread = self._runs.without_journals(seconds)
            if unread:
                if self._reading is None or self._reading.done:
                    self._reading = self.light(self._runs.read_all, unread, title="Reading the runs")
                with suppress(TimeoutError, ProblemsError):
                    self._reading.wait(seconds)
                more, unread = self._runs.without_journals(seconds, unread)
                summaries = {**summaries, **more}
        newest_first = [summaries[name] for name in sorted(summaries, reverse=True)]
        return newest_first, sum(folder.name not in summaries for folder in unread)

    def run_states(self, most: int) -> list[RunState]:
        """Return name, title and state of the newest `most` trainings on disk; reads only the ends of journals."""
        return self._runs.states(most)

    def describe_run(self, run_name: str, *, title: str | None = None, note: str | None = None) -> None:
        """Change the title ("" for the initial one) or note of a run; None keeps it. Raises ProblemsError."""
        write_about(self.editable_run(run_name), title=title, note=note)

    def star_run(self, run_name: str, starred: bool) -> None:
        """Star a run, or remove its star. Raises ProblemsError."""
        path = self.editable_run(run_name).star_file
        with write_errors("The star cannot be saved", str(path.parent)):
            atomic.write_bytes(path, b"") if starred else path.unlink(missing_ok=True)

    def delete_run(self, run_name: str) -> str:
        """Move a run to the trash and return its folder name there. Raises ProblemsError while it runs or a job uses its files."""
        folder = self.editable_run(run_name)
        if folder.held:
            what = f"'{run_name}' is running and cannot be deleted"
            raise ProblemsError.one(what, run_name, "stop it first", "runs.delete-running")
        require_unused(run_name, self.queue(), self.workspace)
        target = self.workspace.trash / name_in_trash(folder.name, time.time())
        self._runs.move_away(folder, target)
        return target.name

    # -- light jobs, images, status

    @property
    def works(self) -> bool:
        """Whether a job runs in any lane, or waits in a queue that is not paused."""
        waiting = not self._queue.paused and any(entry.state == "waiting" for entry in self.queue())
        return self._device_job is not None or waiting or self._light.works

    def light(self, work: Any, *arguments: Any, title: str = "", kind: str = "short") -> LightTask:
        """Run `work(*arguments, task=...)` in a light lane and return its handle, whose `wait` returns the result. Settings among the
        arguments have the limits of queued jobs. kind: the threads, one of `LightLane.THREADS`"""
        return self._light.submit(with_limits(work, self._request_limits), *arguments, title=title, kind=kind)

    def status(self) -> dict[str, Any]:
        """Return {"device": its title, "memory_used", "memory_total": bytes, "job": `_job_status`}."""
        used, total = machine.memory(self.device)
        return {
            "device": machine.device_title(self.device),
            "memory_used": used,
            "memory_total": total,
            "job": self._job_status(),
        }

    def _job_status(self) -> dict[str, Any] | None:
        """Return {"title", "task", "run", "entry": id, "stopping"} and `RunView.status` of the running device job; None without one."""
        job = self._device_job
        if job is None:
            return None
        token = self._tokens.get(job.id)
        facts: dict[str, Any] = {
            "title": job.visible(self.people).title,
            "task": job.task,
            "run": job.run,
            "entry": job.id,
            "state": "running",
            "stopping": token is not None and token.wanted,
        }
        with suppress(ProblemsError):  # it has no folder yet, or its run was deleted while it waited
            facts |= self._runs.view(job.run).status(job.task)
        return facts
