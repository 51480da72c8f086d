"""Fine-tuning metadata (JSON, JSONL) and sd-scripts' metadata_cache.json -> entries, and the images they name.

Written by us, by sd-scripts and by its merge tools (reference: sections 2.3 and 5.4). Keys are stems, relative paths or
full paths; a full path of another computer is found again by its end.
"""

from __future__ import annotations

import difflib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.dataset.caption_encodings import decode_text
from core.dataset.caption_files import join_texts
from core.dataset.files import IMAGE_EXTENSIONS, extension, printable
from core.dataset.image_info import count, listed
from core.dataset.walk import File, file_at
from core.record.allowed import may_reach
from core.record.bounded_json import parse_json
from core.record.problems import Problem, ProblemsError
from core.record.regular import MissingFile, read_regular
from core.settings.captions import CaptionSettings

Size = tuple[int, int]

MAX_BYTES, MAX_VALUES = 256_000_000, 2_000_000  # four values an image
CACHE_LIST = "metadata_cache.json"
BUCKET_UNIT = 8  # pixels to a latent
# Which of a.png and a.jpg the key "a" means: the order of sd-scripts' list, then the formats it does not know.
_ORDER = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
_KEY_NAMES = ("image_path", "file_name", "path")  # of JSON lines: sd-scripts, Hugging Face, others
_MOST_LATENTS = 5_000  # missing images for which cached latents are looked for, in three places each
_MOST_NAMES = 20_000  # nearest names are looked for among no more: the search takes milliseconds per thousand


@dataclass(frozen=True, slots=True)
class Entry:
    """What a metadata file says about one image."""

    key: str
    caption: str | None = None
    tags: str | None = None
    train_resolution: Size | None = None
    image_size: Size | None = None

    @property
    def both(self) -> tuple[str, str] | None:
        """Caption and tags; None where one of them is not there."""
        return (self.caption, self.tags) if self.caption and self.tags else None

    def text(self, settings: CaptionSettings) -> str:
        """Caption and tags as one, by sd-scripts' rule (see `join_texts`)."""
        caption, tags = (self.caption, self.tags) if self.caption is not None else (self.tags, None)
        return join_texts(caption or "", tags or "", settings)


@dataclass
class Metadata:
    """A file's entries in its order, and what is wrong with it."""

    path: Path
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def buckets(self) -> bool:
        """Whether the sizes of train_resolution hold: only when every entry has one."""
        return bool(self.entries) and all(entry.train_resolution for entry in self.entries)


# ---- reading


def read_metadata(path: Path) -> Metadata:
    """Read a metadata file. Problems are returned; a file that is no JSON gives one error with line and column."""
    found = Metadata(path)
    shown = printable(path)
    try:
        decoded = decode_text(read_regular(path, MAX_BYTES))
    except MissingFile:
        fix = "Check the spelling, or choose another file."
        found.problems.append(Problem("The metadata file does not exist.", shown, fix))
        return found
    except ProblemsError as error:
        found.problems += error.problems
        return found
    if decoded.guessed:
        what = f"The metadata file was read as {decoded.encoding} rather than UTF-8."
        found.problems.append(Problem(what, shown, "Check the captions; save the file as UTF-8.", "advice"))
    try:
        pairs = list(_lines(decoded.text) if path.suffix.lower() == ".jsonl" else _whole(decoded.text))
    except _NotJson as error:
        found.problems.append(Problem(error.what, f"{shown}, {error.place}", error.fix))
        return found
    _take(pairs, found)
    return found


class _NotJson(Exception):
    def __init__(self, what: str, place: str, fix: str):
        super().__init__(what)
        self.what, self.place, self.fix = what, place, fix


def _load(text: str, line: int = 0) -> Any:
    """JSON where objects are lists of pairs, so that a key given twice is seen. line: of the file, before the text."""
    try:
        return parse_json(text, "", max_values=MAX_VALUES, object_pairs_hook=_Pairs)
    except ProblemsError as error:
        cause, fix = error.__cause__, "correct it there, or write the file again"
        if isinstance(cause, json.JSONDecodeError):
            what = f"The metadata file is not valid JSON: {cause.msg}."
            raise _NotJson(what, f"line {line + cause.lineno}, column {cause.colno}", fix) from error
        raise _NotJson(error.problems[0].what, f"line {line + 1}" if line else "the whole file", fix) from error


