"""Caption files next to images: found, read in any encoding, saved and rewritten with undo.

A sentence (`.caption`) next to tags (`.txt`) is the usual result of a captioner plus a tagger; settings choose which is
used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.captions.encodings import decode_text
from core.dataset.sources.files import CAPTION_EXTENSIONS, TRASH_FOLDER, printable
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError
from core.record.regular import MissingFile, check_regular, read_regular
from core.settings.captions import CaptionSettings

if TYPE_CHECKING:
    from core.dataset.sources.image_info import ImageInfo

MAX_CAPTION_BYTES = 1 << 20  # a larger file is not a caption
SENTENCES, TAGS = ".caption", ".txt"
UTF_8 = ("utf-8", "utf-8 with a mark")
OWN = ("file", "metadata")  # sources of a caption written for the image itself

# "name_0512_0300_0120_0140.png": a face crop of name.png, whose caption it shares (reference: 2.2, 6.8).
_FACE = re.compile(r"(.+)_[0-9]+_[0-9]+_[0-9]+_[0-9]+")


@dataclass(frozen=True, slots=True)
class Caption:
    """An image's caption before the caption pipeline.

    source    "file", "blank" (an empty caption file), "metadata" (from a metadata file), "words" (the folder's default
              caption) or "none"
    path      the caption file, or where one would be written
    encoding  of the file ("utf-8" when there is none)
    sentence, tags   texts of both files, or of both metadata entries, where settings join them or pick one at random;
              `text` is then what is displayed: both joined, or the tags
    """

    text: str
    source: str
    path: Path
    encoding: str = "utf-8"
    problem: Problem | None = None
    sentence: str | None = None
    tags: str = ""

    @property
    def whole(self) -> str:
        """All text that training may use."""
        return self.text if self.sentence is None else f"{self.sentence}\n{self.tags}"


# ---- reading


def read_caption(image: ImageInfo, settings: CaptionSettings) -> Caption:
    """An image's caption: from its metadata, else the files next to it, else its folder's default caption."""
    if image.given is not None:
        return _given(image, settings)
    if settings.sidecars == "one":
        return read_caption_file(image, settings.caption_extension)
    tags_ending = TAGS if settings.caption_extension in ("auto", SENTENCES) else settings.caption_extension
    tags, sentence = read_caption_file(image, tags_ending), read_caption_file(image, SENTENCES)
    if tags.source != "file":
        other_way = sentence.source == "file" or (tags.source != "blank" and sentence.source == "blank")
        return sentence if other_way else tags
    if sentence.source != "file":
        return tags
    problem = tags.problem or sentence.problem
    encoding = tags.encoding if tags.problem or not sentence.problem else sentence.encoding
    text = tags.text if settings.sidecars == "drawn" else join_texts(sentence.text, tags.text, settings)
    return replace(tags, text=text, encoding=encoding, problem=problem, sentence=sentence.text, tags=tags.text)


def read_caption_file(image: ImageInfo, caption_extension: str = "auto") -> Caption:
    """The one caption file next to an image, else its folder's default caption: what is edited and saved.

    Line ends become \\n; surrounding whitespace is stripped.
    """
    own = caption_files(image.path, caption_extension, image.sidecars)
    for path in dict.fromkeys((*own, *_shared_files(image.path, caption_extension))):
        try:
            data = read_regular(path, MAX_CAPTION_BYTES)
        except MissingFile:
            if not os.path.islink(path):
                continue
            return _from_words(image, path, _unreadable(path, "is a broken link"))
        except ProblemsError as error:
            return _from_words(image, path, _unreadable(path, f"cannot be read: {error.problems[0].what}"))
        return _from_file(path, data)
    return _from_words(image, caption_path(image.path, caption_extension, image.sidecars), None)


def join_texts(sentence: str, tags: str, settings: CaptionSettings, glue: str | None = None) -> str:
    """A sentence and tags as one caption: sentence, separator (or `glue`), tags, without added spaces (reference: 2.3).

    Each of several lines gets the tags; sd-scripts does that for random lines only, and loses the tags where it takes
    the first line.
    """
    if not sentence or not tags:
        return sentence or tags
    glue = settings.caption_separator if glue is None else glue
    if settings.compatibility == "kohya" and not settings.enable_wildcard:
        return f"{sentence}{glue}{tags}"
    tags = settings.caption_separator.join(lines_of(tags))
    if settings.caption_lines == "all":
        return f"{' '.join(lines_of(sentence))}{glue}{tags}"
    return "\n".join(f"{line}{glue}{tags}" for line in lines_of(sentence))


def lines_of(text: str) -> list[str]:
    """The stripped lines that are not blank."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def caption_files(image: Path, caption_extension: str, sidecars: Sequence[str] = ()) -> list[Path]:
    """Candidate paths of an image's own caption, best first. sidecars: names found next to it (A.TXT is one too)."""
    candidates: list[Path] = []
    for ending in _endings(caption_extension):
        candidates += [image.parent / name for name in sidecars if name.lower().endswith(ending.lower())]
        candidates.append(image.parent / (os.path.splitext(image.name)[0] + ending))
    return list(dict.fromkeys(candidates))


