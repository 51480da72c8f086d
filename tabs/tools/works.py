"""What the tasks that have a card are doing: started, watched, paused and cancelled by every browser alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from core.formats.hub.references import Source
    from tabs.form.project import Project

KEPT = 10
WAIT_SECONDS = 0.05  # for which a tick waits for the lists of model files
SEEN = 3.0  # seconds after which a failure counts as seen
MOST_LINES = 300  # of a result; the whole stands in the job's journal
DOWNLOAD = "download"
GOING = ("waiting", "running", "paused")

Start = Callable[[Task, Settings], None]


@dataclass
class Work:
    """One use of a tool. id: its job's in the queue; about: what it works on, as a person reads it."""

    id: str
    task: Task
    about: str
    asked: str = ""  # of a download: the whole link, which may hold a key and is not shown
    ended: dict[str, Any] = field(default_factory=dict)  # its facts, once they no longer change
    failed: float | None = None  # when a page was first told that it failed
    first: tuple[float, int] | None = None  # when a download brought its first bytes, and how many there were then

    @property
    def tab(self) -> str:
        return self.task.card.tab if self.task.card else ""

    def replaces(self, other: Work) -> bool:
        """Whether it is another try of the same download."""
        return self.task.name == other.task.name == DOWNLOAD and self.about == other.about

    def facts(self, engine: Any) -> dict[str, Any]:
        """What the page shows of it."""
        if self.ended:
            return self.ended
        found = engine.progress(self.id)
        state = {"stopped": "cancelled", "interrupted": "cancelled"}.get(found["state"], found["state"])
        wait = engine.waits().get(self.id) if state == "waiting" else None
        text = found["text"]
        if found["stopping"]:
            text = "pausing ..." if self.task.ends_paused else "cancelling ..."
        elif wait:
            text = wait.words
        elif self.task.name == DOWNLOAD and found["done"]:
            text = self._pace(found["done"], found["total"])
        lines = found["facts"].get("brief", found["lines"]) if state != "failed" else []  # where a table has the rest
        previews = found["facts"].get("previews", [])  # their lines come first
        lines = lines[len(previews) :]
        facts = {
            "id": self.id,
            "tool": self.task.name,
            "card": self.task.card.name if self.task.card else "",
            "ends_paused": self.task.ends_paused,
            "about": self.about,
            "state": state,
            "stopping": found["stopping"],
            "on_cpu": self.task.on_cpu and found["lane"] == "device" and bool(wait and wait.on),
            "text": text,
            "share": found["done"] / found["total"] if found["total"] else None,
            "lines": _shown(lines),
            "previews": previews,
            "shown": found["facts"].get("shown", []),
            "file": found["facts"].get("file"),
            "pairs": found["facts"].get("pairs"),
            "problems": found["problems"],
        }
        if state not in GOING:
            self.ended = facts | {"text": "", "share": None}
        return facts

    def _pace(self, done: int, total: int) -> str:
        """What has come of a download, how fast, and how long the rest takes at that pace."""
        now = time.monotonic()
        began, before = self.first = self.first or (now, done)
        words = f"{done / 1e6:,.0f}" + (f" of {total / 1e6:,.0f} MB" if total else " MB")
        if now - began < 1 or done <= before:
            return words
        rate = (done - before) / (now - began)
        left = f", {clock((total - done) / rate)} left" if total else ""
        return f"{words}, {rate / 1e6:,.1f} MB/s{left}"


def _shown(lines: list[str]) -> list[str]:
    """The first lines and the last, which says what was done."""
    more = len(lines) - MOST_LINES - 1
    return [*lines[:MOST_LINES], f"and {count(more, 'more line')}", lines[-1]] if more > 0 else lines


def _already(facts: dict[str, Any]) -> ProblemsError:
    """What is said of a second start on the same thing."""
    fix = "wait until it is done, or cancel it"
    if facts["state"] == "waiting":
        what = f"This is in the queue already, {facts['text']}"
        return ProblemsError.one(what, facts["about"], fix, "tools.waiting-already")
    return ProblemsError.one("Already running", facts["about"], fix, "tools.running-already")


