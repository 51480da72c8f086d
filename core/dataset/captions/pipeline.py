"""The caption pipeline: lines, prefix and suffix, wildcards, fixed and shuffled tags, dropout, templates.

The order of the steps and of their random draws is sd-scripts' (reference: section 4.1), so the same Python generator gives
the same captions. Draws are addressed by (seed, epoch, image, repeat), so a preview shows what an epoch will use.
"""

import math
import re
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple

from core.dataset.captions.files import Caption, join_texts, lines_of
from core.dataset.captions.templates import TEMPLATES
from core.dataset.captions.words import word_pattern
from core.record import draws
from core.settings.dataset.captions import CaptionSettings

# Separates a sentence from its tags inside the pipeline: a Unicode noncharacter.
JOINT = "\ufdd0"
AFTER_WARMUP = 1 << 62  # a step at which token warmup uses all tags


class _NotRandom(Random):
    """A random generator without randomness: keeps the order, drops nothing, and chooses the first of several."""

    def random(self) -> float:
        """Return 1.0, which no probability below 1 exceeds: nothing is dropped."""
        return 1.0

    def choice(self, seq: Any) -> Any:
        """Return the first of `seq`."""
        return seq[0]

    def shuffle(self, x: MutableSequence[Any]) -> None:
        """Keep the order of `x`."""
        return


class _Longest(_NotRandom):
    """Like `_NotRandom`, but chooses the longest of several."""

    def choice(self, seq: Any) -> Any:
        """Return the longest of `seq`."""
        return max(seq, key=len)


NOT_RANDOM, LONGEST = _NotRandom(), _Longest()


class ImageUse(NamedTuple):
    """One use of an image in training, with everything that its caption depends on.

    key            identifies the image in random draws
    repeat         number of the repeat in the epoch, from 0
    class_tokens   the folder's default caption, for templates
    step           optimizer step (from 0) that uses the image; for token warmup
    """

    key: Sequence[str]
    repeat: int
    caption: Caption | str
    settings: CaptionSettings
    class_tokens: str = ""
    step: int = 0


class PreviewCaption(NamedTuple):
    """A caption that training will use. `epoch` and `repeat` count from 1."""

    epoch: int
    repeat: int
    text: str


# ---- draws by address


def training_caption(use: ImageUse, seed: int, epoch: int, total_steps: int = 0) -> str:
    """Return the caption of one use of an image in an epoch (from 0); "" if it is dropped.
    total_steps: steps of the run, needed with token warmup (see `needs_steps`)"""
    settings = use.settings
    raw, is_sentence = _text_of(use, seed, epoch)
    random = draws.python_random(seed, "caption", epoch, *use.key, use.repeat) if is_random(settings) else NOT_RANDOM
    if _is_dropped(settings, random, epoch):
        return ""
    return _processed(raw, settings, random, use.step, total_steps, use.class_tokens, is_sentence)


def _text_of(use: ImageUse, seed: int, epoch: int) -> tuple[str, bool]:
    """Return the pipeline's input text, and whether it is a sentence without tags.

    Of a sentence and tags, one is drawn, or both are joined.
    """
    caption, settings = use.caption, use.settings
    if isinstance(caption, str):
        return caption, False
    if caption.sentence is None or settings.sidecars == "one":
        return caption.text, False
    if settings.sidecars == "drawn":
        draw = draws.uniform(seed, "sentence or tags", epoch, *use.key, use.repeat)
        return (caption.sentence, True) if draw < settings.sentence_share else (caption.tags, False)
    # sd-scripts joins by the separator and so shuffles parts of the sentence among the tags.
    glue = settings.caption_separator if settings.compatibility == "kohya" else JOINT
    return join_texts(caption.sentence, caption.tags, settings, glue), False


def caption_variants_of_epoch(uses: Iterable[ImageUse], seed: int, epoch: int, total_steps: int = 0) -> list[str]:
    """Return the distinct captions that an epoch (from 0) uses, in order of first use, for encoding at its start."""
    return list(dict.fromkeys(training_caption(use, seed, epoch, total_steps) for use in uses))


def caption_preview(
    caption: Caption | str,
    settings: CaptionSettings,
    seed: int,
    image_key: Sequence[str],
    epochs: int,
    *,
    repeats: int = 1,
    class_tokens: str = "",
    total_steps: int = 0,
    step_of: Callable[[int, int], int] | None = None,
) -> list[PreviewCaption]:
    """Return the captions that epochs 1 to `epochs` use for an image, in order.

    step_of   (epoch from 0, repeat from 0) -> the optimizer step that uses the caption; only token warmup needs it, which
              counts as finished without it
    """
    after_warmup = max(total_steps, math.ceil(settings.token_warmup_step))
    previews = []
    for epoch in range(epochs):
        for repeat in range(repeats):
            step = step_of(epoch, repeat) if step_of else after_warmup
            use = ImageUse(image_key, repeat, caption, settings, class_tokens, step)
            previews.append(PreviewCaption(epoch + 1, repeat + 1, training_caption(use, seed, epoch, total_steps)))
    return previews


