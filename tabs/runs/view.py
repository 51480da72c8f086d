"""HTML of the Runs tab: the table of runs, and the details of a run."""

import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from core.assess.recommended import recommended
from core.engine.in_use import waiting_jobs_sentence
from core.engine.points import spread
from core.engine.queue import whose_run
from core.engine.run_summary import RunSummary
from core.record.best import short_label
from core.record.events import COMPARED, sample_titles
from core.record.file_titles import labels_of
from core.record.kept import read_kept
from core.record.run_about import MOST_NOTE, MOST_TITLE
from core.record.units import clock, count, size_words
from core.settings.job import TrainJob
from core.settings.presets.files import PresetStore, differences
from core.settings.rules import ineffective
from core.settings.values import shown_value, text_of
from tabs.form.form_page import FormPage
from tabs.form.lora_card import RUNS, copy_button, lazy_strip, thumb
from tabs.form.lora_steps import Lora, brief
from tabs.form.project import FIELDS
from tabs.markup import (
    breakable,
    button,
    choice_list,
    client_rendered,
    empty_state,
    esc,
    facts,
    link,
    page_count,
    pager,
    section,
    short,
)
from tabs.monitor.charts import loss_series
from tabs.monitor.next_step import next_step

PAGE_SIZE = 25
LETTERS = "ABCD"  # of compared runs; as many can be compared
PATIENCE = 0.3  # seconds that an answer waits for journals which have to be read
LOG_SHOWN = 60
Copying = Callable[[dict[str, Any]], tuple[str, str]]
SAMPLE_STEPS = 6
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
    """The runs in a state of this view that have all words of the search in name, title, note, dataset, model, method or preset."""
    states = SHOWS.get(show, SHOWS["all"])[1]
    words = find.casefold().split()
    matching = [run for run in runs if (not states or run.state in states) and _holds(run, presets, words)]
    if show == "open":
        return [run for run in matching if _may_resume(run)]
    return [run for run in matching if run.starred] if show == STARRED else matching


def _may_resume(run: RunSummary) -> bool:
    step = next_step(run.state, run.resumable_step, run.fix)
    return step is not None and step.name == "continue"


def _holds(run: RunSummary, presets: PresetStore, words: Sequence[str]) -> bool:
    texts = (run.name, run.title, run.note, run.words.preset, *origin_texts(run, presets)) if words else ()
    text = "\n".join(texts).casefold()
    return all(word in text for word in words)


def origin_texts(run: RunSummary, presets: PresetStore) -> list[str]:
    """Dataset, base model, method, preset and person of a run, if known."""
    facts = run.words
    method = shown_value(FIELDS["method.kind"], facts.method) if facts.method else ""
    preset = f"preset {presets.display_name(facts.preset)}" if facts.preset else ""
    return [
        each for each in (facts.dataset, facts.model, method, preset, f"of {run.person}" * bool(run.person)) if each
    ]


def state_text(run: RunSummary) -> str:
    """Text of the state: "interrupted at step 120"."""
    if run.state in ("interrupted", "stopped", "failed") and run.step:
        return f"{run.state} at step {run.step:,}"
    return run.state


def badge(run: RunSummary) -> str:
    return f'<span class="badge {esc(run.state)}">{esc(state_text(run))}</span>'


