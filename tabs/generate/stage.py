"""Status line of Generate with progress, waiting and failed jobs, and the large image with its live preview."""

import base64
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import gradio as gr

from core.engine.explain import NO_MEMORY
from core.engine.queue import QueueEntry, as_guest, may_resume
from core.engine.waiting import Wait
from core.record.problems import Problem, ProblemsError
from core.record.run_folder import RunFolder
from core.record.units import clock, count
from core.record.workspace import display_path, lies_below, resolve_path
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import GenerateJob
from tabs.context import Page
from tabs.generate.view import NewestImage, image_buttons, star_and_trash
from tabs.markup import board_event, button, empty_state, esc, problems_html, progress, short

TAB = "Generate"
TASKS = ("generate", "grid")  # in the status line
# {act: (button, settings)} for a job that ran out of memory
LESS_MEMORY: dict[str, tuple[str, dict[str, Any]]] = {
    "slices": ("Try again with VAE slices", {"generation_memory": {"vae_slices": 16}}),
    "single": ("One image at once", {"generate": {"batch_size": 1}}),
    "layers": ("U-Net layer by layer", {"generation_memory": {"offload": "layers"}}),
}
ENDLESS = "Queues the next images when these are finished, each with a new seed, until it is switched off."


class Stage:
    """The status line, the large image, and "Generate forever", which runs on the server so that it goes on when the page is closed.

    newest_image  function that returns the newest image of the gallery
    jobs          function that returns the form's jobs, with the form's seed (False) or a random one (True); raises ProblemsError
    """

    def __init__(
        self, page: Page, newest_image: Callable[[], NewestImage | None], jobs: Callable[[bool], Sequence[GenerateJob]]
    ):
        self.page, self._shown, self._jobs = page, newest_image, jobs
        self._lock = threading.Lock()
        self.bases: set[str] = set()  # ids of the jobs that make the base images of comparisons
        self._awaited = ""  # id of the job after which the next is queued; "" while Forever is off
        self._refused: list[Problem] = []  # problems of the next job
        page.engine.end_listeners.append(self._next)

    # -- forever

    @property
    def endless(self) -> bool:
        """Whether "Generate forever" is on."""
        return bool(self._awaited)

    def submit(self, jobs: Sequence[GenerateJob]) -> str:
        """Queue `jobs` (see `form.jobs_to_generate`), close messages of failed jobs, and return the queue id of the last job."""
        failed = [entry.id for entry in self._failed()]
        ids = self.page.submit_all("generate", jobs)
        self._close(*failed)
        self.bases |= set(ids[:-1])
        return ids[-1]

    def _toggle(self) -> None:
        """Turn "Generate forever" off, or on: after the last open job, or at once if there is none."""
        with self._lock:
            self._refused = []
            if self._awaited:
                self._awaited = ""
                return
            entries = [entry for entry in self.page.visible_jobs() if _is_open(entry)]
            self._awaited = entries[-1].id if entries else self.submit(self._jobs(False))

    def _next(self, entry: QueueEntry) -> None:
        """Listener for ended jobs: queue the next job after the awaited one. A failed or cancelled job turns Forever off."""
        with self._lock:
            if entry.id != self._awaited:
                return
            self._awaited = ""
            if entry.state in ("failed", "cancelled"):
                return
            try:
                with as_guest(entry.guest):
                    self._awaited = self.submit(self._jobs(True))
            except ProblemsError as error:
                self._refused = error.problems

    # -- display

    def stamp(self) -> list[Any]:
        """Return a value that changes whenever the display changes."""
        job = self._running_job()
        stage = [job.get(name) for name in ("entry", "state", "stage", "of_image", "stopping")] if job else None
        entries = [(entry.id, entry.state) for entry in self.page.visible_jobs()]
        return [
            entries,
            self.page.engine.queue_paused,
            stage,
            self._preview_time(job),
            self.endless,
            bool(self._refused),
        ]

    def status(self) -> str:
        """Return the HTML of the status line."""
        waits = self.page.engine.waits()
        failures = [*self._failures(), *(("refused", problem) for problem in self._refused)]
        resumable = may_resume(self.page.engine.paused_by)
        return status(
            self.page.visible_jobs(), waits, self._running_job(), failures, self.endless, self._cancelled(), resumable
        )

    def _running_job(self) -> dict[str, Any] | None:
        """Return the "job" of `Engine.status`, the running job; None without one, or if it belongs to another user."""
        job = self.page.engine.status()["job"]
        if job and self.page.engine.people and job["entry"] not in [entry.id for entry in self.page.visible_jobs()]:
            return None
        return job

    def _cancelled(self) -> str:
        """Return the text about the last job if it was cancelled or has warnings, else ""."""
        entries = [entry for entry in self.page.visible_jobs() if entry.task in TASKS]
        begun = [entry for entry in entries if entry.state != "cancelled"]
        stopped = bool(begun) and begun[-1].state == "stopped"
        if entries and entries[-1].state == "cancelled" and not stopped:
            return "Cancelled before it began"
        if not begun or begun[-1].state not in ("stopped", "done"):
            return ""
        with suppress(ProblemsError, OSError):
            facts = self.page.engine.snapshot(begun[-1].run)
            warnings = [line["text"] for line in facts.get("log", ()) if line["level"] == "warning"]
            folder = resolve_path(begun[-1].job.get("output", {}).get("outdir") or self.page.workspace.images)
            if begun[-1].task == "generate" and not lies_below(folder, [self.page.workspace.images]):
                warnings.append(
                    f"Saved in {display_path(folder)}, which the gallery does not show; the image below is an earlier one"
                )
            return str(facts.get("message") or "Cancelled") if stopped else "; ".join(warnings)
        return "Cancelled" if stopped else ""

    def newest(self) -> str:
        """Return the HTML of the large image: the live preview of a running job, else the newest image."""
        job = self._running_job()
        preview = b""
        if job and self._preview_time(job):
            with suppress(OSError):
                preview = self._preview(job["run"]).read_bytes()
        return newest(self._shown(), self.page.file_url, preview, str(job["title"]) if job else "")

    def _preview(self, run: str) -> Any:
        """Return the path of a job's preview image. run: name of the job's folder"""
        return RunFolder(self.page.workspace.private / "jobs" / run).preview

    def _preview_time(self, job: dict[str, Any] | None) -> int:
        """Return the modification time of the running job's preview in ns; 0 without one."""
        with suppress(OSError):
            if job and job.get("task") == "generate" and job.get("run"):
                return int(self._preview(job["run"]).stat().st_mtime_ns)
        return 0

    def _failures(self) -> list[tuple[str, Problem]]:
        """Return [(queue id, problem)] of the last three failed jobs whose message was not closed."""
        return [(entry.id, self._problem(entry)) for entry in self._failed()[-3:]]

    def _failed(self) -> list[QueueEntry]:
        """Return the failed generation jobs whose message was not closed."""
        closed = self.page.project.tab_state(TAB).get("closed", [])
        entries = [entry for entry in self.page.visible_jobs() if entry.task == "generate" and entry.state == "failed"]
        return [entry for entry in entries if entry.id not in closed]

    def _problem(self, entry: QueueEntry) -> Problem:
        """Return the problem of a failed job, with the code and fix of its run."""
        what = entry.message or "Generation failed"
        facts: dict[str, Any] = {}
        with suppress(ProblemsError, OSError, KeyError, ValueError):
            facts = self.page.engine.snapshot(entry.run) if entry.run else {}
        code = str(facts.get("code") or "generate.failed")
        return Problem(what, short(entry.title, 60), str(facts.get("fix", "")), code=code)

    def _again(self, saving: str, identity: str) -> None:
        """Queue failed job `identity` again with settings that need less memory. saving: key of LESS_MEMORY"""
        entry = next((each for each in self.page.visible_jobs() if each.id == identity), None)
        if entry is None or entry.task != "generate" or entry.state != "failed" or saving not in LESS_MEMORY:
            return
        job = build(GenerateJob, merge(dict(entry.job), LESS_MEMORY[saving][1]))
        self.page.roots.admit(job)
        self.submit([job])
        self._close(identity)

    def _close(self, *identities: str) -> None:
        """Close the messages of failed jobs. identities: queue ids"""
        self._refused = []
        with self.page.project.lock:
            closed = self.page.project.tab_state(TAB).get("closed", [])
            self.page.project.update_tab(TAB, closed=[*closed, *(each[:40] for each in identities)][-50:])

    def act(self, event: gr.EventData) -> str:
        """Handle an event of the status line and return its HTML."""
        act, arg, _ = board_event(event)
        if act == "cancel" and any(entry.id == arg and entry.task in TASKS for entry in self.page.visible_jobs()):
            self.page.engine.cancel(arg)
        elif act == "resume":
            self.page.engine.resume_queue()
        elif act == "forever":
            self._toggle()
        elif act == "close":
            self._close(arg)
        elif act in LESS_MEMORY:
            self._again(act, arg)
        return self.status()


