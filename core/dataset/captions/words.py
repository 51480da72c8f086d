"""Turns names of files and tags into text for captions. Pure functions."""

import re
from collections.abc import Sequence

# SmilingWolf's list of labels whose underscores are faces.
KAOMOJI = frozenset("0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||".split())
_LEADING = re.compile(r"^\d+_")
_TRAILING = re.compile(r"[\s_\-.]*(?:\((\d+)\)|(\d+))$")


def name_words(name: str, *, leading: bool = True, trailing: bool = True, replaced: str = "_-.") -> str:
    """A file or folder name, without extension, as text: "10_red-fox (3)" -> "red fox".

    leading   leave out a number with an underscore at its start      trailing   leave out a number at its end
    replaced  characters that become spaces
    """
    name = _LEADING.sub("", name) if leading else name
    name = _TRAILING.sub("", name) if trailing else name
    return " ".join(name.translate(dict.fromkeys(map(ord, replaced), " ")).split())


def number_of(name: str) -> str:
    """The digits at the end of a name: "fox_012" -> "012"; "" for none."""
    match = _TRAILING.search(name)
    return (match[1] or match[2]) if match else ""


def tag_words(tag: str) -> str:
    """A tag with spaces instead of underscores, except in kaomoji."""
    return tag if tag in KAOMOJI else tag.replace("_", " ").strip()


def word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """A regular expression that matches any of the words, as a whole word and in any case."""
    longest_first = sorted(words, key=len, reverse=True)
    pattern = "|".join(re.escape(word) for word in longest_first)
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)
