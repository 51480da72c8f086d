"""Captions -> the words that are trained: lines, prefix, choices, kept and shuffled tags, dropout, sentences.

The order of the steps and of their draws is sd-scripts' (reference: section 4.1), so the same Python generator gives the
same captions. Draws are addressed by (seed, epoch, image, repeat), so a preview shows what an epoch will really use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from core.dataset.caption_files import Caption, join_texts, lines_of
from core.dataset.caption_templates import TEMPLATES
from core.record import draws
from core.settings.captions import CaptionSettings

# Between a sentence and its tags while they pass the pipeline: a character that Unicode keeps out of texts.
JOINT = "\ufdd0"


class Random(Protocol):
    """What the pipeline draws with: random.Random, or nothing at all."""

    def random(self) -> float: ...
    def choice(self, seq: Sequence[Any], /) -> Any: ...
    def shuffle(self, x: MutableSequence[Any], /) -> None: ...


class _Still:
    """Draws nothing: all is kept, in its order, and the first of several is taken."""

    def random(self) -> float:
        return 1.0

    def choice(self, seq: Sequence[Any], /) -> Any:
        return seq[0]

    def shuffle(self, x: MutableSequence[Any], /) -> None:
        return


class _Longest(_Still):
    """Keeps all, and takes the longest of several."""

    def choice(self, seq: Sequence[Any], /) -> Any:
        return max(seq, key=len)


STILL, LONGEST = _Still(), _Longest()


class Showing(NamedTuple):
    """One time that an image is shown: what its caption follows from.

    key    the image's address           repeat   which of its repeats, from 0
    words  what its folder calls it        step     optimizer step (from 0) at which it is shown; for the tag warm-up
    """

    key: Sequence[str]
    repeat: int
    caption: Caption | str
    settings: CaptionSettings
    words: str = ""
    step: int = 0


class Drawn(NamedTuple):
    """A caption that a training will use. epoch and repeat are counted from 1, as a person counts."""

    epoch: int
    repeat: int
    text: str


# ---- draws by address


def training_caption(
    caption: Caption | str,
    settings: CaptionSettings,
    seed: int,
    epoch: int,
    image_key: Sequence[str],
    repeat: int,
    *,
    step: int = 0,
    total_steps: int = 0,
    words: str = "",
) -> str:
    """What the image is trained with at this draw.

    epoch        from 0                   step, total_steps   needed with a tag warm-up (see `needs_steps`)
    image_key  its address in draws     words               what its folder calls it, for sentences around it
    """
    raw, is_sentence = _text_of(caption, settings, seed, epoch, image_key, repeat)
    random = draws.python_random(seed, "caption", epoch, *image_key, repeat) if is_random(settings) else STILL
    if _dropped(settings, random, epoch):
        return ""
    return _worded(raw, settings, random, step, total_steps, words, is_sentence)


def _text_of(
    caption: Caption | str, settings: CaptionSettings, seed: int, epoch: int, image_key: Sequence[str], repeat: int
) -> tuple[str, bool]:
    """The text to begin with, and whether it is a sentence without tags. Of two files: one drawn, or both joined."""
    if isinstance(caption, str):
        return caption, False
    if caption.sentence is None or settings.sidecars == "one":
        return caption.text, False
    if settings.sidecars == "drawn":
        drawn = draws.uniform(seed, "sentence or tags", epoch, *image_key, repeat) < settings.sentence_share
        return (caption.sentence, True) if drawn else (caption.tags, False)
    # sd-scripts joins by the separator and so shuffles the parts of the sentence among the tags.
    glue = settings.caption_separator if settings.compatibility == "kohya" else JOINT
    return join_texts(caption.sentence, caption.tags, settings, glue), False


def showing_caption(shown: Showing, seed: int, epoch: int, total_steps: int = 0) -> str:
    """What one showing is trained with."""
    key, repeat, caption, settings, words, step = shown
    return training_caption(
        caption, settings, seed, epoch, key, repeat, step=step, total_steps=total_steps, words=words
    )


def caption_variants_of_epoch(showings: Iterable[Showing], seed: int, epoch: int, total_steps: int = 0) -> list[str]:
    """Every caption an epoch will use, each once, in the order of first use: what must be encoded at its start."""
    return list(dict.fromkeys(showing_caption(shown, seed, epoch, total_steps) for shown in showings))


def caption_preview(
    caption: Caption | str,
    settings: CaptionSettings,
    seed: int,
    image_key: Sequence[str],
    epochs: int,
    *,
    repeats: int = 1,
    words: str = "",
    total_steps: int = 0,
    step_of: Callable[[int, int], int] | None = None,
) -> list[Drawn]:
    """The captions that epochs 1 to `epochs` use for an image, in order.

    step_of   (epoch from 0, repeat from 0) -> the step at which it is shown; only a tag warm-up asks for it, and without
              it the warm-up is taken to be over
    """
    over = max(total_steps, math.ceil(settings.token_warmup_step))
    found = []
    for epoch in range(epochs):
        for repeat in range(repeats):
            step = step_of(epoch, repeat) if step_of else over
            shown = Showing(image_key, repeat, caption, settings, words, step)
            found.append(Drawn(epoch + 1, repeat + 1, showing_caption(shown, seed, epoch, total_steps)))
    return found


def is_random(settings: CaptionSettings) -> bool:
    """Whether an image's caption can differ from one draw, epoch or step to the next."""
    if settings.caption_dropout_rate >= 1 or settings.caption_dropout_every_n_epochs == 1:
        return False  # always empty
    return (
        settings.caption_dropout_rate > 0
        or settings.caption_dropout_every_n_epochs > 0
        or settings.enable_wildcard
        or settings.caption_lines == "random"
        or settings.shuffle_caption
        or settings.token_warmup_step > 0
        or settings.caption_tag_dropout_rate > 0
        or settings.caption_template != "none"
        or (settings.sidecars == "drawn" and 0 < settings.sentence_share < 1)
    )


