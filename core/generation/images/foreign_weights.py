"""Rewrites other programs' prompt weights in A1111's notation, with the factors that these programs state."""

import re

_NOVELAI = 1.05  # a pair of braces multiplies by it, a pair of square brackets divides
_DEEPEST = 100  # nested brackets


def from_novelai(text: str) -> str:
    """NovelAI's {more}, [less] and 1.5::exactly:: as A1111's (text:weight); round brackets and unpaired ones become literal text."""
    text = re.sub(r"[()\\]", r"\\\g<0>", text)
    for _ in range(_DEEPEST):
        before = text
        text = re.sub(r"\{([^{}\[\]]*)\}", rf"(\1:{_NOVELAI})", text)
        text = re.sub(r"\[([^{}\[\]]*)\]", rf"(\1:{1 / _NOVELAI:.4g})", text)
        if text == before:
            break
    text = re.sub(r"[\[\]]", r"\\\g<0>", text)
    return re.sub(r"(-?\d+(?:\.\d+)?)::(.*?)(?:::|$)", r"(\2:\1)", text, flags=re.DOTALL)


# A word and the signs behind it, and words in quotation marks with their weight, as Compel splits a prompt
_WEIGHED_WORD = re.compile(r"(?<![^\s,(\"])((?:\\.|[-+](?![\s()\",.=+-]|$)|[^\s()\",.=+\\-])++)(\++|-+)")
_QUOTED = re.compile(r"""(?<![^\s,(])"((?:[^"\\\n]|\\.)*)"(\++|-+|\d*\.?\d+)?""")

# Calls of Compel's functions, which cannot be converted, with what they act on: brackets up to three deep, words in quotation marks, a word
_FUNCTION = r"\.(?:and|attend|blend|or|swap)"
_BRACKETS = r"\((?:[^()\\]|\\.|\((?:[^()\\]|\\.|\((?:[^()\\]|\\.)*+\))*+\))*+\)"
_OPERAND = rf"""(?<![^\s,(]){_BRACKETS}|(?<![^\s,(])"(?:[^"\\\n]|\\.)*+"|(?<![^\s,(])(?:\\.|[^\s()",.\\])++"""
_CALL = re.compile(rf"(?:{_OPERAND})?(?:{_FUNCTION}{_BRACKETS})+|\b(?:use|with)Lora{_BRACKETS}")
INVOKEAI_FUNCTIONS = rf"{_FUNCTION}\(\)?|\b(?:use|with)Lora\([^()]*\)"  # the same calls, as a note names them


def from_invokeai(text: str) -> str:
    """InvokeAI's word++, (some words)-- and "some words"1.3 as A1111's (text:weight): each + multiplies by 1.1, each - by 0.9.
    Paired brackets and quotation marks without a weight are left out, all other brackets become literal text. Functions such as
    ("a fox", "a hat").blend(0.7, 0.3) stay as they are, as literal text."""

    def weighed(match: re.Match[str]) -> str:
        inner, weight = match[1], match[2] or "1"
        factor = {"+": 1.1, "-": 0.9}.get(weight[0], 0) ** len(weight) or float(weight)
        return inner if factor == 1 else f"\1{inner}:{factor:.4g}\2"  # marks that are not brackets: these are done

    text = re.sub(r"[\[\]]", r"\\\g<0>", re.sub(r"[\1-\3]", "", text))
    calls = iter(_CALL.findall(text))
    text = _CALL.sub("\3", text)
    text = _QUOTED.sub(weighed, _WEIGHED_WORD.sub(weighed, text))
    for _ in range(_DEEPEST):
        before = text
        text = re.sub(r"(?<!\\)\(((?:[^()\\]|\\.)*)\)(\++|-+|\d*\.?\d+)?", weighed, text)
        if text == before:
            break
    text = re.sub("\3", lambda match: next(calls), text)
    text = re.sub(r"(?<!\\)[()]", r"\\\g<0>", text)
    return text.replace("\1", "(").replace("\2", ")")
