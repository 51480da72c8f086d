"""How many tokens a caption has, without torch: the same vocabulary file that the text encoder's tokenizer reads."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = (
    Path(__file__).resolve().parents[1] / "core" / "families" / "sd1" / "configs" / "tokenizer" / "tokenizer.json"
)
WINDOWS = (75, 150, 225)  # one, two and three passes through the text encoder


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(VOCABULARY))


@lru_cache(maxsize=50_000)
def count_tokens(caption: str) -> int:
    """Content tokens, without the marks of beginning and end. One window holds 75."""
    return len(_tokenizer().encode(caption).ids) - 2


def words_on_length(tokens: int, longest: int) -> str:
    """What a length means: "9 of 75 tokens", "81 of 75 tokens: the last 6 are not learnt"."""
    said = f"{tokens} of {longest} tokens"
    if tokens <= longest:
        return said
    over = tokens - longest
    return said + (": the last one is not learnt" if over == 1 else f": the last {over} are not learnt")
