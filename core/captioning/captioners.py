"""Shared code of all captioners: choose images, run, preview, combine new captions with existing ones, and write them."""

import csv
import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.captioning.captioner import Describe, Ready
from core.captioning.combining import pattern_problems
from core.captioning.described import CaptionResult, with_scores
from core.captioning.report import Row, rows_of
from core.dataset.captions.files import SidecarIndex, caption_change, with_line_ends
from core.dataset.captions.history import Change, History, check_folders, content_of, only_one_writes
from core.dataset.sources.files import printable
from core.dataset.sources.metadata import read_values
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.cancel import Cancelled
from core.record.context import JobContext, Outcome
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors, write_errors
from core.record.units import count, first_of
from core.record.workspace import Workspace, display_path, typed_path
from core.settings.caption import CaptionerJob
from core.settings.captioning.tagger import TagTextSettings
from core.settings.presets.files import to_values

NONE_MISSING = (
    "All images already have a caption. To caption them again, set Existing captions to replace, append, "
    "prepend or add a line"
)
NONE_OF_FILES = "Nothing to caption: captions from a metadata file are not changed"
SAVE_SECONDS = 30.0
LISTED = 200  # tags and skipped images in the outcome


@dataclass
class Tally:
    """Counts and problems of a captioning job, and its outcome.

    images    images to caption, including those that failed
    written   caption files written
    edited    captions left alone because they were edited during the job
    empty     images for which no text was found
    counts    tag -> number of images
    """

    images: int = 0
    written: int = 0
    edited: int = 0  # in the meantime, by someone else
    empty: int = 0
    none_missing: bool = False  # a preview of images that a run would leave alone
    failed: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    file: Path | None = None  # with the captions, in place of caption files
    table: Path | None = None  # the file with all counts, where they are too many to list

    def keep_counts(self, name: str, workspace: Workspace) -> None:
        """Write all tag counts to a CSV file in the outputs folder, if there are too many to list. Raises ProblemsError."""
        if len(self.counts) <= LISTED:
            return
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["tag", "images"])
        writer.writerows(self.counts.most_common())
        path = workspace.outputs / "tags" / f"{time.strftime('%Y%m%d-%H%M%S')}_{name}.csv"
        with write_errors("The table of tags cannot be written", str(path), "the captions are written"):
            atomic.write_text(path, text.getvalue())
        self.table = path

    def outcome(self, existing: str, previews: Sequence[dict[str, Any]] | None = None) -> Outcome:
        """Return the outcome of a finished job. Its facts are "images", "written" and perhaps "previews", "reason", "skipped", "counts",
        "table" and "file".

        existing   value of `CaptioningSettings.existing`, such as "missing"
        previews   entries of `_preview_of`; None unless this is a preview
        """
        facts: dict[str, Any] = {"images": self.images, "written": self.written}
        facts |= {} if previews is None else {"previews": previews}
        if not self.images:
            only = existing in ("missing", "keep")
            lines = [NONE_MISSING if only else NONE_OF_FILES]
            return Outcome(lines=lines, facts=facts | {"reason": "captioned" if only else "metadata"})
        facts |= {"skipped": len(self.failed)} if self.failed else {}
        facts |= {"counts": dict(self.counts.most_common(LISTED))} if self.counts else {}
        facts |= {"table": str(self.table)} if self.table else {}
        facts |= {"file": str(self.file)} if self.file else {}
        last = "nothing was written" if previews is not None else f"{count(self.written, 'caption')} written"
        last += f" to {display_path(self.file)}" if self.file else ""
        described = count(self.images - len(self.failed), "image")
        lines = [_preview_line(each) for each in previews or ()]
        return Outcome(lines=[*lines, *self._lines(), f"{described} captioned; {last}"], facts=facts)

    def stopped(self) -> Outcome:
        """Return the outcome of a stopped job."""
        message = f"{count(self.written, 'caption')} of {count(self.images, 'image')} written; start again to resume"
        return Outcome("stopped", [message], {"images": self.images, "written": self.written})

    def _lines(self) -> Iterator[str]:
        """Yield the outcome's lines: tag counts, skipped images with the reason, captions left alone."""
        yield from (f"{name}: {number}" for name, number in self.counts.most_common(LISTED))
        if len(self.counts) > LISTED:
            where = f"; full table: {display_path(self.table)}" if self.table else ""
            yield f"and {len(self.counts) - LISTED:,} more{where}"
        if self.failed:
            yield f"{count(len(self.failed), 'image')} skipped:"
        yield from (f"{problem.where}: {problem.what}" for problem in self.failed[:LISTED])
        if len(self.failed) > LISTED:
            yield f"and {len(self.failed) - LISTED:,} more"
        if self.edited:
            yield f"{count(self.edited, 'caption')} edited during the run and left unchanged"
        if self.none_missing:
            yield NONE_MISSING
        if self.empty:
            yield f"{count(self.empty, 'image')} left without a caption: nothing was found"


