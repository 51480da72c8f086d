"""The two tagger tasks: `tag` runs a model on images, `retag` writes captions from the cached scores."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from core.captioning.decoding import batches, decoded_ahead
from core.captioning.described import CaptionResult, skipped
from core.captioning.tagger import sd_scripts
from core.captioning.tagger.folder import ModelFiles, check_files, downloads, fetch_missing, find
from core.captioning.tagger.preprocess import make_prepare
from core.captioning.tagger.score_cache import ScoreCache, scores_folder
from core.captioning.tagger.session import Tagger
from core.captioning.tagger.tags import BEST, Format, Formatter, Scored, Tagged
from core.dataset.sources.files import printable
from core.formats.onnx.process import ModelGone
from core.formats.onnx.providers import CPU, onnxruntime, provider_title, providers_for
from core.record.context import JobContext
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.stamps import stamp
from core.record.workspace import Workspace
from core.settings.base import Declared
from core.settings.captioning.tagger import RetagSettings, TagSettings, TagTextSettings

MAX_PENDING = 500  # images whose scores wait to be written
Prepared = np.ndarray | Problem


def model_key(files: ModelFiles) -> str:
    """Return the key of a model in the score cache."""
    return str(files.folder) if files.is_users else f"{files.profile.repo}/{files.profile.model}"


# ---- before a start


def check_tag(settings: TagSettings, workspace: Workspace) -> None:
    """Raise ProblemsError with all problems of tag lists, model files and the execution provider."""
    files, problems = find(settings, workspace), list[Problem]()
    collected(problems, formatter, settings, files.profile.thresholds)
    if settings.provider != "auto":
        collected(problems, lambda: providers_for(settings.provider, "", onnxruntime().get_available_providers()))
    if not downloads(files, settings):
        collected(problems, check_files, files)
    raise_if_errors(problems)


def check_retag(settings: RetagSettings, workspace: Workspace) -> None:
    """Raise ProblemsError for invalid tag lists, and if there are no cached scores."""
    files, problems = find(settings, workspace), list[Problem]()
    collected(problems, formatter, settings, files.profile.thresholds)
    if not any(scores_folder(workspace, model_key(files)).glob("*.jsonl")):
        what, fix = f"There are no kept scores of the tagger {files.title}", "run Tag images first"
        problems.append(Problem(what, "retag", fix, code="tagger.no-scores"))
    raise_if_errors(problems)


# ---- tag


def tag(images: Sequence[Path], settings: TagSettings, context: JobContext) -> Iterator[CaptionResult]:
    """Yield each image's tags, or its problem, and cache the scores for `retag`. Raises ProblemsError.

    Downloads a missing model if the settings allow it.
    """
    if not images:
        return
    files = find(settings, context.workspace)
    fetch_missing(files, settings, context)
    check_files(files)
    context.stage(f"loading {files.title}")
    thresholds = files.profile.thresholds
    format_tags, scores = formatter(settings, thresholds), ScoreCache(context.workspace, model_key(files), thresholds)
    with Tagger(files, settings, context) as tagger, closing(scores):
        _report_provider(tagger, settings, context)
        _warn_of_ignored(settings, context)
        for name in sorted(set(BEST) - {label.category for label in tagger.labels}):
            if getattr(settings, f"{name}_tag") != "none":
                context.say(f"{files.title} has no {name} tags, so none is written", "warning", "choose another tagger")
        prepare = make_prepare(files.profile, tagger.size, settings.compatibility)
        batch_size = tagger.batch or settings.batch_size
        for batch in batches(decoded_ahead(images, prepare, settings.decode_threads, batch_size), batch_size):
            context.check()
            for path, scored in _scores(tagger, batch):
                if not isinstance(scored, Problem):
                    scores.add(path, scored)
                    if scores.waiting >= MAX_PENDING:
                        scores.write()
                yield _caption_result(path, scored, format_tags, settings)


def _report_provider(tagger: Tagger, settings: TagSettings, context: JobContext) -> None:
    """Report the execution provider in use, and warn if it is slower than the one requested."""
    context.say(f"{tagger.files.title} runs on {provider_title(tagger.provider)}")
    if tagger.provider != tagger.wanted:
        fix = "run python webui.py check; its CUDA libraries come with the CUDA build of torch"
        text = f"onnxruntime cannot use {provider_title(tagger.wanted)} here, so the tagger runs on the CPU"
        context.say(text, "warning", fix)
    elif tagger.provider == CPU and settings.provider == "auto" and context.device.startswith("cuda"):
        text = "The installed onnxruntime has no GPU support, so the tagger runs on the CPU"
        context.say(text, "warning", "run ./launch.sh update")


def ignored_settings(settings: TagTextSettings) -> list[str]:
    """Return the titles of changed settings that sd-scripts 0.9 does not have; [] without that compatibility."""
    if settings.compatibility == "none":
        return []
    declared = [Declared(name, "", name, type(settings).model_fields[name]) for name in sd_scripts.UNKNOWN]
    return [entry.title for entry in declared if getattr(settings, entry.name) != entry.default]


def _warn_of_ignored(settings: TagTextSettings, context: JobContext) -> None:
    """Warn of changed settings that sd-scripts 0.9 does not have."""
    if unused := ignored_settings(settings):
        context.say(f"sd-scripts 0.9 does not have these settings, which are ignored: {', '.join(unused)}", "warning")


def _scores(tagger: Tagger, batch: Sequence[tuple[Path, Prepared]]) -> Iterator[tuple[Path, list[Scored] | Problem]]:
    """Yield (image, its (label, score) pairs or the problem), in the order of the batch."""
    results = iter(_run(tagger, [values for _, values in batch if not isinstance(values, Problem)]))
    for path, values in batch:
        result = values if isinstance(values, Problem) else next(results)
        if isinstance(result, Problem):
            yield path, replace(result, where=printable(path))
        elif not np.isfinite(result).all():
            what = f"The tagger returns NaN for {printable(path.name)}"
            yield path, Problem(what, printable(path), "tag it by hand", "advice", code="tagger.not-finite")
        else:
            yield path, tagger.scored(result)


def _run(tagger: Tagger, images: Sequence[np.ndarray]) -> list[np.ndarray | Problem]:
    """Return the scores [outputs] of each image. If a batch fails (out of memory), its halves are tried; a single failure is a Problem."""
    if not images:
        return []
    try:
        return list(tagger.run(images))
    except ModelGone:
        raise
    except ProblemsError as error:
        if len(images) == 1:
            return [error.problems[0]]
        half = len(images) // 2
        return [*_run(tagger, images[:half]), *_run(tagger, images[half:])]


def _caption_result(
    path: Path, scored: Sequence[Scored] | Problem, format_tags: Format, settings: TagTextSettings
) -> CaptionResult:
    """Return an image's caption result. An image without tags is skipped, except in sd-scripts' format, which writes an empty caption."""
    if isinstance(scored, Problem):
        return CaptionResult("", scored)
    tagged, as_sd_scripts, separator = format_tags(scored), settings.compatibility != "none", settings.caption_separator
    if not tagged.tags and not as_sd_scripts:
        fix = "lower the threshold, or write its caption by hand"
        return skipped(path, f"No tag of {printable(path.name)} reaches the threshold", fix, "tagger.no-tags")
    return CaptionResult(
        tagged.text,
        scored=tagged.scored,
        counted=tagged.tags if settings.frequency_tags else (),
        means_empty=not tagged.tags,
        separator="" if separator == type(settings).model_fields["caption_separator"].default else separator,
        join=sd_scripts.make_join(tagged, separator) if as_sd_scripts else None,
    )


# ---- retag


def retag(images: Sequence[Path], settings: RetagSettings, context: JobContext) -> Iterator[CaptionResult]:
    """Yield each image's tags from cached scores, with these settings."""
    _warn_of_ignored(settings, context)
    for path, scored, format_tags in _cached_scores(images, settings, context.workspace):
        context.check()
        yield _caption_result(path, scored, format_tags, settings)