def _is_open(entry: QueueEntry) -> bool:
    """Return whether a queue entry is a waiting or running generation or grid."""
    return entry.task in TASKS and entry.state in ("waiting", "running")


# -- HTML


def status(
    entries: Sequence[QueueEntry],
    waits: Mapping[str, Wait],
    job: dict[str, Any] | None,
    failures: Sequence[tuple[str, Problem]],
    endless: bool = False,
    cancelled: str = "",
    resumable: bool = True,
) -> str:
    """Return the HTML of the status line: the first job of this tab (else of a grid), a list of the others, the Forever button.

    waits      {queue id: what a job waits for}
    job        engine's facts of the running job
    failures   [(queue id, problem)] of failed jobs
    cancelled  text about the last job, shown while none is active
    resumable  whether this user may resume a paused queue
    """
    active = sorted(
        (entry for entry in entries if _is_open(entry)),
        key=lambda entry: (TASKS.index(entry.task), entry.state != "running"),
    )
    lines = [_line(entry, waits.get(entry.id), job) for entry in active]
    idle = f"{cancelled or 'Nothing is being generated'}."
    first = lines[0] if lines else f'<span class="hint gen-words" title="{esc(idle)}">{esc(idle)}</span>'
    others = "".join(f"<li>{line}</li>" for line in lines[1:])
    if others:
        others = (
            f'<details class="gen-waits" data-group="waits"><summary class="btn quiet">{count(len(lines) - 1, "more job")}</summary>'
            f'<ul class="jobs">{others}</ul></details>'
        )
    paused = any(wait.queue_paused for wait in waits.values())
    reason = "The queue is paused." if resumable else "Only who paused the queue can resume it."
    resume = button("resume", "Resume queue", title=reason, disabled=not resumable) if paused else ""
    switch = button("forever", "Forever", kind="quiet", title=ENDLESS, label="Generate forever", pressed=endless)
    failed = "".join(
        f'<li class="failed">{problems_html([problem])}{_retries(identity, problem)}{button("close", "Close", identity)}</li>'
        for identity, problem in failures
    )
    failed = f'<div role="alert"><ul class="jobs gen-failed">{failed}</ul></div>' if failed else ""
    return f'<div class="gen-line"><div class="gen-now">{first}</div>{others}{resume}{switch}{failed}</div>'