def run_captioner(
    name: str, title: str, describe: Describe, job: CaptionerJob, context: JobContext, pass_rows: bool = False
) -> Outcome:
    """Run a captioner: write each caption as soon as it is ready, or all into one file at the end. A preview writes nothing.

    name, title   of the task; `name` is also the group of its settings in `job`
    describe      see `captioner`
    pass_rows     `rows` of `captioner`

    Raises ProblemsError, and Cancelled for a stop before the first caption; a later stop returns an outcome.
    """
    tally, about, settings = Tally(), {"task": name, "job": _fingerprint(job)}, getattr(job, name)

    def describe_rows(rows: Sequence[Row]) -> Iterator[tuple[Row, CaptionResult]]:
        """Yield (image, result) of the captioner, without images that failed."""
        images = rows if pass_rows else [row.image.path for row in rows]
        return _successful_results(describe(images, settings, context), rows, context, tally)

    if job.captioning.preview is not None:
        rows = _selected_rows(job)
        one_file = job.captioning.output_path is not None
        tally.none_missing = not one_file and not any(_gets_caption(row, job.captioning.existing) for row in rows)
        return tally.outcome(
            job.captioning.existing, [_preview_of(row, caption, job) for row, caption in describe_rows(rows)]
        )
    tally.file = typed_path(job.captioning.output_path)
    try:
        if tally.file is None:
            _write_each(title, about, describe_rows, job, context, tally)
        else:
            kind = "tags" if isinstance(settings, TagTextSettings) else "caption"
            unfinished = context.workspace.private / "captions in one file" / f"{name}-{about['job']}.json"
            captions = _collect_captions(unfinished, describe_rows, job, context, tally)
            with only_one_writes(context):
                write_one_file(tally.file, kind, captions, title, about, context.workspace)
            unfinished.unlink(missing_ok=True)
    except Cancelled:
        if not tally.written:
            raise
        return tally.stopped()
    tally.keep_counts(name, context.workspace)
    return tally.outcome(job.captioning.existing)


def _write_each(
    title: str,
    about: dict[str, Any],
    describe_rows: Callable[[Sequence[Row]], Iterator[tuple[Row, CaptionResult]]],
    job: CaptionerJob,
    context: JobContext,
    tally: Tally,
) -> None:
    """Write each caption to its caption file as soon as it is ready. All of them are one change in the history, undone together. A change
    that an interrupted job with the same `about` left is continued.

    title           of the change
    about           {"task": name, "job": hash of its settings}
    describe_rows   rows -> iterator of (row, result)
    tally           gets the numbers of written captions
    """
    history = History(context.workspace.captions, context.workspace.person)
    with only_one_writes(context), history.open(title, about, history.unfinished(about)) as opened:
        files = _pending_changes(_selected_rows(job), opened.written_files(), tally)
        check_folders(file.path.parent for file in files.values())
        for row, caption, text in _texts_to_write(describe_rows(list(files)), job, tally):
            file = files[row]
            result = opened.write([replace(file, new=with_line_ends(caption.caption_bytes(text), file.old))])
            tally.written += len(result.written)
            tally.edited += len(result.changed_since)


