"""HTML of the table of runs, and texts and buttons of a run."""

import math
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from core.assess.recommended import recommended
from core.dataset.sources.files import name_key
from core.engine.in_use import waiting_jobs_sentence
from core.engine.queue import whose_run
from core.engine.run_summary import RunSummary
from core.record.best import short_label
from core.record.units import clock, count, loss_text
from core.settings.presets.files import PresetStore
from core.settings.values import shown_value
from tabs.form.form_page import FormPage
from tabs.form.lora_card import RUNS, lazy_strip, thumb
from tabs.form.lora_steps import Lora, brief
from tabs.form.project import FIELDS
from tabs.markup import breakable, button, choice_list, empty_state, esc, page_count, pager, section, short
from tabs.monitor.next_step import next_step

PAGE_SIZE = 25
LETTERS = "ABCD"  # of compared runs; as many can be compared
PATIENCE = 0.3  # seconds that an answer waits for journals which have to be read
CONTINUABLE = ("interrupted", "stopped", "failed")
# Opens the dialog of assets/imports.js.
IMPORT = '<button type="button" class="btn" data-do="import">Import from another trainer ...</button>'

STARRED = "starred"
SHOWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "all": ("all runs", ()),
    "done": ("finished", ("done",)),
    "open": ("resumable", CONTINUABLE),
    "live": ("running or waiting", ("running", "paused", "waiting")),
    STARRED: ("starred", ()),
}
SORTS: dict[str, tuple[str, Callable[[RunSummary], Any]]] = {  # (title, key); the list comes newest first
    "": ("newest first", lambda run: 0),
    "oldest": ("oldest first", lambda run: run.started),
    "best": ("best validation first", lambda run: run.best or (math.inf, 0)),
    "title": ("by title", lambda run: run.title.casefold()),
    "steps": ("most steps first", lambda run: -run.step),
    "time": ("longest first", lambda run: -run.seconds),
    STARRED: ("starred first", lambda run: not run.starred),
}


def listed(runs: Sequence[RunSummary], presets: PresetStore, show: str, find: str = "") -> list[RunSummary]:
    """Return the runs of view `show` (a key of SHOWS) that contain every word of the search text `find`.

    The search covers name, title, note, dataset, base model, method, preset and person.
    """
    states = SHOWS.get(show, SHOWS["all"])[1]
    search_words = name_key(find).split()
    matching = [
        run for run in runs if (not states or run.state in states) and _matches_search(run, presets, search_words)
    ]
    if show == "open":
        return [run for run in matching if _may_resume(run)]
    return [run for run in matching if run.starred] if show == STARRED else matching


def _may_resume(run: RunSummary) -> bool:
    """Return whether the run's next step is to resume it."""
    step = next_step(run.state, run.resumable_step, run.fix)
    return step is not None and step.name == "continue"


def _matches_search(run: RunSummary, presets: PresetStore, search_words: Sequence[str]) -> bool:
    """Return whether the run's searchable texts contain all words, each a `name_key`."""
    texts = (run.name, run.title, run.note, run.words.preset, *origin_texts(run, presets)) if search_words else ()
    text = name_key("\n".join(texts))
    return all(word in text for word in search_words)


def origin_texts(run: RunSummary, presets: PresetStore) -> list[str]:
    """Return the texts of a run's dataset, base model, method, preset and person, as far as known."""
    facts = run.words
    method = shown_value(FIELDS["method.kind"], facts.method) if facts.method else ""
    preset = f"preset {presets.display_name(facts.preset)}" if facts.preset else ""
    return [
        each for each in (facts.dataset, facts.model, method, preset, f"of {run.person}" * bool(run.person)) if each
    ]


def state_text(run: RunSummary) -> str:
    """Return the text of a run's state, such as "interrupted at step 120"."""
    if run.state in CONTINUABLE and run.step:
        return f"{run.state} at step {run.step:,}"
    return "waiting in the queue" if run.state == "waiting" else run.state


def badge(run: RunSummary) -> str:
    """Return the HTML of a badge with the run's state."""
    return f'<span class="badge {esc(run.state)}">{esc(state_text(run))}</span>'


