"""What people see while jobs run and wait: what each job waits for, what became of a stopped run, the buttons of Monitor."""

from __future__ import annotations

import re
from dataclasses import replace

from playwright.sync_api import expect
from test_page_train import until

from core import tasks

WAITS = re.compile(r"\bfox\b.*\d:\d\d")  # the name of what is waited for, and the time left of it


def start(engine, page, *names: str) -> list[str]:
    """Trainings in the queue; the first one begins."""
    jobs = [page.project.job.model_copy(deep=True) for _ in names]
    jobs = [
        job.model_copy(update={"saving": job.saving.model_copy(update={"output_name": name})})
        for job, name in zip(jobs, names, strict=True)
    ]
    entries = [engine.submit("train", job) for job in jobs]
    assert until(lambda: engine.status()["job"] is not None)
    return entries


def test_a_waiting_job_says_what_it_waits_for_wherever_it_was_started(visit, served, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "tag", replace(tasks.named("tag"), check=None))  # no tagger is here
    served.engine.step_seconds = 3.0
    start(served.engine, served.page, "fox", "owl")
    window = visit()
    tab = window.open("Captions")
    card = tab.locator("#tools-captioners [data-act=go]")
    card.click()
    task = tab.locator(".tool-task.waiting")
    expect(task).to_contain_text(WAITS)
    expect(task.locator("progress")).to_be_hidden()
    entry = next(entry for entry in served.engine.queue() if entry.task == "tag")
    card.click()
    expect(tab.locator("#said.error")).to_contain_text(WAITS)
    expect(tab.locator("#header-waiting")).to_have_text("2 waiting")
    expect(tab.locator("#header-waiting")).to_have_attribute(
        "title", re.compile(rf"owl: .*\bfox\b.*\n{re.escape(entry.title)}: ")
    )
    tab.evaluate("location.hash = '#Train'")
    tab.locator("#forecast-try").click()
    expect(tab.locator("#forecast-tried")).to_contain_text(WAITS)
    tab.locator("#enqueue").click()
    expect(tab.locator("#said")).to_contain_text(WAITS)
    tab.evaluate("location.hash = '#Generate'")
    tab.locator("#gen-draw").click()
    expect(tab.locator("#gen-status .jobs li").first).to_contain_text(WAITS)
    tab.evaluate("location.hash = '#Monitor'")
    rows = tab.locator("#monitor .queue li.state-waiting .hint")
    expect(rows).to_have_count(5)
    for row in rows.all():
        expect(row).to_contain_text(WAITS)
    assert window.errors == [] and window.outside == []