def _collect_captions(
    unfinished: Path,
    describe_rows: Callable[[Sequence[Row]], Iterator[tuple[Row, CaptionResult]]],
    job: CaptionerJob,
    context: JobContext,
    tally: Tally,
) -> dict[Row, str]:
    """Return {image: caption to write} in the images' order.

    An interrupted job saves its captions to the file `unfinished`, from which the same job resumes.
    """
    rows = _selected_rows(job)
    captions = _resumed(unfinished, rows, context, tally)
    saved, warned = time.monotonic(), False

    def save() -> None:
        """Save each new caption so far with the existing caption, to detect on resume that the user edited it. Warns once if it fails."""
        nonlocal warned
        texts = {str(row.image.path): [_file_caption(row), text] for row, text in captions.items()}
        try:
            atomic.write_json(unfinished, {"captions": texts, "counts": tally.counts})
        except OSError as error:
            if warned:
                return
            warned = True
            what = f"The finished captions cannot be saved for later ({error.strerror})"
            fix = "free some space: a job that is cut off would caption all images again"
            context.warn(Problem(what, display_path(unfinished), fix, "warning", code="caption.unfinished-unwritten"))

    try:
        for row, _, text in _texts_to_write(describe_rows([row for row in rows if row not in captions]), job, tally):
            captions[row] = text
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    except BaseException:
        save()
        raise
    finally:
        tally.images, tally.written = len(rows), len(captions)
    return {row: captions[row] for row in rows if row in captions}


def _resumed(unfinished: Path, rows: Sequence[Row], context: JobContext, tally: Tally) -> dict[Row, str]:
    """Return {image: caption} saved by an interrupted job; {} without a readable file.

    Leaves out images that changed after the file was written, and images whose existing caption has changed.
    """
    if not unfinished.exists():
        return {}
    try:
        earlier, saved_at = read_json_object(unfinished), unfinished.stat().st_mtime
        counts, texts = (
            Counter(earlier["counts"]),
            {name: _parse_saved_pair(each) for name, each in earlier["captions"].items()},
        )
    except (ProblemsError, OSError, KeyError, TypeError, ValueError, AttributeError):
        what = "The captions of this job that was cut off cannot be read, so all images are captioned again"
        context.warn(Problem(what, display_path(unfinished), level="warning", code="caption.unfinished-unreadable"))
        return {}
    tally.counts.update(counts)
    rows = [row for row in rows if row.image.path.stat().st_mtime <= saved_at]
    pairs = {row: texts[str(row.image.path)] for row in rows if str(row.image.path) in texts}
    return {row: text for row, (before, text) in pairs.items() if before == _file_caption(row)}


def _parse_saved_pair(value: list[str]) -> tuple[str, str]:
    """Return (existing caption, caption to write) from JSON. Raises ValueError unless `value` is a list of two."""
    before, text = value if isinstance(value, list) else ()
    return str(before), str(text)


def _texts_to_write(
    results: Iterable[tuple[Row, CaptionResult]], job: CaptionerJob, tally: Tally
) -> Iterator[tuple[Row, CaptionResult, str]]:
    """Yield (image, captioner's result, text to write). Images without text are counted in `tally.empty` and left out."""
    for row, caption in results:
        text = caption.joined(_file_caption(row), job.captioning)
        if text or caption.means_empty:
            yield row, caption, text
        else:
            tally.empty += 1