def needs_steps(settings: CaptionSettings) -> bool:
    """Whether a caption follows from the step too: the tag warm-up."""
    return settings.token_warmup_step > 0


# ---- the pipeline


def apply_pipeline(
    raw: str,
    settings: CaptionSettings,
    rng: Random,
    *,
    epoch: int,
    step: int = 0,
    total_steps: int = 0,
    words: str = "",
) -> str:
    """A caption after all steps, drawn from `rng` in sd-scripts' order: dropout, line, choices, shuffle, tags, sentence.

    epoch   from 0, where sd-scripts counts from 1       step   optimizer step, from 0
    words   what stands in a sentence when there is no trigger word
    """
    return "" if _dropped(settings, rng, epoch) else _worded(raw, settings, rng, step, total_steps, words, False)


def plain_caption(raw: str, settings: CaptionSettings, words: str = "") -> str:
    """The caption without draws: nothing shuffled or dropped, of choices, lines and sentences the first."""
    return _worded(raw, settings, STILL, 1 << 62, 0, words, False)


def longest_captions(caption: Caption, settings: CaptionSettings, words: str = "") -> list[str]:
    """The longest that chance may give: nothing dropped, of choices, lines and sentences the longest, of two files both."""
    drawn = caption.sentence is not None and settings.sidecars == "drawn"
    texts = [caption.sentence or "", caption.tags] if drawn else [caption.text]
    return [_worded(text, settings, LONGEST, 1 << 62, 0, words, False) for text in texts]


def _dropped(settings: CaptionSettings, rng: Random, epoch: int) -> bool:
    """Whether the image is trained without its caption: by chance, and in the epochs n, 2n, ... as a person counts."""
    rate, every = settings.caption_dropout_rate, settings.caption_dropout_every_n_epochs
    by_chance = rate > 0 and (rate >= 1 or rng.random() < rate)
    return by_chance or (every > 0 and (epoch + 1) % every == 0)


def _worded(
    raw: str, settings: CaptionSettings, rng: Random, step: int, total_steps: int, words: str, is_sentence: bool
) -> str:
    """All steps after the dropout. is_sentence: it has no tags to shuffle or drop."""
    caption = _surrounded_line(raw, settings, rng)
    if settings.enable_wildcard:
        caption = choose(caption, rng)
    trigger = (settings.trigger_word or "").strip()
    if trigger:
        caption = caption.replace("[trigger]", trigger).replace("[name]", trigger)
    caption = _arranged(caption, settings, rng, step, total_steps, trigger, is_sentence)
    if settings.secondary_separator:
        caption = caption.replace(settings.secondary_separator, settings.caption_separator)
    if settings.caption_template != "none" and (subject := trigger or words.strip()):
        return str(rng.choice(TEMPLATES[settings.caption_template])).replace("{}", subject)
    return caption


def _surrounded_line(raw: str, settings: CaptionSettings, rng: Random) -> str:
    """One line of the caption with prefix and suffix.

    sd-scripts puts them around the whole first: a suffix is then lost with the later lines, a prefix only on the first.
    """
    if settings.compatibility == "kohya":
        caption = _surrounded(raw, settings)
        return _line(caption, caption.split("\n"), settings, rng) if "\n" in caption else caption
    return _surrounded(_line(raw, lines_of(raw) or [""], settings, rng) if "\n" in raw else raw, settings)


def _line(caption: str, lines: list[str], settings: CaptionSettings, rng: Random) -> str:
    if settings.caption_lines == "all":
        return " ".join(lines_of(caption))
    by_chance = settings.caption_lines == "random" or settings.enable_wildcard
    return str(rng.choice(lines)) if by_chance and len(lines) > 1 else lines[0]


def _surrounded(caption: str, settings: CaptionSettings) -> str:
    if settings.caption_prefix:
        caption = f"{settings.caption_prefix} {caption}"
    if settings.caption_suffix:
        caption = f"{caption} {settings.caption_suffix}"
    return caption


