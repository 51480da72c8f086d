"""Captions from JSON sidecar files: of gallery-dl, booru exports and other programs."""

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.captioning.described import CaptionResult, from_text, skipped
from core.dataset.captions.words import tag_words
from core.dataset.sources.files import printable
from core.record.bounded_json import read_json
from core.record.context import JobContext
from core.record.problems import ProblemsError
from core.record.regular import MissingFile
from core.record.workspace import Workspace
from core.settings.caption import CaptionerJob
from core.settings.captioning.sources import SidecarSettings

MAX_BYTES, MAX_VALUES = 4_000_000, 100_000  # a post of a booru has some 10 KB
# What boorus append to a key of tags: Danbooru, Gelbooru, e621, Moebooru, Sankaku.
CATEGORIES = frozenset(
    "artist character circle contributor copyright deprecated faults general genre invalid lore medium".split()
    + "meta metadata species studio style".split()
)


def check(settings: SidecarSettings, workspace: Workspace) -> None:
    """Raise ProblemsError if no keys are set."""
    if not stripped(settings.sidecar_keys):
        fix = "write one per line, such as tags"
        raise ProblemsError.one("No keys are given", "caption_sidecars.sidecar_keys", fix, "sidecar.no-keys")


def describe(
    job: CaptionerJob, images: Sequence[Path], settings: SidecarSettings, context: JobContext
) -> Iterator[CaptionResult]:
    """Yield the tags in each image's JSON file, or why there are none. Raises ProblemsError for invalid settings."""
    check(settings, context.workspace)
    for path in images:
        yield _caption_of(path, settings, job.captioning.separator)


def _caption_of(path: Path, settings: SidecarSettings, separator: str) -> CaptionResult:
    """Return the caption from `a.png.json`, else `a.json`: the first with text; otherwise why there is none."""
    files = [path.with_name(f"{path.name}.json"), path.with_name(f"{path.stem}.json")]
    fix = f"save it as {printable(files[0].name)} or {printable(files[1].name)}"
    nothing = skipped(path, f"There is no JSON file for {printable(path.name)}", fix, "sidecar.missing")
    for file in files:
        try:
            content = read_json(file, max_bytes=MAX_BYTES, max_values=MAX_VALUES, finite=False)
        except MissingFile:
            continue
        except ProblemsError as error:
            problem = error.problems[0]
            nothing = skipped(file, problem.what, problem.fix, problem.code)
            continue
        what, fix = f"{printable(file.name)} has none of the keys", "add the key of its text to the keys"
        nothing = skipped(file, what, fix, "sidecar.no-text")
        if tags := tags_in(content, settings):
            return from_text(path, separator.join(tags), nothing)
    return nothing


def tags_in(content: Any, settings: SidecarSettings) -> list[str]:
    """Return the tags under the first key of the settings that has any, each once."""
    for key in stripped(settings.sidecar_keys):
        *parents, last = key.split(".")
        post = first_object(content)
        for name in parents:
            post = first_object(post.get(name))
        if tags := _ordered_tags(_by_category(post, last, settings), settings):
            return tags
    return []


def stripped(values: Sequence[str]) -> list[str]:
    """Return the values stripped, without blank ones."""
    return [value.strip() for value in values if value.strip()]


def first_object(value: Any) -> dict[str, Any]:
    """Return a JSON object, or the first of a list (exports of a single post); {} for anything else."""
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, dict) else {}


def _by_category(post: Mapping[str, Any], key: str, settings: SidecarSettings) -> dict[str, list[str]]:
    """Return {category: tags} from keys such as `tags_general` and from an object under `key`; "" for tags without category."""
    value = post.get(key)
    known = CATEGORIES.union(stripped(settings.category_order), stripped(settings.excluded_categories))
    groups = {category: post.get(f"{key}_{category}") for category in sorted(known) if _holds_tags(key)}
    groups |= value if isinstance(value, dict) else {}
    by_category = {category: _split_tags(each, key, settings.input_separator) for category, each in groups.items()}
    grouped = {tag for tags in by_category.values() for tag in tags}
    uncategorized = [tag for tag in _split_tags(value, key, settings.input_separator) if tag not in grouped]
    return by_category | {"": uncategorized}


def _ordered_tags(by_category: Mapping[str, list[str]], settings: SidecarSettings) -> list[str]:
    """Return the tags in the settings' order of categories, without excluded ones, each once."""
    first, excluded = stripped(settings.category_order), stripped(settings.excluded_categories)
    order = dict.fromkeys([*first, *(name for name in by_category if name), ""])
    chosen = [name for name in order if name in by_category and name not in excluded]
    tags = [html.unescape(tag) for name in chosen for tag in by_category[name]]  # Gelbooru escapes them
    return list(dict.fromkeys(map(tag_words, tags) if settings.remove_underscore else tags))


def _split_tags(value: Any, key: str, separator: str) -> list[str]:
    """Return the tags in a text or list; [] for anything else. `separator`: the setting; `key` decides for "auto"."""
    if isinstance(value, str):
        between = {"comma": ",", "space": " ", "line": "\n"}.get(separator) or _separator_of(value, key)
        value = value.split(between) if between else [value]
    parts = value if isinstance(value, list) else []
    return [part.strip() for part in parts if isinstance(part, str) and part.strip()]


def _separator_of(text: str, key: str) -> str:
    """Return the separator of the tags in a text: a line break, comma or space; "" if the key is not one of tags."""
    return next((mark for mark in "\n, " if mark in text), "") if _holds_tags(key) else ""


def _holds_tags(key: str) -> bool:
    """Return whether a key's name says that its text is a list of tags."""
    return "tag" in key.lower()
