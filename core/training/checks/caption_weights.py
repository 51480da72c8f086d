"""Weights in captions that are not numbers: found before the start, since they would stop the run later."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from core.dataset.captions.pipeline import longest_captions, plain_caption
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import names_of
from core.families.word_weights import FIX, wrong_weight
from core.record.problems import Problem

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed
    from core.settings.job import TrainJob

AROUND = "captions.caption_prefix, caption_suffix, trigger_word"


def weight_problems(job: TrainJob, placed: Sequence[Placed]) -> list[Problem]:
    """One error for each weight that is not a number, with the images whose captions have it."""
    if not job.captions.weighted_captions:
        return []
    found: defaultdict[tuple[str, bool], list[Placed]] = defaultdict(list)
    for each in {each.image.key: each for each in placed}.values():
        own = _wrong(each.caption.whole.splitlines())  # any line may be chosen
        wrong = own or _wrong(_trained(each))
        if wrong:
            found[wrong, bool(own)].append(each)
    problems = [
        Problem(
            f"In the caption of {names_of([each.image for each in several])}, {wrong}",
            printable(several[0].caption.path) if own else AROUND,
            FIX,
            code="caption.bad-weight",
        )
        for (wrong, own), several in found.items()
    ]
    asked = job.method.class_caption if job.method.prior == "model" else None
    wrong = wrong_weight(asked or "")
    if wrong:
        what = f"In the class caption, {wrong}"
        problems.append(Problem(what, "method.class_caption", FIX, code="caption.bad-weight"))
    return problems


def _trained(placed: Placed) -> set[str]:
    settings, words = placed.concept.captions, placed.image.words
    return {plain_caption(placed.caption.text, settings, words), *longest_captions(placed.caption, settings, words)}


_MARKS = re.compile(r"[:(\[]")  # a text without them has no weights


def _wrong(texts: Iterable[str]) -> str:
    return next((found for text in texts if _MARKS.search(text) and (found := wrong_weight(text))), "")