def _retries(identity: str, problem: Problem) -> str:
    """Return the HTML of buttons that retry a job that ran out of memory with settings that need less; "" for other problems."""
    if problem.code != NO_MEMORY:
        return ""
    return "".join(button(saving, label, identity) for saving, (label, _) in LESS_MEMORY.items())


def _line(entry: QueueEntry, wait: Wait | None, job: dict[str, Any] | None) -> str:
    """Return the HTML of a running or waiting job with its Cancel button.

    wait   what it waits for, None if it runs
    job    the "job" of `Engine.status`, the running job
    """
    facts = job if job and job.get("entry") == entry.id else {}
    stopping = bool(facts.get("stopping"))
    cancel = button("cancel", "Cancel", entry.id, label=f"Cancel {short(entry.title, 40)}", disabled=stopping)
    line = _running(facts, stopping) if entry.state == "running" else _waiting(entry, wait)
    return f'{line}<span class="grow"></span>{cancel}'


def _running(facts: dict[str, Any], stopping: bool) -> str:
    """Return the HTML of a running job's progress bar: stage, sampling step, time left, speed.

    facts      the "job" of `Engine.status`; {} before the job reported any
    stopping   whether a stop was requested
    """
    if stopping:
        return progress("Stopping", None)
    text = str(facts.get("stage") or "starting")
    done, total = facts.get("counted") or (0, 0)
    step, steps = facts.get("of_image") or (0, 0)
    if not total:
        return progress(_capitalized(text), None)
    without_count = text.rpartition(" ")[0]  # of all steps
    parts = [_capitalized(without_count).removeprefix("Generating ")]
    parts += [f"step {step} of {steps}"] if steps else []
    seconds_left, remaining = facts.get("eta_seconds") or 0.0, total - done
    if seconds_left and remaining:
        parts += [f"{clock(seconds_left)} left ({_pace(seconds_left / remaining)})"]
    return progress(_capitalized(", ".join(parts)), done / total)


