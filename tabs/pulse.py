"""The tick: once a second, or less often while no job runs (assets/ticks.js), each browser posts which parts it shows and gets
those that have changed.

It has a route of its own: for each message that Gradio carries, its script walks through every component of the page several
times, which took 15% of a CPU core from a training on it.
"""

import time
from collections.abc import Sequence
from typing import Any

import gradio as gr

from core.engine.queue import QueueEntry, may_manage
from core.record.kept import read_kept
from core.record.problems import ProblemsError
from core.training.checks.demo_setup import unapplied
from tabs.context import ANY_TAB, PRIVATE, Page, handling
from tabs.markup import digest
from tabs.monitor import tab as monitor
from tabs.server.browsers import Browser
from tabs.server.error_answers import errors_as_problems
from tabs.server.message_check import SESSION
from tabs.train.messages import form_part, names
from tabs.train.starts import START
from tabs.wire import json_object, to_json, with_signature

COMMANDS = "pulse"  # scope of the commands, which discard earlier pulses; ticks of tabs too
STARTS = {"waiting": "is in the queue", "running": "started"}
ENDS = {"done": "finished", "failed": "failed", "stopped": "stopped", "cancelled": "was cancelled"}
MEMORY_STEP = 1 << 26  # 64 MB: smaller moves of the memory bar are not worth a message


def build(page: Page) -> None:
    """Register the route of the tick, which all tabs share, and the listener for commands."""

    def tick(body: dict[str, Any]) -> str:
        session = body.get("session")
        if not (isinstance(session, str) and SESSION.fullmatch(session)):
            return ""
        browser = page.browsers.of(session)
        overtaken = page.browsers.overtaken(browser, COMMANDS)
        news = changed_parts(page, body, browser)
        return "" if overtaken() else news

    def command(request: gr.Request, event: gr.EventData) -> Any:
        data = event._data if isinstance(event._data, dict) else {}
        with handling(request, page.workspace):
            return run_command(page, data, page.browsers.of(request.session_hash)) or gr.skip()

    page.links.answer("pulse", tick)
    # not by `page.listen`: its message would be a second value of the same bus
    page.pulse_bus.command(command, None, page.pulse_bus, trigger_mode="multiple", **PRIVATE)


def run_command(page: Page, data: dict[str, Any], browser: Browser) -> str:
    """Run a command of a browser. Return JSON of the parts that have changed since, as `answer`.
    data: as for `monitor.command`, and "ask": the body for `answer`"""
    with page.browsers.acting(browser, COMMANDS), page.browsers.acting(browser, ANY_TAB):
        monitor.command(page, data, browser)
        return changed_parts(page, json_object(data.get("ask")), browser)


def changed_parts(page: Page, body: dict[str, Any], browser: Browser) -> str:
    """Return `answer`; after an unexpected error, JSON of a message about it, or "" if the browser shows that message already."""
    try:
        return errors_as_problems(lambda: answer(page, body, browser), "pulse")
    except ProblemsError as error:
        what = error.problems[0].what
        text = "The status cannot be shown; training continues. See the terminal for details."
        message = {"id": what, "kind": "error", "title": "The page has an error", "text": f"{text} {what}."}
        news = with_signature(message)
        have = body.get("have")
        return "" if isinstance(have, dict) and have.get("said") == news["sig"] else to_json({"said": news})


def answer(page: Page, body: dict[str, Any], browser: Browser) -> str:
    """Return JSON of the parts that the browser does not have, by the signatures in `body["have"]`; "" if it has all."""
    have = body.get("have")
    have = have if isinstance(have, dict) else {}
    parts = {name: with_signature(data) for name, data in all_parts(page, body, browser).items()}
    news = {name: part for name, part in parts.items() if have.get(name) != part["sig"]}
    return to_json(news) if news else ""


def all_parts(page: Page, body: dict[str, Any], browser: Browser) -> dict[str, Any]:
    """Return {part: data} for the browser's open tab: "status", "ended", "names" and "said" on every tab, "form" and "checks" on Train,
    "queue" on Runs, those of `monitor.parts` on Monitor, those that other modules have registered, and "due" if a tab shows an old state.
    body: {"tab", "run": on Monitor, "shown": digests, and what the registered parts need}"""
    tab = body.get("tab")
    monitor.report_stopped(page, browser, body)
    facts, entries = _now(page)
    ends = {"sentences": _sentences(entries)}
    parts: dict[str, Any] = {
        "status": _status(page, facts, entries),
        "ended": ends,
        "names": names(page),
        "said": browser.message,
    }
    if tab in ("Train", "", None):
        parts["form"] = form_part(page, browser)
        parts["checks"] = _checks(page)
        if _is_start_fixed(page, browser, parts["checks"]):
            page.browsers.succeeded(browser, START)
            parts["said"] = browser.message
    if tab == "Runs":
        parts["queue"] = monitor.queue(page)
    if tab == "Monitor":
        parts |= monitor.parts(page, str(body.get("run", "")))
    for more in page.pulse_parts:
        parts |= more(tab, body)
    if _is_old(page, str(tab), body.get("shown"), browser):
        parts["due"] = time.monotonic()  # another one each time: the browser's answer may be lost
    return parts