def when(started: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else "–"


# -- the table


def table(
    runs: Sequence[RunSummary],
    show: str,
    find: str,
    page: int,
    host: FormPage,
    picked: Sequence[str] = (),
    asking: bool = False,
    unread: int = 0,
    sort: str = "",
) -> str:
    """HTML of one page of runs. sort: a key of SORTS

    picked   names of the selected runs     asking   the user is asked whether to delete them
    unread   number of runs that are still being read
    """
    if not runs and unread:
        return '<p class="hint" role="status">Loading runs ...</p>'
    if not runs:
        return section("Runs", empty_state("No runs yet.", "Start with the starter preset in Train."), IMPORT)
    rows = sorted(listed(runs, host.presets, show, find), key=SORTS.get(sort, SORTS[""])[1])
    pages = page_count(len(rows), PAGE_SIZE)
    page = max(0, min(page, pages - 1))
    page_rows = rows[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
    head = (
        "<tr><th class='ticks'><span class='unseen'>Select</span></th><td></td><th>Run</th><th>State</th>"
        "<th class='num'>Steps</th><th class='num lowest' title='On validation images; – without them'>Best validation</th>"
        "<th class='num took'>Time</th><th class='num amount'>Files</th>"
        "<th class='date'>Started</th><th><span class='unseen'>Actions</span></th></tr>"
    )
    body = "".join(_row(run, host, run.name in picked) for run in page_rows)
    choices = [(f"{words} ({len(listed(runs, host.presets, name)):,})", name) for name, (words, _) in SHOWS.items()]
    controls = (
        f'<input type="text" data-act="find" data-live value="{esc(find)}" placeholder="name, dataset, model, note" '
        f'aria-label="Find runs by name, dataset, base model, method, preset or note">'
        f"{choice_list('show', choices, show, 'Which runs are shown')}"
        f"{choice_list('sort', [(words, name) for name, (words, _) in SORTS.items()], sort, 'Order of the runs')}{IMPORT}"
    )
    content = f'<table class="runs"><thead>{head}</thead><tbody>{body}</tbody></table>'
    if not page_rows:
        content = empty_state("No matches.", "Choose another view, or clear the search.")
    others_run = next(
        filter(None, (whose_run(run.person, host.engine.people) for run in runs if run.name in picked)), ""
    )
    content = _picks(runs, picked, asking, others_run, host) + content + pager("page", page, pages, len(rows), "runs")
    if unread:
        content += f'<p class="hint" role="status">Loading {count(unread, "more run")} ...</p>'
    return section("Runs", content, controls)


def _picks(runs: Sequence[RunSummary], picked: Sequence[str], asking: bool, others_run: str, host: FormPage) -> str:
    """HTML of the selection with its actions: compare up to four, delete all. others_run: see `whose_run`, of the first such run"""
    if len(runs) < 2:
        return ""
    titles = {run.name: run.title for run in runs}
    chosen = [name for name in picked if name in titles]
    if not chosen:
        return (
            '<p class="hint picks-line" role="status">Select two to four runs to compare, or any number to delete.</p>'
        )
    text = " and ".join(f"<b>{esc(titles[name])}</b> <span class='hint'>{esc(moment(name))}</span>" for name in chosen)
    if len(chosen) > 2:
        text = f"<b>{count(len(chosen), 'selected run')}</b>"
    if asking:
        files = count(sum(len(run.files) for run in runs if run.name in chosen), "file")
        text = f"Delete {text} ({files})? The folders move to the trash of the outputs folder. {_needed(chosen, host)}"
        buttons = button("delete-picked", f"Delete {count(len(chosen), 'run')}", kind="danger")
        buttons += button("keep", "Keep", lands="ask")
        label = f'role="alertdialog" aria-label="Delete {count(len(chosen), "run")}?"'
        return f'<div class="picks-line question" {label}><span>{text}</span> {buttons}</div>'
    go = '<span class="hint">Select another run to compare with.</span>' if len(chosen) == 1 else ""
    if 2 <= len(chosen) <= len(LETTERS):
        go = f'<a class="btn primary" href="{esc(compare_address(*chosen))}">Compare</a>'
    go += button("ask", "Delete", kind="danger", title=others_run, disabled=bool(others_run)) + button(
        "unpick", "Clear", kind="quiet"
    )
    return f'<div class="picks-line" role="status"><span>{text}</span> {go}</div>'


def _needed(runs: Collection[str], host: FormPage) -> str:
    return f"<b>{esc(waiting_jobs_sentence(runs, host.engine.queue(), host.workspace, host.engine.people))}</b>"


def compare_address(*names: str) -> str:
    """URL of the comparison of runs."""
    return f"#Runs/{'/'.join(quote(name, safe='') for name in names)}"


def moment(name: str) -> str:
    """Start of a run, from its folder's name: "2026-01-31 12:05"."""
    stamp = re.match(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)", name)
    return "{}-{}-{} {}:{}".format(*stamp.groups()) if stamp else name


def loss_text(loss: float) -> str:
    """Format a loss with four decimals, a small one with three significant digits, as `atelier.loss` does."""
    return f"{loss:.4f}" if abs(loss) >= 0.01 else f"{loss:.3g}"


def _row(run: RunSummary, host: FormPage, picked: bool) -> str:
    lora = _recommended_lora(run, host)
    image = thumb(lora.image if lora else run.thumbnail, host.thumb_url)
    others = lazy_strip(lora, RUNS) if lora else ""
    steps = f"{run.step:,} / {run.total:,}" if run.total else f"{run.step:,}"
    others_run = whose_run(run.person, host.engine.people)
    actions = _continue(run, others_run) if run.state in CONTINUABLE else ""
    actions += button("watch", "Watch", run.name) if run.state in ("running", "paused") else ""
    best = f"{loss_text(run.best[0])} @ {run.best[1]:,}" if run.best else ""
    checkbox = (
        f'<input type="checkbox" data-act="pick" data-arg="{esc(run.name)}"{" checked" if picked else ""} '
        f'aria-label="Select {esc(run.title)}, {esc(moment(run.name))}">'
    )
    return (
        f'<tr><td class="ticks"><label>{checkbox}</label></td><td class="small">{image}</td><td>'
        f'<button type="button" class="open" data-act="open" '
        f'data-arg="{esc(run.name)}">{breakable(run.title)}</button>{star(run, others_run)}{_under(run, host.presets)}{others}</td>'
        f'<td>{badge(run)}</td><td class="num steps">{steps}</td><td class="num lowest">{best}</td>'
        f'<td class="num took">{clock(run.seconds)}</td><td class="num amount">{len(run.files)}</td>'
        f'<td class="date">{when(run.started)}</td><td class="num">{actions}</td>'
        f"</tr>"
    )


def _recommended_lora(run: RunSummary, host: FormPage) -> Lora | None:
    """The `recommended` checkpoint of a run, else its last one, with the newest sample if it has none of its
    own; None before one is saved."""
    best = run.best_file
    file, _ = recommended(run.folder, best)
    if file not in run.files:
        file = run.files[-1] if run.files else None
    if file is None:
        return None
    lora = brief(file, host.workspace)
    checkpoint = lora.checkpoint
    # a run that continues may not have stored its best one yet
    if checkpoint is not None and best and file == run.folder / best["file"]:
        mark = short_label(best["label"])
        checkpoint = replace(checkpoint, marks=tuple(filter(None, dict.fromkeys((mark, *checkpoint.marks)))))
    return replace(lora, image=lora.image or run.thumbnail, checkpoint=checkpoint)


def star(run: RunSummary, others_run: str) -> str:
    """HTML of the button that stars a run, or takes the star away. others_run: see `whose_run`"""
    symbol, label = "\u2605" if run.starred else "\u2606", f"Star {run.title}, {moment(run.name)}"
    tooltip, disabled = others_run or "Starred runs can be listed alone or first", bool(others_run)
    return button(
        "star", symbol, run.name, kind="quiet star", label=label, title=tooltip, pressed=run.starred, disabled=disabled
    )


def _continue(run: RunSummary, others_run: str) -> str:
    """HTML of the button of a run that ended early, as in Monitor; "" if it would resume the run of somebody else."""
    step = next_step(run.state, run.resumable_step, run.fix)
    if step is None or (others_run and step.name == "continue"):
        return ""
    act = {"settings": "use"}.get(step.name, step.name)
    return button(act, step.text, run.name, kind="primary", title=step.about)


def _under(run: RunSummary, presets: PresetStore) -> str:
    """HTML below a run's title in the table."""
    made = f'<span class="made">{breakable(" · ".join(short(each, 60) for each in origin_texts(run, presets)))}</span>'
    note = f'<span class="note">{esc(short(run.note, 120))}</span>' if run.note else ""
    return made + note


# -- one run


def details(
    run: RunSummary,
    facts: dict[str, Any],
    job: TrainJob | None,
    size: int,
    asking: bool,
    host: FormPage,
    copies: Copying,
    more: str = "",
) -> str:
    """HTML of a run: actions, files, samples, settings and log.

    copies  returns (HTML of the copy buttons, HTML of the copy's state) of a file
    more    HTML below the samples
    """
    others_run = whose_run(run.person, host.engine.people)
    parts = [_head(run, asking, size, job is not None, others_run, _needed([run.name], host) if asking else "")]
    if facts.get("message") and run.state in ("failed", "stopped", "damaged"):
        level = "advice" if run.state == "stopped" else "error"
        fix = f'<span class="fix">{esc(facts["fix"])}</span>' if facts.get("fix") else ""
        parts.append(f'<p class="run-message {level}"><strong>{esc(facts["message"])}</strong>{fix}</p>')
    parts.append(_naming(run, others_run))
    kept_names = {(run.folder / file).name: name for file, name in read_kept(run.folder).items()}
    files = _files(facts.get("files", []), host.file_url, copies, run.best_file, kept_names, others_run)
    first_column = [_about(run, facts, size, host.presets.display_name(run.words.preset)), files]
    at_base = job is None or job.starts_at_base
    right = [_samples(facts.get("samples", []), host.thumb_url, host.file_url, at_base), more]
    parts.append(f'<div class="run-columns"><div>{"".join(first_column)}</div><div>{"".join(right)}</div></div>')
    parts.append(_settings(job))
    message = facts.get("message") if run.state == "failed" else None  # shown at the top
    parts.append(_log([line for line in facts.get("log", []) if line["text"] != message]))
    return f'<div class="run-details">{"".join(parts)}</div>'


def _head(run: RunSummary, asking: bool, size: int, has_job: bool, others_run: str, needed: str = "") -> str:
    """HTML of the title with the run's actions. asking: the user is asked whether to delete it; needed: see `_needed`"""
    back = button("back", "All runs", kind="quiet")
    actions = []
    if run.state in CONTINUABLE:
        actions.append(_continue(run, others_run))
    if run.state in ("running", "paused"):
        actions.append(button("watch", "Watch in Monitor", run.name, kind="primary"))
    if run.files:
        actions.append(button("draw", "Generate with it", run.name))
        if run.state not in ("running", "paused", "waiting"):
            about = "Its checkpoints next to the base model, in Monitor"
            actions.append(f'<a class="btn" href="#Monitor/{quote(run.name)}" title="{about}">Compare checkpoints</a>')
    step = next_step(run.state, run.resumable_step, run.fix)
    if has_job and not (step and step.name == "settings"):
        actions.append(button("use", "Use its settings", run.name))
    if run.state not in ("running", "paused") and not others_run:
        actions.append(button("ask", "Delete", run.name, kind="danger", disabled=asking))
    question = ""
    if asking:
        question = (
            f'<div class="question" role="alertdialog" aria-label="Delete this run?"><span>Delete '
            f"<b>{esc(run.title)}</b> with "
            f"{count(len(run.files), 'file')} ({size_words(size)})? Its folder moves to the trash of the "
            f"outputs folder. {needed}</span>"
            f'<span class="grow"></span>{button("delete", "Delete it", run.name, kind="danger")}'
            f"{button('keep', 'Keep', run.name, lands='ask')}</div>"
        )
    return (
        f'<div class="run-top"><div class="run-head">{back}'
        f'<h2 tabindex="-1" data-land="{esc(run.name)}">{breakable(run.title)}</h2>{star(run, others_run)}'
        f'{badge(run)}<span class="grow">'
        f"</span><span class='does'>{''.join(actions)}</span></div>{question}</div>"
    )


def _naming(run: RunSummary, others_run: str) -> str:
    """HTML of the fields for title and note, which are saved on change; of the note alone if the run is somebody else's."""
    if run.about_error:
        return f'<p class="run-message error"><strong>{esc(run.about_error)}</strong></p>'
    if others_run:
        return section("Note", f"<p>{esc(run.note)}</p>") if run.note else ""
    name = esc(run.name)
    title = (
        f'<label>Title <input type="text" data-act="rename" data-arg="{name}" value="{esc(run.title)}" '
        f'maxlength="{MOST_TITLE}"></label>'
    )
    note = (
        f'<label>Note <textarea data-act="note" data-arg="{name}" rows="2" maxlength="{MOST_NOTE}" '
        f'placeholder="What you tried, and what you think of it">{esc(run.note)}</textarea></label>'
    )
    return section("Title and note", f'<div class="naming">{title}{note}</div>')


def _about(run: RunSummary, now: dict[str, Any], size: int, preset: str) -> str:
    losses = now.get("loss", [])
    rows = [
        ("Steps", of_total(run.step, run.total)),
        ("Epochs", epochs_text(now)),
        ("Time", clock(run.seconds)),
        ("A step", pace_text(now)),
        ("Started", when(run.started)),
        ("Loss", f"{loss_text(losses[-1][2])} (smoothed)" if losses else ""),
        ("Dataset", breakable(run.words.dataset)),
        ("Base model", breakable(run.words.model)),
        ("Method", esc(shown_value(FIELDS["method.kind"], run.words.method)) if run.words.method else ""),
        ("Preset", breakable(preset)),
        ("Of", esc(run.person)),
        ("Folder", f"<code>{breakable(run.name)}</code>, {size_words(size)}"),
    ]
    plan = f'<p class="hint">{esc(now["sentence"])}</p>' if now.get("sentence") else ""
    return section("About", facts([(name, value) for name, value in rows if value]) + loss_chart(losses) + plan)


def of_total(done: int, total: int | None) -> str:
    """Text such as "20 of 1,000", without a total the number alone."""
    return f"{done:,} of {total:,}" if total else f"{done:,}"


def epochs_text(facts: Mapping[str, Any]) -> str:
    """Text of the epochs in a run's snapshot; "" before they are known."""
    return of_total(facts.get("epoch", 0), facts["epochs"]) if facts.get("epochs") else ""


def pace_text(facts: Mapping[str, Any]) -> str:
    """Text of the seconds of a step in a run's snapshot; "" before they are known."""
    return f"{facts['seconds_per_step']:.2f} s" if facts.get("seconds_per_step") else ""


def loss_chart(losses: Sequence[Sequence[float]]) -> str:
    """HTML of a small chart of the smoothed loss, with its first and last value; "" for fewer than three points."""
    if len(losses) < 3:
        return ""
    series, label = loss_series(losses), f"Smoothed loss from {loss_text(losses[0][2])} to {loss_text(losses[-1][2])}"
    line = {"name": "smoothed loss", "values": series["smooth"], "kind": "smooth"}
    chart = client_rendered("chart", {"label": label, "up": "loss", "steps": series["steps"], "lines": [line]})
    return f'{chart}<p class="hint">{label}</p>'


def best_html(best: dict[str, Any]) -> str:
    """HTML of the best checkpoint by validation, and how reliable that is."""
    text = f"step {best['step']:,} · {loss_text(best['loss'])} · lowest"
    return (
        f'<p class="best-words"><b title="{esc(Path(best["file"]).name)}">{text}</b> '
        f'<span class="hint">{esc(best["what"])}; {esc(best["sure"])}</span></p>'
    )


def _files(
    files: Sequence[dict[str, Any]],
    file_url: Callable[..., str],
    copies: Copying,
    best: dict[str, Any] | None,
    kept_names: Mapping[str, str],
    others_run: str = "",
) -> str:
    """HTML of the saved files. kept_names: {file: name} of those marked to keep; others_run: see `whose_run`"""
    if not files:
        return section("Files", '<p class="hint">No files saved yet.</p>')
    ordered = sorted(files, key=lambda file: (file["step"], file["name"]), reverse=True)
    labels = labels_of([(file["name"], file["step"]) for file in ordered])
    rows = "".join(
        _file(file, label, file_url, *copies(file), kept_names.get(file["name"]), others_run)
        for file, label in zip(ordered, labels, strict=True)
    )
    return section("Files", f'{best_html(best) if best else ""}<ul class="files">{rows}</ul>')


def _file(
    file: dict[str, Any],
    label: str,
    file_url: Callable[..., str],
    copy: str,
    copied: str,
    kept_name: str | None,
    others_run: str,
) -> str:
    """HTML of a file: label, size and actions. kept_name: the name it is marked with, None if it is not"""
    name, run = file["name"], Path(file["path"]).parent.parent.name
    actions = _take(file, file_url) + button("draw", "Generate", f"{run}/{name}", label=f"Generate with {label}")
    return (
        f'<li><div class="file-head"><b title="{esc(name)}">{breakable(label)}</b><span class="hint">{size_words(file["bytes"])}'
        f"</span>{_keep_button(name, kept_name, others_run)}</div>"
        f'<div class="does">{actions}{_card_button(file)}{copy}{copy_button(Path(file["path"]), name)}</div>{copied}</li>'
    )


def _card_button(file: dict[str, Any]) -> str:
    """HTML of the button that lists what a report card would contain, in Tools; "" for a model in a folder."""
    if Path(file["path"]).is_dir():
        return ""
    about = "A page to share: samples, trigger words, strength, what was measured, license"
    return button("report-card", "Report card", file["name"], label=f"Report card of {file['name']}", title=about)


def _keep_button(name: str, kept_name: str | None, others_run: str) -> str:
    """HTML of the button that marks a checkpoint to keep, or of the mark and its undo; the mark alone if the run is somebody else's."""
    if kept_name is None and others_run:
        return ""
    if kept_name is None:
        return button(
            "mark",
            "Keep this one",
            name,
            kind="quiet",
            label=f"Keep this one: {name}",
            lands=f"keep {name}",
            title="Marks it in lists of files",
        )
    label = "Kept" if kept_name == Path(name).stem else f"Kept as {short(kept_name, 40)}"
    undo = button("unmark", "Undo", name, kind="quiet", label=f"Undo keeping {name}", lands=f"kept {name}")
    return f'<span class="good">{esc(label)}</span>{"" if others_run else undo}'


def _take(file: dict[str, Any], file_url: Callable[..., str]) -> str:
    """HTML of the download link; a note for a model in a folder."""
    if Path(file["path"]).is_dir():
        return '<span class="hint">a folder</span>'
    return link(file_url(file["path"]), "Download", download=file["name"])


def _samples(
    samples: Sequence[dict[str, Any]], thumb_url: Callable[..., str], file_url: Callable[..., str], at_base: bool = True
) -> str:
    """HTML of the table of samples: a row per prompt, a column per step, reference images first. at_base: whether step 0 is the
    base model"""
    if not samples:
        return section(
            "Samples", '<p class="hint">This run has no samples. Add sample prompts in Train to see progress.</p>'
        )
    steps = sample_titles((sample["step"] for sample in samples), at_base)
    made = [step for step in steps if step not in COMPARED]
    columns = [step for step in steps if step in COMPARED] + [made[each] for each in spread(len(made), SAMPLE_STEPS)]
    by_cell = {(sample["index"], sample["step"]): sample for sample in samples}
    prompts = {sample["index"]: sample["prompt"] for sample in samples}
    names = {step: steps[step] for step in columns}
    head = "".join(f"<th>{name}</th>" for name in names.values())
    rows = []
    for index in sorted(prompts):
        prompt = short(prompts[index], 60)
        cells = "".join(
            sample_cell(by_cell.get((index, step)), f"{prompt}, {name}", thumb_url, file_url)
            for step, name in names.items()
        )
        rows.append(f"<tr><th scope='row' title='{esc(prompts[index])}'>{esc(prompt)}</th>{cells}</tr>")
    more = f"{len(columns)} of {len(steps)} times" if len(columns) < len(steps) else ""
    grid = (
        f'<div class="run-samples"><table><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        f"</table></div>"
    )
    return section("Samples", grid, more)


def sample_cell(
    sample: Mapping[str, Any] | None,
    alt: str,
    thumb_url: Callable[..., str],
    file_url: Callable[..., str],
    size: int = 192,
    below: str = "",
) -> str:
    """HTML of a table cell with a sample that opens in a new tab; empty without one. size: pixels of the preview"""
    if sample is None:
        return "<td></td>"
    url, small = esc(file_url(sample["file"])), esc(thumb_url(sample["file"], size))
    image = f'<img src="{small}" alt="{esc(alt)}" loading="lazy">'
    note = f"<span>{esc(below)}</span>" if below else ""
    return f'<td><a href="{url}" target="_blank" rel="noopener">{image}</a>{note}</td>'


def _settings(job: TrainJob | None) -> str:
    """HTML of the settings that differ from the defaults, without those that the run does not use."""
    if job is None:
        return section("Settings", '<p class="hint">The settings of this run cannot be read by this version.</p>')
    unused = ineffective(job)
    changed = {path: values for path, values in differences(job, TrainJob()).items() if path not in unused}
    if not changed:
        return section("Settings", '<p class="hint">All settings were at their defaults.</p>')
    rows = "".join(
        f"<tr><td>{esc(FIELDS[path].title)}<span class='hint'>{esc(path)}</span></td>"
        f"<td>{value_html(path, value)}</td><td class='hint'>{value_html(path, default)}</td></tr>"
        for path, (value, default) in changed.items()
    )
    head = "<tr><th>Setting</th><th>This run</th><th>Default</th></tr>"
    body = f'<table class="settings"><thead>{head}</thead><tbody>{rows}</tbody></table>'
    return section("Settings that differ from the defaults", body, count(len(changed), "setting"))


def value_html(path: str, value: Any) -> str:
    """HTML of a value as the form shows it; of a text the first 12 lines."""
    entry = FIELDS[path]
    if entry.kind in ("bool", "choice"):
        return esc(shown_value(entry, value))
    text = str(text_of(entry, value))
    return "<br>".join(breakable(line) for line in text.splitlines()[:12]) if text else "<i>empty</i>"


def _log(lines: Sequence[dict[str, Any]]) -> str:
    """HTML of the run's log."""
    if not lines:
        return section("Log", '<p class="hint">No messages.</p>')
    errors = [line for line in lines if line["level"] == "error"]
    visible = errors[-5:] + [line for line in lines[-LOG_SHOWN:] if line["level"] != "error"]
    rows = []
    for line in visible:
        moment = time.strftime("%H:%M:%S", time.localtime(line["time"]))
        level = "" if line["level"] == "info" else f"<b>{esc(line['level'])}</b> "
        fix = f'<span class="hint">{esc(line["fix"])}</span>' if line.get("fix") else ""
        rows.append(
            f'<li class="{esc(line["level"])}"><time>{moment}</time><span>{level}{esc(line["text"])} {fix}</span></li>'
        )
    return section("Log", f'<ul class="run-log" tabindex="0" aria-label="Log lines">{"".join(rows)}</ul>')
