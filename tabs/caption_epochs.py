"""What a training will really use of a caption, and caption files of old encodings: shown and rewritten on the page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from core.dataset.buckets.batches import Placed
from core.dataset.buckets.plan import Plan
from core.dataset.captions.files import UTF_8, Caption, read_caption, rewrite_as_utf8, undo
from core.dataset.captions.pipeline import caption_preview, is_random, needs_steps
from core.dataset.report import Report
from core.record.problems import ProblemsError
from core.record.units import count
from core.settings.job import TrainJob
from tabs.markup import button, esc
from tabs.reading import Reading

EPOCHS = 3
MOST_VIEWS = 2  # of one epoch
KEPT_REWRITINGS = 10


def preview(job: TrainJob, report: Report | None, placed: Placed, text: str) -> str:
    """The captions of the first epochs, where chance has a part in them; "" where none has."""
    settings = placed.concept.captions
    if report is None or not is_random(settings):
        return ""
    saved = read_caption(placed.image, settings)
    both = saved.sentence is not None
    caption: Caption | str = saved if both else text
    views = min(max(placed.repeats, 1), MOST_VIEWS)
    at = _SHOWN_AT.of(job, report) if needs_steps(settings) else {}
    known = any((placed.key, 0, repeat) in at for repeat in range(views))
    drawn = caption_preview(
        caption,
        settings,
        job.schedule.seed or 0,
        placed.key,
        EPOCHS,
        repeats=views,
        words=placed.image.words,
        total_steps=report.total_steps,
        step_of=lambda epoch, repeat: at.get((placed.key, epoch, repeat), epoch * report.steps_per_epoch),
    )
    items = ""
    for each in drawn:
        if known and (placed.key, each.epoch - 1, each.repeat - 1) not in at:
            continue  # its turn comes in a later epoch
        when = f"Epoch {each.epoch}" + (f", view {each.repeat}" if views > 1 else "")
        said = f"<q>{esc(each.text)}</q>" if each.text else "<i>no caption</i>"
        items += f"<li><b>{when}</b> {said}</li>"
    return f'<div class="epochs"><strong>Captions in the first epochs</strong><ul>{items}</ul>{_about(job, both, placed)}</div>'


class _ShownAt:
    """The step at which each image is shown in the first epochs, by the plan that trains; of the newest report only."""

    def __init__(self) -> None:
        self._of: tuple[Any, Any, dict[tuple[tuple[str, ...], int, int], int]] = (None, None, {})

    def of(self, job: TrainJob, report: Report) -> dict[tuple[tuple[str, ...], int, int], int]:
        """{(image's address, epoch from 0, repeat from 0): step from 0}."""
        settings = (job.dataset, job.schedule, job.memory.num_processes)
        if self._of[0] is not report or self._of[1] != settings:
            plan = Plan(report.placed, job, job.schedule.seed or 0, report.total_steps)
            last = min(plan.epochs.first_update(EPOCHS), report.total_steps or plan.epochs.first_update(EPOCHS))
            shown: dict[tuple[tuple[str, ...], int, int], int] = {}
            for step in range(last):
                epoch, batches = plan.update(step)
                shown |= {(each.key, epoch, repeat): step for batch in batches for each, repeat in batch.items}
            self._of = (report, settings, shown)
        return self._of[2]


_SHOWN_AT = _ShownAt()


def _about(job: TrainJob, both: bool, placed: Placed) -> str:
    """What these draws depend on."""
    parts = []
    if job.schedule.seed is None:
        parts.append("No seed is set, so a training shuffles differently; this preview uses seed 0.")
    if both:
        parts.append("This image has two caption files; both are shown as saved.")
    if placed.repeats > MOST_VIEWS:
        parts.append(f"The first {MOST_VIEWS} of {placed.repeats} views of an epoch.")
    return f'<p class="hint">{esc(" ".join(parts))}</p>' if parts else ""


class Encodings:
    """Caption files that are no UTF-8, rewritten all at once with a way back.

    load, keep   read and write plain values that survive a restart: {"rewritten": [[token, ...], ...]}
    """

    def __init__(self, reading: Reading, load: Callable[[], dict[str, Any]], keep: Callable[..., None]):
        self._reading, self._load, self._keep = reading, load, keep

    def old(self) -> list[Caption]:
        """Captions whose files are in another encoding, each file once."""
        report = self._reading.report
        found = {each.caption.path: each.caption for each in (*report.placed, *report.validation)} if report else {}
        return [each for each in found.values() if each.source == "file" and each.encoding not in UTF_8]

    def rewrite(self) -> str:
        """Write them as UTF-8; what was done, in words."""
        tokens = rewrite_as_utf8([caption.path for caption in self.old()])
        if tokens:
            done = [*self._load().get("rewritten", []), [quote_from_bytes(os.fsencode(token)) for token in tokens]]
            self._keep(rewritten=done[-KEPT_REWRITINGS:])
            self._reading.want(now=True)
        return f"Rewritten as UTF-8: {count(len(tokens), 'caption')}"

    def take_back(self) -> str:
        """Undo the newest rewriting; what was done, in words."""
        done = list(self._load().get("rewritten", []))
        if not done:
            return ""
        tokens = done.pop()
        self._keep(rewritten=done)
        gone = 0
        for token in reversed(tokens):
            try:
                undo(os.fsdecode(unquote_to_bytes(token)))
            except ProblemsError:
                gone += 1
        self._reading.want(now=True)
        rest = f"; {gone} are no longer in the trash folder" if gone else ""
        return f"Restored: {count(len(tokens) - gone, 'caption')}{rest}"

    def html(self) -> str:
        """How many there are, and the two buttons."""
        old, done = self.old(), self._load().get("rewritten", [])
        if not old and not done:
            return ""
        parts = ""
        if old:
            kinds = ", ".join(
                f"{number} {name}" for name, number in Counter(each.encoding for each in old).most_common()
            )
            about = f"{count(len(old), 'caption file')} not in UTF-8 ({kinds}). Check their text first."
            parts += f"<span>{esc(about)}</span>" + button("utf8", f"Rewrite {count(len(old), 'caption')} as UTF-8")
        if done:
            parts += button("utf8_back", f"Undo rewriting {count(len(done[-1]), 'caption')}", kind="quiet")
        return f'<div class="told encodings">{parts}</div>'
