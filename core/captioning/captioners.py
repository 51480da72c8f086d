"""What every captioner does: which images it describes, progress, pause, preview, what it could not describe, and where
captions are saved."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from core.captioning.captioner import Describe, Ready
from core.captioning.described import Described
from core.captioning.report import Row, caption_report
from core.dataset.captions.files import save_caption
from core.record import atomic
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, raise_if_errors, unwritten
from core.record.units import count
from core.record.workspace import Workspace
from core.settings.caption import CaptionerJob
from core.settings.job import CaptionJob
from core.settings.presets import to_values

LISTED = 200  # tags and skipped images in the outcome


def _previews(job: CaptionerJob) -> bool:
    return job.captioning.preview is not None


def run_captioner(name: str, describe: Describe, job: CaptionerJob, context: JobContext) -> Outcome:
    """Describe the images that ask for it, one caption written after the other. A preview writes nothing."""
    done = Done(context.workspace, job)
    rows = _rows(job, done.before)
    captions = describe([row.image.path for row in rows], getattr(job, name), context)
    lines: list[str] = []
    failed: list[Problem] = []
    counts: Counter[str] = Counter()
    context.stage("captioning", 0, len(rows))
    for number, (row, given) in enumerate(zip(rows, captions, strict=True), 1):
        said = Described.of(given)
        counts.update(said.counted)
        if said.problem is not None:
            failed.append(said.problem)
            context.say(said.problem.what, "warning", said.problem.fix)
        elif _previews(job):
            lines.append(f"{row.image.relative}: {said.shown or said.text}")
        else:
            save_caption(row.image.path, said.text, row.settings.caption_extension)
            done.add(row)
        context.stage("captioning", number, len(rows))
        context.check()
    done.forget()
    described = len(rows) - len(failed)
    last = f"{described} images described" + ("; nothing was written" if _previews(job) else "")
    facts: dict[str, Any] = {"images": len(rows), "written": 0 if _previews(job) else described}
    facts |= {"skipped": len(failed)} if failed else {}
    facts |= {"counts": dict(counts.most_common(LISTED))} if counts else {}
    return Outcome(lines=[*lines, *_counted(counts), *_skipped(failed), last], facts=facts)


def _counted(counts: Counter[str]) -> list[str]:
    more = [f"and {len(counts) - LISTED:,} more"] if len(counts) > LISTED else []
    return [*(f"{name}: {number}" for name, number in counts.most_common(LISTED)), *more]


def _skipped(failed: Sequence[Problem]) -> list[str]:
    more = [f"and {len(failed) - LISTED:,} more"] if len(failed) > LISTED else []
    head = [f"{count(len(failed), 'image')} skipped:"] if failed else []
    return [*head, *(f"{problem.where}: {problem.what}" for problem in failed[:LISTED]), *more]


def images_to_describe(name: str, ready: Ready | None, job: CaptionerJob, workspace: Workspace) -> str:
    """The check before a start. Raises ProblemsError with what is wrong in the dataset and what the captioner lacks."""
    problems: list[Problem] = []
    rows: list[Row] = []
    try:
        rows = _rows(job, Done(workspace, job).before)
    except ProblemsError as error:
        problems += error.problems
    try:
        if ready is not None:
            ready(getattr(job, name), workspace)
    except ProblemsError as error:
        problems += error.problems
    raise_if_errors(problems)
    return f"{len(rows)} images to describe"


def _rows(job: CaptionerJob, done: set[str]) -> list[Row]:
    report = caption_report(CaptionJob(dataset=job.dataset, captions=job.captions))
    raise_if_errors(report.problems)
    if not report.rows:
        fix = "choose a folder with images on Dataset"
        raise ProblemsError.one("The dataset contains no images", "dataset", fix, "captioning.no-images")
    rows = report.missing if job.captioning.existing == "keep" else report.rows
    return [row for row in rows if str(row.image.path) not in done][: job.captioning.preview]


class Done:
    """The images that an unfinished job with the same settings has described: started again, it resumes with the others."""

    def __init__(self, workspace: Workspace, job: CaptionerJob):
        name = hashlib.sha256(json.dumps(to_values(job), sort_keys=True).encode()).hexdigest()[:16]
        self._file = workspace.private / "captioning" / f"{name}.txt"
        self.before: set[str] = set()
        if not _previews(job):
            with suppress(OSError):
                self.before = set(self._file.read_text("utf-8", "surrogateescape").split("\0"))

    def add(self, row: Row) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "a", encoding="utf-8", errors="surrogateescape") as handle:
                handle.write(f"{row.image.path}\0")
        except OSError as error:
            what = "The list of captioned images cannot be written"
            raise unwritten(error, what, str(self._file), "captions written so far are kept") from error

    def forget(self) -> None:
        with suppress(OSError):
            atomic.remove(self._file)
