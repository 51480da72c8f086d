"""Reads the dataset's images in the background; the report is shared by the Dataset and Captions tabs of all browsers."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from core.dataset.buckets.batches import Placed
from core.dataset.captions.files import IMAGE_SOURCES, read_caption
from core.dataset.captions.pipeline import plain_caption
from core.dataset.doctor.examine import Finding, examine
from core.dataset.first import first_rows
from core.dataset.preflight import preflight
from core.dataset.report import Report, Row
from core.dataset.sources.image_info import listed
from core.dataset.sources.scan import describe_layout
from core.families.token_count import count_tokens
from core.record.problems import Problem, ProblemsError
from core.record.units import count
from core.record.workspace import Workspace, last_part
from core.settings.dataset.concepts import PLAIN, concepts_of
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from tabs.form.project import Project
from tabs.roots import Roots

if TYPE_CHECKING:
    from core.engine.engine import Engine

FRESH_SECONDS = 5.0
FIRST_WITHIN = 0.5
FIRST_ROWS = 100  # images that are shown before all of them are read
STOP_SECONDS = 5.0  # for which a write waits for a reading to stop
MAX_IMAGES = 100_000  # cached keys
COUNTED_AT_ONCE = 1000  # captions whose tokens are counted when they are saved
Answer = TypeVar("Answer")


def key_of(placed: Placed | Row) -> str:
    """Return a short ASCII key of an image, unique by folder, name and path."""
    if isinstance(placed, Placed):
        return _short_key(placed.image.key, str(placed.image.path))
    return _short_key(placed.key, str(placed.path))


@lru_cache(maxsize=MAX_IMAGES)
def _short_key(key: tuple[str, str], path: str) -> str:
    # With the path, since two folders may have the same name and files, and a late save must not go to the other one.
    """Return 16 hexadecimal digits that identify an image by its (folder, name) `key` and its path."""
    return hashlib.sha256("\n".join((*key, path)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def once_per_report(work: Callable[..., Answer]) -> Callable[..., Answer]:
    """Decorator: cache a function's results by its arguments for the newest report, its first argument.

    Results are shared and must not be modified.
    """
    newest: tuple[Any, dict[tuple[Any, ...], Answer]] = (None, {})

    @wraps(work)
    def cached(report: Report | None, *args: Any) -> Answer:
        nonlocal newest
        if newest[0] is not report:
            newest = (report, {})
        results_report, results = newest
        if results_report is not report:  # another thread has called with another one
            return work(report, *args)
        if args not in results:
            results[args] = work(report, *args)
        return results[args]

    return cached


@once_per_report
def keys_of(report: Report | None) -> dict[tuple[str, str], str]:
    """Return {(folder, name) of an image: its `key_of`}, in the report's order."""
    return {row.key: key_of(row) for row in (report.rows if report else ())}


