"""Parts, token counts and problems of a prompt with their positions, for the prompt box and for checks before a start.

Pure: files are looked up by the functions in `Known`. Parsing is that of generation (options, wildcards, tags, runs); this
file only locates where it fails.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from core.dataset.captions.words import word_pattern
from core.families.token_count import count_tokens
from core.families.word_weights import FIX as WEIGHT_FIX
from core.families.word_weights import Run, read_weights
from core.generation.prompt.editing import Pass, Switch, edits, near_misses, parsed, texts_of
from core.generation.prompt.loras import FIX as LORA_FIX
from core.generation.prompt.loras import IN_NEGATIVE, MOST_TAGS, TO_PROMPT, LoraTag, open_tags, placed_tags, tagless
from core.generation.prompt.notations import notations_in
from core.generation.prompt.options import PROMPT, LinePart, parts_of_line, read_line
from core.generation.prompt.runs import AND, BREAK, placed_parts, prompt_runs, weighted_parts, windows_of
from core.generation.prompt.wildcards import LONGEST, Files, braces, drawn_once, has_variants, no_files, problems_in
from core.record.problems import Problem, ProblemsError

BAD_WILDCARD = "prompt.bad-wildcard"
MOST_FINDINGS = 100  # of one prompt
MOST_WORDS = 200  # words that are compared with the names of embeddings
COUNTED_STEPS = 8  # of a pass, whose texts' tokens are counted
LIKE, LEAST = 0.85, 6  # similarity (difflib) and letters of a word that may be a mistyped name
_COMFY = re.compile(r"(?<!\w)embedding:([\w.\-]+)", re.IGNORECASE)
_WORD = re.compile(r"\w[\w.\-]*")
# kind of a fault (word_weights.Fault) -> code, level, fix
_FAULTS = {
    "weight": ("prompt.bad-weight", "error", WEIGHT_FIX),
    "nested": ("prompt.bad-weight", "error", WEIGHT_FIX),
    "open": ("prompt.open-bracket", "advice", "close it, or write \\( or \\[ for a literal bracket"),
    "extra": ("prompt.extra-bracket", "advice", "remove it, or write \\) or \\] for a literal bracket"),
    "text": ("prompt.no-weight", "advice", "write a number right after the colon, such as (word:1.2)"),
}


@dataclass(frozen=True)
class Known:
    """What prompts can name on this machine.

    files   name of a wildcard file -> its lines
    lora    name of a LoRA -> advice about its file; raises ProblemsError where there is none; None: LoRAs are not looked up
    words   {name of an embedding: its number of vectors}
    """

    files: Files = no_files
    lora: Callable[[str], list[Problem]] | None = None
    words: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ways:
    """How a prompt is parsed.

    dynamic   with options and variants         weighted   with prompt weights
    where     its setting                       passes     that edits are read for; (): they are not read
    """

    dynamic: bool = True
    weighted: bool = True
    negative: bool = False
    where: str = "generate.prompt"
    passes: tuple[Pass, ...] = (Pass(20),)


@dataclass(frozen=True)
class Finding:
    """A problem at [start, end) of a prompt."""

    start: int
    end: int
    problem: Problem


@dataclass(frozen=True)
class Part:
    """A prompt between AND: its weight, and the content tokens in each of its windows, of the longest text of an edited one."""

    weight: float
    windows: tuple[int, ...]


@dataclass(frozen=True)
class Analysis:
    """A prompt.

    joints   (start, end) of each AND and BREAK
    drawn    it has variants, so the parts are those of one random choice
    """

    parts: tuple[Part, ...]
    joints: tuple[tuple[int, int], ...]
    findings: tuple[Finding, ...]
    drawn: bool = False


def analyze(text: str, known: Known = Known(), ways: Ways = Ways()) -> Analysis:
    """The analysis of a prompt. Tokens of variants are counted for one random choice."""
    findings = findings_of(text, known, ways)
    if len(text) > LONGEST:
        return Analysis((), (), findings)
    words = _within(text, _parts_of_kind(PROMPT, _split(text, ways)))
    joints = [
        match.span() for match in re.finditer(BREAK if ways.negative else f"{AND.pattern}|{BREAK.pattern}", words)
    ]
    drawn = ways.dynamic and has_variants(text)
    sound = all(finding.problem.code != BAD_WILDCARD for finding in findings)
    parts = _parts(text if not (drawn and sound) else drawn_once(text, 0, known.files), known, ways)
    return Analysis(tuple(parts), tuple(joints), findings, drawn)


def findings_of(text: str, known: Known = Known(), ways: Ways = Ways()) -> tuple[Finding, ...]:
    """All problems of a prompt, in order of position."""
    if len(text) > LONGEST:
        what = f"The prompt has {len(text):,} characters; {LONGEST:,} is the limit"
        return (Finding(0, len(text), Problem(what, ways.where, "shorten it", code="prompt.too-long")),)
    line = _split(text, ways)
    looks = [_of_words(_within(text, _parts_of_kind(PROMPT, line)), known, ways)]
    if ways.dynamic:
        negative = _within(text, _parts_of_kind("n", line))
        looks += [_of_words(negative, known, replace(ways, negative=True))]
        looks += [_of_variants(text, known, ways), _of_options(text, line, ways)]
    found = [finding for look in looks for finding in islice(look, MOST_FINDINGS)]
    return tuple(sorted(found, key=lambda each: (each.start, each.end))[:MOST_FINDINGS])


# -- what is where


def _split(text: str, ways: Ways) -> list[LinePart]:
    """The prompt and its options, where it has any. Text in braces is not split."""
    if not ways.dynamic:
        return [LinePart(0, len(text), text, PROMPT)]
    hidden = list(text)
    for start, end in braces(text)[0]:
        hidden[start:end] = "x" * (end - start)
    return parts_of_line("".join(hidden))


def _parts_of_kind(kind: str, line: Iterable[LinePart]) -> list[LinePart]:
    """Those that belong to the prompt or to an option."""
    return [part for part in line if part.of == kind]


def _within(text: str, parts: Iterable[LinePart]) -> str:
    """The text with everything outside these parts, and the switches of options, replaced by spaces."""
    shown = [" "] * len(text)
    for part in parts:
        switch = re.match(r"\s?--\w+", text[part.start : part.end]) if part.switch else None
        start = part.start + (switch.end() if switch else 0)
        shown[start : part.end] = text[start : part.end]
    return "".join(shown)


def _around(text: str, start: int, end: int) -> str:
    """The quoted text around a fault."""
    shown = " ".join(text[max(start - 12, 0) : end + 12].split())
    return f"'{shown}'"


# -- variants and options


def _of_variants(text: str, known: Known, ways: Ways) -> Iterator[Finding]:
    for start, end, reason in problems_in(text, known.files):
        what, fix = f"In the prompt '{text[:40]}', {reason}", "correct it, or write \\{ and \\} for literal braces"
        yield Finding(start, end, Problem(what, ways.where, fix, code=BAD_WILDCARD))
    for place in braces(text)[1]:
        what = f"The brace in {_around(text, place, place + 1)} has no partner and is read as text"
        fix = "close the braces, or write \\{ or \\} for a literal brace"
        yield Finding(place, place + 1, Problem(what, ways.where, fix, "advice", code="prompt.open-brace"))


def _of_options(text: str, line: Sequence[LinePart], ways: Ways) -> Iterator[Finding]:
    for part in line[1:]:
        written = text[part.start : part.end]
        if has_variants(written) or "{" in written:
            continue  # known only once a variant is chosen
        notes: list[Problem] = []
        read_line(written, notes, ways.where)
        start = part.start + len(written) - len(written.lstrip())
        yield from (Finding(start, part.end, note) for note in notes)


# -- words, brackets and names


def _of_words(text: str, known: Known, ways: Ways) -> Iterator[Finding]:
    tags = list(placed_tags(text))
    yield from _of_tags(text, tags, known, ways)
    for start, end in open_tags(text):
        what, fix = f"The LoRA in {_around(text, start, end)} is not closed and is read as text", LORA_FIX
        yield Finding(start, end, Problem(what, ways.where, fix, "advice", code="prompt.open-lora"))
    plain = list(text)
    for start, end, _ in tags:
        plain[start:end] = " " * (end - start)
    words = "".join(plain)
    if ways.weighted:
        yield from _of_weights(words, ways)
        yield from _of_edits(words, tags, ways)
    for start, end, what, fix in notations_in(words):
        what = f"'{words[start:end][:60]}' is {what} and is read as text"
        slug = "unknown-tag" if words[start] == "<" else "other-notation"
        yield Finding(start, end, Problem(what, ways.where, fix, "advice", code=f"prompt.{slug}"))
    yield from _of_embeddings(words, known, ways)


def _of_tags(text: str, tags: Iterable[tuple[int, int, LoraTag | str]], known: Known, ways: Ways) -> Iterator[Finding]:
    unclear: dict[str, list[Problem]] = {}
    for number, (start, end, tag) in enumerate(tags):
        problems: list[Problem] = []
        if ways.negative:
            problems = [Problem(IN_NEGATIVE, ways.where, TO_PROMPT, code="prompt.lora-in-negative")]
        elif has_variants(text[start:end]):
            continue
        elif isinstance(tag, str):
            problems = [Problem(f"Prompt: {tag}", ways.where, LORA_FIX, code="prompt.bad-lora")]
        elif number == MOST_TAGS:
            what = f"Prompt: there are more than {MOST_TAGS} LoRAs"
            problems = [Problem(what, ways.where, LORA_FIX, code="prompt.bad-lora")]
        elif known.lora is not None:
            if tag.name not in unclear:
                unclear[tag.name] = _not_one(known.lora, tag.name)
            problems = unclear[tag.name]
        yield from (Finding(start, end, problem) for problem in problems)


def _not_one(find: Callable[[str], list[Problem]], name: str) -> list[Problem]:
    try:
        return find(name)
    except ProblemsError as error:
        return error.problems


def _of_weights(text: str, ways: Ways) -> Iterator[Finding]:
    """Each prompt between AND is parsed alone, so brackets do not span it."""
    for begin, part in [(0, text)] if ways.negative else placed_parts(text):
        for fault in read_weights(part)[1]:
            if fault.kind == "text" and has_variants(part[fault.start - 1 : fault.end + 1]):
                continue
            code, level, fix = _FAULTS[fault.kind]
            start, end = begin + fault.start, begin + fault.end
            what = f"{fault.reason[0].upper()}{fault.reason[1:]}, in {_around(text, start, end)}"
            yield Finding(start, end, Problem(what, ways.where, fix, level, code=code))


def _of_edits(text: str, tags: Sequence[tuple[int, int, object]], ways: Ways) -> Iterator[Finding]:
    """Edits that never come, that are not read, or that are none."""
    hidden = list(text)
    for start, end in braces(text)[0] if ways.dynamic else ():  # known only once a variant is chosen
        hidden[start:end] = "x" * (end - start)
    for begin, part in [(0, "".join(hidden))] if ways.negative else placed_parts("".join(hidden)):
        found = list(edits(parsed(part)))
        for start, end, what, fix, slug in [
            *(_unread(edit.start, edit.end) for edit in found if not ways.passes),
            *(_never(edit, ways.passes) for edit in found if isinstance(edit, Switch) and _idle(edit, ways.passes)),
            *(
                _no_edit(start, end)
                for start, end in near_misses(part)
                if part[start:end] == text[begin + start : begin + end]
            ),
        ]:
            place = (begin + start, begin + end)
            what = f"'{text[slice(*place)][:60]}' {what}"
            yield Finding(*place, Problem(what, ways.where, fix, "advice", code=f"prompt.{slug}"))
        for start, end, _ in tags if ways.passes else ():
            if any(begin + edit.start <= start < begin + edit.end for edit in found):
                what, fix = (
                    "The LoRA in an edit acts at every step",
                    "give it steps of its own: <lora:name:1:step=0-10>",
                )
                yield Finding(start, end, Problem(what, ways.where, fix, "advice", code="prompt.edited-lora"))


def _unread(start: int, end: int) -> tuple[int, int, str, str, str]:
    what = "is read as less weight, as sd-scripts does: there are no edits with this compatibility"
    return start, end, what, "set the compatibility to none, or remove it", "unread-edit"


def _no_edit(start: int, end: int) -> tuple[int, int, str, str, str]:
    what = "is read as text of less weight, not as an edit"
    return start, end, what, "write [from:to:0.5] with one number at its end, or [a|b]", "no-edit"


def _idle(edit: Switch, passes: Sequence[Pass]) -> bool:
    """Whether it has one text at all steps."""
    lasts = [(during.last(edit.when), during.steps) for during in passes]
    return bool(lasts) and (all(last >= steps for last, steps in lasts) or all(last < 1 for last, _ in lasts))


def _never(edit: Switch, passes: Sequence[Pass]) -> tuple[int, int, str, str, str]:
    steps = " and ".join(str(during.steps) for during in passes)
    what = f"changes at none of the {steps} steps"
    fix = "write a share such as 0.5 or a number of steps; a weight is in round brackets: (word:1.2)"
    return edit.start, edit.end, what, fix, "idle-edit"


def _of_embeddings(text: str, known: Known, ways: Ways) -> Iterator[Finding]:
    names = {name.casefold(): name for name in known.words}
    for match in _COMFY.finditer(text):
        near = names.get(match[1].casefold()) or next(iter(difflib.get_close_matches(match[1], names.values(), 1)), "")
        what = f"'{match[0][:60]}' is read as text: embeddings are named without 'embedding:'"
        fix = f"write {near or match[1]} alone" if near else "write the name of a file in models/embeddings alone"
        yield Finding(*match.span(), Problem(what, ways.where, fix, "advice", code="prompt.unknown-embedding"))
    words = [match for match in _WORD.finditer(text) if names and len(match[0]) >= LEAST][:MOST_WORDS]
    for match in words:
        word = match[0].casefold()
        like = [name for name in names if name[0] == word[0] and abs(len(name) - len(word)) <= 2]
        if (
            word in names or not like or count_tokens(word) < 2
        ):  # a single token is a word of the vocabulary, not a typo
            continue
        for near in difflib.get_close_matches(word, like, 1, LIKE):
            what = f"'{match[0]}' is not an embedding and is read as text"
            fix = f"write {names[near]} for the embedding"
            yield Finding(*match.span(), Problem(what, ways.where, fix, "advice", code="prompt.unknown-embedding"))


# -- tokens


def _parts(text: str, known: Known, ways: Ways) -> Iterator[Part]:
    text = tagless(read_line(text, [], ways.where).text if ways.dynamic else text)
    count = _counter(known.words)
    runs = partial(prompt_runs, read=_read) if ways.weighted else None
    passes = ways.passes if ways.weighted and ways.passes else [None]
    for words, weight in [(text, 1.0)] if ways.negative else weighted_parts(text):
        windows = (windows_of(each, count, runs) for each in texts_of(words, passes, COUNTED_STEPS))
        yield Part(weight, tuple(max(windows, key=sum)))


def _read(text: str) -> list[Run]:
    """The runs of a text, also of one with faults."""
    return read_weights(text)[0]


def _counter(words: Mapping[str, int]) -> Callable[[str], int]:
    """A function that counts content tokens; an embedding counts its vectors."""
    vectors = {name.casefold(): number for name, number in words.items()}
    pattern = word_pattern(list(words)) if words else None

    def count(text: str) -> int:
        named = pattern.findall(text) if pattern else []
        plain = pattern.split(text) if pattern and named else [text]
        return sum(map(count_tokens, plain)) + sum(vectors[name.casefold()] for name in named)

    return count
