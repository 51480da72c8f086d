"""Counts the tokens of captions without torch, with the vocabulary that all Stable Diffusion models share."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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
