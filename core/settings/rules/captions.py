"""Captions. A setting has an effect where any folder uses it."""

from __future__ import annotations

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.concepts import Concept, anywhere
from core.settings.job import TrainJob


def problems(job: TrainJob) -> Iterator[Problem]:
    skipped = job.model.clip_skip or 1
    if job.model.family == "sd2" and skipped > 1:
        what = f"SD 2.x was made with the last layer but one of its text encoder, and reads it anyway; a clip skip of {skipped} leaves out more"
        yield Problem(what, "model.clip_skip", "leave it empty", "advice")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    def changes_tags(each: Concept) -> bool:
        own = each.captions
        return own.shuffle_caption or own.caption_tag_dropout_rate > 0 or own.token_warmup_step > 0

    def separates(each: Concept) -> bool:
        """Joined files, a word put in front and a mark taken out use the separator too; a metadata file joins as well."""
        own = each.captions
        joins = own.sidecars == "joined" or bool(each.source.metadata_file)
        return joins or bool(own.secondary_separator or own.trigger_word or own.keep_tokens_separator)

    if not anywhere(job, changes_tags):
        yield "captions.keep_tokens", "ignored: tags are neither shuffled nor dropped"
        if not anywhere(job, separates):
            yield "captions.caption_separator", "ignored: tags are neither shuffled nor dropped"
    if not anywhere(job, lambda each: each.captions.token_warmup_step > 0):
        yield "captions.token_warmup_min", "ignored: there is no tag warm-up"
    if not job.captions.weighted_captions:
        yield "captions.weighted_mean", "ignored: captions have no weights"
    if not anywhere(job, lambda each: each.captions.sidecars == "drawn"):
        yield "captions.sentence_share", "ignored: no caption file is drawn"
