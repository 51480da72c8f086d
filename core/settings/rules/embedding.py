"""Rules on textual inversion: conflicts with settings of other groups, and settings that it does not use."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from core.record.problems import Problem
from core.record.units import count
from core.settings.dataset.concepts import Concept, any_folder
from core.settings.job import TrainJob
from core.settings.model import traits_of
from core.settings.names import without_signs
from core.settings.needs import ignored

WHERE = "embedding.token_string"


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield errors and advice on tokens, initializer words, the file name and the model of a textual inversion."""
    settings = job.embedding
    if job.model.traits and not job.model.traits.clip:
        what = "Textual inversion needs a model whose text encoders are all CLIP"
        yield Problem(what, "method.kind", "choose LoRA, or another model", code="embedding.other-encoders")
    if not settings.words:
        what, fix = "Textual inversion has no token to train", "write a new token, such as zkw"
        yield Problem(what, WHERE, fix, code="embedding.no-token")
    for word in settings.words:
        if len(word.split()) != 1 or not word.isprintable():
            what, fix = f"'{word}' is not a single token", "separate several tokens with commas"
            yield Problem(what, WHERE, fix, code="embedding.not-one-token")
    if len({word.casefold() for word in settings.words}) < len(settings.words):
        yield Problem("A token is listed twice", WHERE, "remove one", code="embedding.token-twice")
    named = [(word, without_signs(word).casefold()) for word in settings.words[1:]]  # the first is named by output_name
    for index, (word, name) in enumerate(named):
        if not name or name in [other for _, other in named[:index]]:
            what = f"The token '{word}' does not give a unique file name"
            yield Problem(what, WHERE, "use other letters or digits", code="embedding.token-no-file-name")
    first, name = settings.words[0] if settings.words else "", job.saving.output_name
    if len(first.split()) == 1 and name.casefold() != first.casefold():
        what = f"The token is {first}, but the file will be called {name}, which other programs use as its token"
        plain = "".join(sign for sign in first if sign.isalnum() or sign in "-_") or "zkw"
        both = f"call the file {first} too" if plain == first else f"use {plain} as token and as output name"
        fix = f"{both}, or write {name} in other programs"
        yield Problem(what, "saving.output_name", fix, "advice", code="embedding.output-name")
    initializers = [word for word in (settings.init_word or "").split(",") if word.strip()]
    if len(initializers) > max(1, len(settings.words)):
        what = f"{len(initializers)} initializer words are set for {count(len(settings.words), 'token')}"
        yield Problem(
            what, "embedding.init_word", "enter one for all, or one for each", code="embedding.init-word-count"
        )
    if settings.extended and traits_of(job.model.family).two_encoders:
        what = "Extended textual inversion (XTI) supports SD 1.x and 2.x only"
        yield Problem(what, "embedding.extended", "turn it off for SDXL", code="embedding.xti-sdxl")
    if len(settings.words) > 1 and job.captions.trigger_word is None and job.captions.caption_template == "none":
        what = "With several tokens, each caption must contain the one that its image shows"
        fix = "check the captions; images without a token have no effect"
        yield Problem(what, WHERE, fix, "advice", code="embedding.captions-need-token")
    if any_folder(job, lambda each: _dropout(each) > 0):
        never = not any_folder(job, lambda each: each.role == "train" and _dropout(each) < 1)
        what = "All captions are dropped, so that no token would be trained"
        if not never:
            what = "Captions are dropped at some steps, which then train no token"
        level = "error" if never else "advice"
        yield Problem(
            what, "captions.caption_dropout_rate", "set caption dropout to 0", level, code="embedding.dropout"
        )


def _dropout(folder: Concept) -> float:
    """Return the share of a folder's captions that is dropped, by rate or by epoch."""
    every = folder.captions.caption_dropout_every_n_epochs
    return max(folder.captions.caption_dropout_rate, 1 / every if every else 0)


def unused(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for settings that textual inversion does not use."""
    xti = traits_of(job.model.family).two_encoders and not job.embedding.extended  # else it is refused
    yield from ignored(
        (True, "optimizer.unet_lr", "the U-Net is frozen"),
        (True, "method.prior class_caption", "the model is frozen, so the class is preserved anyway"),
        (True, "memory.text_cache_bytes", "captions are encoded at each step"),
        (xti, "embedding.extended", "XTI supports SD 1.x and 2.x only"),
        (job.embedding.embedding_weights, "embedding.init_word", "training starts from the initial embedding"),
    )


# -- of the model's tokenizer and the initial embedding's file, which the checks before the start and the method read


def known_tokens(words: Iterable[str], vocabulary: Collection[str]) -> list[Problem]:
    """Return an error for each new token in `words` that is in a tokenizer's vocabulary already."""
    fix = "choose another token, with no other meaning in the captions"
    return [
        Problem(f"'{word}' is already a token of the model", WHERE, fix, code="embedding.known-token")
        for word in words
        if f"{word.lower()}</w>" in vocabulary
    ]


def other_size(shape: Sequence[int], needed: Sequence[int]) -> Problem:
    """Return the error for an initial embedding of `shape` [vectors, width] where the training needs another shape."""
    (number, width), (vectors, size) = shape, needed
    what = f"The embedding contains {count(number, 'vector')} of width {width}; this training needs {vectors} of width {size}"
    fix = "choose an embedding for this base model" if width != size else f"set Vectors per token to {number}"
    return Problem(what, "embedding.embedding_weights", fix, code="embedding.other-size")
