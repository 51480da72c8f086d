"""HTML of a run's details on the Runs tab: actions, files, samples, settings, log."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.engine.points import spread
from core.engine.queue import whose_run
from core.engine.run_summary import RunSummary
from core.record.events import COMPARED, prompt_rows, sample_titles
from core.record.file_titles import labels_of
from core.record.kept import read_kept
from core.record.run_about import MOST_NOTE, MOST_TITLE
from core.record.units import clock, count, loss_text, size_text
from core.settings.job import TrainJob
from core.settings.presets.files import differences
from core.settings.rules import ineffective
from core.settings.values import shown_value, text_of
from tabs.form.form_page import FormPage
from tabs.form.lora_card import copy_button
from tabs.form.project import FIELDS
from tabs.markup import breakable, button, client_rendered, esc, facts, link, section, short
from tabs.monitor.charts import loss_series
from tabs.monitor.next_step import next_step
from tabs.runs.view import badge, monitor_link, next_step_button, star, waiting_jobs, when

LOG_SHOWN = 60
SAMPLE_STEPS = 6
Copying = Callable[[dict[str, Any]], tuple[str, str]]


def details(
    run: RunSummary,
    facts: dict[str, Any],
    job: TrainJob | None,
    size: int,
    form_page: FormPage,
    copies: Copying,
    more: str = "",
) -> str:
    """Return the HTML of a run: actions, files, samples, settings and log.

    facts   the run's snapshot
    job     None if this version cannot read it
    size    bytes of the run's folder
    copies  function of a file that returns (HTML of its copy buttons, HTML of its copy's state)
    more    HTML below the samples
    """
    other_owner = whose_run(run.person, form_page.engine.people)
    parts = [_head(run, job is not None, other_owner, waiting_jobs([run.name], form_page))]
    if facts.get("message") and run.state in ("failed", "stopped", "damaged"):
        level = "advice" if run.state == "stopped" else "error"
        fix = f'<span class="fix">{esc(facts["fix"])}</span>' if facts.get("fix") else ""
        parts.append(f'<p class="run-message {level}"><strong>{esc(facts["message"])}</strong>{fix}</p>')
    parts.append(_naming(run, other_owner))
    kept_names = {(run.folder / file).name: name for file, name in read_kept(run.folder).items()}
    files = _files(facts.get("files", []), form_page.file_url, copies, run.best_file, kept_names, other_owner)
    first_column = [_about(run, facts, size, form_page.presets.display_name(run.words.preset)), files]
    at_base = job is None or job.starts_at_base
    right = [_samples(facts.get("samples", []), form_page.thumb_url, form_page.file_url, at_base), more]
    parts.append(f'<div class="run-columns"><div>{"".join(first_column)}</div><div>{"".join(right)}</div></div>')
    parts.append(_settings(job))
    message = facts.get("message") if run.state == "failed" else None  # shown at the top
    parts.append(_log([line for line in facts.get("log", []) if line["text"] != message]))
    return f'<div class="run-details">{"".join(parts)}</div>'


def _head(run: RunSummary, has_job: bool, other_owner: str, sure: str) -> str:
    """Return the HTML of the title with the run's actions. sure: question before it is deleted, "" for none"""
    back = button("back", "All runs", kind="quiet")
    actions = [next_step_button(run, other_owner)]
    if run.state in ("running", "paused"):
        actions.append(monitor_link(run.name, "Watch in Monitor", "primary"))
    if run.files:
        actions.append(button("draw", "Generate with it", run.name))
        if run.state not in ("running", "paused", "waiting"):
            about = "Its checkpoints next to the base model, in Monitor"
            actions.append(monitor_link(run.name, "Compare checkpoints", title=about))
    step = next_step(run.state, run.resumable_step, run.fix)
    if has_job and not (step and step.name == "settings"):
        actions.append(button("use", "Use its settings", run.name))
    if run.state not in ("running", "paused") and not other_owner:
        actions.append(button("delete", "Delete", run.name, kind="danger", sure=sure))
    return (
        f'<div class="run-head">{back}'
        f'<h2 tabindex="-1" data-land="{esc(run.name)}">{breakable(run.title)}</h2>{star(run, other_owner)}'
        f'{badge(run)}<span class="grow"></span><span class="does">{"".join(actions)}</span></div>'
    )


def _naming(run: RunSummary, other_owner: str) -> str:
    """Return the HTML of the fields for title and note, saved on change; of another user's run the note as text."""
    if run.about_error:
        return f'<p class="run-message error"><strong>{esc(run.about_error)}</strong></p>'
    if other_owner:
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


def _about(run: RunSummary, snapshot: dict[str, Any], size: int, preset: str) -> str:
    """Return the HTML of the run's facts: steps, time, loss, dataset, model. snapshot: the run's snapshot; size: bytes of its folder"""
    losses = snapshot.get("loss", [])
    rows = [
        ("Steps", of_total(run.step, run.total)),
        ("Epochs", epochs_text(snapshot)),
        ("Time", clock(run.seconds)),
        ("A step", pace_text(snapshot)),
        ("Started", when(run.started)),
        ("Loss", f"{loss_text(losses[-1][2])} (smoothed)" if losses else ""),
        ("Dataset", breakable(run.words.dataset)),
        ("Base model", breakable(run.words.model)),
        ("Method", esc(shown_value(FIELDS["method.kind"], run.words.method)) if run.words.method else ""),
        ("Preset", breakable(preset)),
        ("Of", esc(run.person)),
        ("Folder", f"<code>{breakable(run.name)}</code>, {size_text(size)}"),
    ]
    plan = f'<p class="hint">{esc(snapshot["sentence"])}</p>' if snapshot.get("sentence") else ""
    return section("About", facts([(name, value) for name, value in rows if value]) + loss_chart(losses) + plan)


def of_total(done: int, total: int | None) -> str:
    """Return a text such as "20 of 1,000", or "20" without a total."""
    return f"{done:,} of {total:,}" if total else f"{done:,}"


def epochs_text(facts: Mapping[str, Any]) -> str:
    """Return the text of the epochs in a run's snapshot; "" if unknown."""
    return of_total(facts.get("epoch", 0), facts["epochs"]) if facts.get("epochs") else ""


def pace_text(facts: Mapping[str, Any]) -> str:
    """Return the text of the seconds per step in a run's snapshot; "" if unknown."""
    return f"{facts['seconds_per_step']:.2f} s" if facts.get("seconds_per_step") else ""


def loss_chart(losses: Sequence[Sequence[float]]) -> str:
    """Return the HTML of a small chart of the smoothed loss; "" for fewer than three points. losses: [[step, raw, smoothed]]"""
    if len(losses) < 3:
        return ""
    series, label = loss_series(losses), f"Smoothed loss from {loss_text(losses[0][2])} to {loss_text(losses[-1][2])}"
    line = {"name": "smoothed loss", "values": series["smooth"], "kind": "smooth"}
    chart = client_rendered("chart", {"label": label, "up": "loss", "steps": series["steps"], "lines": [line]})
    return f'{chart}<p class="hint">{label}</p>'


def best_html(best: dict[str, Any]) -> str:
    """Return the HTML of the checkpoint with the lowest validation loss, and how reliable that is. best: as in the run's snapshot"""
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
    other_owner: str = "",
) -> str:
    """Return the HTML of the saved files.

    kept_names: {path: name under which the file is marked to keep}; other_owner: text on the run's other owner, or ""
    """
    if not files:
        return section("Files", '<p class="hint">No files saved yet.</p>')
    ordered = sorted(files, key=lambda file: (file["step"], file["name"]), reverse=True)
    labels = labels_of([(file["name"], file["step"]) for file in ordered])
    rows = "".join(
        _file(file, label, file_url, *copies(file), kept_names.get(file["name"]), other_owner)
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
    other_owner: str,
) -> str:
    """Return the HTML of a file: label, size and actions.

    copy, copied: HTML of its copy buttons and its copy's state; kept_name: name under which the file is marked to keep, None if it is not
    """
    name, run = file["name"], Path(file["path"]).parent.parent.name
    download, card = '<span class="hint">a folder</span>', ""  # of a model that is a folder
    if not Path(file["path"]).is_dir():
        download = link(file_url(file["path"]), "Download", download=name)
        about = "A page to share: samples, trigger words, strength, what was measured, license"
        card = button("report-card", "Report card", name, label=f"Report card of {name}", title=about)
    actions = download + button("draw", "Generate", f"{run}/{name}", label=f"Generate with {label}") + card
    return (
        f'<li><div class="file-head"><b title="{esc(name)}">{breakable(label)}</b><span class="hint">{size_text(file["bytes"])}'
        f"</span>{_keep_button(name, kept_name, other_owner)}</div>"
        f'<div class="does">{actions}{copy}{copy_button(Path(file["path"]), name)}</div>{copied}</li>'
    )