def _shared_files(image: Path, caption_extension: str) -> list[Path]:
    """For a face crop: caption files of the image it came from (read only)."""
    face = _FACE.fullmatch(os.path.splitext(image.name)[0])
    return [image.parent / (face[1] + ending) for ending in _endings(caption_extension)] if face else []


def _endings(caption_extension: str) -> tuple[str, ...]:
    return CAPTION_EXTENSIONS if caption_extension == "auto" else (caption_extension,)


def caption_path(image: Path, caption_extension: str, sidecars: Sequence[str] = ()) -> Path:
    """The existing caption file, else the one to write."""
    candidates = caption_files(image, caption_extension, sidecars)
    return next((path for path in candidates if path.is_file()), candidates[0])


def _given(image: ImageInfo, settings: CaptionSettings) -> Caption:
    text = _one_line_end(image.given or "")
    path = caption_path(image.path, settings.caption_extension, image.sidecars)
    if image.given_both is not None and settings.sidecars != "one":
        sentence, tags = map(_one_line_end, image.given_both)
        text = tags if settings.sidecars == "drawn" else text
        return Caption(text, "metadata", path, sentence=sentence, tags=tags)
    if text:
        return Caption(text, "metadata", path)
    what = "The metadata file has no caption for this image, which trains with an empty caption"
    fix = "add a caption or tags to the metadata file"
    problem = Problem(what, printable(image.path), fix, "advice", code="caption.empty")
    return Caption("", "metadata", path, problem=problem)


def _from_file(path: Path, data: bytes) -> Caption:
    decoded = decode_text(data)
    text = _one_line_end(decoded.text)
    if not text:
        what = "The caption file is empty, so the image trains with an empty caption"
        fix = "write a caption, or delete the file to use the folder's default caption"
        problem = Problem(what, printable(path), fix, "advice", code="caption.empty")
        return Caption("", "blank", path, decoded.encoding, problem)
    if decoded.encoding in UTF_8:
        return Caption(text, "file", path, decoded.encoding)
    how = "was read as" if decoded.guessed else "is encoded in"
    what = f"The caption {how} {decoded.encoding}, not UTF-8: {text.splitlines()[0][:60]}"
    fix = "check the text, and save it on the Captions tab to convert it to UTF-8"
    problem = Problem(what, printable(path), fix, "advice", code="caption.not-utf8")
    return Caption(text, "file", path, decoded.encoding, problem)


