"""Prompt editing in A1111's notation: [from:to:when] and [a|b|c] change the prompt at given steps. Parsing only.

[from:to:when] is `from` up to a step and `to` after it; [to:when] adds and [from::when] removes. `when` with a decimal
point is a fraction of the steps, without one a number of steps; in the second pass of hires fix fractions continue from
1 to 2 and numbers after those of the first pass. [a|b] is a at the first step, b at the second, a at the third. Other
square brackets are weights and are left to `core.families.prompt_weights`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from core.families.prompt_weights import weight_error

MOST_NESTED = 100  # brackets in brackets; deeper ones are text
_PARTS = re.compile(r"\\.|\\|[\[\]():|]|[^\\\[\]():|]+", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9}))\s*")
_NUMBERED = re.compile(r"\s*[+-]?\.?[0-9]")
_PAIRS = {"]": "[", ")": "("}

Text = tuple[Any, ...]  # of str, Switch and Alternation


@dataclass(frozen=True)
class Pass:
    """The steps of one sampling pass.

    steps    number of steps
    before   number of steps of the first pass if this is the second pass of hires fix, else None
    """

    steps: int
    before: int | None = None

    def last_step(self, when: str) -> int:
        """Return the last step of this pass, counted from 1, that uses the text before a switch; below 1 if none does.
        when: number of a step ("12"), or with a point a fraction of the pass ("0.4"); in the second pass of hires fix steps count on from
        the first pass and fractions from 1 ("1.4")"""
        number = float(when)
        if "." in when:
            number = (number - (self.before is not None)) * self.steps
        else:
            number -= self.before or 0
        return min(self.steps, int(number))


@dataclass(frozen=True)
class Switch:
    """An edit [before:after:when] at characters [start, end) of the prompt; `when` is the unparsed number."""

    before: Text
    after: Text
    when: str
    start: int
    end: int


@dataclass(frozen=True)
class Alternation:
    """An edit [a|b|c] at characters [start, end) of the prompt, with `texts` (a, b, c)."""

    texts: tuple[Text, ...]
    start: int
    end: int


@dataclass
class _OpenBracket:
    """A bracket during parsing, before its closing bracket is read.

    sign      "[", "(", or "" for the whole prompt
    texts     the contents, split at the separators; each a list of str and edits
    between   the separators ":" and "|", one fewer than `texts`
    sound     False once a bracket inside has no partner; such a bracket cannot be an edit
    """

    sign: str
    start: int
    texts: list[list[Any]] = field(default_factory=lambda: [[]])
    between: list[str] = field(default_factory=list)
    sound: bool = True

    def add(self, *items: Any) -> None:
        """Append strings and edits to the text after the last separator."""
        self.texts[-1].extend(items)

    @property
    def last_text(self) -> str:
        """The text after the last separator, with "[]" for each edit in it (which matches no number)."""
        return "".join(item if isinstance(item, str) else "[]" for item in self.texts[-1])

    def literal(self, closed: str = "") -> list[Any]:
        """Return the bracket, its contents and `closed` ("]", ")" or "") as strings and nested edits, for a bracket that is not an edit."""
        joined = [self.sign, *self.texts[0]]
        for sign, text in zip(self.between, self.texts[1:], strict=True):
            joined += [sign, *text]
        return [*joined, closed]


def parse_edits(prompt: str) -> Text:
    """Parse a prompt into a sequence of str, Switch and Alternation. Cached."""
    return _read(prompt)[0]


def malformed_edits(prompt: str) -> tuple[tuple[int, int], ...]:
    """Return (start, end) of each malformed edit: square brackets that resemble an edit but are read as plain text."""
    return _read(prompt)[1]


@lru_cache(maxsize=256)
def _read(prompt: str) -> tuple[Text, tuple[tuple[int, int], ...]]:
    """Return (the parsed prompt, (start, end) of each malformed edit)."""
    opened, missed = [_OpenBracket("", 0)], list[tuple[int, int]]()
    for match in _PARTS.finditer(prompt):
        part = match[0]
        if part in ("[", "(") and len(opened) <= MOST_NESTED:
            opened.append(_OpenBracket(part, match.start()))
        elif part in _PAIRS and any(each.sign == _PAIRS[part] for each in opened):
            while opened[-1].sign != _PAIRS[part]:
                _as_text(opened)
            closed = opened.pop()
            edit = _edit(closed, match.end()) if part == "]" and closed.sound else None
            if edit is None and part == "]" and _resembles_edit(closed):
                missed.append((closed.start, match.end()))
            opened[-1].add(*(closed.literal(part) if edit is None else [edit]))
        elif part in (":", "|") and opened[-1].sign == "[":
            opened[-1].between.append(part)
            opened[-1].texts.append([])
        else:
            opened[-1].sound &= part not in _PAIRS
            opened[-1].add(part)
    while len(opened) > 1:
        _as_text(opened)
    return tuple(opened[0].texts[0]), tuple(missed)


def _as_text(opened: list[_OpenBracket]) -> None:
    """Turn the last open bracket, which has no partner, into text of its parent, which can then not be an edit either."""
    last = opened.pop()
    opened[-1].add(*last.literal())
    opened[-1].sound = False


def _edit(bracket: _OpenBracket, end: int) -> Switch | Alternation | None:
    """Return the edit that a closed bracket forms, or None if it is plain text. end: the position after the closing bracket"""
    if set(bracket.between) == {"|"}:
        return Alternation(tuple(map(tuple, bracket.texts)), bracket.start, end)
    when = _WHEN.fullmatch(bracket.last_text) if bracket.between[-1:] == [":"] else None
    if when is None or bracket.between.count(":") > 2:
        return None
    return Switch(*_switch_texts(bracket), when[1], bracket.start, end)


def _resembles_edit(bracket: _OpenBracket) -> bool:
    """Return whether a bracket that is not an edit was likely meant as one: two separators, or a number after a separator."""
    return bracket.sound and (len(bracket.between) > 1 or bool(bracket.between and _NUMBERED.match(bracket.last_text)))


def _switch_texts(bracket: _OpenBracket) -> tuple[Text, Text]:
    """Return the contents of [from:to:when] as (from, to), and of [to:when] as ((), to). A "|" in them is plain text."""
    halves: list[list[Any]] = [[*bracket.texts[0]]]
    for sign, text in zip(bracket.between[:-1], bracket.texts[1:-1], strict=True):
        if sign == ":":
            halves.append([*text])
        else:
            halves[-1] += [sign, *text]
    return (tuple(halves[0]), tuple(halves[1])) if len(halves) == 2 else ((), tuple(halves[0]))


def text_at(text: Text, step: int, edit_pass: Pass) -> str:
    """Return the prompt at a step. text: the parsed prompt; step: counted from 1"""
    return "".join(
        item if isinstance(item, str) else text_at(_active_text(item, step, edit_pass), step, edit_pass)
        for item in text
    )


def _active_text(edit: Switch | Alternation, step: int, edit_pass: Pass) -> Text:
    """Return the contents of an edit that apply at `step`, counted from 1."""
    if isinstance(edit, Alternation):
        return edit.texts[(step - 1) % len(edit.texts)]
    return edit.before if step <= edit_pass.last_step(edit.when) else edit.after


def schedule(prompt: str, edit_pass: Pass | None, max_texts: int | None = None) -> list[tuple[int, str]]:
    """Return [(last step, counted from 1; the text up to this step)], in the order of the steps.

    Without edits, or without a pass (None), the list has one entry.

    max_texts   return only this number of entries, the last ones
    """
    if edit_pass is None:
        return [(1, prompt)]
    text, steps = parse_edits(prompt), max(edit_pass.steps, 1)
    lasts = sorted({*_switch_steps(text, edit_pass), steps})
    return [(last, text_at(text, last, edit_pass)) for last in (lasts[-max_texts:] if max_texts else lasts)]


def _switch_steps(text: Text, edit_pass: Pass) -> Iterator[int]:
    """Yield the steps, counted from 1, after which an edit changes the text."""
    for edit in edits(text):
        if isinstance(edit, Alternation):
            yield from range(1, edit_pass.steps + 1)
        elif (last := edit_pass.last_step(edit.when)) >= 1:
            yield last


def edits(text: Text) -> Iterator[Switch | Alternation]:
    """Yield all edits of a parsed prompt, including nested ones."""
    for item in text:
        if not isinstance(item, str):
            yield item
            for part in (item.before, item.after) if isinstance(item, Switch) else item.texts:
                yield from edits(part)


def has_edits(prompt: str) -> bool:
    """Return whether a prompt contains an edit, [from:to:when] or [a|b]."""
    return "[" in prompt and any(not isinstance(item, str) for item in parse_edits(prompt))


def at_steps(prompts: Sequence[str], edit_pass: Pass | None) -> list[tuple[int, tuple[str, ...]]]:
    """Return [(number of completed steps, the text of each prompt from then on)], an entry for each step at which any text changes."""
    schedules = [schedule(prompt, edit_pass) for prompt in prompts]
    begins = sorted({0, *(last for texts in schedules for last, _ in texts[:-1])})
    return [
        (begin, tuple(next(text for last, text in texts if last > begin) for texts in schedules)) for begin in begins
    ]


def wrong_weight_in(prompt: str, passes: Sequence[Pass | None]) -> str:
    """Return the message of the first invalid weight in any text that the prompt takes during `passes`, or "" if all are valid."""
    return next(filter(None, map(weight_error, texts_of(prompt, passes))), "")


def texts_of(prompt: str, passes: Sequence[Pass | None], max_texts: int | None = None) -> list[str]:
    """Return the distinct texts that a prompt takes during `passes`. max_texts: texts per pass, the last ones; None: all"""
    return list(dict.fromkeys(text for edit_pass in passes for _, text in schedule(prompt, edit_pass, max_texts)))
