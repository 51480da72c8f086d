"""Counts the tokens of captions, and tells common words, without torch, with the vocabulary that all Stable Diffusion models share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORD_END = "</w>"  # of a token that ends a word
COMMON_BELOW = 0.5  # share of the vocabulary: tokens before it are everyday words, names and abbreviations
WINDOW = 75  # content tokens of one pass through CLIP, between BOS and EOS
VOCABULARY = Path(__file__).resolve().parent / "sd1" / "configs" / "tokenizer" / "tokenizer.json"


@lru_cache(maxsize=1)
def clip_tokenizer() -> Tokenizer:
    """Return the tokenizer of the built-in CLIP vocabulary, from the library tokenizers."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(VOCABULARY))


@lru_cache(maxsize=50_000)
def count_tokens(caption: str) -> int:
    """Return the number of a caption's tokens without BOS and EOS."""
    return len(clip_tokenizer().encode(caption).ids) - 2


def cut_at(caption: str, tokens: int) -> tuple[str, str]:
    """Split a caption after this number of tokens (without BOS): return (what is encoded, what is cut off)."""
    offsets = clip_tokenizer().encode(caption).offsets[1:-1]
    if len(offsets) <= tokens:
        return caption, ""
    end = offsets[tokens][0]
    return caption[:end].rstrip(), caption[end:]


@dataclass(frozen=True)
class WordFacts:
    """How CLIP tokenizes a word.

    tokens   the tokens it is split into
    rank     position in the vocabulary, from 0 (most frequent) to 1; None unless the word is a single token
    """

    tokens: list[str]
    rank: float | None

    @property
    def common(self) -> bool:
        """Whether the word is a frequent token, whose meaning the model knows."""
        return self.rank is not None and self.rank < COMMON_BELOW


def word_facts(word: str) -> WordFacts:
    """Tokenize a word with CLIP's tokenizer."""
    tokenizer = clip_tokenizer()
    ids = tokenizer.encode(word, add_special_tokens=False).ids
    tokens = [tokenizer.decode([number]).removesuffix(WORD_END) for number in ids]
    whole = len(tokens) == 1 and tokens[0].casefold() == word.casefold()
    return WordFacts(tokens, ids[0] / tokenizer.get_vocab_size() if whole else None)