def when(started: float) -> str:
    """Return a time in seconds since 1970 as local date and time; a dash for 0."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else "–"


# -- the table


def table(
    runs: Sequence[RunSummary],
    show: str,
    find: str,
    page: int,
    form_page: FormPage,
    picked: Sequence[str] = (),
    unread: int = 0,
    sort: str = "",
) -> str:
    """Return the HTML of one page of the table of runs.

    show    view, a key of SHOWS
    find    search text
    page    index of the page, clamped to the valid ones
    picked  names of the selected runs
    unread  number of runs that are still being read
    sort    order, a key of SORTS
    """
    if not runs and unread:
        return '<p class="hint" role="status">Loading runs ...</p>'
    if not runs:
        return section("Runs", empty_state("No runs yet.", "Start with the starter preset in Train."), IMPORT)
    rows = sorted(listed(runs, form_page.presets, show, find), key=SORTS.get(sort, SORTS[""])[1])
    pages = page_count(len(rows), PAGE_SIZE)
    page = max(0, min(page, pages - 1))
    page_rows = rows[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    head = (
        "<tr><th class='ticks'><span class='unseen'>Select</span></th><td></td><th>Run</th><th>State</th>"
        "<th class='num'>Steps</th><th class='num lowest' title='On validation images; – without them'>Best validation</th>"
        "<th class='num took'>Time</th><th class='num amount'>Files</th>"
        "<th class='date'>Started</th><th><span class='unseen'>Actions</span></th></tr>"
    )
    body = "".join(_row(run, form_page, run.name in picked) for run in page_rows)
    choices = [
        (f"{title} ({len(listed(runs, form_page.presets, name)):,})", name) for name, (title, _) in SHOWS.items()
    ]
    controls = (
        f'<input type="text" data-act="find" data-live value="{esc(find)}" placeholder="name, dataset, model, note" '
        f'aria-label="Find runs by name, dataset, base model, method, preset or note">'
        f"{choice_list('show', choices, show, 'Which runs are shown')}"
        f"{choice_list('sort', [(title, name) for name, (title, _) in SORTS.items()], sort, 'Order of the runs')}{IMPORT}"
    )
    content = f'<table class="runs"><thead>{head}</thead><tbody>{body}</tbody></table>'
    if not page_rows:
        content = empty_state("No matches.", "Choose another view, or clear the search.")
    other_owner = next(
        filter(None, (whose_run(run.person, form_page.engine.people) for run in runs if run.name in picked)), ""
    )
    content = _picks(runs, picked, other_owner, form_page) + content + pager("page", page, pages, len(rows), "runs")
    if unread:
        content += f'<p class="hint" role="status">Loading {count(unread, "more run")} ...</p>'
    return section("Runs", content, controls)


def _picks(runs: Sequence[RunSummary], picked: Sequence[str], other_owner: str, form_page: FormPage) -> str:
    """Return the HTML of the selection with its actions: compare two to four runs, or delete all.

    other_owner: text on the owner of the first selected run of another user (`whose_run`), "" if there is none
    """
    titles = {run.name: run.title for run in runs}
    chosen = [name for name in picked if name in titles]
    if len(runs) < 2 and not chosen:
        return ""
    if not chosen:
        return (
            '<p class="hint picks-line" role="status">Select two to four runs to compare, or any number to delete.</p>'
        )
    text = " and ".join(f"<b>{esc(titles[name])}</b> <span class='hint'>{esc(moment(name))}</span>" for name in chosen)
    if len(chosen) > 2:
        text = f"<b>{count(len(chosen), 'selected run')}</b>"
    go = '<span class="hint">Select another run to compare with.</span>' if len(chosen) == 1 < len(runs) else ""
    if 2 <= len(chosen) <= len(LETTERS):
        go = f'<a class="btn primary" href="{esc(compare_address(*chosen))}">Compare</a>'
    sure, disabled = waiting_jobs(chosen, form_page), bool(other_owner)
    go += button("delete-picked", "Delete", kind="danger", title=other_owner, disabled=disabled, sure=sure)
    go += button("unpick", "Clear", kind="quiet")
    return f'<div class="picks-line" role="status"><span>{text}</span> {go}</div>'


def waiting_jobs(runs: Collection[str], form_page: FormPage) -> str:
    """Return the question before these runs are deleted: the waiting jobs that need their files; "" if there are none."""
    return waiting_jobs_sentence(runs, form_page.engine.queue(), form_page.workspace, form_page.engine.people)


def monitor_link(run: str, text: str, kind: str = "", title: str = "") -> str:
    """Return the HTML of a link to a run in Monitor. kind: of the button, such as "primary"."""
    return f'<a class="btn {kind}" href="#Monitor/{quote(run)}" title="{esc(title)}">{esc(text)}</a>'


def compare_address(*names: str) -> str:
    """Return the URL of the comparison of the named runs."""
    return f"#Runs/{'/'.join(quote(name, safe='') for name in names)}"


def moment(name: str) -> str:
    """Return the start of a run from its folder's name: "2026-01-31 12:05"."""
    stamp = re.match(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)", name)
    return "{}-{}-{} {}:{}".format(*stamp.groups()) if stamp else name


