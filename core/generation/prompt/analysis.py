"""Token counts and problems of a prompt with their positions, for the prompt box and for the checks before a job starts.

Reads no files: wildcards, LoRAs and embeddings are looked up through `Names`. Parses with the functions that generation uses.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

from core.dataset.captions.words import word_pattern
from core.dataset.sources.files import name_key
from core.families.prompt_weights import FIX as WEIGHT_FIX
from core.families.prompt_weights import Run, read_weights
from core.families.token_count import count_tokens
from core.generation.prompt.editing import Pass, Switch, edits, malformed_edits, parse_edits, texts_of
from core.generation.prompt.loras import FIX as LORA_FIX
from core.generation.prompt.loras import (
    IN_NEGATIVE,
    MOST_TAGS,
    TO_PROMPT,
    LoraTag,
    remove_tags,
    tag_spans,
    unclosed_tags,
)
from core.generation.prompt.options import PROMPT, LinePart, parts_of_line, read_line
from core.generation.prompt.runs import (
    AND,
    BREAK,
    BREAK_ANYWHERE,
    placed_parts,
    prompt_runs,
    weighted_parts,
    windows_of,
)
from core.generation.prompt.wildcards import (
    FIX,
    LONGEST,
    Files,
    braces,
    has_variants,
    no_files,
    one_variant,
    problems_in,
)
from core.record.problems import Problem, collected

BAD_WILDCARD = "prompt.bad-wildcard"
MOST_FINDINGS = 100  # of one prompt
MOST_WORDS = 200  # words compared with the names of embeddings
COUNTED_STEPS = 8  # of a pass, for counting tokens of edited prompts
MIN_SIMILARITY, MIN_LENGTH = 0.85, 6  # minimum similarity (difflib) and length of a word that may be a mistyped name
_COMFY = re.compile(r"(?<!\w)embedding:([\w.\-]+)", re.IGNORECASE)
_WORD = re.compile(r"\w[\w.\-]*")
# kind of a prompt_weights.Fault -> code, level, fix
_FAULTS = {
    "weight": ("prompt.bad-weight", "error", WEIGHT_FIX),
    "nested": ("prompt.bad-weight", "error", WEIGHT_FIX),
    "open": ("prompt.open-bracket", "advice", "close it, or write \\( or \\[ for a literal bracket"),
    "extra": ("prompt.extra-bracket", "advice", "remove it, or write \\) or \\] for a literal bracket"),
    "high": ("prompt.high-weight", "advice", "use 0.5 to 1.5, or write \\( and \\) for literal brackets"),
    "text": ("prompt.no-weight", "advice", "write a number right after the colon, such as (word:1.2)"),
}
_AS_WEIGHT = "write (word:1.2)"
# Edits: description, fix
_UNREAD = (
    "is read as less weight, as sd-scripts does: there are no edits with this compatibility",
    "set the compatibility to none, or remove it",
)
_NO_EDIT = (
    "is read as text of less weight, not as an edit",
    "write [from:to:0.5] with one number at its end, or [a|b]",
)
_WHEN_FIX = "write a share such as 0.5 or a number of steps; a weight is in round brackets: (word:1.2)"
# Notations of other programs that are not supported and read as text: pattern, description, what to write instead
_ROWS = (
    (r"\$\{\w[^{}]{0,200}\}?", "a variable of Dynamic Prompts", "write its text where it is used"),
    (r"__[~@!][\w\-./*]{1,80}__|\{[~@!](?=[^{}]{0,200}[|}])", "a sampler of Dynamic Prompts", "remove the sign; variants are random"),
    (r"\{(?:-\d+|\d+-)\$\$", "an open range of Dynamic Prompts", "write both numbers, such as {1-2$$a|b}"),
    (r"\{\d+(?:-\d+)?\$\$[^{}$|]{0,20}\|[^{}$]{0,20}\$\$", "a separator with | of Dynamic Prompts", "use another separator"),
    (r"__[\w\-./* ]{1,80}\([^()]{0,200}\)__", "a wildcard with brackets", "write parameters into its file, or rename it"),
    (r"(?m)^#.*$", "a comment of A1111", "remove the line"),
    (r"(?<![\w.:{|])-?\d+(?:\.\d+)?::[^:{}|]{1,500}::", "a weight of NovelAI", _AS_WEIGHT),
    (r"\)(?:\++|-{2,}|\d+(?:\.\d+)?)(?=[\s,]|$)", "a weight of InvokeAI", _AS_WEIGHT),
    (r"\)\.(?:and|or|blend)\(|\.swap\(", "a function of InvokeAI", "write a AND b, or [from:to:0.5]"),
    (r"\bAND_(?:SALT|PERP|TOPK|ALIGN)\w*", "an operator of Neutral Prompt", "write AND"),
    (r"\bADD(?:BASE|COMM|COL|ROW|P)\b", "a division of Regional Prompter", "use regions"),
    (r"[\uff08\uff3b\uff5b][^\uff08\uff3b\uff5b]{0,500}?[\uff1a:]\s*[\d.]+\s*[\uff09\uff3d\uff5d]", "in full-width brackets", _AS_WEIGHT),
    (r"<[A-Za-z][\w-]{0,30}(?:\[[^\[\]<>]{0,100}\])?:[^<>]*>|<(?:break|trigger)>", "not a LoRA", "remove it, or write <lora:name:1>"),
)  # fmt: skip
# Texts to be shown: AND in them would be read as two prompts
_QUOTED = re.compile(r'"[^"\n]{0,400}"|\b[A-Z]{2,30}\sAND\s[A-Z]{2,30}\b')
# The settings of an image as A1111 writes them: not part of a prompt.
_SETTINGS = re.compile(r"(?<!\w)Steps: \d+, [^\n]{0,300}?(?:Sampler|CFG scale|Seed|Size|Model): ")
_NOTATIONS = tuple((re.compile(pattern), what, fix) for pattern, what, fix in _ROWS)


def has_settings(prompt: str) -> bool:
    """Return whether a prompt contains the settings line of an A1111 image ("Steps: 20, Sampler: ...")."""
    return bool(_SETTINGS.search(prompt))


@dataclass(frozen=True)
class Names:
    """The wildcards, LoRAs and embeddings that prompts can use on this machine.

    files        (name of a wildcard) -> its lines
    lora         (name of a LoRA) -> advice about its file; raises ProblemsError if no such file exists. None: LoRAs are not checked
    embeddings   {name of an embedding: its number of token vectors}
    unchosen     tokens of embeddings from training runs that the job does not list in its Embeddings setting
    """

    files: Files = no_files
    lora: Callable[[str], list[Problem]] | None = None
    embeddings: Mapping[str, int] = field(default_factory=dict)
    unchosen: Collection[str] = ()


@dataclass(frozen=True)
class Parsing:
    """Options for parsing a prompt.

    dynamic    parse inline options (--w 768) and variants ({a|b}, __file__)
    weighted   parse prompt weights and prompt editing
    negative   the text is a negative prompt: AND does not split it, inline options are text, and LoRA tags are errors
    where      `Problem.where` of the problems: the setting that contains the prompt
    passes     sampling passes (hires fix has two), for prompt editing; (): edits are not parsed, as in sd-scripts
    """

    dynamic: bool = True
    weighted: bool = True
    negative: bool = False
    where: str = "generate.prompt"
    passes: tuple[Pass, ...] = (Pass(20),)


@dataclass(frozen=True)
class Finding:
    """A problem and the characters [start, end) of the prompt that cause it."""

    start: int
    end: int
    problem: Problem


def _advice(span: tuple[int, int], what: str, parsing: Parsing, fix: str, slug: str) -> Finding:
    """Return advice about the characters [start, end) of `span`, with the code "prompt.<slug>"."""
    return Finding(*span, Problem(what, parsing.where, fix, "advice", code=f"prompt.{slug}"))


@dataclass(frozen=True)
class Part:
    """One of the prompts joined by AND.

    weight    its AND weight
    windows   content tokens in each window of 75; with prompt editing, of the step with the most tokens
    """

    weight: float
    windows: tuple[int, ...]


@dataclass(frozen=True)
class Analysis:
    """The parts, separators and problems of a prompt.

    joints   (start, end) of each AND and BREAK
    drawn    True if the prompt has variants; `parts` then describe one random choice
    """

    parts: tuple[Part, ...]
    joints: tuple[tuple[int, int], ...]
    findings: tuple[Finding, ...]
    drawn: bool = False


def analyze(text: str, names: Names = Names(), parsing: Parsing = Parsing()) -> Analysis:
    """Return the parts of a prompt with token counts, the positions of AND and BREAK, and all problems.

    Tokens of variants are counted for one random choice. A prompt longer than LONGEST characters is not parsed: the only finding is
    "prompt.too-long".
    """
    findings = findings_of(text, names, parsing)
    if len(text) > LONGEST:
        return Analysis((), (), findings)
    prompt_text = _visible_text(text, _parts_of_kind(PROMPT, _line_parts(text, parsing)))
    breaks = BREAK if parsing.passes else BREAK_ANYWHERE
    pattern = breaks.pattern if parsing.negative else f"{AND.pattern}|{breaks.pattern}"
    joints = [match.span() for match in re.finditer(pattern, prompt_text)]
    drawn = parsing.dynamic and has_variants(text)
    valid = all(finding.problem.code != BAD_WILDCARD for finding in findings)
    parts = _parts(text if not (drawn and valid) else one_variant(text, names.files, names.embeddings), names, parsing)
    return Analysis(tuple(parts), tuple(joints), findings, drawn)


def findings_of(text: str, names: Names = Names(), parsing: Parsing = Parsing()) -> tuple[Finding, ...]:
    """Return the problems of a prompt sorted by position, at most MOST_FINDINGS. A prompt that is too long has only that one."""
    if len(text) > LONGEST:
        what = f"The prompt has {len(text):,} characters; {LONGEST:,} is the limit"
        return (Finding(0, len(text), Problem(what, parsing.where, "shorten it", code="prompt.too-long")),)
    line = _line_parts(text, parsing)
    groups = [_prompt_findings(_visible_text(text, _parts_of_kind(PROMPT, line)), names, parsing)]
    if parsing.dynamic:
        negative = _visible_text(text, _parts_of_kind("n", line))
        groups += [_prompt_findings(negative, names, replace(parsing, negative=True))]
        groups += [_variant_findings(text, names, parsing), _option_findings(text, line, parsing)]
    findings = [finding for group in groups for finding in islice(group, MOST_FINDINGS)]
    return tuple(sorted(findings, key=lambda each: (each.start, each.end))[:MOST_FINDINGS])


# -- locations


def _line_parts(text: str, parsing: Parsing) -> list[LinePart]:
    """Split a prompt into its text and its inline options, or return it as one part if it has none. Ignores " --" within braces."""
    if not parsing.dynamic or parsing.negative:
        return [LinePart(0, len(text), text, PROMPT)]
    hidden = list(text)
    for start, end in braces(text)[0]:
        hidden[start:end] = "x" * (end - start)
    return parts_of_line("".join(hidden))


def _parts_of_kind(kind: str, line: Iterable[LinePart]) -> list[LinePart]:
    """Return the parts of a line whose `of` is `kind`: PROMPT, or the switch of an option such as "n"."""
    return [part for part in line if part.of == kind]


def _visible_text(text: str, parts: Iterable[LinePart]) -> str:
    """Return `text` at its original length, with spaces for the option switches and for everything outside `parts`."""
    visible = [" "] * len(text)
    for part in parts:
        switch = re.match(r"\s?--\w+", text[part.start : part.end]) if part.switch else None
        start = part.start + (switch.end() if switch else 0)
        visible[start : part.end] = text[start : part.end]
    return "".join(visible)


def _excerpt(text: str, start: int, end: int) -> str:
    """Return the text from 12 characters before `start` to 12 after `end`, in quotes."""
    excerpt = " ".join(text[max(start - 12, 0) : end + 12].split())
    return f"'{excerpt}'"


# -- variants and options


def _variant_findings(text: str, names: Names, parsing: Parsing) -> Iterator[Finding]:
    """Yield errors of invalid variants and wildcards, and advice about unpaired braces."""
    for start, end, reason in problems_in(text, names.files, names.embeddings):
        what = f"{reason[:1].upper()}{reason[1:]}"
        yield Finding(start, end, Problem(what, parsing.where, FIX, code=BAD_WILDCARD))
    for index in braces(text)[1]:
        what = f"The brace in {_excerpt(text, index, index + 1)} has no partner and is read as text"
        fix = "close the braces, or write \\{ or \\} for a literal brace"
        yield _advice((index, index + 1), what, parsing, fix, "open-brace")


def _option_findings(text: str, line: Sequence[LinePart], parsing: Parsing) -> Iterator[Finding]:
    """Yield the problems of inline options, except of those that contain variants."""
    for part in line[1:]:
        option_text = text[part.start : part.end]
        if has_variants(option_text) or "{" in option_text:
            continue  # known only once a variant is chosen
        notes: list[Problem] = []
        read_line(option_text, notes, parsing.where)
        start = part.start + len(option_text) - len(option_text.lstrip())
        yield from (Finding(start, part.end, note) for note in notes)


# -- words, brackets and names


def _prompt_findings(text: str, names: Names, parsing: Parsing) -> Iterator[Finding]:
    """Yield problems of LoRA tags, weights, edits, other programs' notations and embeddings. text: without options"""
    tags = list(tag_spans(text))
    yield from _tag_findings(text, tags, names, parsing)
    for start, end in unclosed_tags(text):
        what, fix = f"The LoRA in {_excerpt(text, start, end)} is not closed and is read as text", LORA_FIX
        yield _advice((start, end), what, parsing, fix, "open-lora")
    masked = list(text)
    for start, end, _ in tags:
        masked[start:end] = " " * (end - start)
    untagged = "".join(masked)
    if parsing.weighted:
        yield from _weight_findings(untagged, parsing)
        yield from _edit_findings(untagged, tags, parsing)
    for match in () if parsing.negative else filter(lambda quoted: AND.search(quoted[0]), _QUOTED.finditer(untagged)):
        what, fix = f"{match[0][:60]} is split into two prompts at AND", "write 'and', which is the same text for CLIP"
        yield _advice(match.span(), what, parsing, fix, "split-text")
    for pattern, notation, fix in _NOTATIONS:
        for match in pattern.finditer(untagged):
            what = f"'{match[0][:60]}' is {notation} and is read as text"
            slug = "unknown-tag" if match[0].startswith("<") else "other-notation"
            yield _advice(match.span(), what, parsing, fix, slug)
    yield from _embedding_findings(untagged, names, parsing)


