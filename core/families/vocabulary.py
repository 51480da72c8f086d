"""Reads and checks the vocabulary of a model folder's tokenizer, before a library builds a tokenizer from it."""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.families.token_count import VOCABULARY
from core.record.bounded_json import read_json_object
from core.record.problems import ProblemsError
from core.record.regular import read_regular
from core.record.stamps import cached_until_changed, stamp_or_none

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MOST_WORDS, MOST_ADDED, LONGEST = 200_000, 10_000, 1000  # CLIP has 49,408
MERGES_BYTES = 8_000_000
FILES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
FIX = "download the model's tokenizer folder again, or remove it: then CLIP's own is used"


@dataclass(frozen=True)
class Vocabulary:
    """A byte-pair vocabulary.

    words   {token: id}, ids from 0
    merges  pairs of tokens, highest priority first
    added   [{"content": token, "id": id, flag of AddedToken: value}], whose ids follow those of `words`
    """

    words: dict[str, int]
    merges: list[tuple[str, str]]
    added: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.words) + len(self.added)


def is_complete(folder: Path) -> bool:
    """Return whether a folder has tokenizer.json, or vocab.json and merges.txt."""
    return (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a tokenizer folder: tokenizer.json, else vocab.json and merges.txt. Raises ProblemsError for damaged
    files.

    Cached by the files' content: reading 49,408 tokens takes a second, and most models have the same ones.
    """
    return _read(_Files(folder, tuple(_digest(folder / name) for name in FILES)))


def unusual_digests(folder: Path) -> list[str]:
    """Return the digests of a tokenizer folder's files; [] if its vocabulary is CLIP's. Raises ProblemsError for damaged files."""
    usual = folder == VOCABULARY.parent or read_vocabulary(folder) == read_vocabulary(VOCABULARY.parent)
    return [] if usual else [_digest(folder / name) for name in FILES]


@dataclass(frozen=True)
class _Files:
    """A tokenizer folder as a cache key, equal to every folder with the same files."""

    folder: Path = field(compare=False)
    digests: tuple[str, ...]


@cached_until_changed(32, missing="")
def _digest(file: Path) -> str:
    """Return the SHA-256 of a file's content; its path and stamp if it is too large or unreadable; "" if it is missing."""
    try:
        return hashlib.sha256(read_regular(file, MERGES_BYTES)).hexdigest()
    except (OSError, ProblemsError):
        return f"{file} {stamp_or_none(file)}"


@lru_cache(maxsize=2)
def _read(files: _Files) -> Vocabulary:
    """Read tokenizer.json, else vocab.json and merges.txt, with added_tokens.json. Raises ProblemsError for an invalid encoding."""
    folder = files.folder
    whole = folder / "tokenizer.json"
    if whole.is_file():
        content = read_json_object(whole, FIX)
        model = content.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise _refused(whole, "it has no byte-pair encoding (BPE)")
        words, merges, listed = model.get("vocab"), model.get("merges"), content.get("added_tokens") or []
    else:
        words, listed = read_json_object(folder / "vocab.json", FIX), []
        lines = read_regular(folder / "merges.txt", MERGES_BYTES).decode("utf-8", "replace").split("\n")
        merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    where = whole if whole.is_file() else folder
    vocabulary = _words(words, where)
    pairs = _merges(merges, vocabulary, where)
    if not isinstance(listed, list) or not all(isinstance(token, dict) for token in listed):
        raise _refused(where, "its added tokens are not a list")
    file = folder / "added_tokens.json"
    more = read_json_object(file, FIX) if file.is_file() else {}
    listed = [*listed, *({"content": content, "id": number} for content, number in more.items())]
    return Vocabulary(vocabulary, pairs, _added(listed, vocabulary, where))


def _words(words: Any, where: Path) -> dict[str, int]:
    """Return `words` if it is a vocabulary {token: id} with BOS and EOS and the ids 0, 1, 2 ...; else raise ProblemsError."""
    if not isinstance(words, dict) or not 2 <= len(words) <= MOST_WORDS:
        raise _refused(where, "its vocabulary is not a list of tokens with their ids")
    numbers = words.values()
    if not all(type(number) is int for number in numbers) or set(numbers) != set(range(len(words))):
        raise _refused(where, "the ids of its vocabulary are not 0, 1, 2 ...")
    if missing := [mark for mark in (BEGIN, END) if mark not in words]:
        raise _refused(where, f"its vocabulary lacks {missing[0]}")
    return words


def _merges(merges: Any, words: dict[str, int], where: Path) -> list[tuple[str, str]]:
    """Return the merges, each "a b" or ["a", "b"], as pairs. Raises ProblemsError for tokens outside of the vocabulary."""
    if not isinstance(merges, list):
        raise _refused(where, "it has no merges")
    pairs = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(half, str) for half in pair):
            raise _refused(where, "a merge is not a pair of tokens")
        if pair[0] not in words or pair[1] not in words or pair[0] + pair[1] not in words:
            raise _refused(where, "a merge has tokens that are not in its vocabulary")
        pairs.append((pair[0], pair[1]))
    return pairs


def _added(tokens: list[dict[str, Any]], words: dict[str, int], where: Path) -> list[dict[str, Any]]:
    """Return the added tokens that are not in the vocabulary, by id. Raises ProblemsError unless their ids follow the vocabulary's."""
    by_content: dict[str, dict[str, Any]] = {}
    for token in tokens:
        content, number = token.get("content"), token.get("id")
        if not isinstance(content, str) or not 0 < len(content) <= LONGEST or type(number) is not int:
            raise _refused(where, "an added token is not a text with an id")
        if content not in words:
            flags = {name: bool(token[name]) for name in FLAGS if name in token}
            by_content.setdefault(content, {"content": content, "id": number, **flags})
    ordered = sorted(by_content.values(), key=lambda token: token["id"])
    if [token["id"] for token in ordered] != list(range(len(words), len(words) + len(ordered))):
        raise _refused(where, "the ids of its added tokens do not follow its vocabulary's")
    if len(ordered) > MOST_ADDED:
        raise _refused(where, "it has too many added tokens")
    return ordered


def _refused(where: Path, why: str) -> ProblemsError:
    """Return the error that the tokenizer is damaged because of `why`, a clause."""
    return ProblemsError.one(f"The model's tokenizer is damaged: {why}", str(where), FIX, code="tokenizer.damaged")
