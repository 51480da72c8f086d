"""HTML of the comparison of runs: choice of runs, verdict on the losses, facts, settings, images, samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.record.events import sample_titles
from core.record.run_about import title_of
from core.record.run_folder import RunFolder
from core.record.units import count
from tabs.form.project import FIELDS
from tabs.markup import breakable, esc, options, section, short
from tabs.runs.compared import (
    SampleRow,
    Side,
    differing_settings,
    fact_rows,
    image_changes,
    other_prompts,
    sample_rows,
    verdicts,
)
from tabs.runs.details import sample_cell, value_html
from tabs.runs.view import LETTERS, compare_address
from tabs.runs.view import moment as moment_of

Url = Callable[..., str]
MOST_IMAGES = 60  # names in a list
NO_EFFECT = "<span class='hint'>no effect</span>"


def head(chosen: Sequence[str], folders: Sequence[RunFolder]) -> str:
    """Return the HTML above the comparison: back button, a list to replace each run, a list to add one.

    chosen: names of the compared runs; folders: runs to choose from
    """
    names = {folder.name: f"{title_of(folder)}, {moment_of(folder.name)}" for folder in folders}
    names |= {name: title_text(name) for name in chosen if name not in names}
    free = {name: run_title for name, run_title in names.items() if name not in chosen}
    lists = ""
    for letter, name in zip(LETTERS, chosen, strict=False):
        offered = {each: title for each, title in names.items() if each == name or each in free}
        others = compare_address(*(each for each in chosen if each != name))
        leave_out = f'<a class="btn quiet" href="{esc(others)}" aria-label="Leave out run {letter}">\u00d7</a>'
        side = f"<label>{_letter(letter)} {_choice(offered, name, letter, f'Run {letter}')}</label>"
        lists += f'<span class="run-side">{side}{leave_out if len(chosen) > 2 else ""}</span>'
    if len(chosen) < len(LETTERS) and free:
        lists += _choice({"": "Add a run ..."} | free, "", LETTERS[len(chosen)], "Add a run")
    if len(chosen) == 2:
        lists += f'<a class="btn quiet" href="{esc(compare_address(*chosen[::-1]))}">Swap</a>'
    about = "Images on the same prompts, with the checkpoint of each that Generate takes"
    lists += f'<button type="button" class="btn" data-grid-of title="{about}">Compare images</button>'
    back = '<a class="btn quiet" href="#Runs">All runs</a>'
    number = ("Two", "Three", "Four")[len(chosen) - 2]
    return f'<div class="run-head">{back}<h2 tabindex="-1">{number} runs compared</h2></div><div class="versus-head">{lists}</div>'


def _choice(names: Mapping[str, str], chosen: str, letter: str, label: str) -> str:
    """Return the HTML of a list of runs. names: {run: title}; letter: of the side that it sets; label: for screen readers"""
    content = options(((title, name) for name, title in names.items()), chosen)
    return f'<select data-side="{LETTERS.index(letter)}" aria-label="{label}">{content}</select>'


def _letter(letter: str) -> str:
    """Return the HTML of a run's letter in its color."""
    return f'<b class="letter {letter.lower()}">{letter}</b>'


def title_text(name: str) -> str:
    """Return a run folder's name and time as title: "glyphs, 2026-01-31 12:05"."""
    return f"{name.split('_', 1)[-1]}, {moment_of(name)}"


def comparison_parts(sides: Sequence[Side], thumb_url: Url, file_url: Url) -> dict[str, str]:
    """Return {part: HTML} below the head: "words" (verdicts), "facts", "settings", "images" and "samples"."""
    return {
        "words": "".join(f'<p class="run-message verdict">{esc(sentence)}</p>' for sentence in verdicts(sides)),
        "facts": _facts(sides),
        "settings": _settings(sides),
        "images": _images(sides),
        "samples": _samples(sides, thumb_url, file_url),
    }


def _titles(sides: Sequence[Side]) -> str:
    """Return the HTML of the header cells of a table with a column for each run."""
    titles = (f"{_letter(side.letter)} {breakable(side.facts.get('title', ''))}" for side in sides)
    return "".join(f'<th scope="col">{title}</th>' for title in titles)


def _facts(sides: Sequence[Side]) -> str:
    """Return the HTML of the table of facts with a column for each run."""
    rows = ""
    for row in fact_rows(*sides):
        span = f' colspan="{len(sides)}"' if len(row.values) == 1 else ""
        cells = "".join(f"<td{span}>{breakable(value)}</td>" for value in row.values)
        rows += f'<tr><th scope="row">{esc(row.title)}</th>{cells}</tr>'
    return section("Facts", f'<table class="versus runs-{len(sides)}"><tr><td></td>{_titles(sides)}</tr>{rows}</table>')


