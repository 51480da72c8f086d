"""The task `caption`: report the captions of a dataset (counts, missing captions, encodings) and write missing ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from core.dataset.captions.files import (
    Caption,
    SidecarIndex,
    caption_change,
    editable_caption,
    read_caption,
    write_captions,
)
from core.dataset.captions.history import Change
from core.dataset.captions.pipeline import plain_caption
from core.dataset.sources.image_info import ImageInfo
from core.dataset.sources.scan import scan_dataset
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.settings.caption import CaptionerJob
from core.settings.dataset.captions import CaptionSettings
from core.settings.dataset.concepts import concepts
from core.settings.dataset.validation import ValidationSettings
from core.settings.job import CaptionEditJob, CaptionJob

NO_FILE = {"words": "no file", "none": "no file", "metadata": "from the metadata"}


@dataclass(frozen=True)
class Row:
    """An image, its caption, and the caption settings of its folder."""

    image: ImageInfo
    caption: Caption
    settings: CaptionSettings

    def text(self) -> str:
        """Return a line of the report: the caption as trained, without random changes, and why there is no caption file."""
        trained = plain_caption(self.caption.text, self.settings, self.image.class_tokens)
        why = NO_FILE.get(self.caption.source)
        return f"{self.image.relative}: {trained}" + (f"   ({why})" if why else "")


@dataclass(frozen=True)
class CaptionReport:
    """The captions of a dataset. `problems`: of folders (errors) and of single captions (advice)."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def missing(self) -> list[Row]:
        """The images without a caption file or metadata entry."""
        return [row for row in self.rows if row.caption.missing]

    def lines(self) -> list[str]:
        """Return the report as text: a line for each image and problem, and the totals."""
        captioned = len(self.rows) - len(self.missing)
        last = f"{len(self.rows)} images, {captioned} with a caption"
        return [*(row.text() for row in self.rows), *map(str, self.problems), last]


def caption_report(job: CaptionJob, editable: bool = False) -> CaptionReport:
    """Read every caption of the dataset as a training would, with the settings of its folder.
    editable: where training joins two files, read only the one that an edit would write"""
    folders = concepts(job.dataset, job.captions, ValidationSettings())
    dataset = scan_dataset(job.dataset, folders)
    rows = []
    for image in dataset.images:
        settings = folders[image.concept].captions
        rows.append(Row(image, (editable_caption if editable else read_caption)(image, settings), settings))
    problems = [row.caption.problem for row in rows if row.caption.problem is not None]
    return CaptionReport(rows, [*dataset.problems, *problems])


def rows_of(job: CaptionerJob | CaptionEditJob, editable: bool = False, problems: Sequence[Problem] = ()) -> list[Row]:
    """Return the images of the job's dataset. Raises ProblemsError for errors, and if there are no images.

    editable   see `caption_report`
    problems   other problems to raise together with the dataset's
    """
    report = caption_report(CaptionJob(dataset=job.dataset, captions=job.captions), editable)
    raise_if_errors([*report.problems, *problems])
    if not report.rows:
        fix = "choose a folder with images on Dataset"
        raise ProblemsError.one("The dataset contains no images", "dataset", fix, "captioning.no-images")
    return report.rows


def _change_of(row: Row, text: str, sidecars: SidecarIndex) -> Change:
    """Return the change that writes `text` as an image's missing caption; {words} in it stands for the folder's default caption."""
    text = text.replace("{words}", row.caption.text)
    return caption_change(row.image.path, text, row.settings.caption_extension, over="", sidecars=sidecars)


def run_captions(job: CaptionJob, context: JobContext) -> Outcome:
    """Report the captions, and write `caption.write_missing` for each image without a caption file.

    Raises ProblemsError for errors of the folders.
    """
    report = caption_report(job)
    raise_if_errors(report.problems)
    text = job.caption.write_missing
    lines, written = report.lines(), 0
    if text:
        sidecars = SidecarIndex()
        readable = [row for row in report.missing if row.caption.problem is None]
        changes = [_change_of(row, text, sidecars) for row in readable]
        context.check()
        done, left = write_captions(context, "Write missing captions", changes)
        written = len(done.written)
        lines += [*left, f"{written} captions written"]
    facts = {"images": len(report.rows), "missing": len(report.missing), "written": written}
    return Outcome(lines=lines, facts=facts)
