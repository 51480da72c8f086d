"""Tokens of textual inversion that no caption contains: they would not be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.dataset.captions.pipeline import plain_caption
from core.dataset.captions.words import word_pattern
from core.record.problems import Problem

if TYPE_CHECKING:
    from core.dataset.buckets.batches import Placed
    from core.settings.job import TrainJob


def token_problems(job: TrainJob, placed: Sequence[Placed]) -> list[Problem]:
    """One error for each token that no caption contains."""
    if not job.method.traits.new_words:
        return []
    texts = {text for each in placed for text in _texts(each)}
    return [
        Problem(
            f"No caption contains the token '{word}', so it would not be trained",
            *_where_and_fix(job, word),
            code="embedding.token-not-in-captions",
        )
        for word in job.embedding.words
        if not any(word_pattern([word]).search(text) for text in texts)
    ]


def _texts(placed: Placed) -> list[str]:
    """An image's caption as it is trained; and before random choices, since a token may be one of several."""
    settings = placed.concept.captions
    plain = plain_caption(placed.caption.text, settings, placed.image.words)
    return [plain] if settings.caption_template != "none" else [plain, placed.caption.whole]


def _where_and_fix(job: TrainJob, word: str) -> tuple[str, str]:
    trigger = job.captions.trigger_word
    if trigger and len(job.embedding.words) == 1:
        return "captions.trigger_word", f"empty it, so that the token is used instead of '{trigger}'"
    return "embedding.token_string", f"write '{word}' into the captions of the images that show it"
