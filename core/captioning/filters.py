"""Filter expressions for images: `cat & !dog | "looking at viewer"`, `tokens:>75`, `is:missing`. Pure functions.

cat & !dog          has the tag cat and not the tag dog; "and", "or", "not" say the same as & | !
long hair           words side by side are one tag; quotes keep any sign ("a & b"); * stands for any letters
text:snow           the caption contains it         re:\\bfox\\b   ... matches the regular expression
name: folder: bucket: found:    the file's name, its folder, its bucket (512x768), a finding of the dataset check
tokens: chars: tags: width: height: date:    a number or a day, with > >= < <= or = before it
is:missing  is:empty  is:captioned
"""

import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from core.captioning.combining import matches_wildcard, parts_of
from core.dataset.captions.words import comparable
from core.record.patterns import Pattern
from core.record.problems import ProblemsError

LONGEST = 2000  # characters of an expression
DEEPEST = 50


@dataclass(frozen=True)
class Facts:
    """The facts of an image that a filter can test.

    text        caption, "" if there is none
    missing     whether there is no caption file
    changed     modification time of the caption file, seconds since the epoch
    findings    of the dataset check
    separator   between the tags of the caption
    """

    name: str
    folder: str
    text: str
    missing: bool
    tokens: int = 0
    width: int = 0
    height: int = 0
    bucket: str = ""
    changed: float = 0.0
    findings: Collection[str] = field(default_factory=tuple)
    separator: str = ","

    @property
    def file_text(self) -> str:
        """The caption in the caption file; "" if there is none."""
        return "" if self.missing else self.text

    @cached_property
    def spellings(self) -> dict[str, str]:
        """{normalized tag (`comparable`): tag as written}."""
        parts = parts_of(self.text.replace("\n", self.separator), self.separator)
        return {comparable(part): part for part in parts}

    @property
    def tags(self) -> Collection[str]:
        """The normalized tags, see `comparable`."""
        return self.spellings


Test = Callable[[Facts], bool]


def test_of(expression: str) -> Test:
    """Parse an expression into a test of an image's facts; an empty one matches every image. Raises ProblemsError."""
    if not expression.strip():
        return lambda facts: True
    if len(expression) > LONGEST:
        raise _invalid("it is too long")
    return _Reader(expression).parse()


def is_expression(text: str) -> bool:
    """Return whether typed search text is a filter expression: it has an operator, a quote, a * or a known field.

    "black and white" and "9:16" are plain text.
    """
    return bool(_OPERATORS.search(text)) or any(_field_of(word.lstrip("(!"))[0] for word in text.split())


def fields_in(expression: str) -> set[str]:
    """Return the fields that an expression uses, such as "tokens" or "name". Raises ProblemsError."""
    test_of(expression)
    return {_field_of(text)[0] for _, text in _Reader(expression).tokens if _field_of(text)[0]}


def unknown_field_in(text: str) -> str:
    """Return the first word that looks like a field but is unknown ("foo:", searched as text); "" if there is none."""
    names = re.findall(r"(?:^|[\s(&|!])([a-z]{2,}):(?=[^\s:])", text, re.IGNORECASE)
    return next((f"{name}:" for name in names if name.casefold() not in _FIELDS), "")


def field_names() -> list[str]:
    """Return the names of all fields, each with a colon."""
    return [f"{name}:" for name in _FIELDS]


def _invalid(why: str) -> ProblemsError:
    """Return the error that the filter expression is invalid. `why`: a clause."""
    fix = 'write it like cat & !dog | "looking at viewer", tokens:>75 or is:missing'
    return ProblemsError.one(f"The filter is not valid: {why}", "filter", fix, "filter.bad-expression")


# The last one is a word, saber_(fate) too.
_TOKEN = re.compile(
    r'\s*(?:([&|!()])|((?:[a-z]+:)?"[^"]*")|([^\s&|!()"]+(?:\([^\s()]*\)[^\s&|!()"]*)*))', re.IGNORECASE
)
_OPERATORS = re.compile(r'[&|"*]|(?:^|[\s(])!+\s*[^\s!]|\b(?:AND|OR|NOT)\b')
_WORDS = {"and": "&", "or": "|", "not": "!"}
END = ("", "")  # the last token