def _tag_findings(
    text: str, tags: Iterable[tuple[int, int, LoraTag | str]], names: Names, parsing: Parsing
) -> Iterator[Finding]:
    """Yield problems of LoRA tags: in a negative prompt, invalid, too many, or naming no file.
    tags: (start, end, the tag or the message of its error), of `tag_spans`"""
    file_problems: dict[str, list[Problem]] = {}
    for number, (start, end, tag) in enumerate(tags):
        problems: list[Problem] = []
        if parsing.negative:
            problems = [Problem(IN_NEGATIVE, parsing.where, TO_PROMPT, code="prompt.lora-in-negative")]
        elif has_variants(text[start:end]):
            continue
        elif isinstance(tag, str):
            problems = [Problem(f"Prompt: {tag}", parsing.where, LORA_FIX, code="prompt.bad-lora")]
        elif number == MOST_TAGS:
            what = f"Prompt: there are more than {MOST_TAGS} LoRAs"
            problems = [Problem(what, parsing.where, LORA_FIX, code="prompt.bad-lora")]
        elif names.lora is not None:
            if tag.name not in file_problems:
                file_problems[tag.name] = collected(problems, names.lora, tag.name) or problems
            problems = file_problems[tag.name]
        yield from (Finding(start, end, problem) for problem in problems)


