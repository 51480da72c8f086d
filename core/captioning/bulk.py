"""The tasks `edit_captions` (edit the captions of many images) and `caption_history` (list and undo such edits)."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from core.captioning.edits import editor
from core.captioning.filters import Facts, fields_in, test_of
from core.captioning.report import Row, rows_of
from core.dataset.captions.files import Caption, SidecarIndex, caption_change, caption_files, write_captions
from core.dataset.captions.history import Change, Entry, History, only_one_writes
from core.dataset.captions.pipeline import longest_captions
from core.dataset.captions.words import comparable
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import ImageInfo
from core.families.token_count import count_tokens
from core.record.context import JobContext, Outcome
from core.record.problems import ProblemsError
from core.record.units import count
from core.record.workspace import Workspace
from core.settings.captioning.edits import EDITS, CaptionEditSettings, CaptionHistorySettings
from core.settings.job import CaptionEditJob
from core.settings.needs import without_effect

LISTED = 30  # changes of the history
LAST = "last"
ONLY_ON_PAGE = frozenset(("bucket", "found"))  # fields of a filter that a report of the dataset and its check answer


@dataclass(frozen=True)
class Item(Facts):
    """An image whose caption can be edited.

    extension   of its caption file, "auto" or a suffix, as in `caption_change`
    file        equal for images that share a caption file; None for one that shares none
    fixed       whether the caption comes from a metadata file, which cannot be edited here
    """

    path: Path = Path()
    extension: str = "auto"
    file: Path | None = None
    fixed: bool = False


@dataclass(frozen=True)
class CaptionEdit:
    """A caption before and after an edit. `before` is "" without a caption file."""

    item: Item
    before: str
    after: str

    @property
    def line(self) -> str:
        """The edit as a line for the terminal: "fox.png: before  ->  after"."""
        return f"{self.item.name}: {self.before or '(none)'}  ->  {self.after or '(empty)'}"


def item_of(
    image: ImageInfo, caption: Caption, extension: str, tokens: int, bucket: str = "", findings: tuple[str, ...] = ()
) -> Item:
    """Return the item of an image and its caption.

    extension          as in `caption_change`
    tokens             of the longest caption that training can use
    bucket, findings   from the dataset report and check; empty if unknown
    """
    return Item(
        name=printable(image.relative.rpartition("/")[2]),
        folder=printable(image.path.parent.name),
        text=caption.text,
        missing=caption.missing,
        tokens=tokens,
        width=image.width,
        height=image.height,
        bucket=bucket,
        changed=_changed(caption.path),
        findings=findings,
        path=image.path,
        extension=extension,
        file=caption_files(image.path, extension, image.sidecars)[0],
        fixed=caption.source == "metadata",
    )


def _changed(path: Path) -> float:
    """Return the modification time of a file in seconds since the epoch, 0.0 if it is missing."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def chosen(items: Sequence[Item], expression: str) -> list[Item]:
    """Return the items that match a filter expression (filters.py). Raises ProblemsError for an invalid one."""
    test = test_of(expression)
    return [each for each in items if test(each)]


def planned(items: Sequence[Item], settings: CaptionEditSettings) -> list[CaptionEdit]:
    """Return the captions that an edit would change, before and after. Raises ProblemsError for incomplete settings.

    An image without a caption file starts with an empty caption, not with its folder's default caption. Images that share a caption
    file give one edit.
    """
    change = editor(settings, (each.file_text for each in items))
    plan = (
        CaptionEdit(each, each.file_text, change(each.file_text, each.name, each.folder).strip())
        for each in items
        if not each.fixed
    )
    edits = [each for each in plan if each.after != each.before]
    return list({each.item.file or id(each): each for each in edits}.values())


def changes_of(plan: Iterable[CaptionEdit]) -> list[Change]:
    """Return the file changes of planned edits.

    Writing a change skips a file whose caption no longer equals `before`.
    """
    sidecars = SidecarIndex()
    return [
        caption_change(each.item.path, each.after, each.item.extension, over=each.before, sidecars=sidecars)
        for each in plan
    ]


def spellings_of(items: Iterable[Item]) -> list[Counter[str]]:
    """Return, for each tag, its spellings with the number of captions that have each; the most frequent tag first."""
    spelled: dict[str, Counter[str]] = {}
    for each in items:
        for tag, spelling in each.spellings.items():
            spelled.setdefault(tag, Counter())[spelling] += 1
    return sorted(spelled.values(), key=lambda each: -each.total())


def tag_counts(items: Iterable[Item], most: int | None = None) -> list[tuple[str, int]]:
    """Return [(tag, number of captions with it)] of the `most` most frequent tags (None: all), each in its most common spelling."""
    return [(counts.most_common(1)[0][0], counts.total()) for counts in spellings_of(items)[:most]]


def mixed_spellings(items: Iterable[Item]) -> dict[str, list[str]]:
    """Return {tag as in `tag_counts`: its other spellings}, without those that differ only in case or spaces, as text encoders
    ignore these."""
    mixed = {}
    for counts in spellings_of(items):
        first, *others = (each for each, _ in counts.most_common())
        read = " ".join(first.split()).casefold()
        if others := [each for each in others if " ".join(each.split()).casefold() != read]:
            mixed[first] = others
    return mixed


