"""Fine-tuning metadata (JSON, JSONL) and sd-scripts' metadata_cache.json: entries, and the images they name.

Written by this program, by sd-scripts and by its merge tools (reference: sections 2.3 and 5.4). Keys are stems, relative paths
or absolute paths; an absolute path of another computer is matched by its end.
"""

import difflib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.dataset.captions.encodings import decode_text
from core.dataset.captions.files import join_texts
from core.dataset.sources.files import extension, name_key, path_ends, printable, stem_key
from core.dataset.sources.image_info import about
from core.dataset.sources.walk import File, file_at
from core.record.allowed import may_reach
from core.record.bounded_json import parse_json
from core.record.image_formats import IMAGE_EXTENSIONS
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.regular import MissingFile, read_regular
from core.record.units import count
from core.settings.dataset.captions import CaptionSettings

Size = tuple[int, int]

MAX_BYTES, MAX_VALUES = 256_000_000, 2_000_000  # four values per image
CACHE_LIST = "metadata_cache.json"
BUCKET_UNIT = 8  # pixels to a latent
# Which of a.png and a.jpg the key "a" means: the order of sd-scripts' list, then the formats it does not know.
_ORDER = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
_KEY_NAMES = ("image_path", "file_name", "path")  # of JSON lines: sd-scripts, Hugging Face, others
_CONTROL_NAMES = ("conditioning_image", "conditioning_path", "control_path", "control_image")  # diffusers, musubi-tuner
_MOST_LATENTS = 5_000  # missing images to look for cached latents of, in three places each
_MOST_NAMES = 20_000  # names to search for the nearest one: the search takes milliseconds per thousand


@dataclass(frozen=True, slots=True)
class Entry:
    """One image's entry in a metadata file.
    control: path of its control image, as written"""

    key: str
    caption: str | None = None
    tags: str | None = None
    train_resolution: Size | None = None
    image_size: Size | None = None
    control: str | None = None  # path of its control image

    def control_at(self, *folders: Path) -> Path | None:
        """Return the control image: an absolute path, or a path below the first of `folders` that contains it; None without one."""
        if not self.control:
            return None
        paths = [folder / _plain(self.control) for folder in folders]  # an absolute one stays as it is
        return next((path for path in paths if may_reach(path) and os.path.isfile(path)), None)

    @property
    def caption_and_tags(self) -> tuple[str, str] | None:
        """(caption, tags), or None if one of them is missing."""
        return (self.caption, self.tags) if self.caption and self.tags else None

    def text(self, settings: CaptionSettings) -> str:
        """Return caption and tags joined by sd-scripts' rule (see `join_texts`)."""
        caption, tags = (self.caption, self.tags) if self.caption is not None else (self.tags, None)
        return join_texts(caption or "", tags or "", settings)


@dataclass
class Metadata:
    """A metadata file's entries in order, and its problems."""

    path: Path
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def buckets(self) -> bool:
        """Whether train_resolution is used: only if every entry has one."""
        return bool(self.entries) and all(entry.train_resolution for entry in self.entries)


# ---- reading


def read_metadata(path: Path) -> Metadata:
    """Read a metadata file. Problems are part of the result; invalid JSON gives one error with line and column."""
    metadata = Metadata(path)
    pairs = _read_pairs(metadata)
    if pairs is not None:
        _set_entries(pairs, metadata)
    return metadata


