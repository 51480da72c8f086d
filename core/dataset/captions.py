"""Caption files -> the words that are learnt: read in any encoding, put through the settings, saved with an undo.

The order of the steps is sd-scripts' (reference: section 4.1). Draws are addressed by (seed, epoch, picture,
repeat), so a preview shows what an epoch will really use.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.dataset.files import CAPTION_EXTENSIONS, TRASH_FOLDER, printable
from core.record import atomic, draws
from core.record.problems import Problem, ProblemsError
from core.settings.captions import CaptionSettings

if TYPE_CHECKING:
    from core.dataset.scan import Picture

MAX_CAPTION_BYTES = 1 << 20  # a larger "caption" is some other file


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text of a file. guessed: the encoding is not certain, so a person should look."""

    text: str
    encoding: str
    guessed: bool = False


@dataclass(frozen=True, slots=True)
class Caption:
    """What is said about a picture before the pipeline.

    source    "file", "blank" (a caption file with nothing in it), "words" (the folder's) or "none"
    path      the caption file, or where one would be written
    encoding  of the file ("utf-8" when there is none)
    """

    text: str
    source: str
    path: Path
    encoding: str = "utf-8"
    problem: Problem | None = None


# ---- reading


def read_caption(picture: Picture, settings: CaptionSettings) -> Caption:
    """The caption file beside a picture, else its folder's words. Line ends become \\n; blanks around are taken off."""
    for path in caption_files(picture.path, settings.caption_extension, picture.sidecars):
        try:
            if os.path.getsize(path) > MAX_CAPTION_BYTES:
                return _from_words(picture, path, _unreadable(path, "is larger than 1 MB and hardly a caption"))
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            return _from_words(picture, path, _unreadable(path, f"cannot be read ({error.strerror})"))
        return _from_file(path, data)
    return _from_words(picture, caption_path(picture.path, settings.caption_extension, picture.sidecars), None)


def caption_files(picture: Path, caption_extension: str, sidecars: Sequence[str] = ()) -> list[Path]:
    """Where a caption may lie, best first. sidecars: names seen beside the picture (A.TXT is one too)."""
    endings = CAPTION_EXTENSIONS if caption_extension == "auto" else (caption_extension,)
    candidates: list[Path] = []
    for ending in endings:
        candidates += [picture.parent / name for name in sidecars if name.lower().endswith(ending)]
        candidates.append(picture.parent / (os.path.splitext(picture.name)[0] + ending))
    return list(dict.fromkeys(candidates))


def caption_path(picture: Path, caption_extension: str, sidecars: Sequence[str] = ()) -> Path:
    """The caption file that is there, else the one to write."""
    candidates = caption_files(picture, caption_extension, sidecars)
    return next((path for path in candidates if path.is_file()), candidates[0])


def _from_file(path: Path, data: bytes) -> Caption:
    decoded = decode_text(data)
    text = decoded.text.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        what = "The caption file is empty: its picture would be learned as an empty caption."
        fix = "Write a caption, or delete the file so that the folder's words are used."
        return Caption("", "blank", path, decoded.encoding, Problem(what, printable(path), fix, "advice"))
    problem = None
    if decoded.encoding not in ("utf-8", "utf-8 with a mark"):
        how = "was read as" if decoded.guessed else "is written in"
        what = f"The caption {how} {decoded.encoding} rather than UTF-8: {text.splitlines()[0][:60]}"
        problem = Problem(
            what, printable(path), "Check the words. Saving it on the Captions tab writes it as UTF-8.", "advice"
        )
    return Caption(text, "file", path, decoded.encoding, problem)


def _from_words(picture: Picture, path: Path, problem: Problem | None) -> Caption:
    words = picture.words.strip()
    return Caption(words, "words" if words else "none", path, problem=problem)


def _unreadable(path: Path, reason: str) -> Problem:
    return Problem(
        f"The caption file {reason}, so the folder's words are used.",
        printable(path),
        "Replace or remove it.",
        "advice",
    )


# ---- encodings