class _Reader:
    """Recursive descent parser of filter expressions.

    or: and's joined by |; and: not's side by side or joined by &; not: ! before a not, an or in parentheses, or a term.
    """

    def __init__(self, expression: str):
        """Split the expression into `tokens`. Raises ProblemsError for an unclosed quote."""
        self.tokens: list[tuple[str, str]] = []  # (kind, text): an operator, or "term"
        position = 0
        text = expression.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise _invalid("a quote is not closed")
            position = match.end()
            self._add(*match.groups())
        self.tokens.append(END)
        self._position, self._depth = 0, 0

    def _add(self, sign: str | None, quoted: str | None, word: str | None) -> None:
        """Append an operator or a term to `tokens`; exactly one argument is set. Adjacent words without a field become one term."""
        if sign or (word and word.casefold() in _WORDS):
            self.tokens.append((sign or _WORDS[str(word).casefold()], ""))
            return
        before = self.tokens[-1] if self.tokens else ("", "")
        if word and before[0] == "word" and not (_is_field(word) or _is_field(before[1])):  # one tag of several words
            self.tokens[-1] = ("word", f"{before[1]} {word}")
        else:
            self.tokens.append(("quoted", str(quoted)) if quoted else ("word", str(word)))

    def parse(self) -> Test:
        """Return the test of the whole expression. Raises ProblemsError for a syntax error."""
        test = self._or()
        if self.tokens[self._position] != END:
            raise _invalid(f"{self._current_token()} is not expected here")
        return test

    def _current_token(self) -> str:
        """Return the current token for a message."""
        kind, text = self.tokens[self._position]
        return f"'{text or kind}'" if kind else "the end"

    def _accept(self, kind: str) -> bool:
        """Advance past the current token if it is of this kind; return whether it was."""
        if self.tokens[self._position][0] == kind:
            self._position += 1
            return True
        return False

    def _or(self) -> Test:
        """Parse terms joined by | into a test."""
        tests = [self._and()]
        while self._accept("|"):
            tests.append(self._and())
        return lambda facts: any(test(facts) for test in tests)

    def _and(self) -> Test:
        """Parse terms side by side or joined by & into a test."""
        tests = [self._not()]
        while self._accept("&") or self.tokens[self._position][0] not in ("|", ")", ""):
            tests.append(self._not())
        return lambda facts: all(test(facts) for test in tests)

    def _not(self) -> Test:
        """Parse a term, an expression in parentheses, or a negation of either. Raises ProblemsError if nested deeper than DEEPEST."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise _invalid("it is nested too deeply")
        try:
            if self._accept("!"):
                test = self._not()
                return lambda facts: not test(facts)
            if self._accept("("):
                test = self._or()
                if not self._accept(")"):
                    raise _invalid("a bracket is not closed")
                return test
            if self.tokens[self._position][0] in ("word", "quoted"):
                self._position += 1
                return _term(self.tokens[self._position - 1][1])
            raise _invalid(f"a tag is expected before {self._current_token()}")
        finally:
            self._depth -= 1


def _term(text: str) -> Test:
    """Return the test of a term: of its field's value, or for a tag."""
    name, value = _field_of(text)
    return _FIELDS[name](value) if name else _has_tag(text.strip('"'))


def _field_of(text: str) -> tuple[str, str]:
    """Return (field, value) of a term; ("", "") for a tag."""
    name, _, value = text.partition(":")
    name, value = name.casefold(), value.strip('"')
    return (name, value) if name in _FIELDS and value else ("", "")


def _is_field(text: str) -> bool:
    """Return whether a term starts with a known field: "name:" or "name:value"."""
    name, colon, _ = text.partition(":")
    return bool(colon) and name.casefold() in _FIELDS


def _has_tag(tag: str) -> Test:
    """Return the test whether an image has a tag, which may contain *."""
    wanted = comparable(tag)
    if "*" not in wanted:
        return lambda facts: wanted in facts.tags
    return lambda facts: any(matches_wildcard(each, wanted) for each in facts.tags)  # which are normalized already


def _text(read: Callable[[Facts], str]) -> Callable[[str], Test]:
    """Return the parser of a text field: the value, which may contain *, must occur in it."""

    def field_test(value: str) -> Test:
        wanted = value.casefold()
        return lambda facts: matches_wildcard(read(facts).casefold(), wanted if "*" in wanted else f"*{wanted}*")

    return field_test


def _number(read: Callable[[Facts], float]) -> Callable[[str], Test]:
    """Return the parser of a numeric field's value, such as ">=75"; without a sign it is "="."""

    def field_test(value: str) -> Test:
        match = re.fullmatch(r"(>=|<=|>|<|=)?\s*(\d+(?:\.\d+)?)", value)
        if match is None:
            raise _invalid(f"'{value}' is not a number, such as >75")
        return _compared(read, match[1] or "=", float(match[2]))

    return field_test


def _compared(read: Callable[[Facts], float], sign: str, number: float) -> Test:
    """Return the test that compares a number of the image by a sign: > >= < <= or =."""
    compare = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "=": operator.eq}[sign]
    return lambda facts: compare(read(facts), number)


def _day(value: str) -> Test:
    """Return the test of the day on which the caption file changed. `value`: "2026-01-31", optionally after a sign such as ">"."""
    sign = re.match(r"(>=|<=|>|<|=)?", value)[0]  # type: ignore[index]
    try:
        day = datetime.strptime(value.removeprefix(sign), "%Y-%m-%d").date()
    except ValueError:
        raise _invalid(f"'{value}' is not a day, such as >2026-01-31") from None
    return _compared(
        lambda facts: datetime.fromtimestamp(facts.changed).date().toordinal(), sign or "=", day.toordinal()
    )


def _pattern(value: str) -> Test:
    """Return the test whether a regular expression matches in the caption."""
    pattern = Pattern(value, "filter")
    return lambda facts: pattern.first(facts.text) is not None


_STATES: dict[str, Test] = {
    "missing": lambda facts: facts.missing,
    "empty": lambda facts: not facts.missing and not facts.text.strip(),
    "captioned": lambda facts: not facts.missing and bool(facts.text.strip()),
}


def _state(value: str) -> Test:
    """Return the test of "missing", "empty" or "captioned". Raises ProblemsError for another value."""
    if value.casefold() not in _STATES:
        raise _invalid(f"is: takes {', '.join(_STATES)}")
    return _STATES[value.casefold()]


_FIELDS: dict[str, Callable[[str], Test]] = {
    "is": _state,
    "text": _text(lambda facts: facts.text),
    "re": _pattern,
    "name": _text(lambda facts: facts.name),
    "folder": _text(lambda facts: facts.folder),
    "bucket": _text(lambda facts: facts.bucket),
    "found": lambda value: lambda facts: any(value.casefold() in each.casefold() for each in facts.findings),
    "tokens": _number(lambda facts: facts.tokens),
    "chars": _number(lambda facts: len(facts.text)),
    "tags": _number(lambda facts: len(facts.tags)),
    "width": _number(lambda facts: facts.width),
    "height": _number(lambda facts: facts.height),
    "date": _day,
}