def _settings(sides: Sequence[Side]) -> str:
    """Return the HTML of the table of differing settings with a column for each run."""
    title = "Settings that differ"
    unread = [side.letter for side in sides if side.job is None]
    if unread:
        text = f"The settings of {' and '.join(unread)} cannot be read by this version."
        return section(title, f'<p class="hint">{text}</p>')
    differ = differing_settings(sides)
    if not differ:
        return section(title, '<p class="hint">None that have an effect: the runs have the same settings.</p>')
    rows = "".join(
        f"<tr><td>{esc(FIELDS[path].title)}<span class='hint'>{esc(path)}</span></td>"
        + "".join(f"<td>{_value(path, value) if has_effect else NO_EFFECT}</td>" for value, has_effect in values)
        + "</tr>"
        for path, values in differ.items()
    )
    head = f"<thead><tr><th>Setting</th>{_titles(sides)}</tr></thead>"
    return section(
        title,
        f'<table class="settings runs-{len(sides)}">{head}<tbody>{rows}</tbody></table>',
        count(len(differ), "setting"),
    )


def _images(sides: Sequence[Side]) -> str:
    """Return the HTML of the differences between the training images of the first run and of each other run."""
    first, parts, total = sides[0], "", 0
    for side in sides[1:]:
        changes = image_changes(first.dataset, side.dataset)
        head = f"<h4>{_letter(first.letter)} to {_letter(side.letter)}</h4>"
        if not changes:
            text = "Not recorded." if changes is None else "The same images, captions and sizes."
            parts += f'{head}<p class="hint">{text}</p>'
            continue
        added, removed = ([(name, "") for name in names] for names in (changes.added, changes.removed))
        lists = {"Added": added, "Removed": removed, "Changed": changes.changed}
        total += sum(map(len, lists.values()))
        rows = "".join(
            f"<dt>{title} ({len(images):,})</dt>{_names(images)}" for title, images in lists.items() if images
        )
        parts += f'{head}<dl class="image-changes">{rows}</dl>'
    return section("Training images", parts, count(total, "difference") if total else "")


def _names(images: Sequence[tuple[str, str]]) -> str:
    """Return the HTML of a list of (image name, what changed)."""
    names = (
        f"<li>{breakable(name)}{f' <span class=hint>{esc(change)}</span>' if change else ''}</li>"
        for name, change in images[:MOST_IMAGES]
    )
    more = f'<li class="hint">and {len(images) - MOST_IMAGES:,} more</li>' if len(images) > MOST_IMAGES else ""
    return f"<dd><ul>{''.join(names)}{more}</ul></dd>"


def _value(path: str, value: Any) -> str:
    """Return the HTML of a setting's value as the form shows it, with its unit."""
    unit = FIELDS[path].unit
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and unit not in ("", "bytes")
    return value_html(path, value) + (f" {esc(unit)}" if is_number else "")


def _samples(sides: Sequence[Side], thumb_url: Url, file_url: Url) -> str:
    """Return the HTML of the samples of the prompts that all runs share."""
    rows = sample_rows(*sides)
    unshared = ", ".join(other_prompts(*sides))
    if not rows:
        text = f"The runs have no sample prompt in common ({unshared})." if unshared else "No run has samples."
        return section("Samples", f'<p class="hint">{esc(text)}</p>')
    names = [sample_titles((each["step"] for each in side.facts["samples"]), side.at_base) for side in sides]
    parts = "".join(_sample_row(row, names, thumb_url, file_url) for row in rows)
    hint = f'<p class="hint">{esc(unshared[:1].upper() + unshared[1:])}.</p>' if unshared else ""
    return section("Samples", parts + hint, "same prompt, nearest step; click one to enlarge")


def _sample_row(row: SampleRow, names: Sequence[Mapping[int, str]], thumb_url: Url, file_url: Url) -> str:
    """Return the HTML of the samples of one prompt, a line for each run. names: for each run {step: title}"""
    seeds = [sample["seed"] for sample in row.moments[-1]]
    seeds_text = ", ".join(f"{seed} in {letter}" for seed, letter in zip(seeds, LETTERS, strict=False))
    other_seed = f" Seed {seeds_text}." if len({*seeds}) > 1 else ""
    prompt, lines = esc(short(row.prompt, 60)), ""
    for index, letter in enumerate(LETTERS[: len(names)]):
        cells = ""
        for sample in (moment[index] for moment in [*row.compared, *row.moments]):
            step = names[index][sample["step"]] if sample else ""
            cells += sample_cell(sample, f"{letter}: {short(row.prompt, 60)}, {step}", thumb_url, file_url, 256, step)
        lines += f'<tr><th scope="row">{_letter(letter)}</th>{cells}</tr>'
    return (
        f'<figure class="versus-samples"><figcaption title="{esc(row.prompt)}">{esc(short(row.prompt, 120))}'
        f'<span class="hint">{other_seed}</span></figcaption><div class="run-samples" tabindex="0" role="group" '
        f'aria-label="{prompt}"><table>{lines}</table></div></figure>'
    )
