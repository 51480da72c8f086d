"""The captioners: from rows of the dataset to captions. The model is loaded when the first is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from core.captioning.combining import pattern_problems, removed
from core.captioning.decoding import batches, decoded_ahead
from core.captioning.described import Described
from core.captioning.report import Row
from core.captioning.sentences import cleaning
from core.captioning.sentences.folder import Found, check, fetch_missing, find
from core.captioning.sentences.loading import Loaded, freed, load, precision_problems
from core.captioning.sentences.profiles import PROFILES
from core.captioning.sentences.prompts import facts_of, filled, prompt_of, prompt_problems
from core.dataset.images.colors import WHITE
from core.dataset.images.opening import open_decoded
from core.dataset.sources.files import printable
from core.families.token_count import count_tokens
from core.record.context import JobContext
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.workspace import Workspace
from core.settings.captioning.sentences import (
    BlipSettings,
    CaptionGenerationSettings,
    FlorenceSettings,
    GitSettings,
    VlmSettings,
)

if TYPE_CHECKING:
    from core.captioning.sentences.generating import Answer, Asked

Sentences = BlipSettings | GitSettings | FlorenceSettings | VlmSettings
Ask = Callable[[Row, Image.Image], "Asked"]
FLORENCE_TASKS = {"brief": "<CAPTION>", "detailed": "<DETAILED_CAPTION>", "more-detailed": "<MORE_DETAILED_CAPTION>"}
# Settings that hold for one way of decoding only.
OF_DECODING = {
    "sample": ("temperature", "top_p", "top_k", "seed"),
    "beams": ("num_beams", "length_penalty"),
}


# ---- before a start


def check_sentences(task: str, asked: Sentences, workspace: Workspace) -> None:
    """Raises ProblemsError with all that the settings and the model's files lack. What will be downloaded is no problem."""
    problems: list[Problem] = []
    if isinstance(asked, GitSettings):
        problems += pattern_problems(asked.remove_words, f"{task}.remove_words")
    if isinstance(asked, VlmSettings):
        problems += prompt_problems(asked)
    problems += [*precision_problems(task, asked), *pattern_problems(asked.openers, f"{task}.openers")]
    if asked.min_new_tokens > asked.max_new_tokens:
        what = f"Min new tokens ({asked.min_new_tokens}) is above max new tokens ({asked.max_new_tokens})"
        fix = "lower it, or raise max new tokens"
        problems.append(Problem(what, f"{task}.min_new_tokens", fix, code="captioner.min-above-max"))
    try:
        found = find(PROFILES[task], asked, workspace)
        check(found)
    except ProblemsError as error:
        comes = asked.download and not {"captioner.no-files", "captioner.incomplete"}.isdisjoint(error.codes)
        problems += [] if comes else error.problems
    raise_if_errors(problems)


# ---- the four captioners


def blip(rows: Sequence[Row], asked: BlipSettings, context: JobContext) -> Iterator[Described]:
    prompt = asked.prompt.strip()
    return _describe("blip", rows, asked, context, lambda row, image: _asked(row, image, prompt=prompt))


def git_caption(rows: Sequence[Row], asked: GitSettings, context: JobContext) -> Iterator[Described]:
    for said in _describe("git_caption", rows, asked, context, _asked):
        text = said.text
        for pattern in asked.remove_words:
            text = removed(pattern, text)
        yield said if said.problem else Described(" ".join(text.split()))


def florence(rows: Sequence[Row], asked: FlorenceSettings, context: JobContext) -> Iterator[Described]:
    prompt = FLORENCE_TASKS[asked.detail]  # the whole text: Florence-2 takes nothing else
    return _describe("florence", rows, asked, context, lambda row, image: _asked(row, image, prompt=prompt))


def vlm(rows: Sequence[Row], asked: VlmSettings, context: JobContext) -> Iterator[Described]:
    def ask(row: Row, image: Image.Image) -> Asked:
        facts = facts_of(row)
        start = filled(asked.caption_start, facts)
        return _asked(row, image, prompt=prompt_of(asked, facts), system=asked.system_prompt, start=start)

    return _describe("vlm", rows, asked, context, ask)


def _asked(row: Row, image: Image.Image, **texts: str) -> Asked:
    from core.captioning.sentences.generating import Asked

    return Asked(image, row.image.path.name, **texts)


# ---- what all four do


def _describe(task: str, rows: Sequence[Row], asked: Sentences, context: JobContext, ask: Ask) -> Iterator[Described]:
    if not rows:
        return
    found = find(PROFILES[task], asked, context.workspace)
    fetch_missing(found, asked, context)
    check(found)
    _say_ignored(asked, context)
    context.stage(f"loading {found.title}")
    with freed():
        yield from _captions(rows, found, asked, context, ask)


