"""Everything that can be known before a start, without a model: what trains, how, for how long, and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from core.dataset.advice import balance_advice, caption_advice, remark_advice, size_advice
from core.dataset.batches import Placed
from core.dataset.buckets import Size
from core.dataset.caption_files import OWN
from core.dataset.caption_memo import captions_of
from core.dataset.captions import longest_captions, plain_caption
from core.dataset.conditioning import blank_masks, mask_paths, unreadable_masks
from core.dataset.contents import content_hashes
from core.dataset.decoding import look_at_all, reasons_of
from core.dataset.epochs import Epochs
from core.dataset.length import length_of, length_sentence
from core.dataset.look import Look
from core.dataset.look import looks as looks_of
from core.dataset.opening import BrokenPicture, problem_of
from core.dataset.placing import Key, Placing, held_out, place
from core.dataset.questions import questions_of
from core.dataset.report import Report, Row
from core.dataset.scan import Folder, Picture, Scan, scan_dataset
from core.record.cancel import CancelToken
from core.record.problems import Problem, errors
from core.record.workspace import Workspace
from core.settings.concepts import Concept, concepts_of
from core.settings.job import TrainJob

if TYPE_CHECKING:
    from pathlib import Path

Progress = Callable[[int, int], None]


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
    decode         also decode every picture whole (remembered, see `look_at_all`); without it, what an earlier
                   decoding found broken still counts
    advice         findings about the settings themselves, listed with the dataset's own
    progress       called with (done, all) pictures and masks while decoding
    """
    concepts = concepts_of(job)
    memo = workspace.private / "index.sqlite"
    found = scan_dataset(job.dataset, concepts, cancel, memo)
    problems = [*advice, *found.problems]
    images, masks, undecoded = _looked_at(found.pictures, memo, decode, cancel, progress)
    placing = _place(job, concepts, found, {**masks, **reasons_of(images)}, memo, cancel)
    problems += placing.problems
    epochs = Epochs(placing.placed, job.dataset, job.schedule.gradient_accumulation_steps, job.memory.num_processes)
    counted = _count_all(placing, count_tokens)
    once = _each_once([*placing.placed, *placing.validation])
    problems += caption_advice(once, counted, job.captions.max_token_length)
    problems += blank_masks(once, images, memo)
    problems += size_advice(once) + remark_advice(once, images) + balance_advice(epochs)
    if not epochs.views and not errors(problems):
        problems.append(
            Problem("No picture is left to train.", "dataset", "Add pictures, or see the findings beside this one.")
        )
    report = _report(job, found, placing, epochs, counted, problems, once, images)
    return replace(report, undecoded=undecoded)


def _looked_at(
    pictures: Sequence[Picture], memo: Path, decode: bool, cancel: CancelToken | None, progress: Progress | None
) -> tuple[dict[Key, Look], dict[Key, str], int]:
    """What the images look like, why masks cannot be used, and how many of both nobody has decoded yet."""
    say = progress or (lambda done, total: None)
    total = len(pictures) + len(mask_paths(pictures))
    images = (
        look_at_all(pictures, cancel, lambda done, _: say(done, total), memo) if decode else looks_of(pictures, memo)
    )
    masks, unread = unreadable_masks(pictures, decode, cancel, memo, lambda done, _: say(len(pictures) + done, total))
    return images, masks, unread + sum(picture.key not in images for picture in pictures)


def _place(
    job: TrainJob,
    concepts: Sequence[Concept],
    found: Scan,
    broken: Mapping[Key, str],
    memo: Path,
    cancel: CancelToken | None,
) -> Placing:
    """Every picture at its place; those that cannot be decoded, or whose mask cannot, are refused by name."""
    level = "advice" if job.dataset.skip_broken else "error"
    check = cancel.check if cancel else None
    whole = [picture for picture in found.pictures if picture.key not in broken]
    captions = captions_of(whole, [concept.captions for concept in concepts], memo, check)
    placing = place(
        whole,
        concepts,
        lambda picture: captions[picture.key],
        held_out=held_out(
            whole, concepts, lambda members: content_hashes(members, memo, check), job.validation.validation_seed
        ),
        merge=job.dataset.short_batches == "merge",
        processes=job.memory.num_processes,
        level=level,
    )
    by_key = {picture.key: picture for picture in found.pictures}
    placing.problems += [problem_of(by_key[key].path, BrokenPicture(why), level) for key, why in broken.items()]
    placing.refused |= broken
    return placing


def _each_once(placed: Iterable[Placed]) -> list[Placed]:
    """One of each picture, however many resolutions it trains at."""
    return list({each.picture.key: each for each in reversed(list(placed))}.values())[::-1]


