"""Textual inversion: what it needs, and what it leaves without effect."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.base import declared
from core.settings.job import TrainJob
from core.settings.names import without_signs
from core.settings.saving import SavingSettings


def problems(job: TrainJob) -> Iterator[Problem]:
    if job.method.kind != "embedding":
        return
    settings = job.embedding
    if not settings.words:
        yield Problem(
            "Textual inversion has no word to train", "embedding.token_string", "write a new word, such as zkw"
        )
    for word in settings.words:
        if len(word.split()) != 1 or not word.isprintable():
            yield Problem(f"'{word}' is not one word", "embedding.token_string", "separate several words by commas")
    if len({word.casefold() for word in settings.words}) < len(settings.words):
        yield Problem("A new word is given twice", "embedding.token_string", "remove one")
    named = [(word, without_signs(word).casefold()) for word in settings.words[1:]]  # files of their own
    for place, (word, name) in enumerate(named):
        if not name or name in [other for _, other in named[:place]]:
            what = f"The file of the new word '{word}' would have no name of its own"
            yield Problem(what, "embedding.token_string", "write it with other letters or digits")
    if settings.words and job.saving.output_name == SavingSettings().output_name:
        what = f"The file would be called {job.saving.output_name}, and programs read an embedding by its file's name"
        yield Problem(what, "saving.output_name", f"call it as the word, {settings.words[0]}", "advice")
    given = [word for word in (settings.init_word or "").split(",") if word.strip()]
    if len(given) > max(1, len(settings.words)):
        what = f"{len(given)} words to begin with are given for {len(settings.words)} new ones"
        yield Problem(what, "embedding.init_word", "give one for all, or one for each")
    if settings.extended and job.model.family == "sdxl":
        yield Problem("A vector for each layer is for SD 1.x and 2.x", "embedding.extended", "switch it off for SDXL")
    if len(settings.words) > 1 and job.captions.trigger_word is None and job.captions.caption_template == "none":
        what = "Several new words are trained, so each caption must hold the one that its image shows"
        yield Problem(
            what, "embedding.token_string", "look at the captions; images without any teach nothing", "advice"
        )


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    if job.method.kind != "embedding":
        for entry in declared(TrainJob):
            if entry.group == "embedding":
                yield entry.path, "ignored: no new word is trained"
        return
    for entry in declared(TrainJob):
        if entry.group == "network":
            yield entry.path, "ignored: a word is trained, without a network"
    yield "optimizer.unet_lr", "ignored: the U-Net stays as it is"
    yield "method.prior", "ignored: a new word leaves the model, and so the class, as it is"
    yield "method.class_caption", "ignored: a new word leaves the model, and so the class, as it is"
    yield "memory.text_cache_bytes", "ignored: texts are encoded anew at each step"
    if job.model.family == "sdxl" and not job.embedding.extended:  # else it is refused
        yield "embedding.extended", "ignored: a vector for each layer is for SD 1.x and 2.x"
    if job.embedding.embedding_weights:
        yield "embedding.init_word", "ignored: the embedding's file says how to begin"