def _successful_results(
    captions: Iterator[str | CaptionResult], rows: Sequence[Row], context: JobContext, tally: Tally
) -> Iterator[tuple[Row, CaptionResult]]:
    """Yield (image, result) without images that failed, which are counted and reported. Pauses or stops after each image."""
    tally.images = len(rows) + len(tally.failed)
    context.stage("captioning", 0, len(rows))
    for number, (row, each) in enumerate(zip(rows, captions, strict=True), 1):
        caption = CaptionResult.of(each)
        tally.counts.update(caption.counted)
        if caption.problem is not None:
            tally.failed.append(caption.problem)
            context.warn(caption.problem)
        else:
            yield row, caption
        context.stage("captioning", number, len(rows))
        context.check()


def _pending_changes(rows: Iterable[Row], done: Collection[Path], tally: Tally) -> dict[Row, Change]:
    """Return {image: change of its caption file, still without text}, without images whose file is in `done`.

    Images with an unreadable caption file, or one shared with another image, are reported in `tally` and left out.
    """
    sidecars, taken = SidecarIndex(), set[Path]()
    files: dict[Row, Change] = {}
    for row in rows:
        problems: list[Problem] = []
        file = collected(problems, _pending_change, row, sidecars, taken)
        tally.failed += [replace(each, level="advice") for each in problems]
        if file is not None and file.path not in done:
            files[row] = file
    return files


def _pending_change(row: Row, sidecars: SidecarIndex, taken: set[Path]) -> Change:
    """Return the change of an image's caption file, still without text, and add the file to `taken`, those of other images.

    Raises ProblemsError for an unreadable caption file, or one that is in `taken`.
    """
    if row.caption.missing and row.caption.problem is not None:
        raise ProblemsError([row.caption.problem])  # its caption file is not a valid caption
    file = caption_change(
        row.image.path, "", row.settings.caption_extension, over=_file_caption(row), sidecars=sidecars
    )
    if file.path in taken:
        what = f"{printable(row.image.path.name)} shares its caption file with another image"
        raise ProblemsError.one(what, printable(row.image.path), "rename one of them", "caption.shared-file")
    taken.add(file.path)
    return file


def _file_caption(row: Row) -> str:
    """Return the caption in the image's caption file; "" if there is none."""
    return row.caption.text if row.caption.source == "file" else ""


def _preview_of(row: Row, caption: CaptionResult, job: CaptionerJob) -> dict[str, Any]:
    """Return an image's preview as JSON: {"image": path, "name": relative path, "caption", "before", "tags": [[tag, score]]}.

    `caption` is "" if it only repeats the tags; `before` is "" if nothing changes.
    """
    before, after = _file_caption(row), caption.joined(_file_caption(row), job.captioning)
    names = (caption.separator or job.captioning.separator).join(name for name, _ in caption.scored)
    return {
        "image": str(row.image.path),
        "name": str(row.image.relative),
        "caption": "" if caption.scored and after == names else after,
        "before": before if before != after else "",
        "tags": [list(each) for each in caption.scored],
    }


def _preview_line(preview: dict[str, Any]) -> str:
    """Return a preview as a line for the terminal."""
    scores = with_scores(tuple((name, score) for name, score in preview["tags"]))
    if preview["caption"] and scores:
        scores = f"   [{scores}]"
    was = f"   (was: {preview['before']})" if preview["before"] else ""
    return f"{preview['name']}: {preview['caption']}{scores}{was}"


def images_to_describe(name: str, ready: Ready | None, job: CaptionerJob, workspace: Workspace) -> str:
    """Check the job before its start; return the number of images as text: "24 images to caption". Raises ProblemsError for problems of the
    dataset and missing requirements.

    name    group of the captioner's settings in the job
    ready   check of the requirements, see `captioner`; None for none
    """
    problems: list[Problem] = []
    rows = collected(problems, _selected_rows, job) or []
    if ready is not None:
        collected(problems, ready, getattr(job, name), workspace)
    raise_if_errors(problems)
    return f"{count(len(rows), 'image')} to caption"