class _Pairs(list):
    """A JSON object, as its (name, value) pairs."""


def _whole(text: str) -> Iterator[tuple[str, Any]]:
    """{key: {...}}, or a list of {image_path: ..., ...}."""
    said = _load(text)
    if isinstance(said, _Pairs):
        yield from said
    elif isinstance(said, list):
        for number, value in enumerate(said, 1):
            yield _keyed(value, f"entry {number}")
    else:
        fix = 'It should be {"name": {"caption": "..."}, ...}.'
        raise _NotJson("The metadata file holds no list of images.", "line 1", fix)


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n")):
        if line.strip():
            yield _keyed(_load(line, number), f"line {number + 1}")


def _keyed(value: Any, place: str) -> tuple[str, Any]:
    said = dict(value) if isinstance(value, _Pairs) else {}
    key = next((said[name] for name in _KEY_NAMES if isinstance(said.get(name), str)), None)
    if key is None:
        fix = 'Each should be {"image_path": "...", "caption": "..."}.'
        raise _NotJson("An entry of the metadata file names no image.", place, fix)
    if "text" in said and "caption" not in said:  # Hugging Face's name for it
        value = _Pairs([*value, ("caption", said["text"])])
    return key, value


def _take(pairs: Sequence[tuple[str, Any]], found: Metadata) -> None:
    """Pairs -> entries. The last of a key given twice counts, as in every reader of JSON."""
    by_key: dict[str, Entry] = {}
    twice: list[str] = []
    wrong: list[str] = []
    for key, value in pairs:
        if key in by_key:
            twice.append(key)
        entry, complaints = _entry(key, value)
        wrong += complaints
        if entry is not None:
            by_key[key] = entry
    found.entries = list(by_key.values())
    shown = printable(found.path)
    if twice:
        what = (
            f"{count(len(twice), 'key')} of the metadata file stand in it twice; the last one counts: {listed(twice)}."
        )
        found.problems.append(Problem(what, shown, "Remove the others.", "advice"))
    if wrong:
        what = f"{count(len(wrong), 'value')} of the metadata file cannot be used: {'; '.join(wrong[:5])}."
        found.problems.append(Problem(what, shown, "Fix or remove them."))
    if not pairs:
        found.problems.append(Problem("The metadata file is empty.", shown, "Write it again, or choose another one."))
    sized = sum(entry.train_resolution is not None for entry in found.entries)
    if 0 < sized < len(found.entries):
        what = f"{sized} of {len(found.entries)} entries have a train_resolution, so none is used."
        fix = "Buckets follow from the images' own sizes. Give all entries one to use those."
        found.problems.append(Problem(what, shown, fix, "advice"))


def _entry(key: str, value: Any) -> tuple[Entry | None, list[str]]:
    if not isinstance(value, _Pairs):
        return None, [f"{printable(key)} is {_kind(value)}, not an object"]
    said, wrong = dict(value), []
    texts: dict[str, str | None] = {}
    for name in ("caption", "tags"):
        text = said.get(name)
        if isinstance(text, list) and not isinstance(text, _Pairs) and all(isinstance(part, str) for part in text):
            text = "\n".join(text) if name == "caption" else ", ".join(text)  # several captions, one a line
        if text is not None and not isinstance(text, str):
            wrong.append(f"{name} of {printable(key)} is {_kind(text)}, not a text")
            text = None
        texts[name] = text
    sizes: dict[str, Size | None] = {}
    for name, also in (("train_resolution", None), ("image_size", "resolution")):
        size = said.get(name, said.get(also)) if also else said.get(name)
        sizes[name] = _size(size)
        if size is not None and sizes[name] is None:
            wrong.append(f"{name} of {printable(key)} is not [width, height]")
    bucket = sizes["train_resolution"]
    if bucket and any(side % BUCKET_UNIT for side in bucket):
        wrong.append(
            f"train_resolution of {printable(key)} is {bucket[0]} x {bucket[1]}, not multiples of {BUCKET_UNIT}"
        )
    return Entry(key, texts["caption"], texts["tags"], sizes["train_resolution"], sizes["image_size"]), wrong


def _size(value: Any) -> Size | None:
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value):
        return (value[0], value[1])
    return None


