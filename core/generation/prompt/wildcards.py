"""Variants in prompts: {red|blue}, {2$$ and $$a|b|c}, {e$$a|b} for each in turn, and __name__ for a line of a file or list.

Notation and random choices are those of sd-scripts' generator (reference: generation, section 4), so that a seed gives
the same text; __name__ and the weights of {2::red|blue} are those of A1111's extension Dynamic Prompts. Nested groups
are resolved from the inside out. Files are read by a function of type `Files`.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, product
from random import Random

MAX_PROMPTS, MAX_COUNT = 10_000, 10**18  # prompts of one line; combinations counted at most
DEEPEST, LONGEST = 50, 100_000  # nesting of resolved groups; characters of a prompt
MOST_PROBLEMS = 100  # of one text
MOST_TEXT = 50_000_000  # characters of all prompts of one line
# Within a group without braces: e$$, a number or a range, a separator; the rest are the variants.
_GROUP = re.compile(r"\{(?:([eE])\$\$)?(?:(\d{1,9})(?:-(\d{1,9}))?\$\$)?(?:(?:\$\$)?([^|{}$]+)\$\$)?([^{}]+)\}")
_FILE = re.compile(r"__((?:_?[^\W_]|\*)(?:(?!__)[\w\-./* ])*)(?<! )__")
_FROM_FILE = re.compile(r"\{[0-9][^|{}]*\$\$\s*" + _FILE.pattern + r"\s*\}")  # {2$$__name__}: several lines of a file
# A LoRA's name, and what looks like a wildcard within a word of a name: <lora:a__b__c:1>. <lora:__name__:1> is a wildcard.
_LORA = re.compile(r"<(?:lora|lyco):[^<>:]*", re.IGNORECASE)
_IN_WORD = re.compile(r"(?<=[^\W_])_{2,}[^\W_](?:(?!__)[\w\-. ])*_{2,}(?=[^\W_])")
_WEIGHT = re.compile(r"\s*([0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})::")
_COLONS = "\ue003"  # for "::" that is not a weight
_UNDERSCORE = "\ue004"  # of the name of a LoRA or an embedding, or escaped
_ESCAPED, _PADDING = {r"\{": "\ue000", r"\}": "\ue001", r"\__": 2 * _UNDERSCORE}, "\ue002"

Files = Callable[[str], Sequence[str]]  # name -> its lines; raises WildcardError if there is none


FIX = "correct it, write \\{, \\} and \\__ for literal ones, or turn off 'Dynamic prompts' to read it as text"


class WildcardError(ValueError):
    """An error in a prompt's variants, with a message for users."""


@dataclass(frozen=True)
class Group:
    """A group such as {2-3$$ and $$a|b|c}: between `low` and `high` of the variants, joined by `separator`.

    each      True ({e$$...}): use every combination in turn; False: a random one
    weights   relative probabilities of the variants; () if all are equal
    """

    variants: tuple[str, ...]
    low: int = 1
    high: int = 1
    separator: str = ", "
    each: bool = False
    weights: tuple[float, ...] = ()

    def draw(self, rng: Random) -> str:
        """Return a random number of random variants without repetition, joined by the separator."""
        number = rng.randint(self.low, self.high)
        if not self.weights:
            return self.separator.join(rng.sample(self.variants, number))
        remaining, chosen = list(range(len(self.variants))), list[int]()
        for _ in range(number):
            chosen += rng.choices(remaining, [self.weights[index] for index in remaining])
            remaining.remove(chosen[-1])
        return self.separator.join(self.variants[index] for index in chosen)

    def count(self) -> int:
        """Return the number of combinations, at most MAX_COUNT."""
        total = 0
        for number in range(self.low, self.high + 1):
            total += math.comb(len(self.variants), number)
            if total > MAX_COUNT:
                return MAX_COUNT
        return total

    def all(self) -> list[str]:
        """Return the texts of all combinations, in order of their number of variants."""
        numbers = range(self.low, self.high + 1)
        return [self.separator.join(chosen) for number in numbers for chosen in combinations(self.variants, number)]


def no_files(name: str) -> Sequence[str]:
    """Raise WildcardError: the `Files` function where wildcard files are unavailable."""
    raise WildcardError(f"no wildcard '{name}'")


def escape_variants(text: str) -> str:
    """Escape braces and wildcards, so that a prompt of a generation reads them as text."""
    text = text.replace("{", r"\{").replace("}", r"\}")
    return _FILE.sub(lambda wildcard: wildcard[0].replace("__", r"\__"), text)


def has_variants(text: str) -> bool:
    """Return whether a text contains a group {a|b} or a wildcard __name__."""
    hidden = _escaped(text)
    return bool(_GROUP.search(hidden) or _FILE.search(hidden))