def _selected_rows(job: CaptionerJob) -> list[Row]:
    """Return the images that the job captions, at most `preview` of them. Raises ProblemsError."""
    setting_problems = pattern_problems(job.captioning.remove_words, "captioning.remove_words")
    setting_problems += path_problems(job.captioning.output_path) if job.captioning.output_path is not None else []
    rows = _named_rows(rows_of(job, editable=True, problems=setting_problems), job.captioning.only)
    everything = job.captioning.output_path is not None
    wanted = [row for row in rows if everything or _gets_caption(row, job.captioning.existing)]
    if job.captioning.preview is not None and not wanted:
        # the captions are of interest also where none would be written
        wanted = [row for row in rows if _gets_caption(row, "replace")]
    return wanted[: job.captioning.preview]


def _named_rows(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the images with these file names, relative or absolute paths; all if `names` is empty.

    Raises ProblemsError for a name that no image has.
    """
    if not names:
        return list(rows)
    names_of = {row: {str(row.image.path), str(row.image.relative), row.image.path.name} for row in rows}
    if unknown := sorted(set(names).difference(*names_of.values())):
        what = f"{first_of(unknown, 3)} {'is not an image' if len(unknown) == 1 else 'are not images'} of the dataset"
        raise ProblemsError.one(what, "captioning.only", "remove it, or write the path as it is", "captioning.no-image")
    return [row for row in rows if not names_of[row].isdisjoint(names)]


def _gets_caption(row: Row, existing: str) -> bool:
    """Return whether an image gets a new caption; captions from a metadata file are never changed.
    existing: value of `CaptioningSettings.existing`: with "missing" images without a caption or with a blank one, with "keep" only the
    former, with any other all"""
    if existing not in ("keep", "missing"):
        return row.caption.source != "metadata"
    return row.caption.missing or (existing == "missing" and row.caption.source == "blank")


def _fingerprint(job: CaptionerJob) -> str:
    """Return a hash of the job's settings: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(to_values(job), sort_keys=True).encode()).hexdigest()[:16]


def path_problems(text: str) -> list[Problem]:
    """Return the problems of a path to write all captions to, as far as they can be checked before the start."""
    path = typed_path(text)
    what, fix = "", "choose a new name, or a file with captions, which is replaced"
    if path is None or path.suffix.lower() not in (".json", ".jsonl") or "\0" in text:
        what, fix = "The caption file is neither .json nor .jsonl", "use a name that ends in .json or .jsonl"
    elif path.is_dir():
        what, fix = f"The caption file '{printable(path)}' is a folder", "choose a file in it"
    elif path.exists() and not _holds_captions(path):
        what = f"The file '{printable(path)}' exists, and holds something other than captions"
    return [Problem(what, "captioning.output_path", fix, code="captioning.one-file")] if what else []


def _holds_captions(path: Path) -> bool:
    """Return whether a file has entries of captions by image."""
    try:
        return all(isinstance(entry, dict) for entry in read_values(path)[0].values())
    except ProblemsError:
        return False


def write_one_file(
    path: Path, kind: str, captions: Mapping[Row, str], title: str, about: Mapping[str, Any], workspace: Workspace
) -> None:
    """Write all captions to one .json or .jsonl file, with undo. Raises ProblemsError.

    kind    key of each caption in a .json file, "tags" or "caption"
    title   of the change in the history
    about   {"task", "job"} of the change, see `_write_each`
    """
    entries = [(str(row.image.path), text, [row.image.width, row.image.height]) for row, text in captions.items()]
    if path.suffix.lower() == ".jsonl":
        lines = ({"image_path": image, "caption": text, "image_size": size} for image, text, size in entries)
        new = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    else:
        by_image = {image: {kind: text, "image_size": size} for image, text, size in entries}
        new = json.dumps(by_image, indent=2, ensure_ascii=False) + "\n"
    change = Change(path, content_of(path), new.encode("utf-8", "backslashreplace"))
    code = "captioning.one-file-changed"
    History(workspace.captions, workspace.person).write_file(title, change, "caption file", code, about=about)
