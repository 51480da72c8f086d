"""What the captions of a dataset are: counts, what is missing, what was read in another encoding; and writing missing ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.dataset.caption_files import Caption, read_caption, save_caption
from core.dataset.scan import Picture, scan_dataset
from core.record.context import JobContext
from core.record.problems import Problem, raise_if_errors
from core.settings.concepts import concepts
from core.settings.job import CaptionJob
from core.settings.validation import ValidationSettings


@dataclass(frozen=True)
class CaptionReport:
    """rows: every picture with its caption; problems as found while reading."""

    rows: list[tuple[Picture, Caption]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def missing(self) -> list[tuple[Picture, Caption]]:
        """Pictures without a caption file."""
        return [(picture, caption) for picture, caption in self.rows if caption.source in ("words", "none")]

    def text(self) -> str:
        lines = [
            f"{picture.relative}: {caption.text}" + ("" if caption.source in ("file", "blank") else "   (no file)")
            for picture, caption in self.rows
        ]
        lines += [str(problem) for problem in self.problems]
        return "\n".join(
            [*lines, f"{len(self.rows)} pictures, {len(self.rows) - len(self.missing)} with a caption file"]
        )


def caption_report(job: CaptionJob) -> CaptionReport:
    """Read every caption of the dataset. Errors are those of the folders; what a caption lacks is advice."""
    found = scan_dataset(job.dataset, concepts(job.dataset, job.captions, ValidationSettings()))
    rows = [(picture, read_caption(picture, job.captions)) for picture in found.pictures]
    said = [caption.problem for _, caption in rows if caption.problem is not None]
    return CaptionReport(rows, [*found.problems, *said])


def run_captions(job: CaptionJob, context: JobContext) -> str:
    """The caption job: write `caption.write_missing` beside each picture that has no caption file."""
    report = caption_report(job)
    raise_if_errors(report.problems)
    text = job.caption.write_missing
    missing = report.missing if text else []
    for number, (picture, caption) in enumerate(missing, 1):
        context.check()
        save_caption(picture.path, (text or "").replace("{words}", caption.text), job.captions.caption_extension)
        context.stage("writing captions", number, len(missing))
    context.say(f"{len(missing)} captions written; {len(report.rows)} pictures in all")
    return "done"
