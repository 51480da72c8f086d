"""The card of Tools that checks this machine, in a real browser, with three quick items."""

from __future__ import annotations

import json
import re

import pytest
from page_server import WATCH
from playwright.sync_api import expect
from work_parts import wait_until

from core.machine_check.items import all_items

QUICK = ("python", "driver", "locks")


@pytest.fixture
def card(served, visit):
    check = served.page.machine_check
    check.items = [item for item in all_items() if item.name in QUICK]
    window = visit()
    tab = window.open("Tools")
    tab.evaluate("atelier.openTools('machine-check-holder')")
    yield window, tab.locator("#machine-check"), check
    check.items = None
    check.file.unlink(missing_ok=True)


@pytest.mark.slow
def test_a_check_is_refused_while_a_job_runs_cancelled_and_fills_a_table_that_is_given_as_json(card, served):
    window, here, check = card
    engine, start = served.engine, here.get_by_role("button", name="Check this machine")
    engine.step_seconds = 30.0
    entry = engine.submit("train", served.page.project.job, "fox")
    wait_until(lambda: engine.status()["job"] is not None)
    start.click()
    expect(here.page.locator("#said.error .problem")).to_contain_text("fox")
    expect(here.get_by_role("row")).to_have_count(0)
    engine.cancel(entry)
    wait_until(lambda: engine.status()["job"] is None)
    here.page.get_by_role("button", name="Close this message").click()

    check.items = all_items()
    start.click()
    expect(here.locator("tr[data-item=python]")).to_be_visible()
    here.get_by_role("button", name="Cancel").click()
    expect(here.get_by_role("status")).to_have_text("Cancelled.")
    assert not check.file.exists()

    check.items = [item for item in all_items() if item.name in QUICK]
    expect(here.locator("a")).to_be_hidden()
    here.page.evaluate(WATCH, ["#machine-check button", "#keys", "#tools"])
    start.click()
    expect(start).to_be_disabled()
    expect(here.get_by_role("row")).to_have_count(4)  # with the heading's
    for name in QUICK:
        expect(here.locator(f"tr[data-item={name}] .state")).to_have_text(re.compile("^(ok|unavailable)$"))
    expect(here.get_by_role("status")).to_contain_text("in ")
    expect(start).to_be_enabled()
    with here.page.expect_download() as download:
        here.get_by_role("link", name="Download JSON").click()
    report = json.loads(download.value.path().read_text("utf-8"))
    assert [line["name"] for line in report["items"]] == list(QUICK) and report["counts"]["failed"] == 0
    assert here.page.evaluate("movedBy()") == {}
    again = here.page.context.new_page()  # a refresh, and another server, find the newest check
    again.goto(f"{window.url}#Tools")
    expect(again.locator("#machine-check tr[data-item=locks]")).to_be_visible()
    assert window.errors == [] and window.outside == []
