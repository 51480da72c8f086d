"""Blind choices between the values of a grid's axis, such as LoRAs of several runs, stored in the grid's folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, islice, product
from typing import Any

from core.generation.grids.axes import LETTERS
from core.generation.grids.folder import AxisTexts, GridContent, GridFolder, Index, name_of, position_of
from core.record.preference import LEAST_PAIRS, Choice, Pair, add_choice, next_pair, preference_result, read_choices
from core.record.problems import ProblemsError

PROMPT = "generate.prompt"
MOST_PAIRS = 10_000


def axes_to_choose(content: GridContent) -> list[AxisTexts]:
    """Return the axes with at least two values."""
    return [axis for axis in content.axes if len(axis.values) > 1]


def pairs_of(folder: GridFolder, content: GridContent, letter: str) -> list[Pair]:
    """Return pairs of different generated images to choose between, at most MOST_PAIRS.

    A pair is (value, value, name of the first value's cell, for the other axes), with "x1" for the first value of x.

    letter   of the axis whose values are compared
    """
    return list(islice(_pairs(folder, content, letter), MOST_PAIRS))


def _pairs(folder: GridFolder, content: GridContent, letter: str) -> Iterator[Pair]:
    """Yield all pairs of `pairs_of`."""
    done, axis_index, size = folder.generated(), LETTERS.index(letter), list(content.size)
    number, size[axis_index] = size[axis_index], 1
    for first in product(*map(range, size)):
        cells = [content.source(_with_value(first, axis_index, value)) for value in range(number)]
        generated = [value for value, cell in enumerate(cells) if cell in done]
        for left, right in combinations(generated, 2):
            if cells[left] != cells[right]:
                yield f"{letter}{left + 1}", f"{letter}{right + 1}", name_of(first)


def _with_value(position: Sequence[int], axis_index: int, value: int) -> Index:
    """Return a position (x, y, z) in the grid with the index `value` on the axis `axis_index`."""
    x, y, z = (value if axis == axis_index else number for axis, number in enumerate(position))
    return x, y, z


def next_choice(
    folder: GridFolder, letter: str, choice: Mapping[str, Any], url: Callable[[Any], str]
) -> dict[str, Any]:
    """Save a choice, unless it is empty; return the next two images and the result of all choices so far.

    letter    of the axis; "": the first one with two values
    choice    {"left", "right", "prompt", "outcome"} as sent by the page, or {}
    url       (path of an image) -> its URL
    returns   {"title", "axis", "axes": [[letter, title]], "pair": {"left", "right", "prompt", "about", "images", "number"} or None,
              "missing": number of images that are not generated yet, "result": as of `preference_result`}

    Raises ProblemsError for an axis without two values, and for an invalid choice.
    """
    content = folder.content()
    axes = axes_to_choose(content)
    axis = next((axis for axis in axes if axis.letter == letter), axes[0] if axes and not letter else None)
    if axis is None:
        what, fix = "This axis has no two values to choose between", "open the grid again"
        raise ProblemsError.one(what, content.title, fix, "grid.no-choice")
    names = {f"{axis.letter}{number}": text for number, text in enumerate(axis.texts, 1)}
    if choice:
        answer = Choice(*(str(choice.get(each, ""))[:100] for each in ("left", "right", "prompt", "outcome")))
        if not {answer.left, answer.right} <= set(names):
            raise ProblemsError.one("The choice is not valid", content.title, "choose again", "choice.invalid")
        add_choice(folder.path, answer)
    choices = read_choices(folder.path, names)
    return {
        "title": content.title,
        "axis": axis.letter,
        "axes": [[each.letter, each.title] for each in axes],
        "missing": len(content.cells - folder.generated() - content.failed.keys()),
        "pair": _next_pair(folder, content, axis, list(names), choices, url),
        "result": preference_result(names, choices),
    }


def _next_pair(
    folder: GridFolder,
    content: GridContent,
    axis: AxisTexts,
    names: Sequence[str],
    choices: Sequence[Choice],
    url: Callable[[Any], str],
) -> dict[str, Any] | None:
    """Return the next two images as "pair" in `next_choice`; None if there are too few images or enough choices.

    names     of the axis' values, "x1", "x2" ...
    choices   made so far
    url       (path of an image) -> its URL
    returns   {"left", "right": names of the two values, "prompt": name of the first cell, "about": text on what both share,
              "images": their URLs, "number": number of this choice, from 1}
    """
    pairs = pairs_of(folder, content, axis.letter)
    pair = next_pair(names, pairs, choices) if len(pairs) >= LEAST_PAIRS else None
    first = position_of(pair[2]) if pair else None
    if pair is None or first is None:
        return None
    axis_index = LETTERS.index(axis.letter)
    cells = [content.source(_with_value(first, axis_index, int(name[1:]) - 1)) for name in pair[:2]]
    others = [
        ("" if each.setting == PROMPT else f"{each.title} ") + each.texts[first[LETTERS.index(each.letter)]]
        for each in content.axes
        if each != axis
    ]
    return {
        "left": pair[0],
        "right": pair[1],
        "prompt": pair[2],
        "about": ", ".join(others) or content.prompt,
        "images": [url(folder.cell(cell)) for cell in cells],
        "number": len(choices) + 1,
    }


def preference_text(folder: GridFolder, content: GridContent) -> str:
    """Return a summary of the choices for the head of the grid, "12 blind choices prefer LoRA fox."; "" without a result."""
    sentences = []
    for axis in axes_to_choose(content):
        names = {f"{axis.letter}{number}": text for number, text in enumerate(axis.texts, 1)}
        result = preference_result(names, read_choices(folder.path, names))
        if result is not None and result["rows"]:
            what = f"prefer {axis.title} {names[result['file']]}" if result["file"] else f"leave {axis.title} open"
            sentences.append(f"{result['choices']} blind choices {what}.")
    return " ".join(sentences)
