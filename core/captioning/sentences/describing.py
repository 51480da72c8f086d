"""Captions a dataset with a sentence model. The model is loaded for the first caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from core.captioning.combining import pattern_problems
from core.captioning.decoding import batches, decoded_ahead
from core.captioning.described import CaptionResult, skipped
from core.captioning.report import Row
from core.captioning.sentences import cleaning
from core.captioning.sentences.folder import ModelFiles, check, fetch_missing, find
from core.captioning.sentences.loading import Loaded, load, precision_problems
from core.captioning.sentences.profiles import PROFILES, Profile, facts_of
from core.dataset.images.colors import WHITE
from core.dataset.images.opening import open_decoded
from core.dataset.sources.files import printable
from core.families.token_count import count_tokens
from core.record.context import JobContext
from core.record.memory import free_memory, is_out_of_memory
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.workspace import Workspace
from core.settings.captioning.sentences import BlipSettings, FlorenceSettings, GitSettings, VlmSettings

if TYPE_CHECKING:
    from core.captioning.sentences.generating import Answer, Query

SentenceSettings = BlipSettings | GitSettings | FlorenceSettings | VlmSettings
# Settings that hold for one kind of decoding only.
DECODING_SETTINGS = {
    "sample": ("temperature", "top_p", "top_k", "seed"),
    "beams": ("num_beams", "length_penalty"),
}


def check_sentences(task: str, settings: SentenceSettings, workspace: Workspace) -> None:
    """Raise ProblemsError with all problems of the settings and model files of the captioner `task`; missing files may be downloaded."""
    problems = PROFILES[task].check(settings)
    problems += [*precision_problems(task, settings), *pattern_problems(settings.openers, f"{task}.openers")]
    if settings.min_new_tokens > settings.max_new_tokens:
        what = f"Min new tokens ({settings.min_new_tokens}) is above max new tokens ({settings.max_new_tokens})"
        fix = "lower it, or raise max new tokens"
        problems.append(Problem(what, f"{task}.min_new_tokens", fix, code="captioner.min-above-max"))
    try:
        check(find(PROFILES[task], settings, workspace))
    except ProblemsError as error:
        will_download = settings.download and not {"captioner.no-files", "captioner.incomplete"}.isdisjoint(error.codes)
        problems += [] if will_download else error.problems
    raise_if_errors(problems)


def describe(
    task: str, rows: Sequence[Row], settings: SentenceSettings, context: JobContext
) -> Iterator[CaptionResult]:
    """Yield the caption of each row, in order, by the captioner `task`. Downloads missing files if the settings allow it.

    Raises ProblemsError.
    """
    if not rows:
        return
    files = find(PROFILES[task], settings, context.workspace)
    fetch_missing(files, settings, context)
    check(files)
    _warn_of_unused(settings, context)
    context.stage(f"loading {files.title}")
    try:
        yield from _captions(rows, files, settings, context)
    finally:
        free_memory()


def _captions(
    rows: Sequence[Row], files: ModelFiles, settings: SentenceSettings, context: JobContext
) -> Iterator[CaptionResult]:
    """Load the model and yield the caption of each row; the problem of an image that cannot be read."""
    from core.captioning.sentences.generating import Query

    model = load(files, settings, context.device if settings.device == "auto" else "cpu")
    writer = CaptionWriter(model, files.profile, settings)
    prepare = partial(prepared, side=settings.max_image_side)
    images = decoded_ahead((row.image.path for row in rows), prepare, settings.decode_threads, settings.batch_size)
    remaining_rows = iter(rows)
    for batch in batches(images, settings.batch_size):
        context.check()
        of_batch = [(next(remaining_rows), image) for _, image in batch]
        queries = [
            Query(image, row.image.path, **files.profile.texts(settings, facts_of(row)))
            for row, image in of_batch
            if not isinstance(image, Problem)
        ]
        captions = iter(writer.captions_of(queries))
        for _, image in of_batch:
            yield CaptionResult("", image) if isinstance(image, Problem) else next(captions)


def prepared(path: Path, side: int | None) -> Image.Image:
    """Open an image as training does, transparency on white, downscaled to at most `side` pixels on its longer side (None: not).

    Raises BrokenImage.
    """
    image = open_decoded(path, enough=(2 * side, 2 * side) if side else None).on(WHITE)
    if side is not None and max(image.size) > side:
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image


def _warn_of_unused(settings: SentenceSettings, context: JobContext) -> None:
    """Warn of changed settings that have no effect with the chosen decoding method."""
    default = type(settings)()
    others = [name for decoding, names in DECODING_SETTINGS.items() if decoding != settings.decoding for name in names]
    if changed := [name for name in others if getattr(settings, name) != getattr(default, name)]:
        context.say(f"No effect with this decoding: {', '.join(changed)}", "warning")


class CaptionWriter:
    """Writes captions with a loaded model. `batch_size` is halved when memory runs out."""

    def __init__(self, model: Loaded, profile: Profile, settings: SentenceSettings):
        self._model, self._profile, self._settings = model, profile, settings
        self.batch_size = settings.batch_size

    def captions_of(self, queries: Sequence[Query]) -> list[CaptionResult]:
        """Return the caption of each query, in order, or its problem. Repetitive captions, or ones without required words, are
        retried once."""
        first = self._captions(queries, attempt=0)
        retried = [number for number, (_, improvable) in enumerate(first) if improvable]
        for number, (second, _) in zip(retried, self._captions([queries[n] for n in retried], attempt=1), strict=True):
            first[number] = (second if second.problem is None else first[number][0], False)
        return [self._completed(caption) for caption, _ in first]

    def _captions(self, queries: Sequence[Query], attempt: int) -> list[tuple[CaptionResult, bool]]:
        """Return (caption, whether a second attempt may improve it) of each query. `attempt`: 0 or 1."""
        answered: list[Answer | None] = []
        while len(answered) < len(queries):
            answered += self._answers(queries[len(answered) : len(answered) + self.batch_size], attempt)
        return [self._caption(*each) for each in zip(queries, answered, strict=True)]

    def _answers(self, queries: Sequence[Query], attempt: int) -> Sequence[Answer | None]:
        """Return answers to the first queries, fewer if memory runs out; None for an image that does not fit on its own."""
        from core.captioning.sentences.generating import answers

        try:
            return answers(self._model, queries, self._settings, attempt)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory()  # outside of the handler: the error holds what the model computed
        if len(queries) == 1:
            return [None]
        self.batch_size = max(1, len(queries) // 2)
        return self._answers(queries[: self.batch_size], attempt)

    def _caption(self, query: Query, answer: Answer | None) -> tuple[CaptionResult, bool]:
        """Return (the caption of an answer, or the problem; whether a second attempt may improve it). `answer`: None if memory ran out."""
        settings, name = self._settings, printable(query.path.name)
        if answer is None:
            fix = "lower max image side, max new tokens or the precision, or use the CPU"
            return skipped(query.path, f"Not enough memory for {name}", fix, "captioner.memory"), False
        text = cleaning.without_thinking(answer.text, answer.opened)
        if not text:
            what, fix = f"The model returned no caption for {name}", "try another prompt or seed"
            if answer.text.strip():
                what, fix = f"The model ran out of thinking tokens for {name}", "raise thinking tokens"
            return skipped(query.path, what, fix, "captioner.no-answer"), settings.decoding == "sample"
        text = cleaning.clean(_with_start(query.start, text), settings, cut=answer.cut, count=count_tokens)
        lacks_words = settings.decoding == "sample" and bool(cleaning.missing_words(text, settings.required_words))
        repeats = settings.retry_repetition and cleaning.repetition(text) is not None
        return CaptionResult(text), lacks_words or repeats

    def _completed(self, caption: CaptionResult) -> CaptionResult:
        """Return the caption without repetition and with the required words."""
        if caption.problem is not None:
            return caption
        text = cleaning.without_repetition(caption.text) if self._settings.retry_repetition else caption.text
        text = cleaning.with_words(text, self._settings.required_words, self._settings.max_caption_tokens, count_tokens)
        return CaptionResult(self._profile.finish(text, self._settings))


def _with_start(start: str, text: str) -> str:
    """Join the prescribed start and the answer, with the space between them that decoding drops."""
    if not start.strip():
        return text
    glued = text[:1] in ".,;:!?'" or start[-1:].isspace()
    return f"{start}{text}" if glued else f"{start} {text}"
