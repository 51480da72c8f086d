"""Caption files next to images: finding, reading in any encoding, saving and rewriting with undo.

A sentence (`.caption`) next to tags (`.txt`) is the usual result of a captioner plus a tagger; settings choose which is
used.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.dataset.captions.encodings import decode_text
from core.dataset.captions.history import MAX_CAPTION_BYTES, Change, ChangeResult, History, content_of, only_one_writes
from core.dataset.sources.files import CAPTION_EXTENSIONS, is_image_name, name_key, printable, stem_key, without_face
from core.dataset.sources.image_info import ImageInfo
from core.record.context import JobContext
from core.record.problems import IN_USE, Problem, ProblemsError, raise_if_errors
from core.record.regular import MissingFile, read_regular
from core.settings.dataset.captions import CaptionSettings

SENTENCES, TAGS = ".caption", ".txt"
UTF_8 = ("utf-8", "utf-8 with a mark")
UNREADABLE = "caption.unreadable"  # code of the problem of a caption file that exists but cannot be read
IMAGE_SOURCES = ("file", "metadata")  # sources of a caption written for the image


@dataclass(frozen=True, slots=True)
class Caption:
    """An image's caption before the caption pipeline.

    source     "file", "blank" (an empty caption file), "metadata" (a metadata file), "words" (the folder's default caption) or
               "none"
    path       the caption file, or the path where one would be written
    encoding   of the file; "utf-8" without a file
    problem    advice about the caption file or metadata entry, or None
    sentence, tags   texts of both files, or of both metadata entries, if the settings join them or pick one at random; `text` is
               then the text to display: both joined, or the tags
    """

    text: str
    source: str
    path: Path
    encoding: str = "utf-8"
    problem: Problem | None = None
    sentence: str | None = None
    tags: str = ""

    @property
    def missing(self) -> bool:
        """Whether the image has no caption file (an empty one counts as one) and no metadata entry."""
        return self.source in ("words", "none")

    @property
    def whole(self) -> str:
        """All text that training may use: `text`, or sentence and tags on two lines."""
        return self.text if self.sentence is None else f"{self.sentence}\n{self.tags}"


# ---- reading


def read_caption(image: ImageInfo, settings: CaptionSettings) -> Caption:
    """Return an image's caption: from its metadata, else the files next to it, else its folder's default caption."""
    if image.metadata_caption is not None:
        return _from_metadata(image, settings)
    if settings.sidecars == "one":
        return read_caption_file(image, settings.caption_extension)
    tags_ending = TAGS if settings.caption_extension in ("auto", SENTENCES) else settings.caption_extension
    tags, sentence = read_caption_file(image, tags_ending), read_caption_file(image, SENTENCES)
    unreadable = next((each.problem for each in (tags, sentence) if is_unreadable(each)), None)
    if tags.source != "file":
        has_sentence = sentence.source == "file" or (tags.source != "blank" and sentence.source == "blank")
        used = sentence if has_sentence else tags
        return replace(used, problem=unreadable or used.problem)
    if sentence.source != "file":
        return replace(tags, problem=unreadable or tags.problem)
    problem = tags.problem or sentence.problem
    encoding = tags.encoding if tags.problem or not sentence.problem else sentence.encoding
    text = tags.text if settings.sidecars == "drawn" else join_texts(sentence.text, tags.text, settings)
    return replace(tags, text=text, encoding=encoding, problem=problem, sentence=sentence.text, tags=tags.text)


def editable_caption(image: ImageInfo, settings: CaptionSettings) -> Caption:
    """Return the caption that an edit replaces: of the metadata, else of the caption file that would be written.

    Only that file is read, even if training joins several.
    """
    if image.metadata_caption is not None:
        return _from_metadata(image, settings)
    return read_caption_file(image, settings.caption_extension)


def read_caption_file(image: ImageInfo, caption_extension: str = "auto") -> Caption:
    """Return the caption in the preferred caption file of an image, else its folder's default caption.

    caption_extension   ".txt", ".caption" or "auto"
    Line ends become LF; surrounding whitespace is stripped.
    """
    files = caption_files(image.path, caption_extension, image.sidecars)
    for path in dict.fromkeys((*files, *_shared_files(image.path, caption_extension))):
        try:
            data = read_regular(path, MAX_CAPTION_BYTES)
        except MissingFile:
            if not os.path.islink(path):
                continue
            return _from_default(image, path, _unreadable(path, "is a broken link"))
        except ProblemsError as error:
            return _from_default(image, path, _unreadable(path, f"cannot be read: {error.problems[0].what}"))
        return _from_file(path, data)
    return _from_default(image, caption_path(image.path, caption_extension, image.sidecars), None)


def join_texts(sentence: str, tags: str, settings: CaptionSettings, glue: str | None = None) -> str:
    """Join a sentence and tags to one caption: sentence, separator (or `glue`), tags, without added spaces (reference: 2.3).

    If the sentence has several lines, each gets the tags, unless `caption_lines` joins the lines. sd-scripts does that for
    random lines only, and loses the tags if it takes the first line.
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
    """Return the lines of a text that are not blank, stripped."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def caption_files(image: Path, caption_extension: str, sidecars: Sequence[str] = ()) -> list[Path]:
    """Return the possible paths of an image's caption file, best first.
    sidecars: names of existing files next to the image, for extensions in any case (A.TXT)"""
    candidates: list[Path] = []
    for ending in _endings(caption_extension):
        candidates += [image.parent / name for name in sidecars if name.lower().endswith(ending.lower())]
        candidates.append(image.parent / (os.path.splitext(image.name)[0] + ending))
    return list(dict.fromkeys(candidates))


def _shared_files(image: Path, caption_extension: str) -> list[Path]:
    """Return, for a face crop, the possible caption files of the image it was cut from (read only; reference: 2.2, 6.8)."""
    whole = without_face(os.path.splitext(image.name)[0])
    return [image.parent / (whole + ending) for ending in _endings(caption_extension)] if whole else []


def _endings(caption_extension: str) -> tuple[str, ...]:
    """Return the extensions of caption files to look for, best first."""
    return CAPTION_EXTENSIONS if caption_extension == "auto" else (caption_extension,)


def caption_path(image: Path, caption_extension: str, sidecars: Sequence[str] = ()) -> Path:
    """Return the path of the existing caption file, else of the one to write."""
    candidates = caption_files(image, caption_extension, sidecars)
    return next((path for path in candidates if path.is_file()), candidates[0])


def _from_metadata(image: ImageInfo, settings: CaptionSettings) -> Caption:
    """Return the caption in the image's metadata entry; if it is empty, with advice as its `problem`."""
    text = normalized_text(image.metadata_caption or "")
    path = caption_path(image.path, settings.caption_extension, image.sidecars)
    if image.metadata_texts is not None and settings.sidecars != "one":
        sentence, tags = map(normalized_text, image.metadata_texts)
        text = tags if settings.sidecars == "drawn" else text
        return Caption(text, "metadata", path, sentence=sentence, tags=tags)
    if text:
        return Caption(text, "metadata", path)
    what = "The metadata file has no caption for this image: it is trained without one"
    fix = "add a caption or tags to the metadata file"
    problem = Problem(what, printable(image.path), fix, "advice", code="caption.empty")
    return Caption("", "metadata", path, problem=problem)


def _from_file(path: Path, data: bytes) -> Caption:
    """Return the caption in a file's bytes; if they are empty or not UTF-8, with advice as its `problem`."""
    decoded = decode_text(data)
    text = normalized_text(decoded.text)
    if not text:
        what = "The caption file is empty: the image is trained without a caption"
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


def normalized_text(text: str) -> str:
    """Return the text with LF line ends and without surrounding whitespace."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _from_default(image: ImageInfo, path: Path, problem: Problem | None) -> Caption:
    """Return the folder's default caption for an image. path: where a caption file would be written"""
    text = image.class_tokens.strip()
    return Caption(text, "words" if text else "none", path, problem=problem)


def is_unreadable(caption: Caption) -> bool:
    """Return whether a caption file of the image exists but cannot be read, perhaps only while another program has it open."""
    return caption.problem is not None and caption.problem.code == UNREADABLE


def _unreadable(path: Path, reason: str) -> Problem:
    """Return advice about a caption file that cannot be read.
    reason: predicate of the sentence "The caption file ..."."""
    what = f"The caption file {reason}; the image is trained without its text"
    return Problem(what, printable(path), f"{IN_USE}replace or remove it", "advice", code=UNREADABLE)


# ---- saving


class SidecarIndex:
    """Looks up the files next to an image with its stem, in any case, as `walk` pairs them.

    Each folder is listed once: a listing takes as long as a thousand writes.
    """

    def __init__(self) -> None:
        self._folders: dict[Path, dict[str, list[str]]] = {}

    def of(self, image: Path) -> list[str]:
        """Return the names of the files with the image's stem, the image included, in the order in which `walk` prefers them."""
        if image.parent not in self._folders:
            names: dict[str, list[str]] = {}
            for name in _names_in(image.parent):
                names.setdefault(stem_key(name), []).append(name)
            self._folders[image.parent] = names
        stem, names = os.path.splitext(image.name)[0], self._folders[image.parent]
        by_stem = sorted(names.get(name_key(stem), []), key=lambda name: os.path.splitext(name)[0] != stem)
        whole = names.get(name_key(image.name), [])
        several = sum(map(is_image_name, by_stem)) > 1  # as in `walk`: a.txt, then a.png.txt, unless there is a.jpg
        return whole + by_stem if several else by_stem + whole


def caption_change(
    image_path: Path | str,
    text: str,
    extension: str = "auto",
    *,
    over: str | None = None,
    sidecars: SidecarIndex | None = None,
) -> Change:
    """Return the change that writes a caption file: UTF-8 without a BOM, the file's line ends (LF for a new one), one at the end.

    extension   ".txt", ".caption" or "auto": the existing file, else .txt
    over        the text that the file must have for the change to be made; None for any
    sidecars    an index shared by many images
    """
    image_path = Path(image_path)
    path = caption_path(image_path, extension, (sidecars or SidecarIndex()).of(image_path))
    old = content_of(path)
    new = with_line_ends(caption_bytes(text), old)
    if over is not None and old is not None and normalized_text(decode_text(old).text) != normalized_text(over):
        old = caption_bytes(over)
    return Change(path, old, new)


def caption_bytes(text: str) -> bytes:
    """Return the content of a caption file: UTF-8 with a final line end; empty for an empty caption."""
    text = normalized_text(text)
    return text.encode("utf-8") + b"\n" if text else b""


def with_line_ends(data: bytes, old: bytes | None) -> bytes:
    """Return a caption's bytes, which have LF line ends, with CRLF if those of the file that they replace have it.
    old: these; None for no file"""
    return data.replace(b"\n", b"\r\n") if old is not None and "\r\n" in decode_text(old).text else data


def save_caption(
    history: History, image_path: Path | str, text: str, extension: str = "auto", *, over: str, resume: str = ""
) -> ChangeResult:
    """Write one image's caption if the file still has the text `over` ("" for no file). Raises ProblemsError.
    resume: the id of an earlier save, which is then undone together with this one; "" for none"""
    return history.apply("Edit", [caption_change(image_path, text, extension, over=over)], resume=resume)


def write_captions(context: JobContext, title: str, changes: Sequence[Change]) -> tuple[ChangeResult, list[str]]:
    """Write a task's changes as one entry of the caption history, while no other task writes captions. Raises ProblemsError.

    Returns the result, and a message for each file that was left unchanged because another program changed it.
    """
    with only_one_writes(context):
        history = History(context.workspace.captions, context.workspace.person)
        done = history.apply(title, changes, progress=partial(context.stage, "writing captions"))
    return done, [f"{printable(path)} was changed by another program and left unchanged" for path in done.changed_since]


def rewrite_as_utf8(history: History, paths: Iterable[Path | str]) -> ChangeResult:
    """Convert caption files of any encoding to UTF-8 without a BOM and with LF line ends; all of them or none.

    Raises ProblemsError with the files that cannot be read.
    """
    changes: list[Change] = []
    problems: list[Problem] = []
    for path in map(Path, paths):
        try:
            old = read_regular(path, MAX_CAPTION_BYTES)
        except ProblemsError as error:
            for each in error.problems:
                what = f"No caption was converted: {each.what[:1].lower()}{each.what[1:]}"
                problems.append(replace(each, what=what))
            continue
        text = decode_text(old).text.replace("\r\n", "\n").replace("\r", "\n")
        changes.append(Change(path, old, text.encode("utf-8", "replace")))
    raise_if_errors(problems)
    return history.apply("Rewrite as UTF-8", changes)


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; [] if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
