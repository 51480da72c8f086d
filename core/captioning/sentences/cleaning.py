"""Turn a model's answer into a caption. Pure functions."""

import re
from collections.abc import Callable, Sequence

from core.captioning.combining import without_matches
from core.dataset.captions.words import word_pattern
from core.settings.captioning.sentences import CaptionCleaningSettings

OPENED, CLOSED = "<think>", "</think>"
PHRASE_WORDS = 40  # the longest phrase whose repetition is found
REPEATS = 4  # in a row; fewer may be style
_SENTENCE_END = re.compile(r"""[.!?\u2026\u3002]["')\]]*(?=\s|$)""")
_MARKDOWN = (
    (re.compile(r"^\s{0,3}(?:#{1,6}\s+|[-*+]\s+|>\s?|```\w*\s*$)", re.M), ""),
    (re.compile(r"\[([^\]\n]+)\]\([^)\n]*\)"), r"\1"),
    (re.compile(r"(\*\*|__|`)(?=\S)(.+?)(?<=\S)\1"), r"\2"),
    (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])"), r"\1"),
)
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb"}


def without_thinking(answer: str, opened: bool) -> str:
    """Return the answer without its thinking block; "" if that is not closed.
    opened: whether the prompt ended with <think>, so that the answer starts inside the block"""
    _, closed, caption = answer.rpartition(CLOSED)
    if closed:
        return caption.strip()
    return "" if opened else answer.partition(OPENED)[0].strip()


def clean(text: str, settings: CaptionCleaningSettings, *, cut: bool, count: Callable[[str], int]) -> str:
    """Turn an answer into a caption by the settings.

    cut     whether the answer ended at the token limit
    count   (text) -> number of tokens, for `max_caption_tokens`
    """
    text = plain(text) if settings.plain_text else text.strip()
    text = without_openers(text, settings.openers)
    if settings.whole_sentences and cut:
        text = to_sentence_end(text)
    text = " ".join(text.split())  # training would read each line as a caption of its own
    if settings.max_caption_tokens is not None:
        text = cut_to_tokens(text, settings.max_caption_tokens, count)
    return text.strip()


def plain(text: str) -> str:
    """Return the text without Markdown and surrounding quotes."""
    for pattern, by in _MARKDOWN:
        text = pattern.sub(by, text)
    text = text.strip()
    while (
        len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1] and text[-1] not in text[1:-1]
    ):
        text = text[1:-1].strip()
    return text


def without_openers(text: str, openers: Sequence[str]) -> str:
    """Return the text without openers at its start ("The image shows"); it is capitalized if it was before.
    openers: regular expressions"""
    capital = text[:1].isupper()
    remaining, before = text, None
    while remaining != before:
        before = remaining
        for opener in openers:
            remaining = without_matches(rf"(?i)^\s*(?:{opener})(?:(?<!\w)|(?!\w))[\s,:]*", remaining)
    remaining = remaining or text  # an opener alone is a caption still
    return remaining[:1].upper() + remaining[1:] if capital else remaining


def to_sentence_end(text: str) -> str:
    """Return the text without an unfinished last sentence; unchanged if no sentence ends."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def cut_to_tokens(text: str, tokens: int, count: Callable[[str], int]) -> str:
    """Return the text cut to at most `tokens` tokens, after a sentence, else before a comma, else after a word; "" if none fits.
    count: (text) -> number of tokens"""
    if count(text) <= tokens:
        return text
    for ends in (_SENTENCE_END.finditer(text), re.finditer(r"(?=[,;])", text), re.finditer(r"(?<=\S)(?=\s)", text)):
        fitting = [text[: match.end()] for match in ends if count(text[: match.end()]) <= tokens]
        if fitting and fitting[-1].strip():
            return fitting[-1]
    return ""


def repetition(text: str) -> int | None:
    """Return the index after the first occurrence of a phrase that occurs REPEATS times in a row; None if there is none."""
    words = [(match.group().casefold(), match.end()) for match in re.finditer(r"\S+", text)]
    plain_words = [word.strip(".,;:!?") for word, _ in words]
    for start in range(len(words)):
        for size in range(1, min(PHRASE_WORDS, (len(words) - start) // REPEATS) + 1):
            phrase = plain_words[start : start + size]
            if all(plain_words[start + size * n : start + size * (n + 1)] == phrase for n in range(1, REPEATS)):
                return words[start + size - 1][1]
    return None


def without_repetition(text: str) -> str:
    """Return the text cut after the first occurrence of a repeated phrase (see `repetition`)."""
    while (position := repetition(text)) is not None:
        text = text[:position].rstrip(" ,;:")
    return text


def missing_words(text: str, required: Sequence[str]) -> list[str]:
    """Return the required words that the text does not contain as whole words, in any case."""
    return [word for word in required if word.strip() and not word_pattern([word.strip()]).search(text)]


def with_words(text: str, required: Sequence[str], limit: int | None = None, count: Callable[[str], int] = len) -> str:
    """Return the text with missing required words appended, separated by commas, and cut before them.

    limit   most tokens of the whole text, by `count`; None: not cut
    """
    if not (missing := missing_words(text, required)):
        return text
    whole = ", ".join([*filter(None, [text.rstrip(" .")]), *missing])
    if limit is None or count(whole) <= limit:
        return whole
    space = limit - count(", ".join(["", *required]))  # the cut may remove required words
    return with_words(cut_to_tokens(text, max(space, 0), count), required)