def _keep_button(name: str, kept_name: str | None, other_owner: str) -> str:
    """Return the HTML that marks the file to keep, or shows the mark with Undo. Marks of another user's run (`other_owner`) are fixed."""
    if kept_name is None and other_owner:
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
    return f'<span class="good">{esc(label)}</span>{"" if other_owner else undo}'


def _samples(
    samples: Sequence[dict[str, Any]], thumb_url: Callable[..., str], file_url: Callable[..., str], at_base: bool = True
) -> str:
    """Return the HTML of the table of samples: a row of `prompt_rows`, a column per step. at_base: whether step 0 is the base model"""
    if not samples:
        return section(
            "Samples", '<p class="hint">This run has no samples. Add sample prompts in Train to see progress.</p>'
        )
    steps = sample_titles((sample["step"] for sample in samples), at_base)
    trained_steps = [step for step in steps if step not in COMPARED]
    columns = [step for step in steps if step in COMPARED] + [
        trained_steps[each] for each in spread(len(trained_steps), SAMPLE_STEPS)
    ]
    names = {step: steps[step] for step in columns}
    head = "".join(f"<th>{name}</th>" for name in names.values())
    rows = []
    for row in prompt_rows(samples):
        whole = next(iter(row.values()))["prompt"]
        prompt = short(whole, 60)
        cells = "".join(
            sample_cell(row.get(step), f"{prompt}, {name}", thumb_url, file_url) for step, name in names.items()
        )
        rows.append(f"<tr><th scope='row' title='{esc(whole)}'>{esc(prompt)}</th>{cells}</tr>")
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
    """Return the HTML of a table cell with a sample that opens in a new tab; an empty cell for None.

    sample   of the run's snapshot; only "file" is read
    alt      text for screen readers
    size     longest side of the thumbnail in pixels
    below    text below the image, "" for none
    """
    if sample is None:
        return "<td></td>"
    url, small = esc(file_url(sample["file"])), esc(thumb_url(sample["file"], size))
    image = f'<img src="{small}" alt="{esc(alt)}" loading="lazy">'
    note = f"<span>{esc(below)}</span>" if below else ""
    return f'<td><a href="{url}" target="_blank" rel="noopener">{image}</a>{note}</td>'


def _settings(job: TrainJob | None) -> str:
    """Return the HTML of the settings that differ from the defaults and have an effect."""
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
    """Return the HTML of a setting's value as the form shows it; the first 12 lines of a long text."""
    entry = FIELDS[path]
    if entry.kind in ("bool", "choice"):
        return esc(shown_value(entry, value))
    text = str(text_of(entry, value))
    return "<br>".join(breakable(line) for line in text.splitlines()[:12]) if text else "<i>empty</i>"


def _log(lines: Sequence[dict[str, Any]]) -> str:
    """Return the HTML of the log: its last five errors, then the other lines among its last LOG_SHOWN."""
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