def read_values(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Return ({key: entry} of a metadata file, including fields that are not used here; advice). Raises ProblemsError."""
    metadata = Metadata(path)
    pairs = _read_pairs(metadata) or []
    raise_if_errors(metadata.problems)
    return {key: _plain_value(value) for key, value in pairs}, metadata.problems


def _read_pairs(metadata: Metadata) -> list[tuple[str, Any]] | None:
    """Return the file's keys and values; None if it cannot be read, with the reason added to the metadata's problems."""
    path, where = metadata.path, printable(metadata.path)
    try:
        decoded = decode_text(read_regular(path, MAX_BYTES))
        if decoded.guessed:
            what = f"The metadata file was read as {decoded.encoding}, not UTF-8"
            fix = "check the captions, and save it as UTF-8"
            metadata.problems.append(Problem(what, where, fix, "advice", code="metadata.not-utf8"))
        return list((_jsonl_pairs if path.suffix.lower() == ".jsonl" else _json_pairs)(decoded.text, where))
    except MissingFile:
        fix = "check the path, or choose another file"
        metadata.problems.append(Problem("The metadata file does not exist", where, fix, code="metadata.missing-file"))
    except ProblemsError as error:
        metadata.problems += error.problems
    return None


def _parse(text: str, where: str, line: int = 0) -> Any:
    """Parse JSON with objects as lists of pairs, to detect duplicate keys. Raises ProblemsError with line and column.

    where   the file
    line    number of lines in the file before `text`
    """
    try:
        return parse_json(text, "", max_values=MAX_VALUES, object_pairs_hook=_Pairs)
    except ProblemsError as error:
        cause, (problem,) = error.__cause__, error.problems
        what, position, code = problem.what, f"line {line + 1}" if line else "the whole file", problem.code
        if isinstance(cause, json.JSONDecodeError):
            what, code = f"The metadata file is not valid JSON: {cause.msg}", "json.invalid"
            position = f"line {line + cause.lineno}, column {cause.colno}"
        fix = "correct it there, or create the file again"
        raise ProblemsError.one(what, f"{where}, {position}", fix, code) from error


class _Pairs(list):
    """A JSON object as a list of its (name, value) pairs."""


def _plain_value(value: Any) -> Any:
    """Convert `_Pairs` in a JSON value to dicts; the last of duplicate names is used."""
    if isinstance(value, _Pairs):
        return {name: _plain_value(each) for name, each in value}
    return [_plain_value(each) for each in value] if isinstance(value, list) else value


def _json_pairs(text: str, where: str) -> Iterator[tuple[str, Any]]:
    """Yield (key, fields) from JSON {key: {...}} or a list of {image_path: ..., ...}. Raises ProblemsError.
    where: the file, for problems"""
    content = _parse(text, where)
    if isinstance(content, _Pairs):
        yield from content
    elif isinstance(content, list):
        for number, value in enumerate(content, 1):
            yield _key_and_fields(value, f"{where}, entry {number}")
    else:
        what, fix = "The metadata file is not a list of images", 'use the form {"name": {"caption": "..."}, ...}'
        raise ProblemsError.one(what, f"{where}, line 1", fix, "metadata.not-a-list")


def _jsonl_pairs(text: str, where: str) -> Iterator[tuple[str, Any]]:
    """Yield (key, fields) of each JSON line. Raises ProblemsError. where: the file, for problems"""
    for number, line in enumerate(text.split("\n")):
        if line.strip():
            yield _key_and_fields(_parse(line, where, number), f"{where}, line {number + 1}")


def _key_and_fields(value: Any, where: str) -> tuple[str, Any]:
    """Return (key, the other fields) of an entry in a list. Raises ProblemsError for an entry without a path."""
    fields = dict(value) if isinstance(value, _Pairs) else {}
    name = next((name for name in _KEY_NAMES if isinstance(fields.get(name), str)), None)
    if name is None:
        what = "An entry of the metadata file has no image path"
        fix = 'use the form {"image_path": "...", "caption": "..."}'
        raise ProblemsError.one(what, where, fix, "metadata.no-path")
    if "text" in fields and "caption" not in fields:  # Hugging Face's name for it
        value = _Pairs([*value, ("caption", fields["text"])])
    return fields[name], _Pairs(pair for pair in value if pair[0] != name)


def _set_entries(pairs: Sequence[tuple[str, Any]], metadata: Metadata) -> None:
    """Set the metadata's entries from (key, fields) pairs, and add problems.

    Problems are duplicate keys, of which the last is used as in every JSON parser, invalid values, no entries, and a
    train_resolution that only some entries have.
    """
    by_key: dict[str, Entry] = {}
    duplicates: list[str] = []
    invalid: list[str] = []
    for key, value in pairs:
        if key in by_key:
            duplicates.append(key)
        entry, complaints = _entry(key, value)
        invalid += complaints
        if entry is not None:
            by_key[key] = entry
    metadata.entries = list(by_key.values())
    where = printable(metadata.path)
    what, code = "{n} in the metadata file; the last one is used: {names}", "metadata.duplicate-keys"
    metadata.problems += about(duplicates, what, "remove the others", code, where=where, noun="duplicate key")
    if invalid:
        what = f"{count(len(invalid), 'invalid value')} in the metadata file: {'; '.join(invalid[:5])}"
        metadata.problems.append(Problem(what, where, "fix or remove them", code="metadata.invalid-values"))
    if not pairs:
        fix = "create it again, or choose another one"
        metadata.problems.append(Problem("The metadata file is empty", where, fix, code="metadata.empty"))
    sized = sum(entry.train_resolution is not None for entry in metadata.entries)
    if 0 < sized < len(metadata.entries):
        what = f"Only {sized} of {len(metadata.entries)} entries have a train_resolution, so buckets come from the image sizes"
        fix = "add train_resolution to all entries to use it"
        metadata.problems.append(Problem(what, where, fix, "advice", code="metadata.partial-resolutions"))


def _entry(key: str, value: Any) -> tuple[Entry | None, list[str]]:
    """Return (the entry without its invalid fields, or None if `value` is not an object; a message for each invalid field)."""
    if not isinstance(value, _Pairs):
        return None, [f"{printable(key)} is {_kind(value)}, not an object"]
    fields, complaints = dict(value), []
    texts: dict[str, str | None] = {}
    for name in ("caption", "tags"):
        text = fields.get(name)
        if isinstance(text, list) and not isinstance(text, _Pairs) and all(isinstance(part, str) for part in text):
            text = "\n".join(text) if name == "caption" else ", ".join(text)  # several captions, one a line
        if text is not None and not isinstance(text, str):
            complaints.append(f"{name} of {printable(key)} is {_kind(text)}, not a string")
            text = None
        texts[name] = text
    sizes: dict[str, Size | None] = {}
    for name, alias in (("train_resolution", None), ("image_size", "resolution")):
        size = fields.get(name, fields.get(alias)) if alias else fields.get(name)
        sizes[name] = _size(size)
        if size is not None and sizes[name] is None:
            complaints.append(f"{name} of {printable(key)} is not [width, height]")
    bucket = sizes["train_resolution"]
    if bucket and any(side % BUCKET_UNIT for side in bucket):
        complaints.append(
            f"train_resolution of {printable(key)} is {bucket[0]} x {bucket[1]}, not multiples of {BUCKET_UNIT}"
        )
    name = next((name for name in _CONTROL_NAMES if fields.get(name) is not None), "")
    control = fields.get(name)
    if control is not None and not isinstance(control, str):
        complaints.append(f"{name} of {printable(key)} is {_kind(control)}, not a path")
        control = None
    return Entry(
        key, texts["caption"], texts["tags"], sizes["train_resolution"], sizes["image_size"], control
    ), complaints


def _size(value: Any) -> Size | None:
    """Return [width, height] as a tuple; None for anything but two positive integers."""
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value):
        return (value[0], value[1])
    return None


def _kind(value: Any) -> str:
    """Return the JSON type of a value for a message, such as "a list"."""
    names = {_Pairs: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number"}
    return "empty" if value is None else names.get(type(value), "a number")


# ---- matching entries to images


@dataclass
class Matches:
    """Metadata entries matched to files.

    pairs          entry and file, sorted by file name
    missing        entries without an image
    only_latents   of the missing: those with an .npz where the image should be
    by_name        entries with a path that does not exist here, matched by its end
    ambiguous      files chosen for keys that match several images
    unlisted       images of the folder without an entry
    inaccessible   of the missing: those with a path that a shared page may not access
    """

    pairs: list[tuple[Entry, File]] = field(default_factory=list)
    missing: list[Entry] = field(default_factory=list)
    only_latents: list[Entry] = field(default_factory=list)
    by_name: list[Entry] = field(default_factory=list)
    ambiguous: list[File] = field(default_factory=list)
    unlisted: list[File] = field(default_factory=list)
    inaccessible: list[Entry] = field(default_factory=list)


class Finder:
    """Finds images by metadata keys.

    files             the images of the folder
    folder            the image folder
    metadata_folder   the folder of the metadata file
    """

    def __init__(self, files: Sequence[File], folder: Path, metadata_folder: Path):
        self.files, self.folder, self.metadata_folder = files, folder, metadata_folder
        self._root = os.path.join(os.path.abspath(folder), "")
        self._exact = {file.relative: file for file in files}
        self._lower_case: dict[str, list[File]] = defaultdict(list)
        self._stems: dict[str, list[File]] = defaultdict(list)
        self._names: dict[str, list[File]] = defaultdict(list)
        for file in files:
            lower = name_key(file.relative)
            stem = os.path.splitext(lower)[0]
            self._lower_case[lower].append(file)
            self._stems[stem].append(file)
            name, stem_name = lower.rpartition("/")[2], stem.rpartition("/")[2]
            self._names[name].append(file)
            if stem_name != name:
                self._names[stem_name].append(file)
        self._outside: set[str] = set()
        self._inaccessible: set[str] = set()

    def match(self, entries: Sequence[Entry]) -> Matches:
        """Find the file of each entry; of several entries for one file the last is used."""
        matches = Matches()
        last: dict[Path, tuple[Entry, File]] = {}
        for entry in entries:
            candidates = self._in_folder(entry.key)
            if not candidates and (file := self._outside_folder(entry.key)):
                candidates = [file]
            if not candidates and (candidates := self._by_file_name(entry.key)):
                matches.by_name.append(entry)
            if not candidates:
                matches.missing.append(entry)
                if entry.key in self._inaccessible:
                    matches.inaccessible.append(entry)
                elif len(matches.missing) <= _MOST_LATENTS and self._has_latents(entry.key):
                    matches.only_latents.append(entry)
                continue
            file = min(candidates, key=_preferred)
            if len(candidates) > 1:
                matches.ambiguous.append(file)
            last[file.path] = (entry, file)
        matches.pairs = sorted(last.values(), key=lambda pair: pair[1].relative)
        matches.unlisted = [file for file in self.files if file.path not in last]
        return matches

    def _in_folder(self, key: str) -> list[File]:
        """Return images below the folder by a key: a relative path with or without extension, or an absolute path."""
        for form in dict.fromkeys((key, self._inside(key))):
            if form is None:
                continue
            if form in self._exact:
                return [self._exact[form]]
            for folded in dict.fromkeys((name_key(form), name_key(_plain(form)))):
                files = self._lower_case.get(folded) or self._stems.get(folded)
                if files:
                    return files
        return []

    def _inside(self, key: str) -> str | None:
        """Convert a key, absolute or relative to the metadata file, to a path relative to the folder; None if it is outside."""
        path = os.path.abspath(os.path.join(self.metadata_folder, key if os.path.isabs(key) else _plain(key)))
        is_inside = os.path.normcase(path).startswith(os.path.normcase(self._root))
        return path[len(self._root) :].replace(os.sep, "/") if is_inside else None

    def _outside_folder(self, key: str) -> File | None:
        """Return an existing image outside the folder by a key, absolute or relative to the metadata file, or None."""
        if extension(key) not in IMAGE_EXTENSIONS:
            return None
        path = Path(key) if os.path.isabs(key) else self.metadata_folder / _plain(key)
        if not may_reach(path):  # before checking whether it exists, which must not leak either
            self._inaccessible.add(key)
            return None
        if not os.path.isfile(path):
            return None
        return file_at(path, self._name_outside(path))

    def _name_outside(self, path: Path) -> str:
        """Return the shortest unique end of a path: the names in random draws contain no absolute paths."""
        names = (name for name in path_ends(path) if name not in self._exact and name not in self._outside)
        name = next(names, str(path))
        self._outside.add(name)
        return name

    def _by_file_name(self, key: str) -> list[File]:
        """Return the images with the key's file name if all have the same stem: for a path of another computer, or a subfolder."""
        name = name_key(_plain(key).rpartition("/")[2])
        bare = os.path.splitext(name)[0] if extension(name) in IMAGE_EXTENSIONS else name
        files = self._names.get(name) or self._names.get(bare) or []
        stems = {stem_key(file.relative) for file in files}
        return files if len(stems) == 1 else []

    def _has_latents(self, key: str) -> bool:
        """Return whether an .npz file with the key's name exists where the image should be."""
        path = _plain(key)
        bare = os.path.splitext(path)[0] if extension(path) in IMAGE_EXTENSIONS else path
        name = bare.rpartition("/")[2]
        return any(os.path.isfile(f"{stem}.npz") for stem in (bare, self.folder / bare, self.folder / name))

    def nearest(self, key: str) -> str | None:
        """Return an image with a name similar to the key's, among the first _MOST_NAMES images, or None."""
        name = stem_key(_plain(key).rpartition("/")[2])
        stems = list(self._stems)[:_MOST_NAMES]
        near = difflib.get_close_matches(name, [stem.rpartition("/")[2] for stem in stems], 1)
        return self._names[near[0]][0].relative if near else None


def _plain(key: str) -> str:
    """Return the key with forward slashes and without a leading "./"."""
    return key.replace("\\", "/").removeprefix("./")


def _preferred(file: File) -> tuple[int, str]:
    """Sort key for images with the same stem: the order of extensions in sd-scripts, then the path."""
    ending = extension(file.relative)
    return (_ORDER.index(ending) if ending in _ORDER else len(_ORDER), file.relative)


def match_problems(matches: Matches, finder: Finder, metadata: Metadata) -> list[Problem]:
    """Return problems of entries without images and of images without entries."""
    where, folder = printable(metadata.path), printable(finder.folder)
    total = len(metadata.entries)
    level = "advice" if matches.pairs else "error"
    reported = {entry.key for entry in (*matches.only_latents, *matches.inaccessible)}
    unmatched = [entry.key for entry in matches.missing if entry.key not in reported]
    unmatched[:3] = [f"{key} (nearest: {near})" if (near := finder.nearest(key)) else key for key in unmatched[:3]]
    what = f"{len(unmatched)} of {total} entries of the metadata file match no image: {{names}}"
    fix = f"put the images into {folder}, or remove the entries (keys are names without extension, or paths)"
    problems = about(unmatched, what, fix, "metadata.no-image", level, where=where, most=3)
    keys = [entry.key for entry in matches.only_latents]
    what = f"{len(keys)} of {total} entries have only cached latents (.npz) but no image: {{names}}"
    fix = "put the images next to the .npz files; training needs the images"
    problems += about(keys, what, fix, "metadata.latents-only", level, where=where)
    keys = [entry.key for entry in matches.inaccessible]
    what = f"{len(keys)} of {total} paths in the metadata file are not accessible from a shared page: {{names}}"
    fix = "put the images into the folder, or start the page with --allow FOLDER"
    problems += about(keys, what, fix, "metadata.no-access", level, where=where)
    keys = [entry.key for entry in matches.by_name]
    what = f"{len(keys)} of {total} paths do not exist and were matched by file name: {{names}}"
    fix = "check that they are the right images"
    problems += about(keys, what, fix, "metadata.matched-by-name", where=where, most=3)
    names = [file.relative for file in matches.ambiguous]
    what = f"{{n}} of the metadata file {'matches' if len(names) == 1 else 'match'} several images; used: {{names}}"
    fix = "add the extension to the key, or remove the other image"
    problems += about(names, what, fix, "metadata.ambiguous-key", where=where, noun="key")
    names = [file.relative for file in matches.unlisted] if matches.pairs else []
    what = "{n} in the folder not listed in the metadata file and not used: {names}"
    fix = f"add them to {printable(metadata.path.name)} to train on them"
    return problems + about(names, what, fix, "metadata.unlisted-images", where=folder)
