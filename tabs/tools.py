"""The Tools tab: get a base model, look into a file, export a LoRA, work on images, check this machine. Each runs on the
light lane."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.record.problems import ProblemsError
from core.record.units import clock
from core.record.workspace import display_path
from core.settings.check import build as build_job
from core.settings.job import ImagesJob, ToolJob
from tabs import disk, keys, machine_check
from tabs.browsers import Browser
from tabs.image_tools import FIELDS, build_board
from tabs.pieces import piece

if TYPE_CHECKING:
    from core.formats.hub import Source
    from tabs.context import Page

KEPT = 10
IMAGE_ACTIONS = FIELDS["action"].labels
DOWNLOAD, INSPECT, EXPORT, IMAGES = "download", "inspect", "export_diffusers", "images"


@dataclass
class Work:
    """One use of a tool. `task` is the light lane's; `lines` are what the tool said."""

    id: str
    tool: str
    about: str
    asked: str = ""  # of a download: the whole link, which may hold a key and is not shown
    task: Any = None
    share: float | None = None
    text: str = "waiting"
    lines: list[str] = field(default_factory=list)
    first: tuple[float, int] | None = None  # when a download brought its first bytes, and how many there were then

    def replaces(self, other: Work) -> bool:
        """Whether it is another try of the same download."""
        return self.tool == other.tool == DOWNLOAD and self.about == other.about

    def hear(self, kind: str, facts: dict[str, Any]) -> None:
        """An event of the work."""
        if kind == "progress":
            done, total = facts.get("done", 0), facts.get("total") or 0
            self.share = done / total if total else None
            self.text = self._pace(done, total) if self.tool == DOWNLOAD else str(facts.get("text", ""))
        elif kind == "log":
            self.lines.append(str(facts.get("text", "")))

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

    def facts(self) -> dict[str, Any]:
        error = self.task.error if self.task is not None and self.task.done else None
        cancelled = error is not None and self.task.token.wanted
        state = "cancelled" if cancelled else "failed" if error else "done" if self.task.done else "running"
        problems = [problem.to_dict() for problem in error.problems] if error and not cancelled else []
        facts = {"id": self.id, "tool": self.tool, "about": self.about, "state": state, "text": self.text}
        return facts | {"share": self.share, "lines": list(self.lines), "problems": problems}


class Tools:
    """The uses of tools since the server started; every browser sees the same."""

    def __init__(self, page: Page):
        self.page = page
        self._works: list[Work] = []
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def use(self, data: dict[str, Any], browser: Browser) -> None:
        """Start a tool: {"tool", "about": what to download, or a file}."""
        from core.formats.hub import parse_source

        tool, about = str(data.get("tool", "")), str(data.get("about", "")).strip()
        if tool not in (DOWNLOAD, INSPECT, EXPORT):
            return
        if not about and tool != DOWNLOAD:
            raise ProblemsError.one("No file is named", "Tools", "choose one of the list, or write its path")
        whole = next((work.asked for work in self._works if (work.tool, work.about) == (DOWNLOAD, about)), about)
        about = str(parse_source(whole)) if tool == DOWNLOAD else about
        asked = {"name": tool} | ({"hub_id": whole} if tool == DOWNLOAD else {"file": str(self._file(about))})
        job = build_job(ToolJob, {"tool": asked})
        work = Work(f"w{next(self._numbers)}", tool, about, asked=whole)
        with self._lock:
            if any(other.tool == tool and other.about == about and not other.task.done for other in self._works):
                return
            title = f"{tool} {about}"
            work.task = self.page.engine.light(
                self._run, work, job, title=title, kind="downloads" if tool == DOWNLOAD else "short"
            )
            self._works = [*(other for other in self._works if not work.replaces(other)), work][-KEPT:]

    def use_on_images(self, job: ImagesJob) -> None:
        """Start an image tool; one at a time for a folder."""
        about = f"{IMAGE_ACTIONS[job.images.action]}: {job.images.folder}"
        if not job.images.folder.strip():
            raise ProblemsError.one(
                "No folder is chosen", "Image folder", "write the path of the folder with the images"
            )
        self.page.roots.admit(job)
        work = Work(f"w{next(self._numbers)}", IMAGES, about)
        with self._lock:
            if any(other.tool == IMAGES and other.about == about and not other.task.done for other in self._works):
                raise ProblemsError.one("This is being done already", "Image tools", "wait until it is done")
            work.task = self.page.engine.light(self._run_on_images, work, job, title=about)
            self._works = [*self._works, work][-KEPT:]

    def cancel(self, data: dict[str, Any], browser: Browser) -> None:
        """End a work. A download is paused: it resumes where it stopped when it is asked for again."""
        for work in self._works:
            if work.id == data.get("work"):
                work.task.cancel()

    def discard(self, data: dict[str, Any], browser: Browser) -> None:
        """End a download and remove what has come of it: {"about"}."""
        from core.formats.hub import parse_source

        source = parse_source(str(data.get("about", "")))
        for work in self._works:
            if work.tool == DOWNLOAD and work.about == str(source):
                work.task.cancel()
        self._works = [work for work in self._works if (work.tool, work.about) != (DOWNLOAD, str(source))]
        # In the lane of the downloads, so after the one that still holds the file.
        self.page.engine.light(self._forget, source, title=f"discard {source}", kind="downloads")

    def _forget(self, source: Source, task: Any) -> None:
        from core.formats.hub import forget

        forget(source, self.page.workspace.models)

    def _file(self, about: str) -> Path:
        """The file that a path or a LoRA's name stands for, if it is open to this page."""
        from core.tools import file_of

        return self.page.roots.check(file_of(about, self.page.workspace), "Tools")

    def _run(self, work: Work, job: ToolJob, task: Any) -> None:
        from core.tools import run_tool

        run_tool(job, self.page.workspace, lambda kind, **facts: work.hear(kind, facts), task.token)
        work.text, work.share = "", None

    def _run_on_images(self, work: Work, job: ImagesJob, task: Any) -> None:
        from core.tools.images import run_images

        run_images(job, self.page.workspace, lambda kind, **facts: work.hear(kind, facts), task.token)
        work.text, work.share = "", None

    def parts(self, tab: Any, asked: dict[str, Any]) -> dict[str, Any]:
        """Train shows downloads beside the base model; Tools shows everything and what files there are."""
        if tab not in ("Train", "Tools"):
            return {}
        works = [work.facts() for work in reversed(self._works) if tab == "Tools" or work.tool == DOWNLOAD]
        return {"works": works} | ({"tool_files": self._known_files()} if tab == "Tools" else {})

    def _known_files(self) -> list[str]:
        from core.generation.library import list_loras, list_models

        space = self.page.workspace
        return [display_path(path) for _, path in [*list_loras(space), *list_models(space)]][:300]


def build(page: Page) -> None:
    tools = Tools(page)
    page.commands |= {"tool": tools.use, "tool_cancel": tools.cancel, "tool_discard": tools.discard}
    page.pulse_parts += [tools.parts, page.models.parts]
    gr.HTML(piece("tools"), elem_id="tools-holder", apply_default_css=False)
    build_board(page, tools.use_on_images)
    gr.HTML('<div class="tool-tasks" data-tasks="images"></div>', elem_id="tools-images-tasks", apply_default_css=False)
    disk.build(page)
    keys.build(page)
    page.machine_check = machine_check.build(page)
