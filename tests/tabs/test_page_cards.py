"""The rail of Generate in the browser: cards by keyboard, the search of all settings, sizes, and what stays after a reload."""

from __future__ import annotations

import re

from playwright.sync_api import expect

SHOWN = "nodes => nodes.filter(n => n.checkVisibility()).map(n => n.dataset.card || n.id)"


def test_cards_are_added_and_removed_by_keyboard_found_by_search_and_stay_after_a_reload(visit, served):
    tab = visit().open("Generate")
    adds = tab.locator("#gen-add")
    expect(tab.locator("#gen-steps")).to_be_visible()
    cards = tab.locator("#gen-form [data-card]")
    assert cards.evaluate_all(SHOWN) == []
    adds.get_by_role("button", name="+ Hires").press("Enter")
    hires = tab.locator("[data-card=hires]")
    scale = hires.get_by_label("Upscale by")
    expect(scale).to_be_focused()
    expect(scale).to_have_value("2")
    scale.fill("1.5")
    scale.press("Tab")
    adds.get_by_role("button", name="+ Grid").press("Enter")
    expect(tab.locator("#grid-x-axis")).to_be_focused()
    tab.reload()
    expect(scale).to_have_value("1.5")
    expect(tab.locator("#grid-x-axis")).to_be_visible()
    assert cards.evaluate_all(SHOWN) == ["hires", "grid"]
    hires.get_by_role("button", name="Remove Hires").press("Enter")
    expect(hires).to_be_hidden()
    expect(adds.get_by_role("button", name="+ Hires")).to_be_focused()
    tab.locator("[data-card=grid]").get_by_role("button", name="Remove Grid").click()
    expect(tab.locator("#grid-x-axis")).to_be_hidden()

    expect(tab.locator("#gen-preset")).to_be_hidden()
    tab.locator("#gen-more summary").first.click()
    search = tab.get_by_role("combobox", name="Search all settings")
    search.fill("clip skip")
    search.press("Enter")
    expect(tab.locator("#gen-clip_skip")).to_be_focused()
    search.fill("highres_fix_upscaler_file")
    expect(tab.locator("#gen-found li")).to_have_count(1)
    search.press("Enter")
    expect(hires).to_be_visible()
    expect(tab.locator("#gen-highres_fix_upscaler_file")).to_be_focused()

    tab.locator(".gen-ratios").get_by_text("2:3").click()
    expect(tab.locator(".gen-sizes legend b")).to_have_text("104 × 160 then 208 × 320")
    expect(tab.locator("#gen-width")).to_be_hidden()
    tab.locator(".gen-ratios").get_by_text("Custom").click()
    tab.locator("#gen-steps").fill("9")
    tab.locator("#gen-steps").press("Tab")
    expect(tab.locator("#gen-steps")).to_have_value("9")
    tab.locator("#gen-width").fill("96")
    tab.locator("#gen-width").press("Tab")
    expect(tab.locator(".gen-sizes legend b")).to_have_text("96 × 160 then 192 × 320")
    expect(tab.get_by_role("radio", name="Custom")).to_be_checked()
    expect(tab.locator("#gen-height")).to_be_visible()

    tab.get_by_role("button", name=re.compile("Base model: starter")).click()
    expect(tab.locator("#pick-list button").first).to_be_visible()
    tab.locator("#pick-list button[data-value]").first.click()
    expect(tab.get_by_role("dialog")).to_have_count(0)
    expect(tab.locator("#gen-base_model")).to_have_value(re.compile("starter"))
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    served.page.project.keep("Generate", {})
    served.page.project.keep("Grids", {})