class Works:
    """What the queue holds of tasks with a card, since the server started: every browser sees the same."""

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
        self._known: dict[str, Work] = {}
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
        """The newest first; of several tries of a download the last."""
        found: list[Work] = []
        for entry in reversed(self._engine.queue()):
            task = tasks().get(entry.task)
            old = entry.added < self._since and entry.state not in ("waiting", "running")
            if task is None or task.card is None or old:
                continue
            work = self._known.get(entry.id) or self._work(entry.id, task, entry)
            if not any(newer.replaces(work) for newer in found):
                found.append(work)
        self._known = {work.id: work for work in found}
        return [work for work in found if work.id not in self._hidden][
            :KEPT
        ]  # a hidden try does not show an earlier one

    def _work(self, identity: str, task: Task, entry: QueueEntry) -> Work:
        try:
            asked, about = self._about(task, build_job(task.job, entry.job))
        except ProblemsError:  # settings that this version cannot read
            asked, about = "", entry.title
        return Work(identity, task, about, asked)

    def use(self, data: dict[str, Any], browser: Browser) -> None:
        """Start a tool on one thing: {"tool", "about": what to download, or a file}."""
        task, about = tasks().get(str(data.get("tool"))), str(data.get("about", "")).strip()
        if task is None or task.card is None:
            return
        known = next((work.asked for work in self.works() if (work.task.name, work.about) == (task.name, about)), "")
        self.start(task, job_of(task, {main_setting(task): known or about}, self._project.job))

    def start(self, task: Task, job: Settings) -> None:
        """Start a checked job; one at a time on the same thing."""
        self._roots.admit(job)
        task.look(job, self._workspace)
        _, about = self._about(task, job)
        with self._lock:
            for each in self.works():
                if (each.task.name, each.about) == (task.name, about) and self._runs(each):
                    raise _already(each.facts(self._engine))
            self._engine.submit(
                task.name, job, title=about if about.startswith(task.title) else f"{task.title}: {about}"
            )

    def _about(self, task: Task, job: Settings) -> tuple[str, str]:
        """What a job works on: as it was given, and as it is shown."""
        from core.formats.hub.references import parse_source

        name = main_setting(task)
        value = value_of(job, form_settings(task)[name].path) if name else ""
        asked = ", ".join(value) if isinstance(value, list) else str(value or "")
        shown = str(parse_source(asked)) if task.name == DOWNLOAD else asked
        if task.name == DOWNLOAD:
            return asked, shown
        return asked, f"{task.title}: {shown}" if shown else task.title

    def _runs(self, work: Work) -> bool:
        return work.facts(self._engine)["state"] in GOING

    def cancel(self, data: dict[str, Any], browser: Browser) -> None:
        """End a work. A download is paused: it resumes where it stopped when it is asked for again."""
        for work in self._named(data):
            self._engine.cancel(work.id)

    def start_on_cpu(self, data: dict[str, Any], browser: Browser) -> None:
        """Start a work that waits for the device at once, on the CPU."""
        for work in self._named(data):
            self._engine.start_on_cpu(work.id)

    def pause(self, data: dict[str, Any], browser: Browser) -> None:
        """Pause a work, or resume it: {"work", "command": "pause" or "resume"}."""
        command = str(data.get("command"))
        for work in self._named(data):
            run = self._engine.progress(work.id)["run"]
            if run and command in ("pause", "resume"):
                self._engine.command(run, command)

    def close(self, data: dict[str, Any], browser: Browser) -> None:
        """Show the result of a work no longer. Its journal stays."""
        self._hidden |= {work.id for work in self.works() if work.id == data.get("work") and not self._runs(work)}

    def close_failed(self, card: Card) -> None:
        """Show no longer what has been seen to fail of a card: one of its tools is started again, or another one chosen."""
        seen = time.monotonic() - SEEN
        works = (work for work in self.works() if work.task.card == card and work.task.name != DOWNLOAD)
        self._hidden |= {work.id for work in works if work.failed is not None and work.failed <= seen}

    def _named(self, data: dict[str, Any]) -> list[Work]:
        return [work for work in self.works() if work.id == data.get("work") and self._runs(work)]

    def discard(self, data: dict[str, Any], browser: Browser) -> None:
        """End a download and remove what has come of it: {"about"}."""
        from core.formats.hub.references import parse_source

        source = parse_source(str(data.get("about", "")))
        mine = [work for work in self.works() if (work.task.name, work.about) == (DOWNLOAD, str(source))]
        for work in mine:
            if self._runs(work):
                self._engine.cancel(work.id)
        self._hidden |= {work.id for work in mine}
        # In the lane of the downloads, so after the one that still holds the file.
        self._engine.light(self._forget, source, title=f"discard {source}", kind="downloads")

    def _forget(self, source: Source, task: Any) -> None:
        from core.formats.hub.references import forget

        forget(source, self._workspace.models)

    def parts(self, tab: Any, asked: dict[str, Any]) -> dict[str, Any]:
        """Each tab shows what its cards are doing, Train also downloads; Captions and Tools what there is for their fields."""
        if tab not in ("Train", "Captions", "Tools"):
            return {}
        shown = [work for work in self.works() if work.tab == tab or (tab == "Train" and work.task.name == DOWNLOAD)]
        works = [self._shown(work) for work in shown]
        files = {"Captions": self._captioners, "Tools": self._known_files}
        return {"works": works} | ({"tool_files": files[tab]()} if tab in files else {})

    def _shown(self, work: Work) -> dict[str, Any]:
        """Facts of a work, with the thumbnails of its preview, and the address of its file."""
        facts = work.facts(self._engine)
        if facts["state"] == "failed" and work.failed is None:
            work.failed = time.monotonic()
        previews = [each | self._thumbs(each) for each in facts["previews"]]
        return facts | {"previews": previews, "file": self._file(facts["file"])}

    def _thumbs(self, previewed: dict[str, Any]) -> dict[str, str]:
        """The thumbnail of an image; larger ones of an image and its control image."""
        size = 256 if "hint" in previewed else 128
        return {name: self._thumb_url(previewed[name], size) for name in ("image", "hint") if name in previewed}

    def _file(self, path: Any) -> dict[str, str] | None:
        """The file that a tool wrote, as the page offers it for download; none of folders and models that were downloaded."""
        if not isinstance(path, str) or not self._roots.holds(path) or not Path(path).is_file():
            return None
        return {"name": Path(path).name, "url": self._file_url(path)}

    def _captioners(self) -> list[str]:
        """The models that fields of captioners can name."""
        with suppress(OSError):
            return sorted(each.name for each in self._workspace.captioners.iterdir() if each.is_dir())[:300]
        return []

    def _known_files(self) -> list[str]:
        lists = model_lists(self._workspace)
        lists.refresh(WAIT_SECONDS, REFRESH_SECONDS)
        return [each.value for each in lists.of(["lora", "checkpoint"])][:300]
