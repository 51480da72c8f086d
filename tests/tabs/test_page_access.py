"""The page by keyboard, by screen reader and on a small screen."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect


@pytest.mark.slow
def test_f1_opens_the_note_beside_its_field_and_tab_goes_from_field_to_field(window):
    tab = window.open("Train")
    name = tab.locator("#field-saving-output-name").locator("input, textarea").first
    name.focus()
    tab.keyboard.press("F1")
    note = tab.locator("#field-note")
    expect(note).to_contain_text("--saving.output_name")
    block, own = tab.locator("#field-saving-output-name").bounding_box(), note.bounding_box()
    assert own["y"] >= block["y"] + block["height"] or own["y"] + own["height"] <= block["y"]
    assert "field-note" in name.get_attribute("aria-describedby")
    tab.locator("h1").dispatch_event("mouseover")  # the page scrolled under a resting mouse
    expect(note).to_be_visible()
    tab.keyboard.press("Escape")
    expect(note).to_have_count(0)
    assert "field-note" not in name.get_attribute("aria-describedby")
    tab.keyboard.press("Tab")
    assert not tab.evaluate("document.activeElement.matches('.field-help')")
    assert tab.locator(".field-help:not([tabindex='-1'])").count() == 0


@pytest.mark.slow
def test_arrows_go_through_the_tabs_and_a_tab_opened_by_something_else_takes_the_keyboard_along(window, served):
    tab = window.open("Runs")
    tab.get_by_role("tab", name="Runs", exact=True).focus()
    for key, name in (("ArrowRight", "Tools"), ("ArrowRight", "Dataset"), ("ArrowLeft", "Tools"), ("Home", "Dataset")):
        tab.keyboard.press(key)
        expect(tab.get_by_role("tab", name=name, exact=True)).to_be_focused()
        expect(tab.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")
    tab.evaluate("atelier.goTo('Train')")
    tab.wait_for_function(  # a tab is not shown, nor takes the keyboard, before its first answer is drawn
        "() => { const start = document.getElementById('start'); start.focus(); return document.activeElement === start; }"
    )
    tab.keyboard.press("Enter")
    expect(tab.locator("#monitor-run")).to_be_visible()
    expect(tab.locator(".tab-heading h2", has_text="Monitor")).to_be_focused()
    for entry in served.engine.queue():
        served.engine.cancel(entry.id)
