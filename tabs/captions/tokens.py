"""Captions' lengths in words."""

from __future__ import annotations

from core.families.token_count import count_tokens, cut_at

__all__ = ["WINDOWS", "count_tokens", "cut_at", "words_on_length"]

WINDOWS = (75, 150, 225)  # one, two and three passes through the text encoder


def words_on_length(tokens: int, longest: int) -> str:
    """What a length means: "9 of 75 tokens", "81 of 75 tokens: the last 6 are not trained"."""
    said = f"{tokens} of {longest} tokens"
    if tokens <= longest:
        return said
    over = tokens - longest
    return said + (": the last one is not trained" if over == 1 else f": the last {over} are not trained")