def is_random(settings: CaptionSettings) -> bool:
    """Return whether an image's caption can differ between repeats, epochs or steps."""
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
    """Return whether captions depend on the step (token warmup)."""
    return settings.token_warmup_step > 0


# ---- the pipeline


def plain_caption(raw: str, settings: CaptionSettings, class_tokens: str = "") -> str:
    """Return the caption without randomness: nothing shuffled or dropped; the first wildcard options, line and template."""
    return _processed(raw, settings, NOT_RANDOM, AFTER_WARMUP, 0, class_tokens, False)


def longest_captions(caption: Caption, settings: CaptionSettings, class_tokens: str = "") -> list[str]:
    """Return the longest possible captions: nothing dropped, the longest wildcard options, lines and templates.

    One caption, or two (of the sentence and of the tags) if one of both files is drawn at random.
    """
    drawn = caption.sentence is not None and settings.sidecars == "drawn"
    texts = [caption.sentence or "", caption.tags] if drawn else [caption.text]
    return [_processed(text, settings, LONGEST, AFTER_WARMUP, 0, class_tokens, False) for text in texts]


def _is_dropped(settings: CaptionSettings, rng: Random, epoch: int) -> bool:
    """Return whether the caption is dropped, at random or in every n-th epoch. epoch: from 0"""
    rate, every = settings.caption_dropout_rate, settings.caption_dropout_every_n_epochs
    randomly = rate > 0 and (rate >= 1 or rng.random() < rate)
    return randomly or (every > 0 and (epoch + 1) % every == 0)


def _processed(
    raw: str, settings: CaptionSettings, rng: Random, step: int, total_steps: int, class_tokens: str, is_sentence: bool
) -> str:
    """Return the caption after all steps that follow caption dropout.

    raw                 text of the caption file
    rng                 makes all random choices
    step, total_steps   for token warmup
    class_tokens        the folder's default caption, for templates
    is_sentence         the text has no tags to shuffle or drop
    """
    caption = _line_with_affixes(raw, settings, rng)
    if settings.enable_wildcard:
        caption = expand_wildcards(caption, rng)
    trigger = (settings.trigger_word or "").strip()
    if trigger:
        caption = caption.replace("[trigger]", trigger).replace("[name]", trigger)
    caption = _arrange_tags(caption, settings, rng, step, total_steps, trigger, is_sentence)
    if settings.secondary_separator:
        caption = caption.replace(settings.secondary_separator, settings.caption_separator)
    if settings.caption_template != "none" and (subject := trigger or class_tokens.strip()):
        return str(rng.choice(TEMPLATES[settings.caption_template])).replace("{}", subject)
    return caption


def _line_with_affixes(raw: str, settings: CaptionSettings, rng: Random) -> str:
    """Return one line of the caption with prefix and suffix.

    With compatibility, as sd-scripts: affixes are added before splitting, so only the last line has the suffix and only the
    first the prefix.
    """
    if settings.compatibility == "kohya":
        caption = _with_affixes(raw, settings)
        return _choose_line(caption, caption.split("\n"), settings, rng) if "\n" in caption else caption
    return _with_affixes(_choose_line(raw, lines_of(raw) or [""], settings, rng) if "\n" in raw else raw, settings)


def _choose_line(caption: str, lines: list[str], settings: CaptionSettings, rng: Random) -> str:
    """Return one of the lines, the first or a random one, or all non-blank lines of the caption joined by spaces."""
    if settings.caption_lines == "all":
        return " ".join(lines_of(caption))
    randomly = settings.caption_lines == "random" or settings.enable_wildcard
    return str(rng.choice(lines)) if randomly and len(lines) > 1 else lines[0]


def _with_affixes(caption: str, settings: CaptionSettings) -> str:
    """Return the caption with prefix and suffix from the settings, separated by spaces."""
    if settings.caption_prefix:
        caption = f"{settings.caption_prefix} {caption}"
    if settings.caption_suffix:
        caption = f"{caption} {settings.caption_suffix}"
    return caption


_GROUP = re.compile(r"\{([^}]+)\}")


def expand_wildcards(caption: str, rng: Random) -> str:
    """Expand wildcards: {a|b} becomes one of its options, which may be empty; {{ and }} become braces. No nesting."""
    if "{" not in caption and "}" not in caption:
        return caption
    opening, closing = "\ufdd1", "\ufdd2"
    caption = caption.replace("{{", opening).replace("}}", closing)
    groups, last, tail = caption.rpartition("}")  # unmatched braces after it would make the search quadratic
    caption = _GROUP.sub(lambda group: str(rng.choice(group[1].split("|"))), groups + last) + tail
    return caption.replace(opening, "{").replace(closing, "}")


# ---- tags


