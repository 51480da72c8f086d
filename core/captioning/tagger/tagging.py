"""The two captioners of taggers: `tag` looks at images with a model, `retag` writes captions from the scores it kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from core.captioning.decoding import batches, decoded_ahead
from core.captioning.described import Described, skipped
from core.captioning.tagger import sd_scripts
from core.captioning.tagger.folder import Found, check_files, downloads, fetch_missing, find
from core.captioning.tagger.kept import Keeper, Shelf, place_of, stamp_of
from core.captioning.tagger.preprocess import preparing
from core.captioning.tagger.sd_scripts import joining
from core.captioning.tagger.session import Tagger
from core.captioning.tagger.tags import Format, Formatter, Scored, Tagged
from core.dataset.sources.files import printable
from core.formats.onnx.process import ModelGone
from core.formats.onnx.providers import CPU, onnxruntime, providers_for, words_of
from core.record.context import JobContext
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.workspace import Workspace
from core.settings.base import Declared
from core.settings.captioning.tagger import RetagSettings, TagSettings, TagTextSettings

KEPT_AT_ONCE = 500  # images whose scores wait to be written
Prepared = np.ndarray | Problem


def model_key(found: Found) -> str:
    """What the scores of a model are kept under."""
    return str(found.folder) if found.own else f"{found.profile.repo}/{found.profile.model}"


# ---- before a start


def check_tag(asked: TagSettings, workspace: Workspace) -> None:
    """Raises ProblemsError with all of the lists, files and the provider that cannot be used."""

    def files() -> None:
        if not downloads(found, asked):
            check_files(found)

    def provider() -> None:
        if asked.provider != "auto":
            providers_for(asked.provider, "", onnxruntime().get_available_providers())

    found = find(asked, workspace)
    _all_of(partial(formatter, asked, found.profile.thresholds), provider, files)


def check_retag(asked: RetagSettings, workspace: Workspace) -> None:
    """Raises ProblemsError for lists that cannot be used, and where nothing is kept."""

    def scores() -> None:
        if not any(place_of(workspace, model_key(found)).glob("*.jsonl")):
            what, fix = f"There are no kept scores of the tagger {found.title}", "run Tag images first"
            raise ProblemsError.one(what, "retag", fix, "tagger.no-scores")

    found = find(asked, workspace)
    _all_of(partial(formatter, asked, found.profile.thresholds), scores)


def _all_of(*checks: Callable[[], object]) -> None:
    problems: list[Problem] = []
    for check in checks:
        try:
            check()
        except ProblemsError as error:
            problems += error.problems
    raise_if_errors(problems)


# ---- tag


def tag(images: Sequence[Path], asked: TagSettings, context: JobContext) -> Iterator[Described]:
    """The tags of each image by the model, its scores kept."""
    if not images:
        return
    found = find(asked, context.workspace)
    fetch_missing(found, asked, context)
    check_files(found)
    context.stage(f"loading {found.title}")
    form = formatter(asked, found.profile.thresholds)
    with Tagger(found, asked, context) as tagger, closing(_keeper(found, context)) as keeper:
        _say_how(tagger, asked, context)
        prepare = preparing(found.profile, tagger.size, asked.compatibility)
        batch_size = tagger.batch or asked.batch_size
        for batch in batches(decoded_ahead(images, prepare, asked.decode_threads, batch_size), batch_size):
            context.check()
            for path, scored in _scores(tagger, batch):
                if not isinstance(scored, Problem):
                    keeper.add(path, scored)
                    if keeper.waiting >= KEPT_AT_ONCE:
                        keeper.write()
                yield _described(path, scored, form, asked)


def _keeper(found: Found, context: JobContext) -> Keeper:
    return Keeper(context.workspace, model_key(found), found.profile.thresholds)


def _say_how(tagger: Tagger, asked: TagSettings, context: JobContext) -> None:
    context.say(f"{tagger.found.title} runs on {words_of(tagger.provider)}")
    if tagger.provider != tagger.wanted:
        fix = "run python webui.py check; its CUDA libraries come with the CUDA build of torch"
        text = f"onnxruntime cannot use {words_of(tagger.wanted)} here, so the tagger runs on the CPU"
        context.say(text, "warning", fix)
    elif tagger.provider == CPU and asked.provider == "auto" and context.device.startswith("cuda"):
        text = "The installed onnxruntime has no GPU support, so the tagger runs on the CPU"
        context.say(text, "warning", "run ./launch.sh update")
    if unused := ignored(asked):
        context.say(f"sd-scripts 0.9 does not have these settings, which are ignored: {', '.join(unused)}", "warning")


def _scores(tagger: Tagger, batch: Sequence[tuple[Path, Prepared]]) -> Iterator[tuple[Path, list[Scored] | Problem]]:
    found = iter(_run(tagger, [values for _, values in batch if not isinstance(values, Problem)]))
    for path, values in batch:
        result = values if isinstance(values, Problem) else next(found)
        if isinstance(result, Problem):
            yield path, replace(result, where=printable(path))
        elif not np.isfinite(result).all():
            what = f"The tagger returns NaN for {printable(path.name)}"
            yield path, Problem(what, printable(path), "tag it by hand", "advice", code="tagger.not-finite")
        else:
            yield path, tagger.scored(result)


def _run(tagger: Tagger, images: Sequence[np.ndarray]) -> list[np.ndarray | Problem]:
    """The scores of a batch; where it fails, as for lack of memory, of each half. An image alone that fails is skipped."""
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


def _described(path: Path, scored: Sequence[Scored] | Problem, form: Format, asked: TagTextSettings) -> Described:
    """An image without a tag is skipped: an empty caption would be trained. sd-scripts writes it."""
    if isinstance(scored, Problem):
        return Described("", scored)
    tagged = form(scored)
    if not tagged.tags and asked.compatibility == "none":
        fix = "lower the threshold, or write its caption by hand"
        return skipped(path, f"No tag of {printable(path.name)} reaches the threshold", fix, "tagger.no-tags")
    counted = tagged.tags if asked.frequency_tags else ()
    join = None if asked.compatibility == "none" else joining(tagged, asked.caption_separator)
    own = asked.caption_separator
    separator = "" if own == type(asked).model_fields["caption_separator"].default else own
    return Described(tagged.text, None, tagged.scored, counted, not tagged.tags, separator, join)


# ---- retag


def retag(images: Sequence[Path], asked: RetagSettings, context: JobContext) -> Iterator[Described]:
    """The same captions from kept scores, with these settings."""
    if unused := ignored(asked):
        context.say(f"sd-scripts 0.9 does not have these settings, which are ignored: {', '.join(unused)}", "warning")
    for path, scored, form in _kept(images, asked, context.workspace):
        context.check()
        yield _described(path, scored, form, asked)


def preview(
    images: Sequence[Path], asked: TagTextSettings, workspace: Workspace
) -> Iterator[tuple[Path, Tagged | Problem]]:
    """What the settings make of the kept scores: for a page that shows it while a person moves a threshold."""
    for path, scored, form in _kept(images, asked, workspace):
        yield path, scored if isinstance(scored, Problem) else form(scored)


def _kept(
    images: Sequence[Path], asked: TagTextSettings, workspace: Workspace
) -> Iterator[tuple[Path, Sequence[Scored] | Problem, Format]]:
    found = find(asked, workspace)
    shelf = Shelf(workspace, model_key(found))
    forms: dict[str, Format] = {}
    for path in images:
        kept, thresholds = shelf.find(path)
        thresholds = thresholds or found.profile.thresholds
        by = str(sorted(thresholds.items()))
        form = forms[by] if by in forms else forms.setdefault(by, formatter(asked, thresholds))
        try:
            outdated = kept is not None and kept.stamp != stamp_of(path)
        except OSError:
            outdated = True
        if kept is None or outdated:
            why = "has changed since it was tagged" if outdated else "was not tagged with this model"
            what = f"The image {printable(path.name)} {why}"
            problem = Problem(what, printable(path), "run Tag images for it", "advice", code="tagger.no-scores")
            yield path, problem, form
        else:
            yield path, kept.scored, form


def formatter(options: TagTextSettings, defaults: Mapping[str, float]) -> Format:
    """The function from the scores of an image, in the order of the labels, to its caption. Raises ProblemsError.

    defaults   the model's thresholds by category, for those that are not set
    """
    if options.compatibility == "none":
        return Formatter(options, defaults)
    return sd_scripts.formatter(options)


def ignored(options: TagTextSettings) -> list[str]:
    """The titles of settings that are set, and that sd-scripts 0.9 does not have."""
    if options.compatibility == "none":
        return []
    declared = [Declared(name, "", name, type(options).model_fields[name]) for name in sd_scripts.UNKNOWN]
    return [entry.title for entry in declared if getattr(options, entry.name) != entry.default]
