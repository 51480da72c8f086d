"""Conversion of file names and tags to caption text. Pure functions."""

import re
from collections.abc import Sequence
from functools import lru_cache
from unicodedata import normalize

# SmilingWolf's list of labels whose underscores are faces.
KAOMOJI = frozenset("0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||".split())
_LEADING = re.compile(r"^\d+_")
_TRAILING = re.compile(r"[\s_\-.]*(?:\((\d+)\)|(\d+))$")


def name_words(name: str, *, leading: bool = True, trailing: bool = True, replaced: str = "_-.") -> str:
    """Convert a file or folder name without extension to text: "10_red-fox (3)" -> "red fox".

    leading    remove a number followed by an underscore at the start
    trailing   remove a number at the end
    replaced   characters to replace by spaces
    """
    name = _LEADING.sub("", name) if leading else name
    name = _TRAILING.sub("", name) if trailing else name
    return " ".join(name.translate(dict.fromkeys(map(ord, replaced), " ")).split())


def number_of(name: str) -> str:
    """Return the digits at the end of a name, such as "012" of "fox_012"; "" without digits there."""
    match = _TRAILING.search(name)
    return (match[1] or match[2]) if match else ""


def tag_words(tag: str) -> str:
    """Replace underscores in a tag by spaces, except in kaomoji such as "^_^"."""
    return tag if tag in KAOMOJI else tag.replace("_", " ").strip()


@lru_cache(maxsize=1 << 16)
def comparable(part: str) -> str:
    """Return a tag normalized for comparison: without differences in case, underscores, escapes and spaces."""
    return " ".join(part.replace("\\", "").replace("_", " ").split()).casefold()


def word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Return a regular expression that matches any of `words`, as a whole word, in any case, and with accents as one character or two."""
    forms = dict.fromkeys(each for word in words for each in (word, normalize("NFC", word), normalize("NFD", word)))
    longest_first = sorted(forms, key=len, reverse=True)
    pattern = "|".join(re.escape(word) for word in longest_first)
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)