def variants(
    text: str,
    seeds: Sequence[int],
    files: Files = no_files,
    weighted: bool = True,
    embeddings: Collection[str] = (),
) -> list[tuple[str, int]]:
    """Expand the variants of a prompt into [(text, seed)]; the seeds also choose the variants. Raises WildcardError.

    seeds        one for each image
    weighted     False: "2::" in {2::a|b} is text, as in sd-scripts
    embeddings   names of embeddings; one such as a__b__c contains no wildcard
    returns      one text for each seed; with {e$$...} instead one for each combination, all with the first seed
    """
    files = partial(_lines, files, embeddings)
    hidden, files = _escaped(text, embeddings=embeddings), cache(files if weighted else partial(_unweighted, files))
    hidden = hidden if weighted else hidden.replace("::", _COLONS)
    if not any(match[1] for match in _GROUP.finditer(hidden)):
        return [(_unescaped(_expanded(hidden, partial(Random, seed), files)), seed) for seed in seeds]
    rng = Random(seeds[0])
    return [(_unescaped(_expanded(variant, lambda: rng, files)), seeds[0]) for variant in _combinations(hidden)]


def problems_in(text: str, files: Files = no_files, embeddings: Collection[str] = ()) -> list[tuple[int, int, str]]:
    """Return (start, end, message) for each error in the variants of a text, whichever are chosen; at most MOST_PROBLEMS.
    embeddings: as in `variants`"""
    masked, files = _escaped(text, _PADDING, embeddings), cache(partial(_lines, files, embeddings))
    problems: list[tuple[int, int, str]] = []
    groups = list(_GROUP.finditer(masked))
    checked: set[str] = set()
    for match in [*groups, *_FILE.finditer(masked)]:
        try:
            if from_file := _FROM_FILE.fullmatch(match[0]):
                _file_group(from_file, files)
            elif match[0].startswith("{"):
                _group(match)
            else:
                _check_includes(match[1], files, (), checked)
        except WildcardError as error:
            problems.append((*match.span(), str(error)))
        if len(problems) == MOST_PROBLEMS:
            break
    if problems:
        return problems
    begins, ends = [each.start() for each in groups if each[1]], [each.end() for each in groups if each[1]]
    try:
        _first_variant(_escaped(text, embeddings=embeddings), files)
    except WildcardError as error:
        problems.append((min(begins, default=0), max(ends, default=len(text)), str(error)))
    return problems


def one_variant(text: str, files: Files, embeddings: Collection[str] = ()) -> str:
    """Return a text with its variants chosen by the seed 0; of {e$$...} the first combination. Raises WildcardError.
    embeddings: as in `variants`"""
    return _unescaped(_first_variant(_escaped(text, embeddings=embeddings), cache(partial(_lines, files, embeddings))))


def _first_variant(text: str, files: Files) -> str:
    """Return `one_variant` of a text whose names are hidden, as are those of the lines of `files`."""
    each = any(match[1] for match in _GROUP.finditer(text))
    return _expanded(next(_combinations(text)) if each else text, partial(Random, 0), files)


def braces(text: str) -> tuple[list[tuple[int, int]], list[int]]:
    """Return ((start, end) of each pair of braces, positions of unpaired braces). Escaped braces do not count."""
    pairs: list[tuple[int, int]] = []
    opened: list[int] = []
    unpaired: list[int] = []
    for match in re.finditer("[{}]", _escaped(text, _PADDING)):
        if match[0] == "{":
            opened.append(match.start())
        elif opened:
            pairs.append((opened.pop(), match.end()))
        else:
            unpaired.append(match.start())
    return pairs, sorted(unpaired + opened)


def _check_includes(name: str, files: Files, parents: tuple[str, ...], checked: set[str]) -> None:
    """Raise WildcardError if a wildcard is missing, includes itself, or includes others nested deeper than DEEPEST.

    parents   names of the files that include `name`, outermost first
    checked   names of files without errors; `name` is added
    """
    if name in checked:
        return
    if name in parents:
        raise WildcardError(f"the wildcard '{name}' contains itself: {' > '.join((*parents, name))}")
    if len(parents) > DEEPEST:
        raise WildcardError(f"more than {DEEPEST} wildcards name one another")
    for line in files(name):
        for match in _FILE.finditer(line):
            _check_includes(match[1], files, (*parents, name), checked)
    checked.add(name)


def _escaped(text: str, padding: str = "", embeddings: Collection[str] = ()) -> str:
    """Replace what is escaped, and underscores of names, by private-use characters.
    padding: added after each, to keep all positions; embeddings: as in `variants`"""
    for escaped, mark in _ESCAPED.items():
        text = text.replace(escaped, mark + padding)
    return _hiding(embeddings)(text)


def _hiding(embeddings: Collection[str]) -> Callable[[str], str]:
    """Return a function that replaces the underscores of names of LoRAs and embeddings that look like wildcards by private-use
    characters."""
    hidden = partial(_IN_WORD.sub, lambda match: match[0].replace("_", _UNDERSCORE))
    names = "|".join(re.escape(name) for name in embeddings if _IN_WORD.search(name))
    pattern = re.compile(rf"(?<!\w)(?:{names})(?!\w)", re.IGNORECASE) if names else None

    def hide(text: str) -> str:
        if pattern is not None:
            text = pattern.sub(lambda match: hidden(match[0]), text)
        return _LORA.sub(lambda match: hidden(match[0]), text)

    return hide