def _weight_findings(text: str, parsing: Parsing) -> Iterator[Finding]:
    """Yield problems of prompt weights and brackets. Each prompt between AND is parsed alone, so brackets cannot span an AND."""
    for begin, part in [(0, text)] if parsing.negative else placed_parts(text):
        for fault in read_weights(part)[1]:
            if fault.kind == "text" and has_variants(part[fault.start - 1 : fault.end + 1]):
                continue
            code, level, fix = _FAULTS[fault.kind]
            start, end = begin + fault.start, begin + fault.end
            what = f"{fault.reason[0].upper()}{fault.reason[1:]}, in {_excerpt(text, start, end)}"
            yield Finding(start, end, Problem(what, parsing.where, fix, level, code=code))


def _edit_findings(text: str, tags: Sequence[tuple[int, int, object]], parsing: Parsing) -> Iterator[Finding]:
    """Yield advice about edits [from:to:when]: not parsed with these passes, without effect at any step, malformed, or around a LoRA tag.
    tags: (start, end, ...) of the LoRA tags in the prompt"""
    hidden = list(text)
    for start, end in braces(text)[0] if parsing.dynamic else ():  # known only once a variant is chosen
        hidden[start:end] = "x" * (end - start)
    for begin, part in [(0, "".join(hidden))] if parsing.negative else placed_parts("".join(hidden)):
        in_part = list(edits(parse_edits(part)))
        spans = [(edit.start, edit.end) for edit in in_part]
        idle = [(e.start, e.end) for e in in_part if isinstance(e, Switch) and _is_idle(e, parsing.passes)]
        near_miss_spans = [
            span for span in malformed_edits(part) if part[slice(*span)] == text[begin + span[0] : begin + span[1]]
        ]
        steps = " and ".join(str(edit_pass.steps) for edit_pass in parsing.passes)
        for faults, what, fix, slug in (
            (() if parsing.passes else spans, *_UNREAD, "unread-edit"),
            (idle, f"changes at none of the {steps} steps", _WHEN_FIX, "idle-edit"),
            (near_miss_spans, *_NO_EDIT, "no-edit"),
        ):
            for start, end in faults:
                span = (begin + start, begin + end)
                what_of = f"'{text[slice(*span)][:60]}' {what}"
                yield _advice(span, what_of, parsing, fix, slug)
        for start, end, _ in tags if parsing.passes else ():
            if any(begin + first <= start < begin + last for first, last in spans):
                what = "The LoRA in an edit acts at every step"
                fix = "give it steps of its own: <lora:name:1:step=0-10>"
                yield _advice((start, end), what, parsing, fix, "edited-lora")


