"""Whether the captions hold the words that textual inversion is to train: one that none holds would train nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.dataset.captions import plain_caption
from core.methods.new_words import word_pattern
from core.record.problems import Problem

if TYPE_CHECKING:
    from core.dataset.batches import Placed
    from core.settings.job import TrainJob


def new_word_problems(job: TrainJob, placed: Sequence[Placed]) -> list[Problem]:
    """One error for each new word that stands in no caption."""
    if job.method.changes != "embedding":
        return []
    texts = {text for each in placed for text in _texts(each)}
    return [
        Problem(
            f"No caption holds the new word '{word}', so nothing would be trained of it", *_where_and_fix(job, word)
        )
        for word in job.embedding.words
        if not any(word_pattern([word]).search(text) for text in texts)
    ]


def _texts(placed: Placed) -> list[str]:
    """An image's caption as it is trained; and before choices are drawn, since a word may be one of several."""
    settings = placed.concept.captions
    said = plain_caption(placed.caption.text, settings, placed.image.words)
    return [said] if settings.caption_template != "none" else [said, placed.caption.whole]


def _where_and_fix(job: TrainJob, word: str) -> tuple[str, str]:
    trigger = job.captions.trigger_word
    if trigger and len(job.embedding.words) == 1:
        return "captions.trigger_word", f"it is '{trigger}': empty it, and the new word takes its place"
    return "embedding.token_string", f"write '{word}' into the captions of the images that show it"