def _lines(files: Files, embeddings: Collection[str], name: str) -> list[str]:
    """Return the lines of a wildcard file with the underscores of names hidden."""
    return list(map(_hiding(embeddings), files(name)))


def _unescaped(text: str) -> str:
    """Replace the private-use characters by what they represent, without backslashes."""
    for mark, shown in (("\ue000", "{"), ("\ue001", "}"), (_COLONS, "::"), (_PADDING, ""), (_UNDERSCORE, "_")):
        text = text.replace(mark, shown)
    return text


def _file_group(match: re.Match[str], files: Files) -> Group:
    """Return the group of {2$$__name__}: the lines of the file are its variants. match: of _FROM_FILE"""
    group = _GROUP.fullmatch(match[0])
    assert group is not None
    return _group(group, files(match[1]))


def _group(match: re.Match[str], texts: Sequence[str] = ()) -> Group:
    """Return the group in a match of _GROUP. Raises WildcardError if it requires more variants than it has.
    texts: variants to use instead of those in the match"""
    every, first, second, separator, inline = match.groups()
    choices, weights = _split_weights(texts or inline.split("|"))
    low, high = sorted((int(first or 1), int(second or first or 1)))
    if low > len(choices):
        raise WildcardError(f"{_unescaped(match[0])[:60]} asks for {low} of {len(choices)} variants")
    return Group(choices, low, min(high, len(choices)), ", " if separator is None else separator, bool(every), weights)


def _split_weights(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return (texts without their weights "2::", the weights); () as weights if no text has one. Texts of weight 0 are dropped."""
    matches = [(_WEIGHT.match(text), text) for text in texts]
    if not any(match for match, _ in matches):
        return tuple(texts), ()
    split = [(text[match.end() :], float(match[1])) if match else (text, 1.0) for match, text in matches]
    weighted = [(text, weight) for text, weight in split if weight > 0]
    return tuple(text for text, _ in weighted), tuple(weight for _, weight in weighted)


def _unweighted(files: Files, name: str) -> list[str]:
    """Return the lines of a wildcard file with "::" hidden, so that it is not read as a weight."""
    return [line.replace("::", _COLONS) for line in files(name)]


def _line_of(name: str, files: Files, rng: Random) -> str:
    """Return a random line of a wildcard file, by the weights of its lines. Raises WildcardError if all weights are 0."""
    lines, weights = _split_weights(files(name))
    if not lines:
        raise WildcardError(f"all lines of the wildcard '{name}' have the weight 0")
    return rng.choices(lines, weights)[0] if weights else rng.choice(lines)


def _combinations(text: str) -> Iterator[str]:
    """Yield the text with each combination of its {e$$...} groups; other groups are unchanged. Raises WildcardError for too many."""
    matches = [match for match in _GROUP.finditer(text) if match[1]]
    groups = [_group(match) for match in matches]
    number = 1
    for group in groups:
        number = min(number * group.count(), MAX_COUNT)
    if number > MAX_PROMPTS:
        or_more = " or more" if number == MAX_COUNT else ""
        raise WildcardError(f"it has {number:,}{or_more} combinations; {MAX_PROMPTS:,} is the limit")
    if number * len(text) > MOST_TEXT:
        raise WildcardError(f"its {number:,} combinations are longer than {MOST_TEXT:,} characters together")
    for chosen in product(*(group.all() for group in groups)):
        yield _replaced(text, matches, chosen)


def _expanded(text: str, new_rng: Callable[[], Random], files: Files) -> str:
    """Return the text with a random choice for each group and wildcard. Raises WildcardError.
    new_rng: returns the random numbers for the next level of nesting; sd-scripts restarts them at each level, except with {e$$...}"""
    for _ in range(DEEPEST):
        rng = new_rng()
        if from_file := list(_FROM_FILE.finditer(text)):
            text = _replaced(text, from_file, [_file_group(match, files).draw(rng) for match in from_file])
        elif wildcards := list(_FILE.finditer(text)):
            text = _replaced(text, wildcards, [_line_of(match[1], files, rng) for match in wildcards])
        elif matches := list(_GROUP.finditer(text)):
            # sd-scripts' order: from the last position backwards.
            drawn = [_group(match).draw(rng) for match in reversed(matches)]
            text = _replaced(text, matches, drawn[::-1])
        else:
            return text
        if len(text) > LONGEST:
            raise WildcardError(f"it has more than {LONGEST:,} characters")
    raise WildcardError(f"more than {DEEPEST} groups are nested")


def _replaced(text: str, matches: Sequence[re.Match[str]], texts: Sequence[str]) -> str:
    """Replace each match in `text` by the string at the same index of `texts`."""
    parts, end = [], 0
    for match, new in zip(matches, texts, strict=True):
        parts += [text[end : match.start()], new]
        end = match.end()
    return "".join([*parts, text[end:]])
