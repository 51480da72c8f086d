"""Notations of other programs and extensions that are not supported: they are text here, which is reported at their
position."""

from __future__ import annotations

import re
from collections.abc import Iterator

_WEIGHT = "write (word:1.2)"
# pattern, description, what to write instead
_ROWS = (
    (r"\$\{\w[^{}]{0,200}\}?", "a variable of Dynamic Prompts", "write its text where it is used"),
    (r"__[~@!][\w\-./*]{1,80}__|\{[~@!](?=[^{}]{0,200}[|}])", "a sampler of Dynamic Prompts", "remove the sign; variants are random"),
    (r"__[\w\-./*]{1,80}\([^()]{0,200}\)__", "a wildcard with parameters", "write the parameters into the wildcard file"),
    (r"(?m)^#.*$", "a comment of A1111", "remove the line"),
    (r"(?<![\w.:{|])-?\d+(?:\.\d+)?::[^:{}|]{1,500}::", "a weight of NovelAI", _WEIGHT),
    (r"\)(?:\++|-{2,}|\d+(?:\.\d+)?)(?=[\s,]|$)", "a weight of InvokeAI", _WEIGHT),
    (r"\)\.(?:and|or|blend)\(|\.swap\(", "a function of InvokeAI", "write a AND b, or [from:to:0.5]"),
    (r"\bAND_(?:SALT|PERP|TOPK|ALIGN)\w*", "an operator of Neutral Prompt", "write AND"),
    (r"\bADD(?:BASE|COMM|COL|ROW|P)\b", "a division of Regional Prompter", "use regions"),
    (r"[\uff08\uff3b\uff5b][^\uff08\uff3b\uff5b]{0,500}?[\uff1a:]\s*[\d.]+\s*[\uff09\uff3d\uff5d]", "in full-width brackets", _WEIGHT),
    (r"<[A-Za-z][\w-]{0,30}(?:\[[^\[\]<>]{0,100}\])?:[^<>]*>|<(?:break|trigger)>", "not a LoRA", "remove it, or write <lora:name:1>"),
)  # fmt: skip
_NOTATIONS = tuple((re.compile(pattern), what, fix) for pattern, what, fix in _ROWS)


def notations_in(text: str) -> Iterator[tuple[int, int, str, str]]:
    """(start, end, description, what to write instead) of each."""
    for pattern, what, fix in _NOTATIONS:
        for match in pattern.finditer(text):
            yield *match.span(), what, fix