def preview(
    images: Sequence[Path], settings: TagTextSettings, workspace: Workspace
) -> Iterator[tuple[Path, Tagged | Problem]]:
    """Yield (image, its tags from cached scores or the problem), for a live preview of the settings."""
    for path, scored, format_tags in _cached_scores(images, settings, workspace):
        yield path, scored if isinstance(scored, Problem) else format_tags(scored)


def _cached_scores(
    images: Sequence[Path], settings: TagTextSettings, workspace: Workspace
) -> Iterator[tuple[Path, Sequence[Scored] | Problem, Format]]:
    """Yield (image, its cached scores, formatter for the thresholds cached with them); a Problem for missing or outdated scores."""
    files = find(settings, workspace)
    scores = ScoreCache(workspace, model_key(files))
    formatters: dict[str, Format] = {}
    for path in images:
        cached, thresholds = scores.find(path)
        thresholds = thresholds or files.profile.thresholds
        key = str(sorted(thresholds.items()))
        if key not in formatters:
            formatters[key] = formatter(settings, thresholds)
        format_tags = formatters[key]
        try:
            outdated = cached is not None and cached.stamp != stamp(path)
        except OSError:
            outdated = True
        if cached is None or outdated:
            why = "has changed since it was tagged" if outdated else "was not tagged with this model"
            what = f"The image {printable(path.name)} {why}"
            problem = Problem(what, printable(path), "run Tag images for it", "advice", code="tagger.no-scores")
            yield path, problem, format_tags
        else:
            yield path, cached.scored, format_tags


def formatter(options: TagTextSettings, defaults: Mapping[str, float]) -> Format:
    """Return the function from an image's scores, in the order of the labels, to its tags. Raises ProblemsError.
    defaults: the model's thresholds by category, used where the settings have none"""
    if options.compatibility == "none":
        return Formatter(options, defaults)
    return sd_scripts.formatter(options)