def _is_idle(edit: Switch, passes: Sequence[Pass]) -> bool:
    """Return whether an edit keeps the same text through all steps of all passes."""
    last_steps = [(edit_pass.last_step(edit.when), edit_pass.steps) for edit_pass in passes]
    return bool(last_steps) and (
        all(last >= steps for last, steps in last_steps) or all(last < 1 for last, _ in last_steps)
    )


def _embedding_findings(text: str, names: Names, parsing: Parsing) -> Iterator[Finding]:
    """Yield advice about "embedding:name" (ComfyUI), embeddings of runs that are not chosen, and misspelled names of embeddings."""
    by_lowercase = {name_key(name): name for name in names.embeddings}
    for number, match in enumerate(_COMFY.finditer(text)):
        near = by_lowercase.get(name_key(match[1]))
        checks_lora = names.lora if near is None and number < MOST_TAGS else None
        is_lora = checks_lora is not None and collected([], checks_lora, match[1]) is not None
        near = near or next(iter(difflib.get_close_matches(match[1], by_lowercase.values(), 1)), "")
        what = f"'{match[0][:60]}' is read as text: embeddings are named without 'embedding:'"
        fix = f"write {near} alone" if near else "write the name of a file in models/embeddings alone"
        if is_lora:
            what, fix = f"'{match[0][:60]}' is read as text: {match[1]} is a LoRA", f"write <lora:{match[1]}:1>"
        yield _advice(match.span(), what, parsing, fix, "unknown-embedding")
    unchosen = [name for name in names.unchosen if name_key(name) not in by_lowercase]
    for match in word_pattern(unchosen).finditer(text) if unchosen else ():
        what = f"'{match[0]}' is the embedding of a run that is not chosen, and is read as text"
        yield _advice(match.span(), what, parsing, "choose it in Embeddings", "unchosen-embedding")
    candidates = [match for match in _WORD.finditer(text) if by_lowercase and len(match[0]) >= MIN_LENGTH][:MOST_WORDS]
    for match in candidates:
        lowered = name_key(match[0])
        like = [name for name in by_lowercase if name[0] == lowered[0] and abs(len(name) - len(lowered)) <= 2]
        # A single token is in the vocabulary, not a typo
        if lowered in by_lowercase or not like or count_tokens(lowered) < 2:
            continue
        for near in difflib.get_close_matches(lowered, like, 1, MIN_SIMILARITY):
            what = f"'{match[0]}' is not an embedding and is read as text"
            fix = f"write {by_lowercase[near]} for the embedding"
            yield _advice(match.span(), what, parsing, fix, "unknown-embedding")