class Reading:
    """The newest report on the project's images. version: increases whenever the display can change"""

    def __init__(self, engine: Engine, workspace: Workspace, project: Project, roots: Roots):
        self._engine, self._workspace, self._project, self._roots = engine, workspace, project, roots
        self._lock = threading.RLock()
        self._key = ""
        self._revision = -1
        self._task: Any = None
        self._finished = 0.0
        self._captions_at = 0.0  # when captions were saved last that the problems and findings do not consider
        self.report: Report | None = None
        self.first: tuple[Row, ...] = ()  # shown until there is a report
        self.layout = ""
        self.problems: tuple[Problem, ...] = ()
        self.job: TrainJob = project.job
        self.findings: tuple[Finding, ...] | None = None  # None: not examined yet
        self.examining: tuple[str, float] | None = None
        self.version = 0
        self.writing = 0  # changes of many captions that the page makes now
        self._saved: set[str] = set()  # captions that were saved while the folder was being read

    @property
    def prompts(self) -> list[str]:
        """The project's sample prompts."""
        return self._project.job.samples.sample_prompts

    # -- requests

    def want(self, again: bool = False, now: bool = False) -> None:
        """Start reading the dataset if its settings have changed; this cancels a running reading.

        again: also if they have not changed, unless the last reading ended within FRESH_SECONDS; now: always
        """
        revision = self._project.revision
        if revision == self._revision and not (again or now):
            return
        self._revision = revision
        job = self._project.job
        key = json.dumps(
            {name: to_values(job)[name] for name in ("dataset", "captions", "validation", "schedule")},
            sort_keys=True,
            default=str,
        )
        with self._lock:
            stale = self._finished and time.monotonic() - self._finished > FRESH_SECONDS
            if key == self._key and not now and not (again and stale and not self.busy):
                return
            if self._task is not None:
                self._task.cancel()
            if key != self._key:
                other_folders = _folders(job) != _folders(self.job)
                self.report = None if other_folders else self.report
                self.first = () if other_folders else self.first
                self.layout = "" if other_folders else self.layout  # a reading that is refused publishes none
                self.findings = None if other_folders else self.findings
                self.problems = () if other_folders else self.problems  # else the list would be gone at every change
            self._key, self.job, self._finished, self._saved, self._captions_at = key, job, 0.0, set(), 0.0
            self.version += 1
            self._task = self._engine.light(self._read, job, key, title="Reading the images")

    @contextmanager
    def paused_for_writing(self, files: int) -> Iterator[None]:
        """Context in which `files` caption files are written: a running reading is stopped before many, and repeated afterwards."""
        self.writing += 1
        stopped = files > COUNTED_AT_ONCE and self.busy and self.report is not None
        if stopped and (task := self._task) is not None:
            task.cancel()
            with suppress(ProblemsError, TimeoutError):
                task.wait(STOP_SECONDS)
        try:
            yield
        finally:
            self.writing -= 1
            if stopped:
                self.want(now=True)

    def wait_for_first(self) -> None:
        """Wait up to FIRST_WITHIN seconds for the report or the first images, so that the first display has them."""
        end = time.monotonic() + FIRST_WITHIN
        while self.busy and self.report is None and len(self.first) < FIRST_ROWS and time.monotonic() < end:
            time.sleep(0.02)

    @property
    def busy(self) -> bool:
        """Whether the dataset is being read."""
        return self._task is not None and not self._task.done

    @property
    def outdated(self) -> bool:
        """Whether captions were saved, more than FRESH_SECONDS ago, that the problems and findings do not reflect."""
        return bool(self._captions_at) and not self.busy and time.monotonic() - self._captions_at > FRESH_SECONDS

    @property
    def checking(self) -> bool:
        """Whether the preflight check is running; the dataset doctor runs after it."""
        return self.busy and self.examining is None

    @property
    def doing(self) -> tuple[str, float]:
        """(text, fraction done) of the running reading; ("", 0) without one."""
        task = self._task
        return (task.text or "Reading the folder", task.progress) if self.busy else ("", 0.0)

    @property
    def stamp(self) -> str:
        """Text that changes whenever the display changes."""
        text, share = self.doing
        return f"{self.version} {text} {share:.2f} {bool(self.failure)}"

    @property
    def failure(self) -> tuple[Problem, ...]:
        """Problems of a failed reading; () if it is running, succeeded or was cancelled."""
        task = self._task
        return (
            tuple(task.error.problems)
            if task is not None and task.done and task.error is not None and not task.token.wanted
            else ()
        )

    # -- reading

    def _read(self, job: TrainJob, key: str, task: Any) -> None:
        """Read the dataset in the background and publish a report after each stage.

        Stages: headers and captions; decoded images and token counts; dataset doctor. key: of the job's settings
        """
        try:
            self._roots.admit(job)  # a shared page reads only open folders, whatever the settings say
            self._find_first(job, key, task)
            layout = _layout(job)
            # Counting the tokens of 10,000 captions takes as long as all the rest, so it waits for the second pass.
            first = preflight(job, self._workspace, cancel=task.token)
            self._publish(key, first, layout)

            def say(done: int, total: int) -> None:
                task.stage(f"Checking images: {done:,} of {total:,}", done, max(total, 1))

            full = preflight(
                job, self._workspace, count_tokens=count_tokens, decode=True, cancel=task.token, progress=say
            )
            self._publish(key, full, layout, finished=True)
        except ProblemsError as error:
            self._publish(key, None, "", tuple(error.problems), finished=True)
        else:
            self._examine(key, full, task)

    def _find_first(self, job: TrainJob, key: str, task: Any) -> None:
        """Publish the first FIRST_ROWS images early, since reading thousands takes seconds."""
        if self.report is None:
            rows = tuple(first_rows(job, FIRST_ROWS, task.token))
            with self._lock:
                if key == self._key:
                    self.first = rows
                    self.version += 1

    def _examine(self, key: str, report: Report, task: Any) -> None:
        """Run the dataset doctor on the decoded images and publish its findings."""
        memo = self._workspace.private / "index.sqlite"

        def say(done: int, total: int) -> None:
            share = done / max(total, 1)
            self.examining = ("Looking for duplicates and damage", share)
            task.stage(f"Looking for duplicates and damage: {done:,} of {total:,}", done, max(total, 1))

        say(0, 1)
        try:
            findings = examine(report, memo, cancel=task.token, progress=say)
        finally:
            self.examining = None
        with self._lock:
            if key == self._key:
                self.findings = findings
                self.version += 1

    def _publish(
        self,
        key: str,
        report: Report | None,
        layout: str,
        problems: tuple[Problem, ...] = (),
        *,
        finished: bool = False,
    ) -> None:
        """Replace report and problems, unless the settings have changed since. key: of the settings that were read"""
        with self._lock:
            if key != self._key:
                return
            self.report, self.layout, self.first = report, layout, ()
            self.findings = self.findings if report is not None else None
            self.problems = problems or (report.problems if report else ())
            self.version += 1
            self._update(self._saved)
            if finished:
                self._finished = time.monotonic()

    # -- captions that were saved

    def captions_saved(self, paths: Iterable[Path]) -> None:
        """Update the report's captions of these images without reading the whole dataset.

        paths: images or files with the same stem; the dataset is read again if more than COUNTED_AT_ONCE changed
        """
        with self._lock:
            stems = {os.path.splitext(path)[0] for path in paths}
            if self.busy:
                self._saved |= stems
            self._update(stems)
            self.version += 1
            self._captions_at = time.monotonic()
        if len(stems) > COUNTED_AT_ONCE:
            self.want(now=True)  # counts their tokens

    def _update(self, stems: Collection[str]) -> None:
        """Replace the report's captions of the images with these stems (paths without extension) by those on disk."""
        report = self.report
        if report is None or not stems:
            return
        placed = [_with_new_caption(each, stems) for each in report.placed]
        validation = [_with_new_caption(each, stems) for each in report.validation]
        fresh = {each.image.key: each for each in (*placed, *validation) if _stem(each) in stems}
        count_them = len(fresh) <= COUNTED_AT_ONCE
        rows = [_updated_row(row, fresh[row.key], count_them) if row.key in fresh else row for row in report.rows]
        trained = {each.image.key: each for each in placed}
        self.report = replace(
            report,
            placed=tuple(placed),
            validation=tuple(validation),
            rows=tuple(rows),
            captions_found=sum(each.caption.source in IMAGE_SOURCES for each in trained.values()),
            longest_tokens=max((row.tokens or 0 for row in rows), default=None),
        )