def _kind(value: Any) -> str:
    names = {_Pairs: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number"}
    return "empty" if value is None else names.get(type(value), "a number")


# ---- which image an entry means


@dataclass
class Matches:
    """pairs: entry and file, in the file's order of names. missing: entries without an image.

    only_latents   of the missing: those with an .npz where the image should be
    by_name   found by the end of a path that does not exist here     chosen   keys that fit several images
    unlisted  images of the folder that no entry names
    closed    of the missing: those that lead to files which a shared page may not reach
    """

    pairs: list[tuple[Entry, File]] = field(default_factory=list)
    missing: list[Entry] = field(default_factory=list)
    only_latents: list[Entry] = field(default_factory=list)
    by_name: list[Entry] = field(default_factory=list)
    chosen: list[File] = field(default_factory=list)
    unlisted: list[File] = field(default_factory=list)
    closed: list[Entry] = field(default_factory=list)


class Finder:
    """Looks up keys among the images of a folder. beside: the folder of the metadata file."""

    def __init__(self, files: Sequence[File], folder: Path, beside: Path):
        self.files, self.folder, self.beside = files, folder, beside
        self._root = os.path.join(os.path.abspath(folder), "")
        self._exact = {file.relative: file for file in files}
        self._folded: dict[str, list[File]] = defaultdict(list)
        self._stems: dict[str, list[File]] = defaultdict(list)
        self._names: dict[str, list[File]] = defaultdict(list)
        for file in files:
            folded = file.relative.casefold()
            stem = os.path.splitext(folded)[0]
            self._folded[folded].append(file)
            self._stems[stem].append(file)
            name, bare = folded.rpartition("/")[2], stem.rpartition("/")[2]
            self._names[name].append(file)
            if bare != name:
                self._names[bare].append(file)
        self._outside: set[str] = set()
        self._closed: set[str] = set()

    def match(self, entries: Sequence[Entry]) -> Matches:
        found = Matches()
        last: dict[Path, tuple[Entry, File]] = {}
        for entry in entries:
            candidates = self._under(entry.key)
            if not candidates and (file := self._elsewhere(entry.key)):
                candidates = [file]
            if not candidates and (candidates := self._by_end(entry.key)):
                found.by_name.append(entry)
            if not candidates:
                found.missing.append(entry)
                if entry.key in self._closed:
                    found.closed.append(entry)
                elif len(found.missing) <= _MOST_LATENTS and self._has_latents(entry.key):
                    found.only_latents.append(entry)
                continue
            file = min(candidates, key=_preferred)
            if len(candidates) > 1:
                found.chosen.append(file)
            last[file.path] = (entry, file)
        found.pairs = sorted(last.values(), key=lambda pair: pair[1].relative)
        found.unlisted = [file for file in self.files if file.path not in last]
        return found

    def _under(self, key: str) -> list[File]:
        """Below the folder: by relative path, with or without extension, or by a full path that leads there."""
        for form in dict.fromkeys((key, self._inside(key))):
            if form is None:
                continue
            if form in self._exact:
                return [self._exact[form]]
            for folded in dict.fromkeys((form.casefold(), _plain(form).casefold())):
                found = self._folded.get(folded) or self._stems.get(folded)
                if found:
                    return found
        return []

    def _inside(self, key: str) -> str | None:
        """The path below the folder that a full path, or one relative to the metadata file, leads to."""
        full = os.path.abspath(os.path.join(self.beside, key if os.path.isabs(key) else _plain(key)))
        inside = os.path.normcase(full).startswith(os.path.normcase(self._root))
        return full[len(self._root) :].replace(os.sep, "/") if inside else None

    def _elsewhere(self, key: str) -> File | None:
        """An image that lies outside the folder: a full path, or one relative to the metadata file."""
        if extension(key) not in IMAGE_EXTENSIONS:
            return None
        path = Path(key) if os.path.isabs(key) else self.beside / _plain(key)
        if not may_reach(path):  # before looking whether it is there, which is nobody's business either
            self._closed.add(key)
            return None
        if not os.path.isfile(path):
            return None
        return file_at(path, self._name_outside(path))

    def _name_outside(self, path: Path) -> str:
        """As few parts of the path as are unique: addresses of random draws hold no absolute paths."""
        parts = [part for part in path.parts if part != path.anchor]
        names = ("/".join(parts[-most:]) for most in range(1, len(parts) + 1))
        name = next((name for name in names if name not in self._exact and name not in self._outside), str(path))
        self._outside.add(name)
        return name

    def _by_end(self, key: str) -> list[File]:
        """The image of this name, if there is only one: a full path of another computer, or a stem in a sub-folder."""
        name = _plain(key).rpartition("/")[2].casefold()
        bare = os.path.splitext(name)[0] if extension(name) in IMAGE_EXTENSIONS else name
        found = self._names.get(name) or self._names.get(bare) or []
        stems = {os.path.splitext(file.relative)[0].casefold() for file in found}
        return found if len(stems) == 1 else []

    def _has_latents(self, key: str) -> bool:
        plain = _plain(key)
        bare = os.path.splitext(plain)[0] if extension(plain) in IMAGE_EXTENSIONS else plain
        name = bare.rpartition("/")[2]
        return any(os.path.isfile(f"{place}.npz") for place in (bare, self.folder / bare, self.folder / name))

    def nearest(self, key: str) -> str | None:
        """The image whose name is most like the key's."""
        name = os.path.splitext(_plain(key).rpartition("/")[2])[0].casefold()
        stems = list(self._stems)[:_MOST_NAMES]
        near = difflib.get_close_matches(name, [stem.rpartition("/")[2] for stem in stems], 1)
        return self._names[near[0]][0].relative if near else None


def _plain(key: str) -> str:
    """Written on Windows or here, with or without ./ in front."""
    return key.replace("\\", "/").removeprefix("./")


def _preferred(file: File) -> tuple[int, str]:
    ending = extension(file.relative)
    return (_ORDER.index(ending) if ending in _ORDER else len(_ORDER), file.relative)


def match_problems(found: Matches, finder: Finder, metadata: Metadata) -> list[Problem]:
    """What a person should know about entries without images and images without entries."""
    shown, folder = printable(metadata.path), printable(finder.folder)
    total = len(metadata.entries)
    problems = []
    told = {entry.key for entry in (*found.only_latents, *found.closed)}
    gone = [entry for entry in found.missing if entry.key not in told]
    if gone:
        named = [_with_nearest(entry, finder) for entry in gone[:3]]
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        what = f"{len(gone)} of {total} entries of the metadata file match no image: {', '.join(named)}{more}."
        fix = f"Put the images into {folder}, or remove the entries. Keys are names without extension, or paths."
        problems.append(Problem(what, shown, fix, "advice" if found.pairs else "error"))
    if found.only_latents:
        names = listed([entry.key for entry in found.only_latents])
        what = f"{len(found.only_latents)} of {total} entries have only cached latents (.npz), no image: {names}."
        fix = "Put the images beside the .npz files; latents alone are not trained on."
        problems.append(Problem(what, shown, fix, "advice" if found.pairs else "error"))
    if found.closed:
        names = listed([entry.key for entry in found.closed])
        what = f"{len(found.closed)} of {total} paths of the metadata file are not open to a shared page: {names}."
        fix = "Put the images into the folder, or open the page on the machine itself."
        problems.append(Problem(what, shown, fix, "advice" if found.pairs else "error"))
    if found.by_name:
        names = listed([entry.key for entry in found.by_name], 3)
        what = f"{len(found.by_name)} of {total} paths lead nowhere; their images were found by name: {names}."
        problems.append(Problem(what, shown, "Nothing needs to be done, unless a name fits the wrong image.", "advice"))
    if found.chosen:
        names = listed([file.relative for file in found.chosen])
        what = f"{count(len(found.chosen), 'key')} of the metadata file fit several images; used: {names}."
        problems.append(Problem(what, shown, "Write the extension into the key, or remove the other image.", "advice"))
    if found.unlisted and found.pairs:
        names = listed([file.relative for file in found.unlisted])
        what = f"{count(len(found.unlisted), 'image')} of the folder are not in the metadata file and do not train: {names}."
        problems.append(Problem(what, folder, f"Add them to {printable(metadata.path.name)}.", "advice"))
    return problems


def _with_nearest(entry: Entry, finder: Finder) -> str:
    near = finder.nearest(entry.key)
    return printable(entry.key) + (f" (nearest: {printable(near)})" if near else "")
