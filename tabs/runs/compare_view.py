"""HTML of the comparison of two runs: their names, a verdict on the losses, facts, settings, samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.record.events import sampled_words
from core.record.run_about import title_of
from core.record.run_folder import RunFolder
from core.record.units import count
from core.settings.presets.files import differences
from tabs.form.project import FIELDS
from tabs.markup import breakable, esc, section, short
from tabs.runs.compared import Side, fact_rows, other_prompts, sample_rows, verdict
from tabs.runs.view import compare_address, moment, value_words

Url = Callable[..., str]


def head(chosen: tuple[str, str], folders: Sequence[RunFolder]) -> str:
    """HTML of the back button, and for each run a list to choose another one."""
    names = {folder.name: f"{title_of(folder)}, {moment(folder.name)}" for folder in folders}
    names |= {name: title_words(name) for name in chosen if name not in names}
    lists = "".join(
        f'<label><b class="letter {letter.lower()}">{letter}</b> {_choice(names, name, other, letter)}</label>'
        for letter, name, other in (("A", *chosen), ("B", *chosen[::-1]))
    )
    back = '<a class="btn quiet" href="#Runs">All runs</a>'
    swap = f'<a class="btn quiet" href="{esc(compare_address(*chosen[::-1]))}">Swap</a>'
    return f'<div class="run-head">{back}<h2 tabindex="-1">Two runs compared</h2></div><div class="versus-head">{lists}{swap}</div>'


def _choice(names: Mapping[str, str], chosen: str, other: str, letter: str) -> str:
    options = "".join(
        f'<option value="{esc(name)}"{" selected" if name == chosen else ""}>{esc(words)}</option>'
        for name, words in names.items()
        if name != other or name == chosen
    )
    return f'<select data-side="{letter.lower()}" aria-label="Run {letter}">{options}</select>'


def title_words(name: str) -> str:
    """Name and start of a run: "glyphs, 2026-01-31 12:05"."""
    return f"{name.split('_', 1)[-1]}, {moment(name)}"


def comparison_parts(a: Side, b: Side, thumb_url: Url, file_url: Url) -> dict[str, str]:
    """{name: HTML} of the parts below the head. The script replaces those that change."""
    return {
        "words": f'<p class="run-message verdict">{esc(verdict(a, b))}</p>',
        "facts": _facts(a, b),
        "settings": _settings(a, b),
        "samples": _samples(a, b, thumb_url, file_url),
    }


def _titles(a: Side, b: Side) -> list[str]:
    return [
        f'<b class="letter {side.letter.lower()}">{side.letter}</b> {breakable(side.facts.get("title", ""))}'
        for side in (a, b)
    ]


def _facts(a: Side, b: Side) -> str:
    one, other = _titles(a, b)
    rows = []
    for row in fact_rows(a, b):
        if row.b is None:
            cells = f'<td colspan="2">{breakable(row.a)}</td>'
        else:
            cells = f"<td>{breakable(row.a)}</td><td>{breakable(row.b)}</td>"
        rows.append(f'<tr><th scope="row">{esc(row.title)}</th>{cells}</tr>')
    top = f'<tr><td></td><th scope="col">{one}</th><th scope="col">{other}</th></tr>'
    return section("Facts", f'<table class="versus">{top}{"".join(rows)}</table>')


def _settings(a: Side, b: Side) -> str:
    title = "Settings that differ"
    unread = [side.letter for side in (a, b) if side.job is None]
    if a.job is None or b.job is None:
        words = f"The settings of {' and '.join(unread)} cannot be read by this version."
        return section(title, f'<p class="hint">{words}</p>')
    differ = differences(a.job, b.job)
    if not differ:
        return section(title, '<p class="hint">None: both runs have the same settings.</p>')
    one, other = _titles(a, b)
    rows = "".join(
        f"<tr><td>{esc(FIELDS[path].title)}<span class='hint'>{esc(path)}</span></td>"
        f"<td>{_value(path, of_a)}</td><td>{_value(path, of_b)}</td></tr>"
        for path, (of_a, of_b) in differ.items()
    )
    top = f'<thead><tr><th>Setting</th><th scope="col">{one}</th><th scope="col">{other}</th></tr></thead>'
    return section(title, f'<table class="settings">{top}<tbody>{rows}</tbody></table>', count(len(differ), "setting"))


def _value(path: str, value: Any) -> str:
    """HTML of a value as the form shows it, with its unit."""
    unit = FIELDS[path].unit
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and unit not in ("", "bytes")
    return value_words(path, value) + (f" {esc(unit)}" if number else "")


def _samples(a: Side, b: Side, thumb_url: Url, file_url: Url) -> str:
    rows = sample_rows(a, b)
    alone = ", ".join(other_prompts(a, b))
    if not rows:
        words = f"The runs have no sample prompt in common ({alone})." if alone else "Neither run has samples."
        return section("Samples", f'<p class="hint">{esc(words)}</p>')
    names = [sampled_words(each["step"] for each in side.facts["samples"]) for side in (a, b)]
    parts = []
    for row in rows:
        of_a, of_b = (sample["seed"] for sample in row.pairs[-1])
        other_seed = f" Seed {of_a} in A, {of_b} in B." if of_a != of_b else ""
        lines = "".join(
            f'<tr><th scope="row"><b class="letter {letter.lower()}">{letter}</b></th>'
            + "".join(
                _cell(
                    sample,
                    names[place][sample["step"]],
                    f"{letter}: {short(row.prompt, 60)}",
                    thumb_url,
                    file_url,
                )
                if (sample := pair[place])
                else "<td></td>"
                for pair in [*row.compared, *row.pairs]
            )
            + "</tr>"
            for place, letter in enumerate("AB")
        )
        parts.append(
            f'<figure class="versus-samples"><figcaption title="{esc(row.prompt)}">{esc(short(row.prompt, 120))}'
            f'<span class="hint">{other_seed}</span></figcaption><div class="run-samples" tabindex="0" role="group" '
            f'aria-label="{esc(short(row.prompt, 60))}"><table>{lines}</table></div></figure>'
        )
    hint = f'<p class="hint">{esc(alone[:1].upper() + alone[1:])}.</p>' if alone else ""
    return section("Samples", "".join(parts) + hint, "same prompt, nearest step; click one to enlarge")


def _cell(sample: dict[str, Any], at: str, whose: str, thumb_url: Url, file_url: Url) -> str:
    alt = esc(f"{whose}, {at}")
    url, small = esc(file_url(sample["file"])), esc(thumb_url(sample["file"], 256))
    image = f'<img src="{small}" alt="{alt}" loading="lazy">'
    return f'<td><a href="{url}" target="_blank" rel="noopener">{image}</a><span>{at}</span></td>'
