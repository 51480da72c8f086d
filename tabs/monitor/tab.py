"""The Monitor tab: the running job or a chosen run, live. The server sends data, which the page's script displays."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

from core.engine.queue import GUEST, MAX_ENDED, lane_of, may_change, may_manage, may_resume
from core.engine.waiting import waiting_runs
from core.record.events import prompt_rows, sample_titles
from core.record.file_titles import is_average, labels_of
from core.record.kept import read_kept
from core.record.problems import Problem, ProblemsError
from core.record.units import clock
from core.settings.check import build as build_job
from core.settings.job import TrainJob
from core.settings.values import shown_value
from core.tasks import tasks
from tabs.form.project import FIELDS, edited_by
from tabs.generate.replaced import use_run
from tabs.generate.stage import TASKS
from tabs.monitor import assess, verdict
from tabs.monitor.charts import loss_series, rate_series, rounded, validation_points, value_series
from tabs.monitor.next_step import NextStep, next_step, resume
from tabs.pieces import piece
from tabs.server.browsers import Browser
from tabs.wire import to_count

if TYPE_CHECKING:
    from tabs.context import Page

REQUEUE = "requeue"  # command
COMMANDS = ("pause", "resume", "stop", "save", "sample")
SHOWN_ENDED = 20
NAMED_SETTINGS = 2  # settings after the equal names of two trainings
SHOWN_IMAGES = 4  # of a job that has ended
WORST = 40  # images in the table of those that train worst
RUNS_SECONDS = 5.0
SAMPLE_SIZE = 256
SMALL_SIZE = 96


def build(page: Page) -> None:
    """Create the tab's HTML and register its command."""
    page.commands[REQUEUE] = lambda data, browser: requeue(page, browser)
    gr.HTML(piece("monitor").replace("{queue}", piece("queue")), elem_id="monitor-holder", apply_default_css=False)


# -- display


def parts(page: Page, chosen: str) -> dict[str, Any]:
    """Return the tab's parts of the page's periodic update. chosen: name of the run to show, "" for the running or last one

    "queue", "runs"                     `queue`, `run_names`
    "run"                               `head`; None without a run, with "begins" or "gone": problems, and no other parts
    "loss", "rates", "watch", "best"    charts, `further_losses`, best checkpoint or None
    "samples", "verdict", "files"       `samples`, `verdict.part`, `saved_files`
    "log", "tensorboard"                lines; {"run", "address", "ready"}
    """
    data: dict[str, Any] = {"queue": queue(page), "runs": run_names(page)}
    begins = _next_training(data["queue"]) if not chosen else None
    name = "" if begins else chosen or page.engine.current_run() or ""
    if not name:
        return data | {"run": None, "begins": begins}
    try:
        facts = page.engine.snapshot(name)
    except ProblemsError as error:
        return data | {"run": None, "gone": [problem.to_dict() for problem in error.problems]}
    data["run"] = head(page, name, facts)
    data["loss"] = loss_series(facts["loss"]) | {"saves": facts["saves"], "total": facts["total"], "run": name}
    data["loss"] |= {"validation": validation_points(facts.get("measured", facts.get("validation", [])))}
    best = facts.get("best")
    data["best"] = best and best | {"name": Path(best["file"]).name, "loss": rounded(best["loss"])}
    data["watch"] = further_losses(page, name, facts)
    data["rates"] = rate_series(facts["lr"]) | {"total": facts["total"], "run": name}
    job = page.readable_job(name)
    data["samples"] = samples(page, facts["samples"], job is None or job.starts_at_base) | {
        "run": name,
        "expected": _expected(page, name, facts["state"]),
    }
    board = page.tensorboard
    data["tensorboard"] = {"run": board.run, "address": board.address, "ready": board.ready}
    data["verdict"] = verdict.part(page, name, facts, job)
    data["log"] = facts["log"]
    kept_names = {Path(file).name for file in read_kept(page.workspace.runs / Path(name).name)}
    data["files"] = saved_files(page, facts["files"], kept_names, job.saving.output_name if job else "")
    return data