def _arrange_tags(
    caption: str,
    settings: CaptionSettings,
    rng: Random,
    step: int,
    total_steps: int,
    trigger: str,
    is_sentence: bool,
) -> str:
    """Apply keep tokens, token warmup, shuffling and tag dropout, and put the trigger word first.

    With all of these off the caption stays as written; sd-scripts then leaves the keep_tokens separator in the caption too.
    """
    mark = settings.keep_tokens_separator
    changes_tags = not is_sentence and (
        settings.shuffle_caption or settings.token_warmup_step > 0 or settings.caption_tag_dropout_rate > 0
    )
    if not changes_tags and not (mark and mark in caption and settings.compatibility != "kohya"):
        return _prepend_trigger(trigger, caption.replace(JOINT, settings.caption_separator), settings.caption_separator)
    sentence, _, tags = caption.rpartition(JOINT)
    head, flexible, tail = _divide_tags(tags, settings)
    if sentence.strip():
        head = [sentence.strip(), *head]
    if trigger:
        head, flexible = _with_trigger(trigger, caption, head, flexible)
    if changes_tags:
        flexible = flexible[: _warmup_tags(len(flexible), settings, step, total_steps)]
        if settings.shuffle_caption:
            rng.shuffle(flexible)
        rate = settings.caption_tag_dropout_rate
        if rate > 0 and settings.tag_dropout_mode == "all":
            flexible = flexible if rng.random() >= rate else []
        elif rate > 0:
            flexible = [tag for tag in flexible if rng.random() >= rate]
    # sd-scripts joins by a comma, whatever the separator is
    between = ", " if settings.compatibility == "kohya" else _spaced(settings.caption_separator)
    return between.join(head + flexible + tail)


def _spaced(separator: str) -> str:
    """Return the separator with a space after it if it ends without whitespace, as written between tags: ";" -> "; "."""
    return separator if separator[-1:].isspace() else f"{separator} "


def _divide_tags(caption: str, settings: CaptionSettings) -> tuple[list[str], list[str], list[str]]:
    """Divide a caption into tags fixed at the front, tags that may move, and tags fixed at the end.

    keep_tokens_separator overrides keep_tokens. As in sd-scripts, the former drops empty tags, the latter keeps them.
    """
    mark, separator = settings.keep_tokens_separator, settings.caption_separator
    if not mark or mark not in caption:
        return (*split_tags(caption, separator, settings.keep_tokens), [])
    head, _, after_mark = caption.partition(mark)
    middle, _, tail = after_mark.partition(mark)
    if settings.compatibility != "kohya":
        tail = tail.replace(mark, separator)  # a third separator is not part of the caption
    return _nonempty_tags(head, separator), _nonempty_tags(middle, separator), _nonempty_tags(tail, separator)


def _nonempty_tags(part: str, separator: str) -> list[str]:
    """Return the stripped tags of a part of a caption, without empty ones."""
    return [tag.strip() for tag in part.split(separator) if tag.strip()]


def split_tags(caption: str, separator: str, keep_tokens: int) -> tuple[list[str], list[str]]:
    """Split a caption into its first `keep_tokens` tags, which stay at the front, and the others.

    Tags are stripped; empty tags are included.
    """
    tags = [tag.strip() for tag in caption.strip().split(separator)]
    return tags[:keep_tokens], tags[keep_tokens:]


def _warmup_tags(count: int, settings: CaptionSettings, step: int, total_steps: int) -> int:
    """Return how many of `count` tags are used at `step`: linear from `token_warmup_min` to all (reference: 4.3).

    The product is computed in sd-scripts' order, since rounding decides the whole number.
    """
    steps = settings.token_warmup_step
    if 0 < steps < 1:
        steps = math.floor(steps * total_steps)
    if step >= steps:
        return count
    minimum = settings.token_warmup_min
    return math.floor(step * ((count - minimum) / steps)) + minimum


# ---- the trigger word


@lru_cache(maxsize=64)
def _trigger_pattern(trigger: str) -> re.Pattern[str]:
    """Return a pattern that matches the trigger word as a whole word, in any case."""
    return word_pattern([trigger])


def _prepend_trigger(trigger: str, caption: str, separator: str) -> str:
    """Prepend the trigger word to a caption that lacks it, followed by `separator` if the caption has tags, else by a space."""
    if not trigger or _trigger_pattern(trigger).search(caption):
        return caption
    if not caption.strip():
        return trigger
    return f"{trigger}{_spaced(separator)}{caption}" if separator in caption else f"{trigger} {caption}"


def _with_trigger(trigger: str, caption: str, head: list[str], flexible: list[str]) -> tuple[list[str], list[str]]:
    """Return (head, flexible) with the trigger word in `head`, the fixed tags at the front.

    A tag of `flexible` that contains the trigger word moves to `head`; if no part of `caption` does, the word is prepended.
    """
    word = _trigger_pattern(trigger)
    if not word.search(caption):
        return [trigger, *head], flexible if any(flexible) else []
    if not any(word.search(tag) for tag in head):
        for number, tag in enumerate(flexible):
            if word.search(tag):
                return [*head, tag], flexible[:number] + flexible[number + 1 :]
    return head, flexible
