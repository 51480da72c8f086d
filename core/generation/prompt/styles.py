"""Styles: named prompt texts that are added to prompts when a generation starts, as in A1111. Stored in a JSON file."""

import csv
import difflib
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.generation.prompt.files import Entry
from core.generation.prompt.options import parts_of_line
from core.record import atomic
from core.record.bounded_json import read_json_object
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.record.workspace import Workspace

PROMPT_FIELD = "{prompt}"  # replaced by the prompt; a style without it is appended
MOST, LONGEST_NAME, LONGEST, MAX_BYTES = 1000, 100, 20_000, 16_000_000
WHERE = "prompts.styles"


@dataclass(frozen=True)
class Style:
    """A named pair of texts for prompt and negative prompt; {prompt} in them is replaced by the text they are applied to."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


def styled(text: str, styles: Iterable[str]) -> str:
    """Wrap a text in each style, or append styles without {prompt}: "a fox", ["ink of {prompt}", "b/w"] -> "ink of a fox, b/w"."""
    for style in styles:
        if PROMPT_FIELD in style:
            text = style.replace(PROMPT_FIELD, text)
        else:
            text = ", ".join(part for part in (text.strip(), style.strip()) if part)
    return text


def styled_entry(entry: Entry, styles: Sequence[Style], options: bool = True) -> Entry:
    """Return a prompt with styles applied to it, and to its negative prompt if it has one.

    entry     a table with "prompt", or a line: "prompt --n negative prompt --d 1"
    options   False: a line has no inline options, and "--n" is text
    """
    positives, negatives = [style.prompt for style in styles], [style.negative_prompt for style in styles]
    if isinstance(entry, dict):
        added = {"prompt": positives, "negative_prompt": negatives}
        texts = {name: styled(entry[name], added[name]) for name in added if isinstance(entry.get(name), str)}
        return entry | texts
    parts = [part for part in parts_of_line(entry)[1:] if part.switch] if options else []
    starts = [*(part.start for part in parts), len(entry)]
    result = styled(entry[: starts[0]], positives)
    for part, next_start in zip(parts, starts[1:], strict=True):
        if part.of == "n":
            result += f" --n {styled(part.text + entry[part.end : next_start], negatives)}"
        else:
            result += entry[part.start : next_start]
    return result


# -- the file


def style_file(workspace: Workspace) -> Path:
    """Return the path of the JSON file with the user's styles."""
    return workspace.personal_private / "styles.json"


def read_styles(workspace: Workspace) -> dict[str, Style]:
    """Return the user's styles by name, in the order of the file; {} if there is no file. Skips invalid entries.

    Raises ProblemsError for a damaged file.
    """
    path = style_file(workspace)
    if not path.exists():
        return {}
    listed = read_json_object(path, max_bytes=MAX_BYTES).get("styles")
    if not isinstance(listed, list):
        raise ProblemsError.one("The file contains no styles", str(path), "correct or move it", "styles.bad-file")
    return {style.name: style for style in map(_style, listed[:MOST]) if style is not None}


def write_styles(workspace: Workspace, styles: Iterable[Style]) -> None:
    """Write the user's styles, replacing all. Raises ProblemsError for too many, for a missing or long name, or for a long text."""
    to_write = list(styles)
    if len(to_write) > MOST:
        what = f"There are {len(to_write):,} styles; {MOST:,} is the limit"
        raise ProblemsError.one(what, WHERE, "delete some", "styles.too-many")
    for style in to_write:
        if not style.name.strip() or len(style.name) > LONGEST_NAME:
            fix = f"write a name of at most {LONGEST_NAME} characters"
            raise ProblemsError.one("A style needs a name", WHERE, fix, "styles.bad-name")
        if max(len(style.prompt), len(style.negative_prompt)) > LONGEST:
            what = f"The style '{style.name}' is longer than {LONGEST:,} characters"
            raise ProblemsError.one(what, WHERE, "shorten it", "styles.too-long")
    atomic.write_json(style_file(workspace), {"styles": [asdict(style) for style in to_write]})


def _style(value: Any) -> Style | None:
    """Convert a JSON object into a style, truncated to the limits; None if it has no name."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"].strip():
        return None
    name, *texts = (str(value.get(key) or "") for key in ("name", "prompt", "negative_prompt"))
    return Style(name[:LONGEST_NAME], *(text[:LONGEST] for text in texts))


def styles_of_csv(text: str) -> list[Style]:
    """Parse the first MOST rows of A1111's styles.csv (name,prompt,negative_prompt), also with semicolons between columns.

    Raises ProblemsError if it is invalid, without styles, or has a row with more columns than the header.
    """
    text = text.lstrip("\ufeff")
    header = text.partition("\n")[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    try:
        lines = io.StringIO(text, newline="")
        rows = list(csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True, strict=True, restkey="\0"))
    except csv.Error as error:
        raise ProblemsError.one(f"The styles cannot be read: {error}", "styles.csv", _CSV, "styles.bad-csv") from None
    if long := next((row for row in rows if any(row.get("\0", ()))), None):
        what = f"The style '{long.get('name')}' has more columns than the header"
        fix = "put quotes around texts with commas"
        raise ProblemsError.one(what, "styles.csv", fix, "styles.bad-csv")
    names = {name: "text" if name == "prompt" and "text" in (rows[0] if rows else ()) else name for name in _COLUMNS}
    parsed = [_style({name: row.get(column) for name, column in names.items()}) for row in rows[:MOST]]
    styles = [style for style in parsed if style is not None and (style.prompt or style.negative_prompt)]
    if not styles:
        raise ProblemsError.one("The file contains no styles", "styles.csv", _CSV, "styles.bad-csv")
    return styles


_COLUMNS = ("name", "prompt", "negative_prompt")
_CSV = "use A1111's styles.csv, with the columns name,prompt,negative_prompt"


def chosen_styles(names: Sequence[str], workspace: Workspace) -> list[Style]:
    """Return the user's styles with these names. Raises ProblemsError for unknown names."""
    styles = read_styles(workspace) if names else {}
    problems = []
    for name in names:
        if name not in styles:
            near = difflib.get_close_matches(name, styles, 1) or list(styles)[:1]
            fix = f"choose another, for example {near[0]}" if near else "save it on the Generate tab"
            problems.append(Problem(f"The style '{name}' does not exist", WHERE, fix, code="styles.not-found"))
    raise_if_errors(problems)
    return [styles[name] for name in names]
