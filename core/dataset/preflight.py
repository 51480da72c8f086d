"""Check and plan a dataset before the start, without a model: what trains, for how long, and all problems."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from core.dataset.advice import balance_advice, caption_advice, remark_advice, size_advice
from core.dataset.buckets.aspect_ratio import Size
from core.dataset.buckets.batches import Placed
from core.dataset.buckets.length import length_of, length_sentence
from core.dataset.buckets.placing import Key, Placing, place
from core.dataset.buckets.plan import Epochs
from core.dataset.buckets.validation_split import held_out
from core.dataset.caches.contents import content_hashes
from core.dataset.captions.files import IMAGE_SOURCES
from core.dataset.captions.memo import captions_of
from core.dataset.captions.pipeline import longest_captions, plain_caption
from core.dataset.control_advice import control_advice
from core.dataset.images.look import Look, look_at_all, reasons_of
from core.dataset.images.look import looks as looks_of
from core.dataset.images.opening import BrokenImage, problem_of
from core.dataset.report import Report, Row, questions_of
from core.dataset.sources.conditioning import blank_mask_advice, mask_paths, unmasked_advice, unreadable_masks
from core.dataset.sources.image_info import Folder, ImageInfo, Scan
from core.dataset.sources.scan import scan_dataset
from core.record.cancel import CancelToken
from core.record.problems import Problem, errors
from core.record.workspace import Workspace
from core.settings.dataset.concepts import Concept, concepts_of
from core.settings.job import TrainJob

Progress = Callable[[int, int], None]


def preflight(
    job: TrainJob,
    workspace: Workspace,
    *,
    count_tokens: Callable[[str], int] | None = None,
    decode: bool = False,
    cancel: CancelToken | None = None,
    progress: Progress | None = None,
) -> Report:
    """Read and plan a job's dataset. Problems are part of the report, all at once; only a cancel raises.

    count_tokens   caption -> number of tokens without start and end tokens
    decode         also decode every image (cached, see `look_at_all`); without it, cached results are still used
    progress       called with (done, total) images and masks while decoding
    """
    concepts = concepts_of(job)
    memo = workspace.private / "index.sqlite"
    scan = scan_dataset(job.dataset, concepts, cancel, memo)
    problems = [*scan.problems]
    unused = {each.number for each in concepts if not each.reads_partners}
    images = [replace(each, conditioning=None) if each.concept in unused else each for each in scan.images]
    looks, masks, undecoded = _measure_images(images, memo, decode, cancel, progress)
    placing = _place(job, concepts, scan, {**masks, **reasons_of(looks)}, memo, cancel)
    problems += placing.problems
    epochs = Epochs(placing.placed, job.dataset, job.schedule.gradient_accumulation_steps, job.memory.num_processes)
    token_counts = _count_tokens(placing, count_tokens)
    once = _each_once([*placing.placed, *placing.validation])
    problems += caption_advice(once, token_counts, job.captions.max_token_length)
    problems += unmasked_advice(once, looks)
    if not job.noise.trains_unmasked:
        problems += blank_mask_advice(once, looks, memo)
    problems += control_advice(once, looks, memo)
    problems += size_advice(once) + remark_advice(once, looks) + balance_advice(epochs)
    if not any(map(len, epochs.parts)) and not errors(problems):
        what, fix = "No images are left to train on", "add images, or fix the other problems"
        if placing.validation:
            what = "All training images are held out for validation"
            fix = "lower the validation split, or give a folder the role of training images"
        problems.append(Problem(what, "dataset", fix, code="dataset.no-images"))
    elif any(map(len, epochs.parts)) and not epochs.batches_in(0):
        what = "No batch is ever full, and incomplete ones are dropped"
        fix = "lower the batch size, or keep short batches"
        problems.append(Problem(what, "dataset.short_batches", fix, code="dataset.no-batches"))
    if placing.placed and not placing.validation and any(each.holds_out for each in concepts):
        what = "No image is held out for validation: there is no validation loss"
        fix = "add images: a split needs two different ones, and images that are named must be in the folder"
        problems.append(Problem(what, "validation.validation_split", fix, "advice", code="dataset.no-validation"))
    return replace(_report(job, scan, placing, epochs, token_counts, problems, once, looks), undecoded=undecoded)


def _measure_images(
    images: Sequence[ImageInfo], memo: Path, decode: bool, cancel: CancelToken | None, progress: Progress | None
) -> tuple[dict[Key, Look], dict[Key, str], int]:
    """Measure images and masks by decoding, or return what was measured before if `decode` is False.

    Returns (image key -> measurements, image key -> why its mask cannot be used, number of images and masks not decoded yet).
    """
    report = progress or (lambda done, total: None)
    total = len(images) + len(mask_paths(images))
    looks = look_at_all(images, cancel, lambda done, _: report(done, total), memo) if decode else looks_of(images, memo)
    masks, undecoded = unreadable_masks(images, decode, cancel, memo, lambda done, _: report(len(images) + done, total))
    return looks, masks, undecoded + sum(image.key not in looks for image in images)


def _place(
    job: TrainJob,
    concepts: Sequence[Concept],
    scan: Scan,
    broken: Mapping[Key, str],
    memo: Path,
    cancel: CancelToken | None,
) -> Placing:
    """Assign every image to buckets. Images in `broken` are refused.
    broken: image key -> why the image or its mask cannot be decoded"""
    level = "advice" if job.dataset.skip_broken else "error"
    check = cancel.check if cancel else None
    readable = [image for image in scan.images if image.key not in broken]
    captions = captions_of(readable, [concept.captions for concept in concepts], memo, check)
    placing = place(
        readable,
        concepts,
        lambda image: captions[image.key],
        held_out=held_out(
            readable, concepts, lambda members: content_hashes(members, memo, check), job.validation.validation_seed
        ),
        merge=job.dataset.short_batches == "merge",
        processes=job.memory.num_processes,
        level=level,
    )
    by_key = {image.key: image for image in scan.images}
    placing.problems += [problem_of(by_key[key].path, BrokenImage(why), level) for key, why in broken.items()]
    placing.refused |= broken
    return placing


def _each_once(placed: Iterable[Placed]) -> list[Placed]:
    """Return each image once, at the first of the resolutions at which it trains."""
    return list({each.image.key: each for each in reversed(list(placed))}.values())[::-1]


def _report(
    job: TrainJob,
    scan: Scan,
    placing: Placing,
    epochs: Epochs,
    token_counts: Mapping[Key, int],
    problems: list[Problem],
    all_once: Sequence[Placed],
    looks: Mapping[Key, Look],
) -> Report:
    """Return the report of a planned dataset.

    token_counts   image key -> tokens of its longest caption
    all_once       training and validation images, each at one of its resolutions
    looks          image key -> measurements of the decoded images
    """
    placed = placing.placed
    length = length_of(job.schedule, epochs)
    unused = _unused_images(epochs)
    training_images = [each for each in _each_once(placed) if each.image.key not in unused]
    return Report(
        problems=tuple(problems),
        placed=tuple(placed),
        validation=tuple(placing.validation),
        rows=tuple(_rows(scan, placing, token_counts, unused, looks)),
        folders=_folders(scan, placing.refused | unused),
        buckets=_buckets(placed, epochs),
        views=dict(Counter(each.concept.number for each, _ in epochs.views_of(0))),
        captions_found=sum(each.caption.source in IMAGE_SOURCES for each in training_images),
        batches_per_epoch=epochs.batches_in(0),
        length=length,
        sentence=length_sentence(length, epochs, len(training_images), job.schedule.gradient_accumulation_steps),
        longest_tokens=max(token_counts.values(), default=None),
        token_limit=job.captions.max_token_length,
        questions=questions_of(all_once, looks),
    )


def _buckets(placed: Sequence[Placed], epochs: Epochs) -> dict[Size, tuple[int, int]]:
    """Return {bucket size: (images, views in the first epoch)} of the images that any epoch uses, sorted."""
    unused = {each.key for each in (*epochs.never_used(), *epochs.unneeded())}
    images = Counter(each.placement.bucket for each in placed if each.key not in unused)
    views = Counter(each.placement.bucket for each, _ in epochs.views_of(0))
    return {size: (images[size], views[size]) for size in sorted(images)}


def _folders(scan: Scan, left_out: Mapping[Key, str]) -> tuple[Folder, ...]:
    """Return the folders with their number of images in use."""
    usable = Counter(image.source for image in scan.images if image.key not in left_out)
    return tuple(replace(folder, images=usable[folder.id]) for folder in scan.folders)


def _unused_images(epochs: Epochs) -> dict[Key, str]:
    """Return {image key: reason} of the images that no epoch uses at any of their resolutions."""
    why = {each.key: "is not needed to balance the training images" for each in epochs.unneeded()}
    unfilled = "is in a bucket that never fills a batch, and incomplete batches are dropped"
    why |= {each.key: unfilled for each in epochs.never_used()}
    used = {each.image.key for each in epochs.placed if each.key not in why}
    return {each.image.key: why[each.key] for each in epochs.placed if each.image.key not in used}


def _rows(
    scan: Scan,
    placing: Placing,
    token_counts: Mapping[Key, int],
    unused: Mapping[Key, str],
    looks: Mapping[Key, Look],
) -> list[Row]:
    """Return a row for every image, including broken ones, by folder and path.
    unused: image key -> why no epoch uses the image"""
    placed_of: dict[Key, list[Placed]] = {}
    for each in [*placing.placed, *placing.validation]:
        placed_of.setdefault(each.image.key, []).append(each)
    held_out_keys = {each.image.key for each in placing.validation}
    rows = []
    for image in scan.images:
        held_out_reason = "is held out for validation" if image.key in held_out_keys else ""
        why = held_out_reason or unused.get(image.key, "") or placing.refused.get(image.key, "")
        placed, look = placed_of.get(image.key, []), looks.get(image.key, Look())
        row = _row(image, placed, why, token_counts)
        role, readable = "validation" if held_out_reason else row.role, not look.reason
        mask = row.mask or bool(placed and look.transparent and placed[0].concept.images.alpha_mask)
        row = replace(row, role=role, actual_format=image.actual_format, mask=mask)
        rows.append(replace(row, transparent=look.transparent, readable=readable))
    rows += [_row(image, [], why, token_counts) for image, why in scan.left_out]
    for broken in scan.broken:
        rows.append(Row((broken.source, broken.relative), broken.path, why=broken.reason, readable=False))
    order = {name: index for index, name in enumerate(dict.fromkeys(row.key[0] for row in rows))}
    return sorted(rows, key=lambda row: (order[row.key[0]], row.key[1]))


def _row(image: ImageInfo, placed: Sequence[Placed], why: str, token_counts: Mapping[Key, int]) -> Row:
    """Return the row of a readable image.

    placed   the image at each of its resolutions, [] if it has no bucket
    why      the reason why it does not train, else empty
    """
    size = (image.width, image.height)
    if not placed:
        return Row(image.key, image.path, size, repeats=image.repeats, why=why, concept=image.concept)
    first = placed[0]
    return Row(
        key=image.key,
        path=image.path,
        size=size,
        bucket=first.placement.bucket,
        frame=first.placement.frame,
        scale=first.placement.scale,
        repeats=image.repeats,
        caption=plain_caption(first.caption.text, first.concept.captions, image.class_tokens),
        caption_path=first.caption.path,
        source=first.caption.source,
        tokens=token_counts.get(image.key),
        trains=not why,
        why=why,
        role=first.concept.role,
        concept=image.concept,
        more=tuple(each.placement.bucket for each in placed[1:]),
        mask=image.conditioning is not None and first.concept.images.masked_loss,
        control=image.control,
    )


def _count_tokens(placing: Placing, count_tokens: Callable[[str], int] | None) -> dict[Key, int]:
    """Return {image key: tokens of its longest possible caption} (shuffling keeps the number, dropout lowers it)."""
    if count_tokens is None:
        return {}
    counts: dict[str, int] = {}
    token_counts: dict[Key, int] = {}
    for each in [*placing.placed, *placing.validation]:
        captions = longest_captions(each.caption, each.concept.captions, each.image.class_tokens)
        for caption in captions:
            if caption not in counts:
                counts[caption] = count_tokens(caption)
        token_counts[each.image.key] = max(counts[caption] for caption in captions)
    return token_counts