# In the name of a checkpoint of a step or an epoch, after the output name
INTERMEDIATE = re.compile(r"-(?:step\d{8,}|\d{6,})(?:-|$)")


def saved_files(
    page: Page, files: Sequence[dict[str, Any]], kept_names: Collection[str] = (), output: str = ""
) -> list[dict[str, Any]]:
    """Return {"name", "label", "url", "bytes", "step", "kept", "final": whether the name has no step or epoch} of a run's files, newest
    first.

    files        as in the run's snapshot
    kept_names   of the files marked to keep
    output       output name of the run, which is ignored when detecting "final" files
    """
    return [
        {
            "name": file["name"],
            "label": label,
            "url": "" if Path(file["path"]).is_dir() else page.file_url(file["path"]),  # no download of folders
            "bytes": file["bytes"],
            "step": file["step"],
            "kept": file["name"] in kept_names,
            "final": not is_average(file["name"])
            and INTERMEDIATE.search(Path(file["name"]).stem.removeprefix(output)) is None,
        }
        for file, label in reversed(
            [*zip(files, labels_of([(each["name"], each["step"]) for each in files]), strict=True)]
        )
    ]


def _next_training(queue: dict[str, Any]) -> dict[str, str] | None:
    """Return {"title", "words"} of a training that is first in the queue and has no run folder yet; else None."""
    first = queue["entries"][0] if queue["entries"] else None
    waits = first is not None and first["state"] == "waiting" and queue["paused"]
    if first is None or first["task"] != "train" or first["run"] or waits:
        return None
    return {"title": first["title"], "words": first["doing"] or "about to start"}


def _expected(page: Page, name: str, state: str) -> int:
    """Return the number of sample rows that an active run will have; 0 for others."""
    job = page.readable_job(name) if state in ("running", "paused", "waiting") else None
    settings = job.samples if job is not None else None
    makes_samples = settings and (
        settings.sample_at_first
        or settings.sample_every_n_steps
        or settings.sample_every_n_epochs
        or settings.sample_every_minutes
    )
    return len(settings.sample_prompts) if settings and makes_samples else 0