def _captions(
    rows: Sequence[Row], found: Found, asked: Sentences, context: JobContext, ask: Ask
) -> Iterator[Described]:
    """The model lives as long as this does."""
    writer = Writer(load(found, asked, context.device if asked.device == "auto" else "cpu"), asked)
    prepare = partial(prepared, side=asked.max_image_side)
    images = decoded_ahead((row.image.path for row in rows), prepare, asked.decode_threads, asked.batch_size)
    rest = iter(rows)
    for batch in batches(images, asked.batch_size):
        context.check()
        seen = [(next(rest), image) for _, image in batch]
        said = iter(writer.described([ask(row, image) for row, image in seen if not isinstance(image, Problem)]))
        for row, image in seen:
            yield Described("", image) if isinstance(image, Problem) else _at(row, next(said))


def prepared(path: Path, side: int | None) -> Image.Image:
    """The image as a training sees it, transparency on white, with at most `side` pixels on its longer side."""
    image = open_decoded(path, enough=(2 * side, 2 * side) if side else None).on(WHITE)
    if side is not None and max(image.size) > side:
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image


def _at(row: Row, said: Described) -> Described:
    """A problem with the image it is about."""
    if said.problem is None:
        return said
    where = printable(row.image.path)
    what = said.problem.what.replace("{image}", printable(row.image.path.name))
    return Described("", Problem(what, where, said.problem.fix, "advice", code=said.problem.code))


def _say_ignored(asked: CaptionGenerationSettings, context: JobContext) -> None:
    """Names settings that were changed and have no effect with this decoding."""
    default = type(asked)()
    others = [name for way, names in OF_DECODING.items() if way != asked.decoding for name in names]
    if changed := [name for name in others if getattr(asked, name) != getattr(default, name)]:
        context.say(f"No effect with this decoding: {', '.join(changed)}", "warning")


class Writer:
    """Writes captions with a loaded model. most: images at once, halved where memory runs out."""

    def __init__(self, model: Loaded, asked: Sentences):
        self._model, self._settings = model, asked
        self.most = asked.batch_size

    def described(self, asked: Sequence[Asked]) -> list[Described]:
        """A caption for each, or why there is none."""
        first = self._captions(asked, attempt=0)
        again = [number for number, (_, better) in enumerate(first) if better]
        for number, (said, _) in zip(again, self._captions([asked[n] for n in again], attempt=1), strict=True):
            first[number] = (said if said.problem is None else first[number][0], False)
        return [self._finished(said) for said, _ in first]

    def _captions(self, asked: Sequence[Asked], attempt: int) -> list[tuple[Described, bool]]:
        """Each caption, and whether a second attempt may give a better one."""
        answered: list[Answer | None] = []
        while len(answered) < len(asked):
            answered += self._answers(asked[len(answered) : len(answered) + self.most], attempt)
        return [self._caption(*each) for each in zip(asked, answered, strict=True)]

    def _answers(self, asked: Sequence[Asked], attempt: int) -> Sequence[Answer | None]:
        """None for an image alone that does not fit into memory."""
        from core.captioning.sentences.generating import answers, is_out_of_memory
        from core.generation.model.store import empty_device_cache

        try:
            return answers(self._model, asked, self._settings, attempt)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        empty_device_cache()  # outside of the handler: the error holds what the model computed
        if len(asked) == 1:
            return [None]
        self.most = max(1, len(asked) // 2)
        return self._answers(asked[: self.most], attempt)

    def _caption(self, asked: Asked, answer: Answer | None) -> tuple[Described, bool]:
        settings = self._settings
        if answer is None:
            fix = "lower max image side, max new tokens or the precision, or use the CPU"
            return Described("", Problem("Not enough memory for {image}", "", fix, code="captioner.memory")), False
        text = cleaning.without_thinking(answer.text, answer.opened)
        if not text:
            what = (
                "The model ran out of thinking tokens for {image}"
                if answer.text.strip()
                else "The model returned no caption for {image}"
            )
            fix = "raise thinking tokens" if answer.text.strip() else "try another prompt or seed"
            return Described("", Problem(what, "", fix, code="captioner.no-answer")), settings.decoding == "sample"
        text = cleaning.clean(_joined(asked.start, text), settings, cut=answer.cut, count=count_tokens)
        lacks = settings.decoding == "sample" and bool(cleaning.missing_words(text, settings.required_words))
        repeats = settings.retry_repetition and cleaning.repetition(text) is not None
        return Described(text), lacks or repeats

    def _finished(self, said: Described) -> Described:
        if said.problem is not None:
            return said
        text = cleaning.without_repetition(said.text) if self._settings.retry_repetition else said.text
        return Described(cleaning.with_words(text, self._settings.required_words))


def _joined(start: str, text: str) -> str:
    """The caption with its given start; decoding loses the space between them."""
    if not start.strip():
        return text
    glued = text[:1] in ".,;:!?'" or start[-1:].isspace()
    return f"{start}{text}" if glued else f"{start} {text}"