def _row(run: RunSummary, form_page: FormPage, picked: bool) -> str:
    """Return the HTML of a run's row in the table. picked: whether the run is selected"""
    lora = _recommended_lora(run, form_page)
    image = thumb(lora.image if lora else run.thumbnail, form_page.thumb_url)
    others = lazy_strip(lora, RUNS) if lora else ""
    steps = f"{run.step:,} / {run.total:,}" if run.total else f"{run.step:,}"
    other_owner = whose_run(run.person, form_page.engine.people)
    actions = next_step_button(run, other_owner)
    actions += monitor_link(run.name, "Watch") if run.state in ("running", "paused") else ""
    best = f"{loss_text(run.best[0])} @ {run.best[1]:,}" if run.best else ""
    checkbox = (
        f'<input type="checkbox" data-act="pick" data-arg="{esc(run.name)}"{" checked" if picked else ""} '
        f'aria-label="Select {esc(run.title)}, {esc(moment(run.name))}">'
    )
    return (
        f'<tr><td class="ticks"><label>{checkbox}</label></td><td class="small">{image}</td><td>'
        f'<button type="button" class="open" data-act="open" '
        f'data-arg="{esc(run.name)}">{breakable(run.title)}</button>{star(run, other_owner)}'
        f"{_below_title(run, form_page.presets)}{others}</td>"
        f'<td>{badge(run)}</td><td class="num steps">{steps}</td><td class="num lowest">{best}</td>'
        f'<td class="num took">{clock(run.seconds)}</td><td class="num amount">{len(run.files)}</td>'
        f'<td class="date">{when(run.started)}</td><td class="num">{actions}</td>'
        f"</tr>"
    )


def _recommended_lora(run: RunSummary, form_page: FormPage) -> Lora | None:
    """Return the run's recommended checkpoint, else its last one, as a card's LoRA; None before one is saved.

    Without a preview of its own it shows the run's newest sample.
    """
    best = run.best_file
    file, _ = recommended(run.folder, best)
    if file not in run.files:
        file = run.files[-1] if run.files else None
    if file is None:
        return None
    lora = brief(file, form_page.workspace)
    checkpoint = lora.checkpoint
    # a run that continues may not have stored its best one yet
    if checkpoint is not None and best and file == run.folder / best["file"]:
        mark = short_label(best["label"])
        checkpoint = replace(checkpoint, marks=tuple(filter(None, dict.fromkeys((mark, *checkpoint.marks)))))
    return replace(lora, image=lora.image or run.thumbnail, checkpoint=checkpoint)


def star(run: RunSummary, other_owner: str) -> str:
    """Return the HTML of the button that stars a run or removes the star. other_owner: text on the run's other owner, which disables it"""
    symbol, label = "\u2605" if run.starred else "\u2606", f"Star {run.title}, {moment(run.name)}"
    tooltip, disabled = other_owner or "Starred runs can be listed alone or first", bool(other_owner)
    return button(
        "star", symbol, run.name, kind="quiet star", label=label, title=tooltip, pressed=run.starred, disabled=disabled
    )


def next_step_button(run: RunSummary, other_owner: str) -> str:
    """Return the HTML of the next step's button of a run that ended early; "" if that would resume another user's run."""
    step = next_step(run.state, run.resumable_step, run.fix)
    if step is None or (other_owner and step.name == "continue"):
        return ""
    act = {"settings": "use"}.get(step.name, step.name)
    return button(act, step.text, run.name, kind="primary", title=step.about)


def _below_title(run: RunSummary, presets: PresetStore) -> str:
    """Return the HTML below a run's title in the table: where the run comes from, and its note."""
    origin = (
        f'<span class="made">{breakable(" · ".join(short(each, 60) for each in origin_texts(run, presets)))}</span>'
    )
    note = f'<span class="note">{esc(short(run.note, 120))}</span>' if run.note else ""
    return origin + note