# -- tokens


def _parts(text: str, names: Names, parsing: Parsing) -> Iterator[Part]:
    """Yield the prompts between AND with their token counts, at the step of prompt editing that has the most tokens."""
    text = remove_tags(read_line(text, [], parsing.where).text if parsing.dynamic and not parsing.negative else text)
    count = _token_counter(names.embeddings)
    breaks = BREAK if parsing.passes else BREAK_ANYWHERE
    runs = partial(prompt_runs, read=_runs_of, separator=breaks) if parsing.weighted else None
    passes = parsing.passes if parsing.weighted and parsing.passes else [None]
    for part_text, weight in [(text, 1.0)] if parsing.negative else weighted_parts(text):
        windows = (windows_of(each, count, runs) for each in texts_of(part_text, passes, COUNTED_STEPS))
        yield Part(weight, tuple(max(windows, key=sum)))


def _runs_of(text: str) -> list[Run]:
    """Return the runs of equal weight in a text, ignoring faults in its brackets."""
    return read_weights(text)[0]


def _token_counter(embeddings: Mapping[str, int]) -> Callable[[str], int]:
    """Return a function that counts the content tokens of a text, where the name of an embedding counts as its number of vectors."""
    vectors = {name_key(name): number for name, number in embeddings.items()}
    pattern = word_pattern(list(embeddings)) if embeddings else None

    def count(text: str) -> int:
        named = pattern.findall(text) if pattern else []
        plain = pattern.split(text) if pattern and named else [text]
        return sum(map(count_tokens, plain)) + sum(vectors[name_key(name)] for name in named)

    return count
