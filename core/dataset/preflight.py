"""Everything that can be known before a start, without a model: what trains, how, for how long, and what is wrong."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from core.dataset.batches import Placed, batches_per_epoch
from core.dataset.buckets import MIN_KEPT, BucketPlan, Placement, Size, bucket_counts, plan_buckets
from core.dataset.captions import Caption, plain_caption, read_caption
from core.dataset.contents import content_hashes
from core.dataset.files import printable
from core.dataset.images import BrokenPicture, check_decodes, known_broken, problem_of
from core.dataset.length import Length, length_of, length_sentence
from core.dataset.scan import Folder, Picture, Scan, names_of, scan
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError, errors
from core.record.workspace import Workspace
from core.settings.captions import CaptionSettings
from core.settings.job import TrainJob

Progress = Callable[[int, int], None]

ENLARGED_FROM = 1.05  # scale from which a picture is named as smaller than its bucket
KEPT_BELOW = 0.5  # share of a picture below which its crop is named


@dataclass(frozen=True, slots=True)
class Row:
    """One picture as the page lists it.

    caption   after prefix and suffix, before draws      source    "file", "blank", "words" or "none"
    frame     what trains, as fractions of the picture: (left, top, right, bottom)
    scale     above 1 it is enlarged                     tokens    of the caption; None where nobody counts
    trains    False: `why` says the reason
    """

    key: tuple[str, str]
    path: Path
    size: Size | None
    bucket: Size | None
    frame: tuple[float, float, float, float] | None
    scale: float | None
    repeats: int
    caption: str
    caption_path: Path | None
    source: str
    tokens: int | None
    trains: bool
    why: str = ""


@dataclass(frozen=True)
class Report:
    """What a start would do. `placed` is what the training takes over; `problems`: errors (they block) and advice."""

    problems: tuple[Problem, ...]
    placed: tuple[Placed, ...]
    rows: tuple[Row, ...]
    folders: tuple[Folder, ...]
    buckets: dict[Size, tuple[int, int]]  # {size: (pictures, pictures with repeats)}
    captions_found: int
    batches_per_epoch: int
    length: Length
    sentence: str
    longest_tokens: int | None
    token_limit: int

    @property
    def ok(self) -> bool:
        return not errors(self.problems)

    @property
    def trained(self) -> int:
        return len(self.placed)

    @property
    def skipped(self) -> int:
        return len(self.rows) - len(self.placed)

    steps_per_epoch = property(lambda self: self.length.steps_per_epoch)
    epochs = property(lambda self: self.length.epochs)
    total_steps = property(lambda self: self.length.total_steps)

    def summary(self) -> dict[str, Any]:
        """Without the rows, as plain JSON."""
        return {
            "sentence": self.sentence,
            "trained": self.trained,
            "skipped": self.skipped,
            "captions_found": self.captions_found,
            "buckets": [
                {"width": w, "height": h, "pictures": n, "views": v} for (w, h), (n, v) in self.buckets.items()
            ],
            "batches_per_epoch": self.batches_per_epoch,
            **asdict(self.length),
            "longest_tokens": self.longest_tokens,
            "token_limit": self.token_limit,
            "problems": [problem.to_dict() for problem in self.problems],
        }


def preflight(
    job: TrainJob,
    workspace: Workspace,
    *,
    count_tokens: Callable[[str], int] | None = None,
    decode: bool = False,
    advice: Iterable[Problem] = (),
    cancel: CancelToken | None = None,
    progress: Progress | None = None,
) -> Report:
    """Read the dataset of a job and plan it. Problems are returned, all at once; only a cancel raises.

    count_tokens   caption -> tokens, begin and end marks not counted; handed in, so that no tokenizer is needed here
    decode         also decode every picture whole (remembered, see `check_decodes`); without it, what an earlier
                   decoding found broken still counts
    advice         findings about the settings themselves, listed with the dataset's own
    progress       called with (done, all) pictures while decoding
    """
    dataset = job.dataset
    problems = list(advice)
    found = scan(dataset, cancel)
    problems += found.problems
    level = "advice" if dataset.skip_broken else "error"
    memo = workspace.private / "index.sqlite"
    refused = check_decodes(found.pictures, cancel, progress, memo) if decode else known_broken(found.pictures, memo)
    by_key = {picture.key: picture for picture in found.pictures}
    problems += [problem_of(by_key[key].path, BrokenPicture(reason), level) for key, reason in refused.items()]
    plan: BucketPlan | None = None
    try:
        plan = plan_buckets(dataset)
        problems += plan.advice
    except ProblemsError as error:
        problems += error.problems
    placed: list[Placed] = []
    for picture in found.pictures:
        placement = None if picture.key in refused or plan is None else plan.assign(picture.width, picture.height)
        if placement is None or placement.kept < MIN_KEPT:
            if plan is not None and picture.key not in refused:
                refused[picture.key] = "is too narrow for any bucket"
                problems.append(_too_narrow(picture, level))
            continue
        placed.append(Placed(picture, placement, read_caption(picture, job.captions)))
    counted = _count_all(placed, job.captions, count_tokens)
    problems += _caption_advice(placed, job.captions, counted) + _size_advice(placed)
    if not placed and not errors(problems):
        problems.append(
            Problem("No picture is left to train.", "dataset", "Add pictures, or see the findings beside this one.")
        )
    return _report(job, found, placed, refused, counted, problems)


def _report(
    job: TrainJob,
    found: Scan,
    placed: list[Placed],
    refused: dict[tuple[str, str], str],
    counted: dict[tuple[str, str], int],
    problems: list[Problem],
) -> Report:
    views = sum(each.repeats for each in placed)
    size, accumulation = job.dataset.train_batch_size, job.schedule.gradient_accumulation_steps
    batches = batches_per_epoch(placed, size)
    length = length_of(job.schedule, views, batches, size)
    return Report(
        problems=tuple(problems),
        placed=tuple(placed),
        rows=tuple(_rows(found, placed, refused, counted, job.captions)),
        folders=_folders(found, refused),
        buckets=bucket_counts((each.placement, each.repeats) for each in placed),
        captions_found=sum(each.caption.source == "file" for each in placed),
        batches_per_epoch=batches,
        length=length,
        sentence=length_sentence(length, len(placed), views, batches, size, accumulation),
        longest_tokens=max(counted.values(), default=None),
        token_limit=job.captions.max_token_length,
    )


def _folders(found: Scan, refused: dict[tuple[str, str], str]) -> tuple[Folder, ...]:
    """The folders with the number of their pictures that train, as everywhere else on the page."""
    left = Counter(picture.source for picture in found.pictures if picture.key not in refused)
    return tuple(replace(folder, pictures=left[folder.id]) for folder in found.folders)


def _rows(
    found: Scan,
    placed: Sequence[Placed],
    refused: dict[tuple[str, str], str],
    counted: dict[tuple[str, str], int],
    settings: CaptionSettings,
) -> list[Row]:
    """Every picture, broken ones too, by folder and path."""
    by_key = {each.key: each for each in placed}
    rows = [
        _row(picture, by_key.get(picture.key), refused.get(picture.key, ""), counted, settings)
        for picture in found.pictures
    ]
    for broken in found.broken:
        key = (broken.source, broken.relative)
        rows.append(Row(key, broken.path, None, None, None, None, 0, "", None, "none", None, False, broken.reason))
    order = list(dict.fromkeys(row.key[0] for row in rows))
    return sorted(rows, key=lambda row: (order.index(row.key[0]), row.key[1]))


def _row(
    picture: Picture, placed: Placed | None, why: str, counted: dict[tuple[str, str], int], settings: CaptionSettings
) -> Row:
    size = (picture.width, picture.height)
    if placed is None:
        why = why or "has no bucket: the sizes cannot be planned"
        return Row(
            picture.key, picture.path, size, None, None, None, picture.repeats, "", None, "none", None, False, why
        )
    placement: Placement = placed.placement
    caption: Caption = placed.caption
    return Row(
        key=picture.key,
        path=picture.path,
        size=size,
        bucket=placement.bucket,
        frame=placement.frame,
        scale=placement.scale,
        repeats=picture.repeats,
        caption=plain_caption(caption.text, settings),
        caption_path=caption.path,
        source=caption.source,
        tokens=counted.get(picture.key),
        trains=True,
    )


def _too_narrow(picture: Picture, level: str) -> Problem:
    what = (
        f"The picture {printable(picture.relative)} ({picture.width} x {picture.height}) is too narrow for any bucket."
    )
    return Problem(what, printable(picture.path), "Crop it by hand, or turn on 'Leave out broken pictures'.", level)


def _count_all(
    placed: Sequence[Placed], settings: CaptionSettings, count_tokens: Callable[[str], int] | None
) -> dict[tuple[str, str], int]:
    """Tokens by picture. A shuffle does not change them, a dropout only takes away."""
    if count_tokens is None:
        return {}
    known: dict[str, int] = {}
    counted: dict[tuple[str, str], int] = {}
    for each in placed:
        caption = plain_caption(each.caption.text, settings)
        if caption not in known:
            known[caption] = count_tokens(caption)
        counted[each.key] = known[caption]
    return counted


# ---- advice


def _caption_advice(
    placed: Sequence[Placed], settings: CaptionSettings, counted: dict[tuple[str, str], int]
) -> list[Problem]:
    return [
        *_without_captions(placed),
        *_other_caption_files(placed, settings),
        *_encodings(placed),
        *_unreadable_captions(placed),
        *_too_long(placed, settings, counted),
    ]


def _without_captions(placed: Sequence[Placed]) -> list[Problem]:
    groups: dict[tuple[str, str], list[Picture]] = defaultdict(list)
    for each in placed:
        if each.caption.source != "file":
            groups[each.caption.source, each.caption.text].append(each.picture)
    found = []
    for (source, text), pictures in groups.items():
        number, names = f"{len(pictures)} of {len(placed)} pictures", names_of(pictures)
        if source == "blank":
            what = f"{number} have an empty caption file and would be learned as an empty caption: {names}."
            fix = "Write captions, or delete the files so that the folder's words are used."
        elif source == "words":
            what = f"{number} have no caption file; the folder's words are used: {text}"
            fix = "Write captions on the Captions tab where pictures differ in more than these words say."
        else:
            what = f"{number} have no caption and their folder no words, so an empty caption is learned: {names}."
            fix = "Write captions, or set the words of this folder."
        found.append(Problem(what, printable(pictures[0].path.parent), fix, "advice"))
    return found


def _other_caption_files(placed: Sequence[Placed], settings: CaptionSettings) -> list[Problem]:
    """Files of the other extension, which the setting leaves unread."""
    unread = [
        each.picture
        for each in placed
        if any(
            not name.lower().endswith(os.path.splitext(each.caption.path.name)[1].lower())
            for name in each.picture.sidecars
        )
    ]
    if not unread:
        return []
    endings = Counter(os.path.splitext(name)[1].lower() for picture in unread for name in picture.sidecars)
    used = Counter(
        os.path.splitext(each.caption.path.name)[1].lower() for each in placed if each.caption.source == "file"
    )
    counts = f"beside them lie {_listed(endings)}, read are {_listed(used)}"
    what = f"{len(unread)} pictures have caption files that are not read: {counts}."
    fix = "Choose which extension is read in Captions, Caption files."
    return [Problem(what, printable(unread[0].path.parent), fix, "advice")]


def _listed(counts: Counter[str]) -> str:
    return " and ".join(f"{number} {ending}" for ending, number in sorted(counts.items())) or "none"


def _encodings(placed: Sequence[Placed]) -> list[Problem]:
    groups: dict[str, list[Placed]] = defaultdict(list)
    for each in placed:
        if each.caption.problem and each.caption.source == "file":
            groups[each.caption.encoding].append(each)
    found = []
    for encoding, group in groups.items():
        problem = group[0].caption.problem
        if problem is None:
            continue
        if len(group) > 1:
            names = names_of([each.picture for each in group])
            what = f"{len(group)} captions were read as {encoding} rather than UTF-8: {names}."
            problem = replace(problem, what=what, where=printable(group[0].picture.path.parent))
        found.append(problem)
    return found


def _unreadable_captions(placed: Sequence[Placed]) -> list[Problem]:
    return [
        each.caption.problem for each in placed if each.caption.problem and each.caption.source in ("words", "none")
    ]


def _too_long(
    placed: Sequence[Placed], settings: CaptionSettings, counted: dict[tuple[str, str], int]
) -> list[Problem]:
    limit = settings.max_token_length
    cut = [each.picture for each in placed if counted.get(each.key, 0) > limit]
    if not cut:
        return []
    longest = max(counted.values())
    what = (
        f"{len(cut)} captions are longer than {limit} tokens (the longest has {longest}) and are cut: {names_of(cut)}."
    )
    fix = "Shorten them, or raise the longest caption to 150 or 225." if limit < 225 else "Shorten them."
    return [Problem(what, "captions.max_token_length", fix, "advice")]


def _size_advice(placed: Sequence[Placed]) -> list[Problem]:
    found = []
    small = sorted(
        (each for each in placed if each.placement.scale > ENLARGED_FROM), key=lambda each: -each.placement.scale
    )
    if small:
        most = small[0].placement.scale
        what = f"{len(small)} of {len(placed)} pictures are smaller than their bucket and are enlarged, "
        what += f"the most by {most:.1f} times: {names_of([each.picture for each in small])}."
        fix = "Use larger pictures, a lower resolution, or turn on 'Never enlarge'."
        found.append(Problem(what, printable(small[0].picture.path.parent), fix, "advice"))
    cropped = sorted(
        (each for each in placed if each.placement.kept < KEPT_BELOW), key=lambda each: each.placement.kept
    )
    if cropped:
        least = cropped[0].placement.kept
        what = f"{len(cropped)} of {len(placed)} pictures lose more than half of themselves to the crop, "
        what += f"at the most all but {least:.0%}: {names_of([each.picture for each in cropped])}."
        fix = "Crop them by hand, or raise the longest bucket side."
        found.append(Problem(what, printable(cropped[0].picture.path.parent), fix, "advice"))
    return found


# ---- fingerprint


def dataset_fingerprint(
    placed: Sequence[Placed],
    *,
    hashes: bool = True,
    memo_path: Path | str | None = None,
    cancel: CancelToken | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What a run trained on, for its dataset.json: every picture with its caption, place and content.

    hashes   also the SHA-256 of each file's bytes, read once and then remembered in `memo_path`
    """
    found = (
        content_hashes([each.picture for each in placed], memo_path, cancel.check if cancel else None, progress)
        if hashes
        else {}
    )
    pictures = [
        {
            "source": each.picture.source,
            "path": printable(each.picture.relative),
            "width": each.picture.width,
            "height": each.picture.height,
            "bytes": each.picture.bytes,
            "sha256": found.get(each.key),
            "repeats": each.repeats,
            "caption": each.caption.text,
            "caption_source": each.caption.source,
            "bucket": list(each.placement.bucket),
        }
        for each in placed
    ]
    return {"v": 1, "count": len(pictures), "pictures": pictures}
