"""Jobs of tools: start, progress, pause and cancel, shared by all browsers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.hub.references import Source, forget, parse_source
from core.generation.model.index import facts_of_file
from core.generation.model.library import find_file
from core.record.file_titles import title_of_file
from core.record.problems import ProblemsError
from core.record.units import clock, count
from core.record.workspace import Workspace
from core.settings.base import Settings, value_of
from core.settings.check import build as build_job
from core.tasks import Card, Task, tasks
from tabs.form.model_lists import REFRESH_SECONDS, model_lists
from tabs.form.task_settings import form_settings, job_of, main_setting
from tabs.roots import Roots
from tabs.server.browsers import Browser

if TYPE_CHECKING:
    from core.engine.engine import Engine
    from core.engine.queue import QueueEntry
    from tabs.form.project import Project

MAX_WORKS = 10
WAIT_SECONDS = 0.05  # for which a tick waits for the lists of model files
NOTICED_SECONDS = 3.0  # after which the user has noticed a failure
MAX_LINES = 300  # shown of a result; the job's journal has all
DOWNLOAD = "download"
ACTIVE = ("waiting", "running", "paused")

Start = Callable[[Task, Settings], None]


@dataclass
class Work:
    """A job of a tool.

    id         in the queue
    about      display text of the job's input
    reads      whether the job writes nothing
    reference  the input as entered; a download link may contain a key and is never shown
    ended      final result of `facts`, {} before the job has ended
    failed     time.monotonic() when a page first showed the failure
    first      (time.monotonic(), bytes) when the first bytes of a download were seen
    """

    id: str
    task: Task
    about: str
    reads: bool = False
    reference: str = ""
    ended: dict[str, Any] = field(default_factory=dict)
    failed: float | None = None
    first: tuple[float, int] | None = None

    @property
    def tab(self) -> str:
        """Name of the tab with the tool's card, "" without a card."""
        return self.task.card.tab if self.task.card else ""

    @property
    def input_key(self) -> tuple[str, str, bool]:
        """Key that is equal for jobs of one tool with the same input."""
        return self.task.name, self.about if self.task.name == DOWNLOAD else self.reference, self.reads

    def replaces(self, other: Work) -> bool:
        """Return whether this is a later attempt at the same download as `other`."""
        return self.task.name == DOWNLOAD and self.input_key == other.input_key

    def facts(self, engine: Any) -> dict[str, Any]:
        """Return the state of the job as JSON values for the page's script; fixed once the job has ended.

        "id", "tool", "card", "about"       id in the queue, task, its card or "", the job's input
        "state", "stopping", "ends_paused", "on_cpu"
                                            "cancelled" also if it was interrupted; the last: whether to offer a start on the CPU
        "text", "share"                     progress; "share" is None if unknown
        "lines", "previews", "shown", "file", "pairs"
                                            of the result; "file" and "pairs" None without one
        "problems"                          [{"what", "fix"}]
        """
        if self.ended:
            return self.ended
        progress = engine.progress(self.id)
        state = {"stopped": "cancelled", "interrupted": "cancelled"}.get(progress["state"], progress["state"])
        wait = engine.waits().get(self.id) if state == "waiting" else None
        text = progress["text"] or ("starting ..." if state == "running" else "")
        if progress["stopping"]:
            text = "pausing ..." if self.task.ends_paused else "cancelling ..."
        elif wait:
            text = wait.message
        elif self.task.name == DOWNLOAD and progress["done"]:
            text = self._pace(progress["done"], progress["total"])
        lines = progress["facts"].get("brief", progress["lines"]) if state != "failed" else []  # a table has the rest
        previews = progress["facts"].get("previews", [])
        lines = lines[len(previews) :]  # the first lines are one for each preview, which shows it
        facts = {
            "id": self.id,
            "tool": self.task.name,
            "card": self.task.card.name if self.task.card else "",
            "ends_paused": self.task.ends_paused,
            "about": self.about,
            "state": state,
            "stopping": progress["stopping"],
            # whether the page offers to start the waiting job on the CPU
            "on_cpu": self.task.on_cpu and progress["lane"] == "device" and bool(wait and wait.on),
            "text": text,
            "share": progress["done"] / progress["total"] if progress["total"] else None,
            "lines": _shortened(lines),
            "previews": previews,
            "shown": progress["facts"].get("shown", []),
            "file": progress["facts"].get("file"),
            "pairs": progress["facts"].get("pairs"),
            "problems": progress["problems"],
        }
        if state not in ACTIVE:
            self.ended = facts | {"text": "", "share": None}
        return facts

    def _pace(self, done: int, total: int) -> str:
        """Return the text on a download: size so far, speed, time left. done, total: bytes, total 0 if unknown"""
        now = time.monotonic()
        started, bytes_before = self.first = self.first or (now, done)
        text = f"{done / 1e6:,.0f}" + (f" of {total / 1e6:,.0f} MB" if total else " MB")
        if now - started < 1 or done <= bytes_before:
            return text
        rate = (done - bytes_before) / (now - started)
        time_left = f", {clock((total - done) / rate)} left" if total else ""
        return f"{text}, {rate / 1e6:,.1f} MB/s{time_left}"


