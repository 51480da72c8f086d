"""Start and Add to queue: waits for the browser's last changes, checks the job, and submits it once."""

from __future__ import annotations

import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from core.engine.queue import may_resume
from core.record.cancel import Cancelled
from core.record.problems import Problem, ProblemsError, errors, raise_any
from core.record.units import count
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from core.training.checks.before_start import upload_problems
from tabs.form.project import edited_by
from tabs.server.browsers import Browser
from tabs.wire import to_count, with_signature

if TYPE_CHECKING:
    from tabs.context import Page

LATE_SECONDS = 2.0
START = "the start"  # `about` of messages on a refused start
QUICK_SECONDS = 0.4  # for which a response waits for the checks


def press(page: Page, browser: Browser, message: dict[str, Any]) -> None:
    """Handle a click on Start or Add to queue, and show the result in `browser`. Raises OldRevision.
    message: {"how": "start" or "queue", else nothing happens, "token": of the click, "open": numbers of changes to wait for, "stamp": of
    the form}"""
    if message.get("how") not in ("start", "queue"):
        return  # cancelled in a dialog
    how = message["how"]
    token = str(message.get("token", ""))[:60]
    still_open = message.get("open")
    awaited = [number for number in map(to_count, still_open if isinstance(still_open, list) else []) if number][:200]
    if not page.browsers.wait_for(browser, awaited, LATE_SECONDS):
        text = "Your last change has not been sent yet. Check the fields, then try again."
        page.browsers.say(browser, "error", text, title="Not started")
        return
    with page.project.lock, edited_by(browser.session, str(message.get("stamp", ""))):
        page.project.check_stamp()
        job, preset = page.project.job, page.project.preset
        invalid = page.project.problems()
    if page.browsers.double_press(browser, f"{how} {with_signature(to_values(job))['sig']}", token):
        return
    page.browsers.say(browser, "info", "Checking the images ...", identity=f"{token}-checking")
    thread = threading.Thread(
        target=copy_context().run,
        args=(_check_and_submit, page, browser, job, preset, invalid, how, token),
        name="start",
        daemon=True,
    )
    thread.start()
    thread.join(QUICK_SECONDS)


def _check_and_submit(
    page: Page, browser: Browser, job: TrainJob, preset: str, invalid: list[Problem], how: str, token: str
) -> None:
    """Check the job and submit it, in a thread that goes on when the browser is closed, and show the result in `browser`.

    invalid: problems of the form's fields; how: "start" or "queue"; token: of the click, to identify its messages
    """
    try:
        report = page.checks.report(job, decode=True)
        problems = invalid + errors(page.checks.problems(job, report, page.engine.find_device(), find_copies=True))
        uploads = [] if problems else upload_problems(job)
        problems += errors(uploads)
        raise_any(problems)
        entry = page.engine.submit("train", job, preset=preset)
    except ProblemsError as error:
        number = len(error.problems)
        title = "Not started" if how == "start" else "Not added"
        text = f"Fix {count(number, 'problem')} to start" if how == "start" else f"Fix {count(number, 'problem')} first"
        browser.pressed = (0.0, "", "")  # nothing was started, so the next click is not a double click
        page.checks.latest(page.project.job, again=True)  # images were decoded: the preflight finds the same problems
        return page.browsers.say(
            browser,
            "error",
            text,
            title=title,
            problems=error.problems,
            identity=f"{token}-refused",
            about=START,
            revision=page.project.revision,
        )
    except Cancelled:
        return None
    except Exception as error:  # such as a full disk or a missing drive: the user must be informed
        from core.engine.explain import explain

        explanation = explain(error)
        problem = Problem(explanation.what, "start", explanation.fix, code="start.failed")
        return page.browsers.say(browser, "error", title="Not started", problems=[problem], identity=f"{token}-refused")
    wait = page.engine.waits().get(entry)
    only_paused = wait is not None and wait.queue_paused and not (wait.on or wait.ahead)
    if only_paused and how == "start" and may_resume(page.engine.paused_by):
        page.engine.resume_queue()
        wait = None
    queued = how == "queue" or (wait is not None and not wait.begins)
    outcome = "Added to the queue" if queued else "Started"
    wait_text = f", {wait.message}" if wait is not None and not wait.begins else ""
    tab = "Monitor" if how == "start" and not queued else ""  # where one that waits is not shown yet
    advice = "".join(f" {problem.what}." for problem in uploads)
    page.browsers.say(
        browser,
        "done",
        f"{outcome}: {job.saving.output_name}{wait_text}.{advice}",
        identity=f"{token}-{how}ed",
        go=tab,
    )
