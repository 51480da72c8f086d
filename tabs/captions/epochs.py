"""Preview of the captions used in the first epochs, and a notice about caption files that are not UTF-8."""

from collections import Counter
from typing import Any

from core.dataset.buckets.batches import Placed
from core.dataset.buckets.plan import Plan
from core.dataset.captions.files import UTF_8, Caption, read_caption
from core.dataset.captions.pipeline import caption_preview, is_random, needs_steps
from core.dataset.report import Report
from core.record.units import count
from core.settings.job import TrainJob
from tabs.dataset.reading import once_per_report
from tabs.markup import button, esc

EPOCHS = 3
MAX_VIEWS = 2  # of an epoch


def preview(job: TrainJob, report: Report | None, placed: Placed, text: str) -> str:
    """Return the HTML of the image's captions in the first EPOCHS epochs; "" if they are not randomized.

    text: the edited caption, which may not be saved yet
    """
    settings = placed.concept.captions
    if report is None or not is_random(settings):
        return ""
    saved = read_caption(placed.image, settings)
    two_files = saved.sentence is not None
    caption: Caption | str = saved if two_files else text
    views = min(max(placed.repeats, 1), MAX_VIEWS)
    step_by_view = _IMAGE_STEPS.steps(job, report) if needs_steps(settings) else {}
    any_known = any((placed.key, 0, repeat) in step_by_view for repeat in range(views))
    previews = caption_preview(
        caption,
        settings,
        job.schedule.seed or 0,
        placed.key,
        EPOCHS,
        repeats=views,
        class_tokens=placed.image.class_tokens,
        total_steps=report.total_steps,
        step_of=lambda epoch, repeat: step_by_view.get((placed.key, epoch, repeat), epoch * report.steps_per_epoch),
    )
    items = ""
    for each in previews:
        if any_known and (placed.key, each.epoch - 1, each.repeat - 1) not in step_by_view:
            continue  # shown in a later epoch
        title = f"Epoch {each.epoch}" + (f", view {each.repeat}" if views > 1 else "")
        caption_html = f"<q>{esc(each.text)}</q>" if each.text else "<i>no caption</i>"
        items += f"<li><b>{title}</b> {caption_html}</li>"
    return f'<div class="epochs"><strong>Captions in the first epochs</strong><ul>{items}</ul>{_about(job, two_files, placed)}</div>'


class _ImageSteps:
    """Steps at which images are trained in the first epochs, from the training plan; cached for the newest report."""

    def __init__(self) -> None:
        self._cached: tuple[Any, Any, dict[tuple[tuple[str, ...], int, int], int]] = (None, None, {})

    def steps(self, job: TrainJob, report: Report) -> dict[tuple[tuple[str, ...], int, int], int]:
        """Return {(image key, epoch, repeat): step} of the first EPOCHS epochs, all counted from 0."""
        settings = (job.dataset, job.schedule, job.memory.num_processes)
        if self._cached[0] is not report or self._cached[1] != settings:
            plan = Plan(report.placed, job, job.schedule.seed or 0, report.total_steps)
            end = min(plan.epochs.first_step(EPOCHS), report.total_steps or plan.epochs.first_step(EPOCHS))
            steps: dict[tuple[tuple[str, ...], int, int], int] = {}
            for step in range(end):
                epoch, batches = plan.step_batches(step)
                steps |= {(each.key, epoch, repeat): step for batch in batches for each, repeat in batch.items}
            self._cached = (report, settings, steps)
        return self._cached[2]


_IMAGE_STEPS = _ImageSteps()


def _about(job: TrainJob, two_files: bool, placed: Placed) -> str:
    """Return the HTML of notes on the preview; "" without any. two_files: whether the image has two caption files"""
    parts = []
    if job.schedule.seed is None:
        parts.append("No seed is set, so a training shuffles differently; this preview uses seed 0.")
    if two_files:
        parts.append("This image has two caption files; both are shown as saved.")
    if placed.repeats > MAX_VIEWS:
        parts.append(f"The first {MAX_VIEWS} of {placed.repeats} views of an epoch.")
    return f'<p class="hint">{esc(" ".join(parts))}</p>' if parts else ""


@once_per_report
def non_utf8_captions(report: Report | None) -> list[Caption]:
    """Return the captions whose files are not UTF-8, one per file."""
    placed = (*report.placed, *report.validation) if report else ()
    other_encodings = (each.caption for each in placed if each.caption.encoding not in UTF_8)
    return list({each.path: each for each in other_encodings if each.source == "file"}.values())


def encoding_notice(report: Report | None) -> str:
    """Return the HTML of the number of caption files that are not UTF-8, with a button to rewrite them; "" without any."""
    captions = non_utf8_captions(report)
    if not captions:
        return ""
    kinds = ", ".join(f"{number} {name}" for name, number in Counter(each.encoding for each in captions).most_common())
    text = f"{count(len(captions), 'caption file')} not in UTF-8 ({kinds}). Check their text first."
    rewrite = button("utf8", f"Rewrite {count(len(captions), 'caption')} as UTF-8")
    return f'<div class="told encodings"><span>{esc(text)}</span>{rewrite}</div>'