def decode_text(data: bytes) -> Decoded:
    """Bytes -> text. Byte-order marks and valid UTF-8 are certain; the rest is a guess between old encodings."""
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if data.startswith(mark):
            try:
                text = data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
            except UnicodeDecodeError:
                break
            return Decoded(text, "utf-8 with a mark" if encoding == "utf-8" else encoding)
    if b"\0" in data:
        return _utf16_without_mark(data)
    try:
        return Decoded(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError:
        return _old_encoding(data)


def _utf16_without_mark(data: bytes) -> Decoded:
    """Latin text in UTF-16 has a zero in every second byte: in the odd ones when the low byte comes first."""
    encoding = "utf-16-le" if data[1::2].count(0) >= data[0::2].count(0) else "utf-16-be"
    try:
        return Decoded(data.decode(encoding), encoding, guessed=True)
    except UnicodeDecodeError:
        return Decoded(data.replace(b"\0", b"").decode("cp1252", "replace"), "cp1252", guessed=True)


_KANA = re.compile("[\u3041-\u30fe]")
_HALF_KANA = re.compile("[\uff61-\uff9f]")
_HANGUL = re.compile("[\uac00-\ud7a3]")
_HIGH_RUNS = re.compile(rb"[\x80-\xff]+")


def _old_encoding(data: bytes) -> Decoded:
    """Shift-JIS, EUC-JP, EUC-KR, GBK and Windows' Cyrillic leave their own traces; all else is Windows' Western."""
    runs = _HIGH_RUNS.findall(data)
    text = _try(data, "cp932")
    if text and _KANA.search(text) and not _HALF_KANA.search(text):
        return Decoded(text, "shift-jis", guessed=True)
    longest = max(map(len, runs))
    # Both bytes of the EUC family are high, and words are two characters or more. (German has pairs too: "Größe".)
    in_pairs = longest >= 4 and all(len(run) % 2 == 0 for run in runs)
    if in_pairs:
        text = _try(data, "euc_jp")
        if text and len(_KANA.findall(text)) * 4 >= sum(map(len, runs)) // 2:
            return Decoded(text, "euc-jp", guessed=True)
        text = _try(data, "euc_kr") or ""
        syllables = len(_HANGUL.findall(text))
        # Hangul begins with B0 to C8; Chinese text soon has a character from beyond.
        if syllables >= 3 and syllables * 2 == sum(map(len, runs)):
            return Decoded(text, "euc-kr", guessed=True)
    high = sum(map(len, runs))
    letters = high + sum(1 for byte in data if chr(byte).isascii() and chr(byte).isalpha())
    words_in_high = high >= 0.6 * letters and longest >= 3
    if in_pairs and (text := _try(data, "gbk")):
        return Decoded(text, "gbk", guessed=True)
    if words_in_high:
        for encoding in ("cp932", "gbk", "cp1251"):  # Kanji without kana; GBK beyond GB2312; Cyrillic
            text = _try(data, encoding)
            if text and not _HALF_KANA.search(text) and (encoding != "cp1251" or _mostly_cyrillic(text)):
                return Decoded(text, {"cp932": "shift-jis"}.get(encoding, encoding), guessed=True)
    text = _try(data, "cp1252")
    return Decoded(text, "cp1252", True) if text is not None else Decoded(data.decode("latin-1"), "latin-1", True)


def _try(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _mostly_cyrillic(text: str) -> bool:
    letters = [letter for letter in text if not letter.isascii() and letter.isalpha()]
    return bool(letters) and sum("\u0400" <= letter <= "\u04ff" for letter in letters) >= 0.9 * len(letters)


# ---- the pipeline


def is_random(settings: CaptionSettings) -> bool:
    """Whether a picture's caption differs from one draw to the next."""
    return settings.shuffle_caption or settings.caption_dropout_rate > 0


def plain_caption(raw: str, settings: CaptionSettings) -> str:
    """The part without draws: the first line that is not blank, with prefix and suffix, each joined by one space.

    sd-scripts cuts to the first line after the suffix was added and so loses it; here the line is taken first.
    """
    lines = raw.split("\n")
    caption = next((line for line in lines if line.strip()), "") if len(lines) > 1 else raw
    if settings.caption_prefix:
        caption = f"{settings.caption_prefix} {caption}"
    if settings.caption_suffix:
        caption = f"{caption} {settings.caption_suffix}"
    return caption


def training_caption(
    raw: str, settings: CaptionSettings, seed: int, epoch: int, picture_key: Sequence[str], repeat: int
) -> str:
    """What the picture is learned with at this draw. Draws in sd-scripts' order: whole dropout, then the shuffle."""
    caption = plain_caption(raw, settings)
    if not is_random(settings):
        return caption
    random = draws.python_random(seed, "caption", epoch, *picture_key, repeat)
    if settings.caption_dropout_rate > 0 and random.random() < settings.caption_dropout_rate:
        return ""
    if not settings.shuffle_caption:
        return caption
    kept, flexible = split_tags(caption, settings.caption_separator, settings.keep_tokens)
    random.shuffle(flexible)
    return ", ".join(kept + flexible)


def split_tags(caption: str, separator: str, keep_tokens: int) -> tuple[list[str], list[str]]:
    """The first `keep_tokens` tags, which stay in front, and the rest. Blanks are taken off, empty tags kept."""
    tags = [tag.strip() for tag in caption.strip().split(separator)]
    return tags[:keep_tokens], tags[keep_tokens:]


def caption_variants_of_epoch(
    items: Iterable[tuple[Sequence[str], int, str]], settings: CaptionSettings, seed: int, epoch: int
) -> list[str]:
    """Every caption an epoch will use, each once, in the order of first use: what must be encoded at its start.

    items   (picture key, repeat, raw caption)
    """
    drawn = (training_caption(raw, settings, seed, epoch, key, repeat) for key, repeat, raw in items)
    return list(dict.fromkeys(drawn))


# ---- saving


def save_caption(
    picture_path: Path | str, text: str, extension: str = "auto", trash_dir: Path | str | None = None
) -> str | None:
    """Write a picture's caption as UTF-8 and keep the earlier one; None when nothing changed.

    extension   ".txt", ".caption" or "auto": the file that is there, else .txt
    trash_dir   where earlier texts go; by default `_atelier_trash` beside the picture, which every scan skips
    returns     a token for `undo`
    """
    picture_path = Path(picture_path)
    beside = [
        name
        for name in _names_in(picture_path.parent)
        if os.path.splitext(name)[0] == os.path.splitext(picture_path.name)[0]
    ]
    path = caption_path(picture_path, extension, beside)
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    return _replace_text(
        path, text.encode("utf-8") + b"\n" if text else b"", Path(trash_dir or picture_path.parent / TRASH_FOLDER)
    )


def undo(token: str) -> str | None:
    """Put back what a save replaced. The text that is there now is kept as well: the returned token redoes it."""
    record = Path(token)
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        earlier = (record.parent / said["earlier"]).read_bytes() if said["earlier"] else None
        path = Path(said["path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProblemsError.one(
            "The earlier caption is no longer in the trash folder.",
            printable(token),
            "Type it again; nothing was changed.",
        ) from error
    return _replace_text(path, earlier, record.parent)


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _replace_text(path: Path, data: bytes | None, trash: Path) -> str | None:
    """Make the file hold `data` (None: make it absent), its former content first put into the trash."""
    try:
        earlier = path.read_bytes() if path.exists() else None
        if earlier == data:
            return None
        token = _keep(path, earlier, trash)
        if data is None:
            atomic.remove(path)
        else:
            atomic.write_bytes(path, data)
    except OSError as error:
        what = f"The caption could not be saved ({error.strerror}); the earlier one is unchanged."
        raise ProblemsError.one(
            what, printable(path), "Check that the folder may be written to and the disk is not full."
        ) from error
    return token


def _keep(path: Path, earlier: bytes | None, trash: Path) -> str:
    """A record `<stem>.<time>.json` beside the earlier bytes; both names are new."""
    mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
    base = f"{printable(path.stem)[:80]}.{time.time_ns()}.{mark}"
    if earlier is not None:
        atomic.write_bytes(trash / (base + path.suffix), earlier)
    record = trash / f"{base}.json"
    atomic.write_text(
        record,
        json.dumps({"path": str(path.absolute()), "earlier": base + path.suffix if earlier is not None else None}),
    )
    return str(record)
