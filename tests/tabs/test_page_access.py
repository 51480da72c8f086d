"""The page by keyboard, by screen reader and on a small screen."""

from __future__ import annotations

import pytest
from axe_look import VIOLATIONS, first_on, open_page
from playwright.sync_api import expect

OPEN_GROUPS = """() => { for (const each of document.querySelectorAll("button[aria-expanded=false], .label-wrap:not(.open)"))
  if (each.checkVisibility()) each.click(); }"""
TABS = {
    "Dataset": "#ds-grid .tile",
    "Captions": "#cap-list .pick",
    "Train": "#field-method-kind",
    "Monitor": "#monitor",
    "Generate": "#gen-draw",
    "Runs": "#runs-main",
    "Tools": "#tools",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A page whose engine also generates."""
    import page_server
    from work_engine import WorkEngine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_server, "FakeEngine", WorkEngine)
        page = page_server.Served(tmp_path_factory.mktemp("access"))
    page.page.project.load_preset("starter_lora")
    yield page
    page.close()


@pytest.fixture
def window(work, chromium):
    from page_server import Visit

    made = Visit(chromium, work.url)
    yield made
    made.close()


# A control, or the label around it, that is pressed by a finger: its width and height. Links within a sentence are excepted.
SMALL = """() => [...document.querySelectorAll("button, input, select, textarea, summary")].filter((node) => node.checkVisibility())
  .map((node) => [node, (node.closest("label") || node).getBoundingClientRect()])
  .filter(([, {width, height}]) => width && (width < 23.9 || height < 23.9))
  .map(([node, {width, height}]) => [width, height, node.outerHTML.slice(0, 160)])"""


@pytest.mark.slow
@first_on("dark", 390)
def test_axe_finds_nothing_on_any_tab_and_nothing_sticks_out(window, screen):
    theme, width = screen
    tab = open_page(window, screen, "Train")
    assert tab.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
    for name, mark in TABS.items():
        tab.evaluate("(name) => { location.hash = name }", name)
        expect(tab.locator(mark).first).to_be_visible()
        tab.evaluate(OPEN_GROUPS)
        tab.wait_for_timeout(300)  # groups open by and by
        assert tab.evaluate(VIOLATIONS) == [], f"{name}, {theme}, {width} px"
        assert tab.evaluate(SMALL) == [], f"{name}, {theme}, {width} px"
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name}, {width} px"
    assert tab.locator("h1").count() == 1


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
def test_arrows_go_through_the_tabs_and_a_tab_opened_by_something_else_takes_the_keyboard_along(window, work):
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
    for entry in work.engine.queue():
        work.engine.cancel(entry.id)


@pytest.mark.slow
def test_runs_are_found_while_one_types(window, work):
    work.engine.submit("train", work.page.project.job)
    tab = window.open("Runs")
    rows = tab.locator("table.runs tbody tr")
    expect(rows).not_to_have_count(0)
    find = tab.get_by_role("textbox", name="Find runs by name")
    find.press_sequentially("no run is called so")
    expect(rows).to_have_count(0)
    expect(find).to_be_focused()
    expect(find).to_have_value("no run is called so")
    find.fill("")
    expect(rows).not_to_have_count(0)
    for entry in work.engine.queue():
        work.engine.cancel(entry.id)