def _is_old(page: Page, tab: str, shown: Any, browser: Browser) -> bool:
    """Whether a browser shows an old state of a tab. shown: digests of the stamps of what it shows."""
    stamps = {number: stamp for number, stamp in enumerate(page.stamps.get(tab, ())) if stamp is not None}
    if not all(browser.is_drawn((tab, number)) for number in stamps):
        return True
    current = {digest(stamp()) for stamp in stamps.values()}
    return not current <= set(map(str, shown if isinstance(shown, list) else ()))


def _is_start_fixed(page: Page, browser: Browser, checks: dict[str, Any]) -> bool:
    """Whether the errors of a refused start are fixed: the form has changed since, and no error is left in `checks`."""
    if browser.failed != START or browser.failed_at == page.project.revision:
        return False
    if checks.get("checking") or checks.get("undecoded"):
        return False
    return not any(problem.get("level", "error") == "error" for problem in checks.get("problems", []))


def _checks(page: Page) -> dict[str, Any]:
    """Return the findings of the preflight, `Checks.latest`; problems of fields with invalid input come first in its "problems"."""
    facts = dict(page.checks.latest(page.project.job))
    job, setup = page.project.job, page.checks.offered(page.project.job)
    if facts.get("setup") and not (setup and unapplied(job, setup) and page.setup.still_applies(job)):
        facts["setup"] = None
    invalid = [problem.to_dict() for problem in page.project.problems()]
    return facts | ({"problems": invalid + facts.get("problems", [])} if invalid else {})


def _waiting(page: Page, entries: Sequence[QueueEntry]) -> list[dict[str, str]]:
    """Return {"id", "title", "message": what it waits for} of each waiting job. Elements with `data-waits` show the message."""
    waits = page.engine.waits()
    return [
        {"id": entry.id, "title": entry.title, "message": waits[entry.id].message}
        for entry in entries
        if entry.id in waits
    ]


def _newest_finished(page: Page, entries: Sequence[QueueEntry]) -> dict[str, str] | None:
    """Return {"run", "title"} of the training that began last, if it is done and none of its checkpoints is kept; else None.

    Jobs begin in the order of the queue, which differs from that in which they were added if one was moved.
    """
    last = next((entry for entry in reversed(entries) if entry.task == "train" and entry.run), None)
    if last is None or last.state != "done" or read_kept(page.workspace.runs / last.run):
        return None
    return {"run": last.run, "title": last.title}


def _sentences(entries: Sequence[QueueEntry]) -> dict[str, str]:
    """Return {id: a sentence for screen readers} of this user's jobs that have ended, and {"id state": a sentence} of those that wait
    or run. Trainings are left out of the latter: starting one shows a message."""
    own = [entry for entry in entries if may_manage(entry)]
    active = [entry for entry in own if entry.state in STARTS and entry.task != "train"]
    return {entry.id: _sentence(entry) for entry in own if entry.state not in STARTS} | {
        f"{entry.id} {entry.state}": _sentence(entry) for entry in active
    }


def _sentence(entry: QueueEntry) -> str:
    """Return how a job started, waits or ended. A generation's title is its prompt, which would be long to hear."""
    name = {"train": f"Training {entry.title}", "generate": "Generation"}.get(entry.task, entry.title)
    reason = f": {entry.message}" if entry.state == "failed" and entry.message else ""
    return f"{name} {(STARTS | ENDS).get(entry.state, 'was interrupted')}{reason}"


def _now(page: Page) -> tuple[dict[str, Any], list[QueueEntry]]:
    """Return `Engine.status` and the queue, read in this order: a job that begins in between is in the queue, so its owner is known."""
    return page.engine.status(), page.engine.queue()


def status(page: Page) -> dict[str, Any]:
    """Return the part "status" alone."""
    return _status(page, *_now(page))


def _status(page: Page, facts: dict[str, Any], entries: Sequence[QueueEntry]) -> dict[str, Any]:
    """Return `Engine.status` with numbers rounded so that it changes only when the display does, and {"waits": `_waiting`, "trained":
    `_newest_finished`, "tool": title of a running job that is not on the device or "", "busy"}. Its "job" has "own": whether this user
    may manage it.
    """
    facts = dict(facts)
    facts["memory_used"] = int(facts.get("memory_used") or 0) // MEMORY_STEP * MEMORY_STEP
    facts["waits"] = _waiting(page, entries)
    facts["trained"] = _newest_finished(page, entries)
    device_entry = (facts.get("job") or {}).get("entry")
    facts["tool"] = next((each.title for each in entries if each.state == "running" and each.id != device_entry), "")
    facts["busy"] = bool(facts.get("job")) or bool(getattr(page.engine, "works", False))
    if facts.get("job"):
        job = dict(facts["job"])
        job["own"] = all(may_manage(entry) for entry in entries if entry.id == job.get("entry"))
        job["seconds_per_step"] = round(job.get("seconds_per_step") or 0.0, 3)
        job["eta_seconds"] = round(job.get("eta_seconds") or 0)
        facts["job"] = job
    return facts