_GROUP = re.compile(r"\{([^}]+)\}")


def choose(caption: str, rng: Random) -> str:
    """{a|b} becomes one of its parts, an empty one too; {{ and }} become braces. Groups do not nest."""
    if "{" not in caption and "}" not in caption:
        return caption
    opening, closing = "\ufdd1", "\ufdd2"
    caption = caption.replace("{{", opening).replace("}}", closing)
    groups, last, rest = caption.rpartition("}")  # behind it each opening brace would be searched to the end in vain
    caption = _GROUP.sub(lambda group: str(rng.choice(group[1].split("|"))), groups + last) + rest
    return caption.replace(opening, "{").replace(closing, "}")


# ---- tags


def _arranged(
    caption: str,
    settings: CaptionSettings,
    rng: Random,
    step: int,
    total_steps: int,
    trigger: str,
    is_sentence: bool,
) -> str:
    """Tags kept, grown by the warm-up, shuffled and dropped; the trigger word in front.

    Where none of it is wanted the caption stays as it is written. sd-scripts then leaves the mark after kept tags in the
    caption as well.
    """
    mark = settings.keep_tokens_separator
    divides = not is_sentence and (
        settings.shuffle_caption or settings.token_warmup_step > 0 or settings.caption_tag_dropout_rate > 0
    )
    if not divides and not (mark and mark in caption and settings.compatibility != "kohya"):
        return _led_by(trigger, caption.replace(JOINT, settings.caption_separator), settings.caption_separator)
    sentence, _, tags = caption.rpartition(JOINT)
    head, flexible, tail = _divided(tags, settings)
    if sentence.strip():
        head = [sentence.strip(), *head]
    if trigger:
        head, flexible = _trigger_kept(trigger, caption, head, flexible)
    if divides:
        flexible = flexible[: _warm_tags(len(flexible), settings, step, total_steps)]
        if settings.shuffle_caption:
            rng.shuffle(flexible)
        rate = settings.caption_tag_dropout_rate
        if rate > 0:
            flexible = [tag for tag in flexible if rng.random() >= rate]
    return ", ".join(head + flexible + tail)


def _divided(caption: str, settings: CaptionSettings) -> tuple[list[str], list[str], list[str]]:
    """Tags that stay in front, those that may move, those that stay at the end.

    A mark divides before the number of kept tags does, and drops empty tags, which the number leaves in (as sd-scripts).
    """
    mark, separator = settings.keep_tokens_separator, settings.caption_separator
    if not mark or mark not in caption:
        return (*split_tags(caption, separator, settings.keep_tokens), [])
    head, _, rest = caption.partition(mark)
    middle, _, tail = rest.partition(mark)
    if settings.compatibility != "kohya":
        tail = tail.replace(mark, separator)  # a third mark is no word to be trained
    return _filled(head, separator), _filled(middle, separator), _filled(tail, separator)


def _filled(part: str, separator: str) -> list[str]:
    return [tag.strip() for tag in part.split(separator) if tag.strip()]


def split_tags(caption: str, separator: str, keep_tokens: int) -> tuple[list[str], list[str]]:
    """The first `keep_tokens` tags, which stay in front, and the rest. Blanks are taken off, empty tags kept."""
    tags = [tag.strip() for tag in caption.strip().split(separator)]
    return tags[:keep_tokens], tags[keep_tokens:]


def _warm_tags(count: int, settings: CaptionSettings, step: int, total_steps: int) -> int:
    """How many of `count` tags this step sees: from `token_warmup_min` evenly up to all (reference: 4.3).

    The product is taken in sd-scripts' order, for its rounding decides where a tag falls short of a whole number.
    """
    steps = settings.token_warmup_step
    if 0 < steps < 1:
        steps = math.floor(steps * total_steps)
    if step >= steps:
        return count
    least = settings.token_warmup_min
    return math.floor(step * ((count - least) / steps)) + least


# ---- the trigger word


@lru_cache(maxsize=64)
def _word(trigger: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)


def _led_by(trigger: str, caption: str, separator: str) -> str:
    """The trigger word in front of a caption that does not have it: as a tag where there are tags."""
    if not trigger or _word(trigger).search(caption):
        return caption
    if not caption.strip():
        return trigger
    return f"{trigger}{separator} {caption}" if separator in caption else f"{trigger} {caption}"


def _trigger_kept(trigger: str, caption: str, head: list[str], flexible: list[str]) -> tuple[list[str], list[str]]:
    """The trigger word among the tags that stay: moved there with the tag that holds it, or put in front."""
    word = _word(trigger)
    if not word.search(caption):
        return [trigger, *head], flexible if any(flexible) else []
    if not any(word.search(tag) for tag in head):
        for number, tag in enumerate(flexible):
            if word.search(tag):
                return [*head, tag], flexible[:number] + flexible[number + 1 :]
    return head, flexible
