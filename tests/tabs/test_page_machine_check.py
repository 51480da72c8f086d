"""The card of Tools that checks this machine, in a real browser, with three quick items."""

from __future__ import annotations

import json
import re

import pytest
from page_server import WATCH
from playwright.sync_api import expect

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
def test_the_button_fills_a_table_and_gives_its_json(card):
    window, here, _ = card
    start = here.get_by_role("button", name="Check this machine")
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