def _report(
    job: TrainJob,
    found: Scan,
    placing: Placing,
    epochs: Epochs,
    counted: Mapping[Key, int],
    problems: list[Problem],
    all_once: Sequence[Placed],
    looks: Mapping[Key, Look],
) -> Report:
    placed = placing.placed
    length = length_of(job.schedule, epochs)
    never = _never_shown(epochs)
    once = [each for each in _each_once(placed) if each.picture.key not in never]
    return Report(
        problems=tuple(problems),
        placed=tuple(placed),
        validation=tuple(placing.validation),
        rows=tuple(_rows(found, placing, counted, never, looks)),
        folders=_folders(found, placing.refused),
        buckets=_buckets(placed, epochs),
        views=dict(Counter(each.concept.number for each, _ in epochs.views_of(0))),
        captions_found=sum(each.caption.source in OWN for each in once),
        batches_per_epoch=epochs.batches_in(0),
        length=length,
        sentence=length_sentence(length, epochs, len(once), job.schedule.gradient_accumulation_steps),
        longest_tokens=max(counted.values(), default=None),
        token_limit=job.captions.max_token_length,
        questions=questions_of(all_once, looks),
    )


def _buckets(placed: Sequence[Placed], epochs: Epochs) -> dict[Size, tuple[int, int]]:
    """{bucket: (pictures, views in the first epoch)}, sorted."""
    pictures = Counter(each.placement.bucket for each in placed)
    views = Counter(each.placement.bucket for each, _ in epochs.views_of(0))
    return {size: (pictures[size], views[size]) for size in sorted(pictures)}


def _folders(found: Scan, refused: Mapping[Key, str]) -> tuple[Folder, ...]:
    """The folders with the number of their pictures that can be used, as everywhere else on the page."""
    left = Counter(picture.source for picture in found.pictures if picture.key not in refused)
    return tuple(replace(folder, pictures=left[folder.id]) for folder in found.folders)


def _never_shown(epochs: Epochs) -> dict[Key, str]:
    """{picture key: why no epoch shows it, at any of its resolutions}."""
    why = {each.key: "is not needed to balance the pictures to learn" for each in epochs.not_needed()}
    why |= {each.key: "its bucket never fills a batch, and short batches are left out" for each in epochs.never_shown()}
    shown = {each.picture.key for each in epochs.placed if each.key not in why}
    return {each.picture.key: why[each.key] for each in epochs.placed if each.picture.key not in shown}


def _rows(
    found: Scan,
    placing: Placing,
    counted: Mapping[Key, int],
    never: Mapping[Key, str],
    looks: Mapping[Key, Look],
) -> list[Row]:
    """Every picture, broken ones too, by folder and path."""
    places: dict[Key, list[Placed]] = {}
    for each in [*placing.placed, *placing.validation]:
        places.setdefault(each.picture.key, []).append(each)
    out = {each.picture.key for each in placing.validation}
    rows = []
    for picture in found.pictures:
        at = places.get(picture.key, [])
        held = "is held out for validation" if picture.key in out else ""
        why = held or never.get(picture.key, "") or placing.refused.get(picture.key, "")
        row = _row(picture, at, why, counted)
        transparent = picture.key in looks and looks[picture.key].transparent
        role = "validation" if held else row.role
        rows.append(replace(row, role=role, really=picture.really, transparent=transparent))
    rows += [_row(picture, [], why, counted) for picture, why in found.left_out]
    for broken in found.broken:
        key = (broken.source, broken.relative)
        rows.append(Row(key, broken.path, None, None, None, None, 0, "", None, "none", None, False, broken.reason))
    order = {name: place for place, name in enumerate(dict.fromkeys(row.key[0] for row in rows))}
    return sorted(rows, key=lambda row: (order[row.key[0]], row.key[1]))


def _row(picture: Picture, at: Sequence[Placed], why: str, counted: Mapping[Key, int]) -> Row:
    """why: the reason not to train, else empty."""
    size = (picture.width, picture.height)
    if not at:
        return Row(
            picture.key,
            picture.path,
            size,
            None,
            None,
            None,
            picture.repeats,
            "",
            None,
            "none",
            None,
            False,
            why,
            concept=picture.concept,
        )
    first = at[0]
    return Row(
        key=picture.key,
        path=picture.path,
        size=size,
        bucket=first.placement.bucket,
        frame=first.placement.frame,
        scale=first.placement.scale,
        repeats=picture.repeats,
        caption=plain_caption(first.caption.text, first.concept.captions, picture.words),
        caption_path=first.caption.path,
        source=first.caption.source,
        tokens=counted.get(picture.key),
        trains=not why,
        why=why,
        role=first.concept.role,
        concept=picture.concept,
        more=tuple(each.placement.bucket for each in at[1:]),
        mask=picture.conditioning is not None,
    )


def _count_all(placing: Placing, count_tokens: Callable[[str], int] | None) -> dict[Key, int]:
    """Tokens by picture, of the longest caption that it may have. A shuffle does not change them, a dropout only takes
    away."""
    if count_tokens is None:
        return {}
    known: dict[str, int] = {}
    counted: dict[Key, int] = {}
    for each in [*placing.placed, *placing.validation]:
        captions = longest_captions(each.caption, each.concept.captions, each.picture.words)
        for caption in captions:
            if caption not in known:
                known[caption] = count_tokens(caption)
        counted[each.picture.key] = max(known[caption] for caption in captions)
    return counted
