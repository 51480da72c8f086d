"""webui.py runs: list the queue and the runs. Only reads, so it works while a page holds the outputs folder."""

import json
import time
from dataclasses import replace
from typing import Any

from core.cli.jobs import inbox_entries, paused_sentence, stored_queue
from core.cli.main import DONE, print_long
from core.cli.options import COMMAND_OPTIONS, split_options
from core.engine.owner import has_page
from core.engine.queue import StoredQueue
from core.engine.run_summary import RunSummary
from core.engine.runs import Runs
from core.engine.verdict import measured_sentence
from core.engine.waiting import waits
from core.record.problems import raise_any
from core.record.units import count
from core.record.workspace import Workspace, display_path

ENTRY = ("id", "task", "title", "state", "run", "added")
RUN = ("name", "title", "state", "message", "step", "total", "started", "seconds", "resumable_step")


def run(argv: list[str]) -> int:
    """Run `webui.py runs` with these arguments and return the exit code. Raises ProblemsError."""
    options = split_options(argv, COMMAND_OPTIONS["runs"], job=False)
    raise_any(options.problems)
    facts = facts_of(options.workspace())
    as_json = options.values.get("json")
    print_long(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else "\n".join(lines(facts)))
    return DONE


def facts_of(workspace: Workspace) -> dict[str, Any]:
    """Return {"outputs": path, "page": whether a page is running, "paused": sentence or "", "queue": `_queue` (running and waiting jobs
    first), "runs": `_run` of each (newest first)} as JSON values."""
    stored, runs = stored_queue(workspace), Runs(workspace, lambda _: False, writes=False)
    stored = replace(stored, entries=[*stored.entries, *inbox_entries(workspace)])
    return {
        "outputs": str(workspace.outputs),
        "page": has_page(workspace),
        "paused": paused_sentence(stored) if stored.paused else "",
        "queue": _queue(stored, runs),
        "runs": [_run(each) for each in runs.all()],
    }


def _queue(stored: StoredQueue, runs: Runs) -> list[dict[str, Any]]:
    """Return {"id", "task", "title", "state", "run", "added", "message": what a waiting job waits for, else the job's message} of each
    job."""
    waiting = waits(stored.entries, runs.time_left, paused=stored.paused, lent_to="")
    order = {"running": 0, "waiting": 1}
    return [
        {name: getattr(entry, name) for name in ENTRY}
        | {"message": waiting[entry.id].message if entry.id in waiting else entry.message}
        for entry in sorted(stored.entries, key=lambda entry: order.get(entry.state, 2))
    ]


def _run(run: RunSummary) -> dict[str, Any]:
    """Return the attributes RUN of a run with "folder", "files": paths, "best": {"file", "step", "loss"} of its checkpoint or None, and
    "why": sentence on that, "" without one."""
    best = run.best_file
    return {name: getattr(run, name) for name in RUN} | {
        "folder": str(run.folder),
        "files": [str(file) for file in run.files],
        "best": {"file": str(run.folder / best["file"]), "step": best["step"], "loss": best["loss"]} if best else None,
        "why": measured_sentence(best, advice=False) if best else "",
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """Return the result of `facts_of` as lines: running and waiting jobs, then each run with its folder and best checkpoint."""
    no_page = "" if facts["page"] else "No page is open on this folder: the next one runs the queue."
    text = [each for each in (no_page, facts["paused"]) if each]
    above = len(text)
    for entry in facts["queue"]:
        if entry["state"] in ("running", "waiting"):
            about = entry["run"] if entry["state"] == "running" else entry["message"]
            text.append(f"{entry['id']}  {entry['state']}  {entry['task']} '{entry['title']}'  {about}".rstrip())
    text += [] if len(text) > above else ["The queue is empty."]
    for run in facts["runs"]:
        steps = f"step {run['step']:,} of {run['total']:,}" if run["total"] else "no step yet"
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(run["started"]))
        text += ["", f"{run['name']}  '{run['title']}'  {run['state']}, {steps}, started {begun}"]
        text.append(f"  {display_path(run['folder'])}: {count(len(run['files']), 'model file')}")
        text += [f"  {run['message']}"] if run["message"] else []
        text += [f"  best: {display_path(run['best']['file'])}. {run['why']}"] if run["best"] else []
    return text
