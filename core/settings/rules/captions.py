"""Rules on captions. A setting has an effect if any dataset folder uses it."""

from collections.abc import Iterator

from core.record.problems import Problem
from core.settings.dataset.concepts import Concept, any_folder
from core.settings.job import TrainJob
from core.settings.model import traits_of
from core.settings.needs import ignored


def problems(job: TrainJob) -> Iterator[Problem]:
    """Yield advice on a clip skip that adds to the skipped layer of SD 2.x, and on caption dropout that leaves no caption."""
    skipped = job.model.clip_skip or 1
    if traits_of(job.model.family).spare_layer and skipped > 1:
        what = f"SD 2.x already uses the second to last text encoder layer; a clip skip of {skipped} skips more"
        yield Problem(what, "model.clip_skip", "leave it empty", "advice", code="model.clip-skip-sd2")
    if any_folder(job, lambda each: each.captions.caption_dropout_rate == 1):
        what = "Caption dropout of 1 trains every image without its caption"
        yield Problem(what, "captions.caption_dropout_rate", "use 0.1", "advice", code="captions.all-dropped")
    if any_folder(job, lambda each: each.captions.caption_dropout_every_n_epochs == 1):
        what, fix = "Captions are dropped in every epoch, so none is trained", "use 2 or more, or 0 for off"
        yield Problem(what, "captions.caption_dropout_every_n_epochs", fix, "advice", code="captions.all-dropped")


def length_problems(job: TrainJob, total: int, epochs: int | None) -> Iterator[Problem]:
    """Yield advice on a token warmup that lasts longer than a run of `total` steps."""
    if any_folder(job, lambda each: each.captions.token_warmup_step > total):
        what = f"The token warmup lasts longer than the training ({total} steps), so captions never have all their tags"
        fix = "use fewer steps, or a fraction such as 0.5"
        yield Problem(what, "captions.token_warmup_step", fix, "advice", code="captions.long-token-warmup")


def without_effect(job: TrainJob) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, reason) for caption settings that no dataset folder uses."""

    def changes_tags(each: Concept) -> bool:
        """Return whether tags of the folder's captions are shuffled or dropped."""
        captions = each.captions
        return captions.shuffle_caption or captions.caption_tag_dropout_rate > 0 or captions.token_warmup_step > 0

    def uses_separator(each: Concept) -> bool:
        """Return whether the folder uses the tag separator other than for shuffling: with joined caption files, metadata or a trigger
        word."""
        captions = each.captions
        joins = captions.sidecars == "joined" or bool(each.source.metadata_file)
        return joins or bool(captions.secondary_separator or captions.trigger_word or captions.keep_tokens_separator)

    def is_written(each: Concept) -> bool:
        """Return whether images of the folder may keep their caption, with prefix and suffix, instead of a template."""
        return each.captions.caption_template == "none" or not (each.captions.trigger_word or "").strip()

    fixed, reason = not any_folder(job, changes_tags), "tags are neither shuffled nor dropped"
    yield from ignored(
        (fixed, "captions.keep_tokens", reason),
        (fixed and not any_folder(job, uses_separator), "captions.caption_separator", reason),
        (not any_folder(job, lambda each: each.captions.caption_tag_dropout_rate > 0), "captions.tag_dropout_mode", "no tags are dropped"),
        (not any_folder(job, lambda each: each.captions.token_warmup_step > 0), "captions.token_warmup_min", "token warmup is off"),
        (not any_folder(job, is_written), "captions.caption_prefix caption_suffix", "caption templates replace captions"),
        (not any_folder(job, lambda each: each.captions.sidecars == "drawn"), "captions.sentence_share", "no folder picks a caption file at random"),
    )  # fmt: skip