def tags_together(items: Iterable[Item], tag: str, most: int) -> list[tuple[str, int]]:
    """Return [(tag, number of captions)] of the `most` tags that occur most often together with `tag`."""
    wanted = comparable(tag)
    counts = tag_counts((item for item in items if wanted in item.tags), most + 1)
    return [each for each in counts if comparable(each[0]) != wanted][:most]


# ---- the task edit_captions


def check_edits(job: CaptionEditJob, workspace: Workspace) -> str:
    """Check the job before its start; return how many captions would change, as text. Raises ProblemsError."""
    items = items_of(job)
    return f"{count(len(_plan(items, job)), 'caption')} of {len(items)} would change"


def edit_captions(job: CaptionEditJob, context: JobContext) -> Outcome:
    """Run the task `edit_captions`: change the captions of the filtered images, or with `preview` only list the changes."""
    context.stage("reading captions")
    plan = _plan(items_of(job), job)
    for problem in without_effect(job.edit_captions, "edit_captions"):
        context.warn(problem)
    lines = [each.line for each in plan]
    if job.edit_captions.preview or not plan:
        lines.append(f"{count(len(plan), 'caption')} would change")
        return Outcome(lines=lines, facts={"planned": len(plan), "written": 0})
    done, left = write_captions(context, EDITS[job.edit_captions.edit], changes_of(plan))
    lines += [*left, f"{count(len(done.written), 'caption')} changed"]
    return Outcome(lines=lines, facts={"planned": len(plan), "written": len(done.written)})


def _plan(items: Sequence[Item], job: CaptionEditJob) -> list[CaptionEdit]:
    """Return the edits of the items that match the job's filter. Raises ProblemsError."""
    return planned(chosen(items, job.edit_captions.filter), job.edit_captions)


def items_of(job: CaptionEditJob) -> list[Item]:
    """Return an item for each image of the job's dataset. Raises ProblemsError, also for filter fields that only the page knows."""
    fields = fields_in(job.edit_captions.filter)
    if unknown := sorted(fields & ONLY_ON_PAGE):
        fix = "use it in the list of the Captions tab, or filter by width: and height:"
        what = f"'{unknown[0]}:' is known only on the page"
        raise ProblemsError.one(what, "edit_captions.filter", fix, "filter.only-on-page")
    return [
        item_of(row.image, row.caption, row.settings.caption_extension, _tokens(row) if "tokens" in fields else 0)
        for row in rows_of(job, editable=True)
    ]


def _tokens(row: Row) -> int:
    """Return the number of tokens of the longest caption that training can use for an image, as in the dataset report."""
    return max(map(count_tokens, longest_captions(row.caption, row.settings, row.image.class_tokens)), default=0)


# ---- the task caption_history


def check_history(settings: CaptionHistorySettings, workspace: Workspace) -> str:
    """Check the job before its start; return what it would do, as text. Raises ProblemsError for an unknown change."""
    history = History(workspace.captions, workspace.person)
    if not settings.undo:
        return count(sum(1 for _ in history.entries()), "change")
    return f"Would undo: {_line(history, _entry(history, settings.undo))}"


def caption_history(settings: CaptionHistorySettings, context: JobContext) -> Outcome:
    """List the LISTED newest caption changes, or undo one. Undo skips files that were changed again since."""
    history = History(context.workspace.captions, context.workspace.person)
    if not settings.undo:
        entries = list(islice(history.entries(), LISTED))
        return Outcome(
            lines=[_line(history, entry) for entry in entries] or ["No changes"], facts={"changes": len(entries)}
        )
    with only_one_writes(context):
        entry = _entry(history, settings.undo)
        done = history.undo(entry.id)
    left = [f"{printable(path)} has changed since and was left unchanged" for path in done.changed_since]
    lines = [f"Undone: {_line(history, entry)}", *left, f"{count(len(done.written), 'caption')} restored"]
    return Outcome(lines=lines, facts={"written": len(done.written), "left": len(done.changed_since)})


def _entry(history: History, number: str) -> Entry:
    """Return the change with the id `number`, or the newest for "last". Raises ProblemsError for an unknown id."""
    entry = next((each for each in history.entries() if number in (LAST, each.id)), None)
    if entry is None:
        fix = "run caption_history without a number to list the changes"
        raise ProblemsError.one("This caption change does not exist", "caption_history.undo", fix, "caption.no-change")
    return entry


def _line(history: History, entry: Entry) -> str:
    """Return a line that describes a change: id, time, title and number of captions."""
    files, done = entry.about.get("files"), history.file_count(entry.id)
    part = f"at most {done:,} of " if isinstance(files, int) and done < files else ""  # it was interrupted
    many = f", {part}{count(files, 'caption')}" if isinstance(files, int) else ""
    return f"{entry.id}  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(entry.at))}  {entry.title}{many}"
