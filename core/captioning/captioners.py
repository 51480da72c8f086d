"""What every captioner does: which images it describes, progress, pause, preview, what it could not describe, and where
captions are saved."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from core.captioning.captioner import Describe, Ready
from core.captioning.combining import combined, pattern_problems
from core.captioning.described import Described
from core.captioning.report import Row, caption_report
from core.dataset.captions.files import as_file, caption_change
from core.dataset.captions.history import History, check_folders
from core.record.context import JobContext, Outcome
from core.record.lock import HeldElsewhere, Lock
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.units import count
from core.record.workspace import Workspace
from core.settings.caption import CaptionerJob
from core.settings.job import CaptionJob
from core.settings.presets import to_values

LISTED = 200  # tags and skipped images in the outcome


def _previews(job: CaptionerJob) -> bool:
    return job.captioning.preview is not None


def run_captioner(
    name: str, title: str, describe: Describe, of_rows: bool, job: CaptionerJob, context: JobContext
) -> Outcome:
    """Describe the images that ask for it, one caption written after the other. A preview writes nothing."""
    about = {"task": name, "job": _fingerprint(job)}

    def described(rows: Sequence[Row]) -> _Heard:
        return _Heard(describe(rows if of_rows else [row.image.path for row in rows], getattr(job, name), context))

    if _previews(job):
        rows = _rows(job)
        heard = described(rows)
        lines = [_difference(row, said, job) for row, said in _counted(heard, rows, context)]
        last = f"{len(rows) - len(heard.failed)} images described; nothing was written"
        return Outcome(lines=[*lines, *heard.lines(), last], facts=_facts(len(rows), 0, heard))
    history = History(context.workspace.captions)
    with only_one_writes(context), history.open(title, about, history.unfinished(about)) as opened:
        done = opened.done()
        files = [(row, caption_change(row.image.path, "", row.settings.caption_extension)) for row in _rows(job)]
        files = [(row, file) for row, file in files if file.path not in done]
        check_folders(file.path.parent for _, file in files)
        rows = [row for row, _ in files]
        heard = described(rows)
        written, since, empty = 0, 0, 0
        for (_, file), (row, said) in zip(files, _counted(heard, rows, context), strict=True):
            new = combined(_own(row), said.text, job.captioning)
            result = opened.write([replace(file, new=as_file(new))] if new and said.problem is None else [])
            written, since = written + len(result.written), since + len(result.changed_since)
            empty += not new and said.problem is None
    lines = [*heard.lines(), *_last_lines(len(rows) - len(heard.failed), written, since, empty)]
    return Outcome(lines=lines, facts=_facts(len(rows), written, heard))


class _Heard(Iterator[Described]):
    """What a captioner says, with what it could not describe and what it counted."""

    def __init__(self, described: Iterator[str | Described]):
        self._described = described
        self.failed: list[Problem] = []
        self.counts: Counter[str] = Counter()

    def __next__(self) -> Described:
        said = Described.of(next(self._described))
        self.counts.update(said.counted)
        self.failed += [said.problem] if said.problem is not None else []
        return said

    def lines(self) -> list[str]:
        lines = [f"{name}: {number}" for name, number in self.counts.most_common(LISTED)]
        lines += [f"and {len(self.counts) - LISTED:,} more"] if len(self.counts) > LISTED else []
        lines += [f"{count(len(self.failed), 'image')} skipped:"] if self.failed else []
        lines += [f"{problem.where}: {problem.what}" for problem in self.failed[:LISTED]]
        return lines + ([f"and {len(self.failed) - LISTED:,} more"] if len(self.failed) > LISTED else [])


def _counted(heard: _Heard, rows: Sequence[Row], context: JobContext) -> Iterator[tuple[Row, Described]]:
    """The captions as they come, with progress, and a place to pause or stop after each."""
    context.stage("captioning", 0, len(rows))
    for number, (row, said) in enumerate(zip(rows, heard, strict=True), 1):
        if said.problem is not None:
            context.say(said.problem.what, "warning", said.problem.fix)
        yield row, said
        context.stage("captioning", number, len(rows))
        context.check()


def _own(row: Row) -> str:
    """The caption of the image's own file."""
    return row.caption.text if row.caption.source == "file" else ""


def _difference(row: Row, said: Described, job: CaptionerJob) -> str:
    if said.problem is not None:
        return f"{row.image.relative}: skipped"
    before, after = _own(row), said.shown or combined(_own(row), said.text, job.captioning)
    return f"{row.image.relative}: {after}" + (f"   (was: {before})" if before and before != after else "")


def _last_lines(images: int, written: int, since: int, empty: int) -> list[str]:
    lines = [f"{images} images described, {written} captions written"]
    lines += [f"{since} captions were edited meanwhile and stay as they are"] if since else []
    lines += [f"{empty} images got no caption: nothing was found to say of them"] if empty else []
    return lines


def _facts(images: int, written: int, heard: _Heard) -> dict[str, Any]:
    facts: dict[str, Any] = {"images": images, "written": written}
    facts |= {"skipped": len(heard.failed)} if heard.failed else {}
    return facts | ({"counts": dict(heard.counts.most_common(LISTED))} if heard.counts else {})


def images_to_describe(name: str, ready: Ready | None, job: CaptionerJob, workspace: Workspace) -> str:
    """The check before a start. Raises ProblemsError with what is wrong in the dataset and what the captioner lacks."""
    problems: list[Problem] = []
    rows: list[Row] = []
    try:
        rows = _rows(job)
    except ProblemsError as error:
        problems += error.problems
    try:
        if ready is not None:
            ready(getattr(job, name), workspace)
    except ProblemsError as error:
        problems += error.problems
    raise_if_errors(problems)
    return f"{count(len(rows), 'image')} to describe"


def _rows(job: CaptionerJob) -> list[Row]:
    report = caption_report(CaptionJob(dataset=job.dataset, captions=job.captions))
    bad = pattern_problems(job.captioning.remove_words, "captioning.remove_words")
    raise_if_errors([*report.problems, *bad])
    if not report.rows:
        fix = "choose a folder with images on Dataset"
        raise ProblemsError.one("The dataset contains no images", "dataset", fix, "captioning.no-images")
    return [row for row in report.rows if _asks(row, job.captioning.existing)][: job.captioning.preview]


def _asks(row: Row, existing: str) -> bool:
    """Whether an image is described. Captions from metadata files are not changed."""
    without = ("words", "none") if existing == "keep" else ("words", "none", "blank")
    return row.caption.source in without if existing in ("keep", "missing") else row.caption.source != "metadata"


def _fingerprint(job: CaptionerJob) -> str:
    return hashlib.sha256(json.dumps(to_values(job), sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def only_one_writes(context: JobContext) -> Iterator[None]:
    """Hold the captions: a second task that writes some waits here."""
    folder = context.workspace.captions
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / "writing.lock")
    while True:
        try:
            lock.acquire()
            break
        except HeldElsewhere:
            context.stage("waiting for another task that writes captions")
            context.check()
    try:
        yield
    finally:
        lock.release()