def _shortened(lines: list[str]) -> list[str]:
    """Return at most MAX_LINES + 2 lines: the first ones, the number of omitted ones, and the last one, which is the summary."""
    more = len(lines) - MAX_LINES - 1
    return [*lines[:MAX_LINES], f"and {count(more, 'more line')}", lines[-1]] if more > 0 else lines


def _already_queued(facts: dict[str, Any]) -> ProblemsError:
    """Return the error for a second job with the same input. facts: of the first job"""
    fix = "wait until it is done, or cancel it"
    if facts["state"] == "waiting":
        what = f"This is in the queue already, {facts['text']}"
        return ProblemsError.one(what, facts["about"], fix, "tools.waiting-already")
    return ProblemsError.one("Already running", facts["about"], fix, "tools.running-already")


class Works:
    """The jobs of tools since the start of the server, shared by all browsers."""

    def __init__(
        self,
        engine: Engine,
        workspace: Workspace,
        project: Project,
        roots: Roots,
        thumb_url: Callable[[str, int], str],
        file_url: Callable[[str], str],
    ):
        self._engine, self._workspace, self._project, self._roots = engine, workspace, project, roots
        self._thumb_url, self._file_url = thumb_url, file_url
        self._since = time.time()
        self._works: dict[str, Work] = {}
        self._hidden: set[str] = set()
        self._lock = threading.Lock()
        self.commands = {
            "tool": self.use,
            "tool_cancel": self.cancel,
            "tool_pause": self.pause,
            "tool_on_cpu": self.start_on_cpu,
            "tool_discard": self.discard,
            "tool_close": self.close,
        }

    def works(self) -> list[Work]:
        """Return at most MAX_WORKS jobs of tools, newest first: waiting or running ones and those added since the start.

        Hidden jobs are left out, and of several attempts at one download all but the newest.
        """
        works: list[Work] = []
        for entry in reversed(self._engine.queue()):
            task = tasks().get(entry.task)
            earlier = entry.added < self._since and entry.state not in ("waiting", "running")
            if task is None or task.card is None or earlier:
                continue
            work = self._works.get(entry.id) or self._work(entry.id, task, entry)
            if not any(newer.replaces(work) for newer in works):
                works.append(work)
        self._works = {work.id: work for work in works}
        return [work for work in works if work.id not in self._hidden][:MAX_WORKS]

    def _work(self, identity: str, task: Task, entry: QueueEntry) -> Work:
        """Return the Work of a queue entry; if the job's settings cannot be read, with the entry's title as input."""
        try:
            job = build_job(task.job, entry.job)
            reference, about = self._about(task, job)
        except ProblemsError:  # settings that this version cannot read
            return Work(identity, task, entry.title)
        return Work(identity, task, about, task.only_reads(job), reference)

    def use(self, data: dict[str, Any], browser: Browser) -> None:
        """Start the tool {"tool", "about": its input, such as a file or what to download}. Raises ProblemsError."""
        task, input_text = tasks().get(str(data.get("tool"))), str(data.get("about", "")).strip()
        if task is None or task.card is None:
            return
        reference = next(
            (work.reference for work in self.works() if (work.task.name, work.about) == (task.name, input_text)), ""
        )
        self.start(task, job_of(task, {main_setting(task): reference or input_text}, self._project.job))

    def start(self, task: Task, job: Settings) -> None:
        """Check a job and queue it. Raises ProblemsError if it is invalid or not allowed, or if a job with the same input is active."""
        self._roots.admit(job)
        task.check_job(job, self._workspace)
        reference, about = self._about(task, job)
        work = Work("", task, about, task.only_reads(job), reference)
        with self._lock:
            for each in self.works():
                if each.input_key == work.input_key and self._is_active(each):
                    raise _already_queued(each.facts(self._engine))
            self._engine.submit(
                task.name, job, title=about if about.startswith(task.title) else f"{task.title}: {about}"
            )

    def _about(self, task: Task, job: Settings) -> tuple[str, str]:
        """Return (the job's input as entered, its display text)."""
        name = main_setting(task)
        value = value_of(job, form_settings(task)[name].path) if name else ""
        text = ", ".join(value) if isinstance(value, list) else str(value or "")
        if task.name == DOWNLOAD:
            return text, str(parse_source(text))
        names = [self._title(each) for each in (value if isinstance(value, list) else [text])]
        return text, f"{task.title}: {', '.join(names)}" if text else task.title

    def _title(self, text: str) -> str:
        """Return the display title of the file named `text`; `text` itself if there is no such file."""
        path = find_file(text, self._workspace) if isinstance(text, str) else None
        return title_of_file(path, self._workspace.runs) if path is not None and path.is_file() else str(text)

    def _is_active(self, work: Work) -> bool:
        """Return whether the job is waiting, running or paused."""
        return work.facts(self._engine)["state"] in ACTIVE

    def cancel(self, data: dict[str, Any], browser: Browser) -> None:
        """Cancel the job {"work": id}. A download is paused: its next start resumes it."""
        for work in self._works_named(data):
            self._engine.cancel(work.id)

    def start_on_cpu(self, data: dict[str, Any], browser: Browser) -> None:
        """Start the job {"work": id}, which waits for the device, on the CPU."""
        for work in self._works_named(data):
            self._engine.start_on_cpu(work.id)

    def pause(self, data: dict[str, Any], browser: Browser) -> None:
        """Pause or resume the job {"work": id, "command": "pause" or "resume"}."""
        command = str(data.get("command"))
        for work in self._works_named(data):
            run = self._engine.progress(work.id)["run"]
            if run and command in ("pause", "resume"):
                self._engine.command(run, command)

    def close(self, data: dict[str, Any], browser: Browser) -> None:
        """Hide the result of the finished job {"work": id}. Its journal stays."""
        self._hidden |= {work.id for work in self.works() if work.id == data.get("work") and not self._is_active(work)}

    def close_failed(self, card: Card) -> None:
        """Hide failed jobs of the card that the user has seen for NOTICED_SECONDS, except downloads."""
        noticed = time.monotonic() - NOTICED_SECONDS
        works = (work for work in self.works() if work.task.card == card and work.task.name != DOWNLOAD)
        self._hidden |= {work.id for work in works if work.failed is not None and work.failed <= noticed}

    def _works_named(self, data: dict[str, Any]) -> list[Work]:
        """Return the active job with id data["work"], as a list of at most one."""
        return [work for work in self.works() if work.id == data.get("work") and self._is_active(work)]

    def discard(self, data: dict[str, Any], browser: Browser) -> None:
        """Cancel the download {"about": source} and delete its partial files."""
        source = parse_source(str(data.get("about", "")))
        downloads = [work for work in self.works() if (work.task.name, work.about) == (DOWNLOAD, str(source))]
        for work in downloads:
            if self._is_active(work):
                self._engine.cancel(work.id)
        self._hidden |= {work.id for work in downloads}
        # In the lane of the downloads, so after the one that still has the file open.
        self._engine.light(self._forget, source, title=f"discard {source}", kind="downloads")

    def _forget(self, source: Source, task: Any) -> None:
        """Delete the partial files of a download."""
        forget(source, self._workspace.models)

    def parts(self, tab: Any, body: dict[str, Any]) -> dict[str, Any]:
        """Return the part of the page's periodic update on Train, Captions and Tools: {"works": `_data` of the tab's jobs}, and on the last
        two "tool_files": name suggestions for fields; {} on other tabs."""
        if tab not in ("Train", "Captions", "Tools"):
            return {}
        works_of_tab = [
            work for work in self.works() if work.tab == tab or (tab == "Train" and work.task.name == DOWNLOAD)
        ]
        works = [self._data(work) for work in works_of_tab]
        files = {"Captions": self._captioners, "Tools": self._model_files}
        return {"works": works} | ({"tool_files": files[tab]()} if tab in files else {})

    def _data(self, work: Work) -> dict[str, Any]:
        """Return `Work.facts` of a job with URLs of its previews (`_thumbs`) and of its file (`_file`)."""
        facts = work.facts(self._engine)
        if facts["state"] == "failed" and work.failed is None:
            work.failed = time.monotonic()
        previews = [each | self._thumbs(each) for each in facts["previews"]]
        return facts | {"previews": previews, "file": self._file(facts["file"])}

    def _thumbs(self, preview: dict[str, Any]) -> dict[str, str]:
        """Return {"image", "hint": thumbnail URL} of a preview; previews with a control image ("hint") are larger."""
        size = 256 if "hint" in preview else 128
        return {name: self._thumb_url(preview[name], size) for name in ("image", "hint") if name in preview}

    def written_file(self, identity: str) -> Path | None:
        """Return the path of the file that the job with this id wrote; None if it is a folder, not allowed or gone."""
        work = next((each for each in self.works() if each.id == identity), None)
        return self._readable_path(work.facts(self._engine)["file"]) if work is not None else None

    def _readable_path(self, path: Any) -> Path | None:
        """Return the path if it is an existing file that this page may read, else None."""
        return Path(path) if isinstance(path, str) and self._roots.holds(path) and Path(path).is_file() else None

    def _file(self, file: Any) -> dict[str, Any] | None:
        """Return {"name", "url", "page": is HTML, "uses": can be used in Generate} of a job's file; None if it is not readable."""
        if (path := self._readable_path(file)) is None:
            return None
        usable = {"page": path.suffix == ".html", "uses": facts_of_file(path).kind in ("lora", "checkpoint")}
        return {"name": path.name, "url": self._file_url(str(path))} | usable

    def _captioners(self) -> list[str]:
        """Return the names of the captioner models on this machine."""
        with suppress(OSError):
            return sorted(each.name for each in self._workspace.captioners.iterdir() if each.is_dir())[:300]
        return []

    def _model_files(self) -> list[str]:
        """Return the names of LoRAs and checkpoints on this machine, as suggestions."""
        lists = model_lists(self._workspace)
        lists.refresh(WAIT_SECONDS, REFRESH_SECONDS)
        return [each.value for each in lists.of(["lora", "checkpoint"])][:300]
