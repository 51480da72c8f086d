"""Decoding of caption files: byte order marks and valid UTF-8 are certain, legacy encodings are guessed."""

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Decoded:
    """The text of a file, and its encoding by name.
    guessed: whether the encoding is uncertain"""

    text: str
    encoding: str
    guessed: bool = False


def decode_text(data: bytes) -> Decoded:
    """Decode a file's bytes to text without zero characters, byte order marks and the end mark of DOS.

    Byte order marks and valid UTF-8 are certain; other bytes are decoded by the best guess of a legacy encoding.
    """
    decoded = _decoded(data)
    return replace(decoded, text=decoded.text.replace("\0", "").lstrip("\ufeff").rstrip("\x1a"))


def _decoded(data: bytes) -> Decoded:
    """Decode a file's bytes: by the byte order mark, as text with zero bytes, as UTF-8, else by a guess."""
    for mark, encoding, width in (
        (b"\xef\xbb\xbf", "utf-8", 1),
        (b"\xff\xfe\0\0", "utf-32", 4),
        (b"\0\0\xfe\xff", "utf-32", 4),
        (b"\xff\xfe", "utf-16", 2),
        (b"\xfe\xff", "utf-16", 2),
    ):
        if data.startswith(mark):
            whole = data[: len(data) // width * width]  # a byte at the end is a line end of another program
            try:
                text = whole.decode("utf-8-sig" if encoding == "utf-8" else encoding)
            except UnicodeDecodeError:
                break
            return Decoded(text, "utf-8 with a mark" if encoding == "utf-8" else encoding)
    if b"\0" in data:
        return _with_zeros(data)
    try:
        return Decoded(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError:
        return _damaged(data) or _old_encoding(data)


def _damaged(data: bytes) -> Decoded | None:
    """Decode UTF-8 that was cut off or has a few wrong bytes, leaving these out; return None for other encodings."""
    text = data.decode("utf-8", errors="replace")
    invalid = text.count("\ufffd")
    valid = sum(not letter.isascii() for letter in text) - invalid
    return Decoded(text.replace("\ufffd", ""), DAMAGED, True) if valid >= MOSTLY * invalid else None


def _with_zeros(data: bytes) -> Decoded:
    """Decode text with zero bytes: UTF-16 has many; other encodings have a few by accident, which are removed.

    Latin text in UTF-16 has a zero in every second byte, at odd positions when little-endian.
    """
    nonzero = data.replace(b"\0", b"")
    zeros = len(data) - len(nonzero)
    stray = zeros == 1 or nonzero == data.rstrip(b"\0") or zeros * STRAY_SHARE <= len(data)
    if stray and not _CONTROL_CHARACTERS.search(nonzero):  # UTF-16 of Cyrillic has few zeros, but control characters
        decoded = decode_text(nonzero)
        if decoded.encoding == "utf-8":
            return decoded
    if len(data) % 2:
        return decode_text(nonzero)
    encoding = "utf-16-le" if data[1::2].count(0) >= data[0::2].count(0) else "utf-16-be"
    try:
        return Decoded(data.decode(encoding), encoding, guessed=True)
    except UnicodeDecodeError:
        return decode_text(nonzero)


DAMAGED, MOSTLY = "damaged utf-8", 3  # as many right letters as wrong bytes: other encodings have hardly one by chance
# At most every tenth byte: UTF-16 of Japanese tags has a zero for each comma and blank, with odd neighbors.
STRAY_SHARE = 10
_CONTROL_CHARACTERS = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f]")
_KANA = re.compile("[\u3041-\u30fe]")
_HALF_KANA = re.compile("[\uff61-\uff9f]")
_HANGUL = re.compile("[\uac00-\ud7a3]")
_HIGH_RUNS = re.compile(rb"[\x80-\xff]+")


def _old_encoding(data: bytes) -> Decoded:
    """Decode bytes that are not UTF-8 by a guess: Shift-JIS, EUC-JP, EUC-KR, GBK or Windows-1251, else Windows-1252 or Latin-1."""
    runs = _HIGH_RUNS.findall(data)
    japanese = _decode_or_none(data, "cp932") or ""
    japanese = "" if _HALF_KANA.search(japanese) else japanese
    if _KANA.search(japanese):
        return Decoded(japanese, "shift-jis", guessed=True)
    longest = max(map(len, runs))
    # EUC encodings set the high bit of both bytes, and words are two characters or more. (German has pairs too: "Größe".)
    in_pairs = longest >= 4 and all(len(run) % 2 == 0 for run in runs)
    if in_pairs:
        text = _decode_or_none(data, "euc_jp")
        if text and len(_KANA.findall(text)) * 4 >= sum(map(len, runs)) // 2:
            return Decoded(text, "euc-jp", guessed=True)
        text = _decode_or_none(data, "euc_kr") or ""
        syllables = len(_HANGUL.findall(text))
        # Hangul lead bytes are B0 to C8; Chinese text soon goes beyond.
        if syllables >= 3 and syllables * 2 == sum(map(len, runs)):
            return Decoded(text, "euc-kr", guessed=True)
    high = sum(map(len, runs))
    letters = high + sum(1 for byte in data if chr(byte).isascii() and chr(byte).isalpha())
    mostly_high = high >= 0.6 * letters and longest >= 3
    if in_pairs and (text := _decode_or_none(data, "gbk")):  # kanji are rare characters in it, beyond GB2312
        rare = japanese and not _can_encode(text, "gb2312")
        return Decoded(japanese, "shift-jis", guessed=True) if rare else Decoded(text, "gbk", guessed=True)
    if mostly_high:
        for encoding in ("cp932", "gbk", "cp1251"):  # Kanji without kana; GBK beyond GB2312; Cyrillic
            text = _decode_or_none(data, encoding)
            if text and not _HALF_KANA.search(text) and (encoding != "cp1251" or _mostly_cyrillic(text)):
                return Decoded(text, {"cp932": "shift-jis"}.get(encoding, encoding), guessed=True)
    text = _decode_or_none(data, "cp1252")
    return Decoded(text, "cp1252", True) if text is not None else Decoded(data.decode("latin-1"), "latin-1", True)


def _can_encode(text: str, encoding: str) -> bool:
    """Return whether an encoding has all characters of a text."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _decode_or_none(data: bytes, encoding: str) -> str | None:
    """Decode bytes with an encoding; None if they are not valid in it."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _mostly_cyrillic(text: str) -> bool:
    """Return whether at least 90% of the letters outside ASCII are Cyrillic."""
    letters = [letter for letter in text if not letter.isascii() and letter.isalpha()]
    return bool(letters) and sum("\u0400" <= letter <= "\u04ff" for letter in letters) >= 0.9 * len(letters)
