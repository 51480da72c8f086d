"""The tick: once a second, or seldom when nothing runs (assets/ticks.js), each browser says what it shows, and gets what has
changed since, or nothing.

It is asked at an address of its own: for each message that Gradio carries, its script walks through every component of the page
several times, which took 15% of a CPU core from a training on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from core.engine.queue import is_own
from core.record.problems import ProblemsError
from tabs.monitor import tab as monitor
from tabs.server import guard
from tabs.server.browsers import Browser
from tabs.server.door import SESSION
from tabs.train.messages import form_part, names
from tabs.train.starts import START
from tabs.wire import packed, signed, unpack

if TYPE_CHECKING:
    from tabs.context import Page

COMMANDS = "pulse"  # where commands are given
MEMORY_STEP = 1 << 26  # 64 MB: smaller moves of the memory bar are not worth a message


def build(page: Page) -> None:
    """The address of the tick that all tabs share, and the listener for commands."""

    def tick(asked: dict[str, Any]) -> str:
        session = asked.get("session")
        if not (isinstance(session, str) and SESSION.fullmatch(session)):
            return ""
        browser = page.browsers.of(session)
        overtaken = page.browsers.overtaken(browser, COMMANDS)
        news = guarded(page, asked, browser)
        return "" if overtaken() else news

    def command(request: gr.Request, event: gr.EventData) -> Any:
        data = event._data if isinstance(event._data, dict) else {}
        browser = page.browsers.of(request.session_hash)
        with page.browsers.acting(browser, COMMANDS):
            monitor.command(page, data, browser)
            return guarded(page, unpack(data.get("ask")), browser) or gr.skip()

    page.links.answer("pulse", tick)
    page.listen(page.pulse_bus.command, command, None, page.pulse_bus, trigger_mode="multiple")


def guarded(page: Page, asked: dict[str, Any], browser: Browser) -> str:
    """`answer`; a mistake of ours is told once, not once a second."""
    try:
        return guard.guarded(lambda: answer(page, asked, browser), "pulse")
    except ProblemsError as error:
        words = error.problems[0].what
        text = "The status cannot be shown; training continues. See the terminal for details."
        said = {"id": words, "kind": "error", "title": "The page has an error", "text": f"{text} {words}."}
        news = signed(said)
        known = asked.get("have")
        return "" if isinstance(known, dict) and known.get("said") == news["sig"] else packed({"said": news})


def answer(page: Page, asked: dict[str, Any], browser: Browser) -> str:
    """The parts that differ from what the browser holds, as JSON; "" when all are the same."""
    said = asked.get("have")
    have = said if isinstance(said, dict) else {}
    parts = {name: signed(data) for name, data in all_parts(page, asked, browser).items()}
    news = {name: part for name, part in parts.items() if have.get(name) != part["sig"]}
    return packed(news) if news else ""


def all_parts(page: Page, asked: dict[str, Any], browser: Browser) -> dict[str, Any]:
    """What the open tab shows. The form is left out while it is hidden: it is painted again when its tab opens."""
    tab = asked.get("tab")
    monitor.tell_stopped(page, browser, asked)
    parts: dict[str, Any] = {"status": status(page), "names": names(page), "said": browser.said}
    if tab in ("Train", "", None):
        parts["form"] = form_part(page, browser)
        parts["checks"] = _checks(page)
        if _mended(page, browser, parts["checks"]):
            page.browsers.succeeded(browser, START)
            parts["said"] = browser.said
    if tab == "Runs":
        parts["queue"] = monitor.queue(page)
    if tab == "Monitor":
        parts |= monitor.parts(page, str(asked.get("run", "")))
    for more in page.pulse_parts:
        parts |= more(tab, asked)
    return parts


def _mended(page: Page, browser: Browser, found: dict[str, Any]) -> bool:
    """Whether the form was changed since a start was refused, and nothing stands against one now."""
    if browser.failed != START or browser.failed_at == page.project.revision:
        return False
    if found.get("checking") or found.get("undecoded"):
        return False
    return not any(problem.get("level", "error") == "error" for problem in found.get("problems", []))


def _checks(page: Page) -> dict[str, Any]:
    """The preflight, with the fields that hold something unusable at the head of the list."""
    found = dict(page.checks.look(page.project.job))
    if found.get("setup") and not page.setup.still_applies(page.project.job):
        found["setup"] = None
    bad = [problem.to_dict() for problem in page.project.problems()]
    return found | ({"problems": bad + found.get("problems", [])} if bad else {})


def _waiting(page: Page) -> list[dict[str, str]]:
    """The jobs that wait, with what they wait for: the header counts them, and `data-waits` anywhere shows one's words."""
    waits = page.engine.waits()
    entries = [entry for entry in page.engine.queue() if entry.id in waits]
    return [{"id": entry.id, "title": entry.title, "words": waits[entry.id].words} for entry in entries]


def status(page: Page) -> dict[str, Any]:
    """The engine's status with the memory rounded, so that it changes only when a person would see it."""
    facts = dict(page.engine.status())
    facts["memory_used"] = int(facts.get("memory_used") or 0) // MEMORY_STEP * MEMORY_STEP
    facts["waits"] = _waiting(page)
    facts["busy"] = bool(facts.get("job")) or bool(getattr(page.engine, "works", False))
    if facts.get("job"):
        job = dict(facts["job"])
        job["own"] = all(is_own(entry) for entry in page.engine.queue() if entry.id == job.get("entry"))
        job["seconds_per_step"] = round(job.get("seconds_per_step") or 0.0, 3)
        job["eta_seconds"] = round(job.get("eta_seconds") or 0)
        facts["job"] = job
    return facts