def _stem(placed: Placed) -> str:
    """Return the image's path without extension."""
    return os.path.splitext(placed.image.path)[0]


def _with_new_caption(placed: Placed, stems: Collection[str]) -> Placed:
    """Return `placed` with its caption read again if its path without extension is in `stems`."""
    if _stem(placed) not in stems:
        return placed
    return replace(placed, caption=read_caption(placed.image, placed.concept.captions))


def _updated_row(row: Row, placed: Placed, counted: bool) -> Row:
    """Return the row with the caption of `placed`. counted: whether to count its tokens, which takes most of the time"""
    text = plain_caption(placed.caption.text, placed.concept.captions, placed.image.class_tokens)
    caption = placed.caption
    tokens = count_tokens(text) if counted else None
    return replace(row, caption=text, source=caption.source, caption_path=caption.path, tokens=tokens)


def _folders(job: TrainJob) -> list[str]:
    """Return the paths of the job's dataset folders."""
    return [source.folder for source in job.dataset.all_sources()]


def _layout(job: TrainJob) -> str:
    """Return a sentence on how the training folder is organized, or on which folders there are, and on folders of other roles."""
    settings = {concept.source.folder: concept for concept in concepts_of(job)}
    folders: dict[str, list[str]] = {}
    for source in job.dataset.all_sources():
        folders.setdefault(source.role, []).append(source.folder)
    training, *others = (
        list(dict.fromkeys(folders.get(role, ()))) for role in ("train", "regularization", "validation")
    )
    folders_text = f"{count(len(training), 'folder')}: {listed([last_part(folder) for folder in training], 6)}"
    parts = [folders_text] if training else []
    if len(training) == 1:
        parts = [describe_layout(training[0], settings.get(training[0], PLAIN)).rstrip(".")]
    roles = zip(others, ("regularization", "validation"), strict=True)
    parts += [f"{count(len(each), 'folder')} of {role} images" for each, role in roles if each]
    text = ", and ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""