def _one_line_end(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _from_words(image: ImageInfo, path: Path, problem: Problem | None) -> Caption:
    words = image.words.strip()
    return Caption(words, "words" if words else "none", path, problem=problem)


def _unreadable(path: Path, reason: str) -> Problem:
    return Problem(
        f"The caption file {reason}; the folder's default caption is used",
        printable(path),
        "replace or remove it",
        "advice",
        code="caption.unreadable",
    )


# ---- saving


def save_caption(
    image_path: Path | str, text: str, extension: str = "auto", trash_dir: Path | str | None = None
) -> str | None:
    """Write an image's caption as UTF-8 and keep the previous one; None when nothing changed.

    extension   ".txt", ".caption" or "auto": the existing file, else .txt
    trash_dir   where previous texts go; by default `_atelier_trash` next to the image, which every scan skips
    returns     a token for `undo`
    """
    image_path = Path(image_path)
    beside = [
        name
        for name in _names_in(image_path.parent)
        if os.path.splitext(name)[0] == os.path.splitext(image_path.name)[0]
    ]
    path = caption_path(image_path, extension, beside)
    text = _one_line_end(text)
    return _replace_text(
        path, text.encode("utf-8") + b"\n" if text else b"", Path(trash_dir or image_path.parent / TRASH_FOLDER)
    )


def undo(token: str) -> str | None:
    """Restore what a save replaced. The current text is kept as well: the returned token redoes it."""
    record = Path(token)
    try:
        said = read_json_object(record)
        earlier = (record.parent / said["earlier"]).read_bytes() if said["earlier"] else None
        path = Path(said["path"])
    except (ProblemsError, OSError, ValueError, KeyError, TypeError) as error:
        raise ProblemsError.one(
            "The previous caption is no longer in the trash folder; nothing was changed",
            printable(token),
            "type it again",
            code="trash.missing-record",
        ) from error
    return _replace_text(path, earlier, record.parent)


def rewrite_as_utf8(paths: Iterable[Path | str], trash: Path | str | None = None) -> list[str]:
    """Convert caption files of any encoding to UTF-8 without a BOM and with \\n line ends; all of them or none.

    trash     where the original files go; by default `_atelier_trash` next to each file
    returns   tokens for `undo`, in the order of `paths`, of the files that changed
    """
    texts: list[tuple[Path, bytes]] = []
    problems: list[Problem] = []
    for path in map(Path, paths):
        try:
            text = decode_text(read_regular(path, MAX_CAPTION_BYTES)).text
        except ProblemsError as error:
            problems += [
                replace(each, what=f"No caption was converted: {_lower(each.what)}") for each in error.problems
            ]
            continue
        texts.append((path, text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace")))
    if problems:
        raise ProblemsError(problems)
    tokens: list[str] = []
    for path, data in texts:
        try:
            token = _replace_text(path, data, Path(trash or path.parent / TRASH_FOLDER))
        except ProblemsError as error:
            raise ProblemsError([*error.problems, *_taken_back(tokens)]) from error
        tokens += [token] if token else []
    return tokens


def _taken_back(tokens: Sequence[str]) -> list[Problem]:
    """Undo these; a problem for each that could not be undone, with the path of its original."""
    problems: list[Problem] = []
    for token in reversed(tokens):
        try:
            undo(token)
        except ProblemsError:
            what = "A caption already converted to UTF-8 could not be restored"
            fix = "leave it, or copy the original from there; the text is the same"
            problems.append(Problem(what, printable(token), fix, code="caption.not-restored"))
    return problems


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _replace_text(path: Path, data: bytes | None, trash: Path) -> str | None:
    """`replace_file` for a caption. Raises ProblemsError."""
    try:
        return replace_file(path, data, trash)
    except OSError as error:
        what = f"The caption could not be saved ({error.strerror}); the previous one is unchanged"
        fix = "check that the folder is writable and the disk is not full"
        raise ProblemsError.one(what, printable(path), fix, code="caption.unwritten") from error


def replace_file(path: Path, data: bytes | None, trash: Path) -> str | None:
    """Write `data` (None: delete the file) after putting the previous content into the trash. Returns a token for `undo`,
    None when nothing changed. Raises OSError, and ProblemsError for what is no file."""
    if path.exists():
        check_regular(path)
    earlier = path.read_bytes() if path.exists() else None
    if earlier == data:
        return None
    token = _keep(path, earlier, trash)
    if data is None:
        atomic.remove(path)
    else:
        atomic.write_bytes(path, data)
    return token


def _keep(path: Path, earlier: bytes | None, trash: Path) -> str:
    """Write a record `<stem>.<time>.json` next to the previous bytes; both names are new."""
    mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
    base = f"{printable(path.stem)[:40]}.{time.time_ns()}.{mark}"
    kept = None if earlier is None else base + (".earlier.json" if path.suffix.lower() == ".json" else path.suffix)
    if earlier is not None and kept is not None:
        atomic.write_bytes(trash / kept, earlier)
    record = trash / f"{base}.json"
    atomic.write_text(record, json.dumps({"path": str(path.absolute()), "earlier": kept}))
    return str(record)