def further_losses(page: Page, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return further losses of a run. facts: the run's snapshot

    "run", "total"           name, number of steps
    "corrected"              loss corrected for timesteps; "gradient", "weights": norms; all as `value_series`
    "bands"                  [{"from", "to": timesteps, "mean", "recent"}]
    "images"                 [`_image`] of the WORST
    """
    losses = page.engine.watch(name)
    paths = page.checks.paths_of(page.readable_job(name))
    images = [_image(page, item, paths) for item in losses.get("images", [])[:WORST]]
    bands = [
        {"from": band["from"], "to": band["to"], "mean": rounded(band["mean"]), "recent": rounded(band["recent"])}
        for band in losses.get("bands", [])
    ]
    norms = facts.get("norms", [])
    return {
        "run": name,
        "total": facts["total"],
        "corrected": value_series(facts.get("corrected", [])),
        "gradient": value_series(norms),
        "weights": value_series(norms, 2),
        "bands": bands,
        "images": images,
    }


def _image(page: Page, item: dict[str, Any], paths: dict[tuple[str, str], Path]) -> dict[str, Any]:
    """Return a row of the table of images: {"name", "of": folder, "loss", "count", "small": URL of its thumbnail or ""}.

    item    of "images" in watch.json
    paths   {(folder, name): path} of known images
    """
    path = paths.get((item["source"], item["name"]))
    small = page.thumb_url(path, SMALL_SIZE) if path is not None else ""
    loss = rounded(item["corrected"])
    return {"name": item["name"], "of": item["source"], "loss": loss, "count": item["count"], "small": small}


def head(page: Page, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return state, progress and available actions of a run. facts: the run's snapshot

    From the snapshot: "title", "stage", "step", "total", "epoch", "epochs", "message", "fix", "sentence", "person",
    "seconds_per_step", "eta_seconds" and "seconds".
    "run", "state"        name; "waiting" if its job waits in the queue
    "entry", "waits"      id of its job in the queue, what this waits for; "" for none
    "actions", "next"     `actions`; fields of its `NextStep` or None
    """
    state = facts["state"]
    entry = next(
        (entry for entry in page.engine.queue() if entry.run == name and entry.state in ("waiting", "running")), None
    )
    shown_facts = {
        key: facts.get(key)
        for key in ("title", "stage", "step", "total", "epoch", "epochs", "message", "fix", "sentence", "person")
    }
    return shown_facts | {
        "run": name,
        "state": "waiting" if entry is not None and entry.state == "waiting" else state,
        "entry": entry.id if entry else "",
        "waits": wait.message if entry and (wait := page.engine.waits().get(entry.id)) else "",
        "seconds_per_step": round(facts.get("seconds_per_step") or 0.0, 3),
        "eta_seconds": round(facts["eta_seconds"]) if facts.get("eta_seconds") else None,
        "seconds": round(facts.get("seconds") or 0.0),
        "actions": actions(page, state, entry, facts),
        "next": asdict(step) if (step := _next_step(state, facts)) else None,
    }


def _next_step(state: str, facts: dict[str, Any]) -> NextStep | None:
    """Return what to do next with a run that ended early; None for others. facts: the run's snapshot"""
    return next_step(state, facts.get("resumable_step", -1), facts.get("fix") or "")


def actions(page: Page, state: str, entry: Any, facts: dict[str, Any]) -> list[str]:
    """Return the names of the buttons for a run in this state, the most useful first.

    entry: its job in the queue, or None; facts: its snapshot. Buttons that would act on another user's job or run are left out.
    """
    tensorboard = ["tensorboard"] if page.tensorboard.offered else []
    if entry is not None and not may_manage(entry):
        return tensorboard
    if entry is not None and entry.state == "waiting":
        return ["cancel"]
    if state == "running":
        names = ["sample", "save", "pause", "stop"]
    elif state == "paused":
        names = ["resume", "sample", "save", "stop"]
    elif step := _next_step(state, facts):
        names = [step.name, *(["generate"] if facts.get("files") else []), "settings"]
        names = list(dict.fromkeys(names))
    else:
        names = ["generate", "settings"]
    if facts.get("files") and not entry and state not in ("running", "paused"):
        names.append("grid")
    if not may_change(facts.get("person", ""), page.engine.people):
        names = [name for name in names if name != "continue"]
    return names + tensorboard


def samples(page: Page, items: list[dict[str, Any]], at_base: bool = True) -> dict[str, Any]:
    """Return the table of samples, a row of `prompt_rows` and a column per step: {"steps", "names": {step: title}, "rows": [{"prompt",
    "cells": {step: {"small", "whole": URL, "seed"}}}]}.
    items: "samples" of the run's snapshot; at_base: whether step 0 is the base model"""
    steps = sample_titles((item["step"] for item in items), at_base)
    rows = [
        {
            "prompt": next(iter(row.values()))["prompt"],
            "cells": {
                str(step): {
                    "small": page.thumb_url(item["file"], SAMPLE_SIZE),
                    "whole": page.file_url(item["file"]),
                    "seed": str(item["seed"]),  # JavaScript rounds above 2**53
                }
                for step, item in row.items()
            },
        }
        for row in prompt_rows(items)
    ]
    return {"steps": list(steps), "names": steps, "rows": rows}


def queue(page: Page) -> dict[str, Any]:
    """Return the device's jobs, and the running and waiting ones of other lanes, such as tools.

    "entries"                  [`_row`] of the running, then the waiting ones in order, with "doing": text, "paused", and for a waiting
                               one the positions "up" and "down" to move to, None if it cannot; then those of other lanes
    "ended"                    [`_row` and `_result`] of the newest SHOWN_ENDED, without trainings, which Runs lists, and images of other
                               users
    "paused", "paused_by", "why", "resumable"
                               whether the queue is paused, by whom and why ("" for this user, or none), whether this user may resume it
    "interrupted"              titles of interrupted jobs
    """
    everything = page.engine.queue()
    entries = [entry for entry in everything if lane_of(entry) == "device"]
    others = [entry for entry in everything if lane_of(entry) != "device" and entry.state in ("running", "waiting")]
    others.sort(key=lambda entry: entry.state)  # running first
    active = [entry for entry in entries if entry.state == "running"]
    active += [entry for entry in entries if entry.state == "waiting"]
    ended = [entry for entry in entries if entry not in active and not (entry.task == "train" and entry.run)]
    if page.engine.people:  # whose images are their own
        ended = [entry for entry in ended if may_manage(entry) or entry.task not in TASKS]
    job, waits = page.engine.status()["job"], page.engine.waits()
    titles = _titles([entry for entry in active if entry.task == "train"])
    active_rows = [
        _row(entry, page.engine)
        | {"title": titles.get(entry.id, entry.title)}
        | {"doing": waits[entry.id].message if entry.id in waits else _doing(entry, job)}
        | {"paused": bool(job and job.get("entry") == entry.id and job.get("state") == "paused")}
        for entry in [*active, *others]
    ]
    waiting = [row for row in active_rows if row["state"] == "waiting" and row["lane"] == "device"]
    movable = [index for index, row in enumerate(waiting) if row["own"]]  # a guest's job changes places only with these
    for up, position, down in zip([None, *movable], movable, [*movable[1:], None], strict=False):
        waiting[position] |= {"up": up, "down": down}
    ended_rows = [_row(entry, page.engine) | _result(page, entry) for entry in reversed(ended[-SHOWN_ENDED:])]
    paused_by = page.engine.paused_by
    return {
        "paused": page.engine.queue_paused,
        "paused_by": "" if paused_by in (None, GUEST.get()) else _name(paused_by, page.engine),
        "why": page.engine.why_paused,
        "interrupted": [entry.title for entry in page.engine.interrupted],
        "resumable": may_resume(paused_by),
        "entries": active_rows,
        "ended": ended_rows,
    }


def _titles(trainings: Sequence[Any]) -> dict[str, str]:
    """Return {id: title} of trainings; equal titles get the first differing settings, as in "fox (Network rank (dim) 4)"."""
    titles, by_title = {}, defaultdict(list)
    for entry in trainings:
        by_title[entry.title].append(entry)
    for title, entries in by_title.items():
        values = [_values(entry.job) for entry in entries] if len(entries) > 1 else []
        first, others = (values[0], values[1:]) if values else ({}, [])
        paths = [path for path in first if any(each[path] != first[path] for each in others)][:NAMED_SETTINGS]
        for entry, run_values in zip(entries, values, strict=False):
            differences = [f"{FIELDS[path].title} {shown_value(FIELDS[path], run_values[path])}" for path in paths]
            titles[entry.id] = f"{title} ({', '.join(differences)})" if differences else title
    return titles


def _values(job: dict[str, Any]) -> dict[str, Any]:
    """Return {path: value} of a queued job's settings without texts, since guests see the queue too."""
    paths = ((path, *path.partition(".")[::2]) for path, entry in FIELDS.items() if entry.plain)
    return {path: job.get(group, {}).get(name, FIELDS[path].default) for path, group, name in paths}


def _result(page: Page, entry: Any) -> dict[str, Any]:
    """Return {"tab": where an ended job's result is shown, "images": [{"small", "whole": URL}] of its last images}."""
    if entry.id not in page.job_images:
        try:
            images = page.engine.progress(entry.id)["images"] if entry.run else []
        except ProblemsError:  # its folder was deleted for newer ones
            images = []
        page.job_images = dict(list(page.job_images.items())[-50:]) | {entry.id: images[-SHOWN_IMAGES:]}
    images = [path for path in page.job_images[entry.id] if Path(path).is_file()]
    task, assessed = tasks().get(entry.task), assess.run_of(entry)
    tab = (task.tab or (task.card.tab if task.card else "")) if task else ""
    return {
        "tab": f"Monitor/{quote(assessed)}" if assessed else tab,
        "images": [{"small": page.thumb_url(path, SMALL_SIZE), "whole": page.file_url(path)} for path in images],
    }


def _doing(entry: Any, job: dict[str, Any] | None) -> str:
    """Return the text of the running job's progress: step and time left of a training, else the stage; "" for other jobs."""
    if job is None or job.get("entry") != entry.id:
        return ""
    if entry.task != "train":
        return str(job.get("stage") or "")
    if not job.get("step") or not job.get("total"):
        return str(job.get("stage") or "starting")
    paused = job.get("state") == "paused"
    left_text = f", {clock(job['eta_seconds'])} left" if job.get("eta_seconds") and not paused else ""
    return f"{'paused at ' if paused else ''}step {job['step']:,} of {job['total']:,}{left_text}"


def _row(entry: Any, engine: Any) -> dict[str, Any]:
    """Return {"id", "task", "title", "state", "run", "message", "kind": title of the task or "", "by": whose it is, "" for the owner's,
    "own": whether this user may manage it} of a job for the list."""
    facts = vars(entry)
    kind = tasks()[entry.task].title if entry.task in tasks() else entry.task
    kind_text = "" if entry.title.startswith(kind) else kind
    row = {name: facts.get(name, "") for name in ("id", "task", "title", "state", "run", "message")}
    guest = facts.get("guest", "")
    name = facts.get("person") or _name(guest, engine, "the owner's") if guest or GUEST.get() else ""
    return row | {
        "kind": kind_text,
        "lane": lane_of(entry),
        "by": "yours" if guest and guest == GUEST.get() else name,
        "own": GUEST.get() in ("", guest),
    }


def _name(guest: str, engine: Any, owner: str = "the owner") -> str:
    """Return the display name of a guest, or of the owner (`guest` ""). owner: text for an owner without a known login"""
    return guest if guest in engine.people else f"guest {guest[:4]}" if guest else engine.owner or owner


def run_names(page: Page) -> list[dict[str, str]]:
    """Return {"name", "title", "state"} of the newest 200 runs, newest first; cached for RUNS_SECONDS or until a job changes state."""
    key = (time.monotonic() // RUNS_SECONDS, [(entry.id, entry.state) for entry in page.engine.queue()])
    if page.run_list[0] != key:
        names = [{"name": run.name, "title": run.title, "state": run.state} for run in page.engine.run_states(200)]
        queued = waiting_runs(page.engine.queue())
        page.run_list = (key, [run | {"state": "waiting"} if run["name"] in queued else run for run in names])
    return page.run_list[1]


# -- what is done


def command(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Handle a button of the header, of Monitor or of the queue. Errors are shown in `browser`.
    data: {"name": of the command, and what `_command` needs}"""
    name = str(data.get("name", ""))
    with page.browsers.reporting(browser, f"command {name}"):
        _command(page, name, data, browser)
    page.run_list = (None, page.run_list[1])


def _take_settings(page: Page, run: str, entry: str, browser: Browser) -> None:
    """Fill in Train's form with the settings of run `run`, or of the training with queue id `entry` that was cancelled while waiting."""
    waiting = next((each for each in page.engine.queue() if each.id == entry and each.task == "train"), None)
    if run or waiting is None:
        job, preset, title = page.engine.run_job(run), page.engine.run_preset(run), run
    else:
        job, preset, title = build_job(TrainJob, waiting.job), waiting.preset, waiting.title
    with edited_by(browser.session):
        page.project.replace(job, preset=preset, did=f"loading the settings of {title}")


def _remember_stopped(page: Page, browser: Browser, is_stop: bool, **attributes: str) -> None:
    """Remember the running trainings that this browser stops, for `report_stopped`.

    attributes: values of queue entry fields that select the trainings; nothing happens unless `is_stop`
    """
    for entry in page.engine.queue() if is_stop else ():
        matches = all(getattr(entry, name) == value for name, value in attributes.items())
        if matches and (entry.task, entry.state) == ("train", "running") and entry.run not in browser.stopping:
            browser.stopping.append(entry.run)


def report_stopped(page: Page, browser: Browser, body: dict[str, Any]) -> None:
    """Show a message on each training that this browser has stopped and that has ended since. body: of the page's periodic request"""
    running = {entry.run for entry in page.engine.queue() if entry.state == "running"} if browser.stopping else set()
    for run in [run for run in browser.stopping if run not in running]:
        browser.stopping.remove(run)
        try:
            facts = page.engine.snapshot(run)
        except ProblemsError:  # deleted
            continue
        if (body.get("tab"), body.get("run")) == ("Monitor", run):
            continue
        link = (f"#Monitor/{quote(run)}", "Open")
        if facts["state"] == "failed":
            problem = Problem(facts["message"], facts["title"], facts["fix"], code="runs.stop-failed")
            page.browsers.say(browser, "error", problems=[problem], opens=link)
            continue
        ended = "finished" if facts["state"] == "done" else "stopped"
        saved = f"{ended} and saved at step {facts['step']:,}" if facts["files"] else ended
        page.browsers.say(browser, "done", f"{facts['title']}: {saved}.", opens=link)


def requeue(page: Page, browser: Browser) -> None:
    """Undo the browser's last removal of a job from the queue, and offer to undo the one before. Raises ProblemsError."""
    queue = {each.id: each for each in page.engine.queue()}
    left = [(id, position) for id, position in browser.cancelled if id in queue]
    browser.cancelled = left[:-1]  # at once: the second of two presses does not find the same job
    for id, position in left[-1:]:
        each = queue[id]
        job = build_job(tasks()[each.task].job, each.job)
        page.engine.move(page.engine.submit(each.task, job, each.title, each.preset), position)
        page.engine.forget([id])
        before = " Undo brings back the job removed before it." if browser.cancelled else ""
        page.browsers.say(
            browser, "done", f"Back in the queue: {each.title}.{before}", undo_by=REQUEUE if before else ""
        )


def _command(page: Page, name: str, data: dict[str, Any], browser: Browser) -> None:
    """Handle a button: a command to a run, a change of the queue, or one that another module registered. Raises ProblemsError.

    name   one of COMMANDS or `verdict.COMMANDS`, "cancel", "move", "continue", "settings" ...; an unknown one is ignored
    data   "run", "entry" (queue id) and what the command needs: "position" for "move", "entries" for "forget",
           "waits" for a "cancel" that must not stop a running job ...
    """
    engine = page.engine
    run, entry = str(data.get("run", "")), str(data.get("entry", ""))
    if name in COMMANDS:
        engine.command(run, name)
        _remember_stopped(page, browser, name == "stop", run=run)
    elif name == "cancel":
        only_waiting = bool(data.get("waits"))
        _remember_stopped(page, browser, not only_waiting, id=entry)
        waiting = [each for each in engine.queue() if each.state == "waiting" and lane_of(each) == "device"]
        engine.cancel(entry, only_waiting)
        removed = {each.id for each in engine.queue() if each.state == "cancelled"}
        for position, each in enumerate(waiting):
            # a run that waited to resume offers that itself
            if each.id == entry and entry in removed and not each.run:
                browser.cancelled.append((entry, position))
                page.browsers.say(browser, "done", f"Removed from the queue: {each.title}.", undo_by=REQUEUE)
    elif name == "move":
        engine.move(entry, to_count(data.get("position")))
    elif name == "forget":
        entries = data.get("entries")
        engine.forget([str(each) for each in entries[:MAX_ENDED]] if isinstance(entries, list) else [])
    elif name == "continue":
        resume(page, browser, run)
    elif name == "pause_queue":
        engine.pause_queue()
    elif name == "resume_queue":
        engine.resume_queue()
    elif name == "continue_first":
        engine.continue_first()
    elif name == "settings":
        _take_settings(page, run, entry, browser)
    elif name == "generate":
        use_run(page, browser, run, go="Generate")
    elif name in verdict.COMMANDS:
        verdict.COMMANDS[name](page, data, browser)
    elif name == "tensorboard":
        page.tensorboard.open(run, page.workspace.runs / Path(run).name / "logs")
    elif name in page.commands:
        page.commands[name](data, browser)