def _pace(seconds: float) -> str:
    """Return the speed as "1.5 s/it" or "3.0 it/s". seconds: duration of one step"""
    return f"{seconds:.1f} s/it" if seconds >= 1 else f"{1 / seconds:.1f} it/s"


def _capitalized(text: str) -> str:
    """Return `text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def _waiting(entry: QueueEntry, wait: Wait | None) -> str:
    """Return the HTML of a waiting job: what it waits for, and its title."""
    reason = wait.message if wait else "about to start"
    return f'<span class="gen-words">{esc(_capitalized(reason))}: <q>{esc(short(entry.title, 40))}</q></span>'


def newest(
    newest_image: NewestImage | None, file_url: Callable[..., str], preview: bytes = b"", title: str = ""
) -> str:
    """Return the HTML of the running job's preview (JPEG bytes), else of the newest image with its buttons. title: of the running job"""
    if preview:
        source = base64.b64encode(preview).decode("ascii")
        image = f'<img src="data:image/jpeg;base64,{source}" alt="Preview of {esc(short(title, 100))}">'
        caption = f'<span class="hint" title="{esc(title)}">{esc(short(title, 90))}</span><span class="grow"></span>'
        return f'<div class="gen-stage">{image}</div><div class="strip gen-does">{caption}<span class="hint">Preview</span></div>'
    if newest_image is None:
        return f'<div class="gen-stage">{empty_state("No images yet.", "Write a prompt and press Generate.")}</div>'
    seed = f'<span class="hint">seed {newest_image.seed}</span>' if newest_image.seed is not None else ""
    url = esc(file_url(newest_image.path))
    image = f'<img src="{url}" alt="{esc(short(newest_image.prompt, 120))}">'
    save = f'<a class="btn quiet" href="{url}" download="{esc(newest_image.path.name)}">Download</a>'
    return (
        f'<div class="gen-stage"><button type="button" class="shot" data-view="{esc(newest_image.name)}" title="Enlarge">{image}'
        f'</button></div><div class="strip gen-does"><span class="hint" title="{esc(newest_image.prompt)}">'
        f'{esc(short(newest_image.prompt, 200))}</span>{seed}{star_and_trash(newest_image)}<span class="grow"></span>'
        f"{image_buttons(newest_image)}{save}</div>"
    )
