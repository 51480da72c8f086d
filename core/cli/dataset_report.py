"""Terminal reports on a dataset: each image with bucket and captions, and the batches of a training."""

from collections.abc import Iterator, Mapping, Sequence

from core.dataset.buckets.batches import Placed, PlannedBatch
from core.dataset.buckets.plan import Plan
from core.dataset.captions.pipeline import is_random
from core.dataset.images.views import draw_view, size_conditioning
from core.dataset.report import Report, Row
from core.families.token_count import count_tokens, cut_at
from core.record.units import count
from core.settings.job import TrainJob

EPOCHS_SHOWN = 3
# question -> the settings of a folder that answer it where they are not the default
ANSWERS = {
    "transparency": ("images", "alpha_mask", "alpha_color"),
    "sidecars": ("captions", "sidecars", "caption_extension"),
    "lines": ("captions", "caption_lines"),
}


def report_lines(job: TrainJob, report: Report) -> Iterator[str]:
    """Yield lines on each image (size, bucket, scale, crop, tokens, captions of the first epochs), then on the whole dataset."""
    placed = {each.image.key: each for each in [*report.placed, *report.validation] if not each.variant}
    plan = Plan(report.placed, job, job.schedule.seed or 0, report.total_steps)
    captions = plan.first_captions(min(EPOCHS_SHOWN, report.epochs))
    for row in report.rows:
        yield from _image(job, row, placed.get(row.key), captions)
    yield ""
    yield "Buckets (width x height: images, views in the first epoch)"
    yield from (f"  {_size(size)}: {images}, {views}" for size, (images, views) in report.buckets.items())
    if report.held_out:
        yield report.held_out
    if report.longest_tokens is not None:
        yield f"Longest caption: {report.longest_tokens} of {report.token_limit} tokens"
    yield from _open_questions(report)
    yield from _without_seed(job, report)
    yield report.sentence


def _open_questions(report: Report) -> Iterator[str]:
    """Yield a line for each question about images of folders whose settings still have the defaults that the question is about."""
    concepts = {each.concept.number: each.concept for each in [*report.placed, *report.validation]}
    for each in report.questions:
        part, *names = ANSWERS[each.kind]
        groups = {number: getattr(concept, part) for number, concept in concepts.items()}
        unanswered = {
            number
            for number, group in groups.items()
            if all(getattr(group, name) == type(group).model_fields[name].default for name in names)
        }
        transparent = sum(
            row.transparent and row.bucket is not None and row.concept in unanswered for row in report.rows
        )
        images = transparent if each.kind == "transparency" else each.images if unanswered else 0
        counts = ", ".join(f"{number} {words}" for words, number in each.counts.items())
        if images:
            title = groups[min(unanswered)].title_of(names[0])
            yield f"Left open: {title}, {count(images, 'image')}{f' ({counts})' if counts else ''}"


def _image(
    job: TrainJob, row: Row, placed: Placed | None, captions: Mapping[tuple[str, ...], list[str]]
) -> Iterator[str]:
    """Yield lines on one image.

    placed     the image in its bucket; None if it is left out
    captions   {image key: captions of the first epochs}
    """
    name = "/".join(row.key)
    if placed is None or not (row.trains or row.role == "validation"):
        yield f"{name}  not trained: {row.why}"
        return
    buckets = ", ".join(_size(size) for size in (placed.placement.bucket, *row.more))
    facts = [
        f"{_size(row.size)} -> {buckets}" if row.size else buckets,
        f"x{placed.placement.scale:.2f}",
        f"{placed.placement.area_after_crop:.0%} kept, crop at {placed.placement.crop[0]},{placed.placement.crop[1]}",
        f"{row.repeats} repeats" if row.repeats > 1 else "",
        row.role if row.role != "train" else "",
        "rotated as in its EXIF" if placed.image.rotated else "",
        f"actual format: {row.actual_format}" if row.actual_format else "",
        "transparent" if row.transparent else "",
        count(row.tokens, "token") if row.tokens is not None else "",
        "with a mask" if row.mask else "",
    ]
    yield f"{name}  " + ", ".join(fact for fact in facts if fact)
    for text in dict.fromkeys(captions.get(placed.key) or [row.caption]):
        read, cut = cut_at(text, job.captions.max_token_length)
        yield f"    {read!r}" + (f"  cut off: {cut!r}" if cut else "")


def _without_seed(job: TrainJob, report: Report) -> Iterator[str]:
    """Yield a note if captions are random and no seed is set."""
    if job.schedule.seed is None and any(is_random(each.concept.captions) for each in report.placed):
        yield "No seed is set: random captions are those of --schedule.seed 0; each training has others"


# ---- debug_dataset


def batch_lines(job: TrainJob, report: Report, epochs: int) -> Iterator[str]:
    """Yield lines on every batch of the first `epochs` epochs, with its images, like sd-scripts' debug_dataset."""
    seed = job.schedule.seed or 0
    plan = Plan(report.placed, job, seed, report.total_steps)
    if job.schedule.seed is None:
        yield "No seed is set: the order is that of --schedule.seed 0; each training has another"
    for epoch in range(min(epochs, max(report.epochs, 1))):
        yield f"epoch {epoch + 1}"
        first = plan.epochs.first_step(epoch)
        for offset in range(plan.epochs.steps_in(epoch)):
            _, batches = plan.step_batches(first + offset)
            for batch in batches:
                yield f"  step {first + offset + 1}, {len(batch)} x {_size(batch.bucket)}"
                yield from _samples(job, plan, batch, seed, epoch, first + offset)


def _samples(job: TrainJob, plan: Plan, batch: PlannedBatch, seed: int, epoch: int, step: int) -> Iterator[str]:
    """Yield lines on the images of one batch: weight, size conditioning, augmentations, caption. epoch, step: from 0."""
    for placed, repeat in batch.items:
        view = draw_view(placed, seed, epoch, repeat)
        original, crop, target = size_conditioning(placed, view, job.dataset.crop_conditioning)
        caption = plan.caption(placed, epoch, repeat, step)
        facts = [
            f"weight {placed.loss_weight(job.dataset):g}",
            f"original {_size(original)}, crop {crop[0]},{crop[1]}, target {_size(target)}",
            "mirrored" if view.flip else "",
            f"hue {view.hue:+.1f}" if view.hue else "",
            f"gamma {view.gamma:.3f}" if view.gamma != 1 else "",
            f"network x{placed.concept.images.network_multiplier:g}"
            if placed.concept.images.network_multiplier != 1
            else "",
            count(count_tokens(caption), "token"),
        ]
        yield f"    {'/'.join(placed.key)} #{repeat + 1}: " + ", ".join(fact for fact in facts if fact)
        yield f"      {caption!r}"


def _size(size: Sequence[int]) -> str:
    """Format (width, height) as "512x768"."""
    return f"{size[0]}x{size[1]}"
