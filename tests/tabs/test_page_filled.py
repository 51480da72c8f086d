"""The page full of work by keyboard, by screen reader and on a small screen: runs in every state, a queue, images, faults,
questions, dialogs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from axe_look import NARROW, VIOLATIONS, WIDE, go, on_every_screen, open_page
from filled import DONE, FAILED, MARKS, OTHER, STOPPED
from keyboard_walk import walk
from playwright.sync_api import expect

UNFOLD = "() => { for (const each of document.querySelectorAll('details')) each.open = true; }"


@pytest.fixture
def window(full, chromium):
    from page_server import Visit

    full.page.project.keep("Dataset", {})
    made = Visit(chromium, full.url)
    yield made
    made.close()
    assert made.errors == []


OPEN_GROUPS = """() => { for (const each of document.querySelectorAll("button[aria-expanded=false], .label-wrap:not(.open)"))
  if (each.checkVisibility()) each.click(); }"""
# Until colors have stopped changing and groups have opened; what moves for ever changes no text.
STILL = """() => document.getAnimations().every(
  (each) => each.playState !== "running" || each.effect.getTiming().iterations > 99)"""
# A control, or the label around it, that is pressed by a finger: its width and height. Links within a sentence are excepted.
SMALL = """() => [...document.querySelectorAll("button, input, select, textarea, summary")].filter((node) => node.checkVisibility())
  .map((node) => [node, (node.closest("label") || node).getBoundingClientRect()])
  .filter(([, {width, height}]) => width && (width < 23.9 || height < 23.9))
  .map(([node, {width, height}]) => [width, height, node.outerHTML.slice(0, 160)])"""
# As axe, and within charts and lists
CONTRAST = (Path(__file__).parent / "contrast.js").read_text("utf-8").split("*/", 1)[1]


def look(tab, where: str, what: str | None = None) -> None:
    """axe finds nothing on the page, or in the part that has changed since; nothing sticks out."""
    found = tab.evaluate(VIOLATIONS, what)
    if found:  # what is still coming up has no colors of its own yet
        tab.wait_for_timeout(1000)
        found = tab.evaluate(VIOLATIONS, what)
    assert found == [], (where, str(found)[:1500])
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), where


@pytest.mark.slow
@on_every_screen
def test_axe_finds_nothing_on_tabs_that_are_full_of_work(window, screen):
    """On a phone with everything unfolded, in a wide window as the tabs come; contrast and sizes unfolded on both."""
    tab = open_page(window, screen, "Dataset")
    assert tab.evaluate("document.body.classList.contains('dark')") == (screen[0] == "dark")
    for name, mark in MARKS.items():
        go(tab, name, mark)
        if screen == WIDE:
            look(tab, name)
        tab.evaluate(UNFOLD)
        if name == "Train":
            tab.evaluate(OPEN_GROUPS)
        tab.wait_for_function(STILL)
        if screen != WIDE:
            look(tab, name)
        assert tab.evaluate(CONTRAST) == [] == tab.evaluate(SMALL), name
    assert tab.locator("h1").count() == 1


@pytest.mark.slow
def test_axe_finds_nothing_on_what_tools_answer_on_runs_in_monitor_and_on_loras_in_generate(window):
    tab = open_page(window, NARROW, "Tools")
    tab.locator(MARKS["Tools"]).first.wait_for()
    tab.evaluate(UNFOLD)
    tab.locator("#tool-index [data-tool=inspect]").click()
    tab.locator("#tool-inspect-file").fill("outputs/none.safetensors")
    tab.locator("#tool-inspect-file").press("Enter")
    expect(tab.locator("#tools-models .tool-refused .problem").first).to_be_visible()
    look(tab, "a refusal", "#tools-models")
    tab.locator("#tool-inspect-file").fill(f"outputs/runs/{DONE}/checkpoints/fox.safetensors")
    tab.locator("#tool-inspect-file").press("Enter")
    expect(tab.locator(".tool-task.done .tool-lines li").first).to_be_visible()
    look(tab, "results of tools", "#tools-models-tasks")
    for run in (STOPPED, FAILED, DONE):
        go(tab, f"Monitor/{run}", f"#run-state.state-{run.split('_')[-1]}")
        look(tab, f"Monitor of {run}", "#monitor-run")
    go(tab, "Generate", "#gen-add")
    tab.evaluate("document.querySelector('#gen-add .picker').open = false")  # what was opened by a person stays open
    tab.locator("#gen-add .picker > summary").click()
    tab.locator("#gen-add [data-act=add]").filter(has_text="fox").first.click()
    expect(tab.locator("#gen-loras li")).not_to_have_count(0)
    look(tab, "LoRAs", "#gen-form")


@pytest.mark.slow
def test_axe_finds_nothing_on_a_run_of_any_state_nor_on_two_that_are_compared(window):
    tab = open_page(window, NARROW, "Runs")
    for title in ("fox, done", "fox_stopped", "fox_failed", "fox_running"):
        tab.locator("table.runs").get_by_role("button", name=title, exact=True).click()
        expect(tab.locator(".run-head h2")).to_have_text(title)
        look(tab, title, "#runs-main")
        tab.locator("#runs-main").get_by_role("button", name="All runs").click()
    for title in ("fox, done", "fox_again"):
        tab.get_by_role("checkbox", name=f"Select {title}").check()
    both = tab.get_by_role("link", name="Compare")
    expect(both).to_be_visible()
    look(tab, "two runs are ticked", "#runs-main")
    both.press("Enter")
    expect(tab.locator("#compare .verdict")).to_be_visible()
    expect(tab.locator("#compare h2")).to_be_focused()
    look(tab, "two runs compared")
    assert tab.evaluate("location.hash") == f"#Runs/{DONE}/{OTHER}"
    tab.locator("#compare").get_by_role("link", name="All runs").press("Enter")
    expect(tab.get_by_label("Find runs by name").first).to_be_focused()
    expect(both).to_have_count(0)
    expect(tab.get_by_label("Find runs by name").first).to_be_focused()


@pytest.mark.slow
def test_every_action_of_every_tab_is_reached_by_tab(window):
    tab = open_page(window, WIDE, "Dataset")
    faults = {}
    for name, mark in MARKS.items():
        go(tab, name, mark)
        faults[name] = walk(tab)
    go(tab, "Runs", MARKS["Runs"])
    tab.locator("table.runs").get_by_role("button", name="fox, done", exact=True).click()
    expect(tab.locator(".run-head h2")).to_be_visible()
    faults["one run"] = walk(tab)
    assert not any(faults.values()), faults


@pytest.mark.slow
def test_a_dialog_takes_the_keyboard_keeps_it_and_gives_it_back(window):
    tab = open_page(window, NARROW, "Train")
    menu = tab.locator("#preset-bar summary")
    menu.press("Enter")
    look(tab, "menu", "#preset-bar")
    tab.locator("[data-do=save-as]").press("Enter")
    in_dialog(tab, "Save as a preset")
    expect(menu).to_be_focused()
    get = tab.get_by_role("button", name="Get a model").first
    get.press("Enter")
    expect(tab.locator(".models-dialog .model-row").first).to_be_visible()
    in_dialog(tab, "Get a model")
    expect(get).to_be_focused()
    browse = tab.get_by_role("button", name="Browse files").first
    browse.press("Enter")
    tab.locator("#model-browser .rows button").first.press("Enter")
    expect(tab.locator("#model-browser .rows button").first).to_be_focused()
    in_dialog(tab, "Choose a base model")
    expect(browse).to_be_focused()
    go(tab, "Monitor", MARKS["Monitor"])
    sample = tab.locator("button.sample").nth(1)
    sample.press("Enter")
    in_dialog(tab, "Compare samples")
    expect(sample).to_be_focused()
    go(tab, "Generate", MARKS["Generate"])
    image = tab.locator("#shelf-grid .tile").nth(1)
    image.press("Enter")
    expect(tab.get_by_role("dialog")).to_be_visible()
    in_dialog(tab, "Image viewer")
    expect(image).to_be_focused()


def in_dialog(tab, name: str) -> None:
    """The focus is in the open dialog, Tab and Shift+Tab stay there, axe finds nothing, Escape closes it."""
    box = tab.get_by_role("dialog", name=name)
    expect(box).to_be_visible()
    inside = "(box) => box.contains(document.activeElement) && document.activeElement.checkVisibility()"
    tab.wait_for_function(inside, arg=box.element_handle())
    stops = box.locator("a[href], button:not(:disabled), input, select").count()
    for key in ["Tab"] * (stops + 1) + ["Shift+Tab"] * 2:
        tab.keyboard.press(key)
        assert box.evaluate(inside), f"{name}: {key} leaves it"
    look(tab, name, "dialog, [role=dialog]")
    tab.keyboard.press("Escape")
    expect(box).to_have_count(0)


@pytest.mark.slow
def test_what_opens_on_the_page_takes_the_keyboard_and_gives_it_back(window):
    tab = open_page(window, WIDE, "Runs")
    opener = tab.locator("table.runs").get_by_role("button", name="fox, done", exact=True)
    opener.press("Enter")
    expect(tab.locator(".run-head h2")).to_be_focused()
    tab.locator("#runs-main").get_by_role("button", name="All runs").press("Enter")
    expect(opener).to_be_focused()

    go(tab, "Tools", MARKS["Tools"])
    tab.evaluate("atelier.openTools('tools-disk')")
    delete = tab.get_by_role("button", name="Delete for good: Deleted runs")
    for leave in ("Enter", "Escape"):
        delete.press("Enter")
        expect(tab.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
        look(tab, "Delete for good", ".atelier-dialog")
        tab.keyboard.press(leave)
        expect(delete).to_be_focused()

    go(tab, "Dataset", MARKS["Dataset"])
    browse = tab.locator("#ds-browse")
    browse.press("Enter")
    tab.locator("#model-browser .rows button").first.press("Enter")
    expect(tab.locator("#model-browser .rows button").first).to_be_focused()
    look(tab, "folder browser", "#model-browser")
    tab.keyboard.press("Escape")
    expect(browse).to_be_focused()
    more = tab.locator("#ds-sources .more-line button").first
    more.press("Enter")
    expect(tab.locator(".concept-more")).to_be_visible()
    expect(more).to_be_focused()
    tab.locator("#ds-sources [data-act=propose]").first.press("Enter")
    expect(tab.locator(".offers button").first).to_be_visible()
    look(tab, "a card unfolded", "#ds-sources")
    more.press("Enter")
    expect(tab.locator(".concept-more")).to_have_count(0)


@pytest.mark.slow
def test_what_pops_up_over_the_form_has_names_and_contrast(window):
    tab = open_page(window, WIDE, "Train")
    tab.locator("#field-saving-output-name").locator("input, textarea").first.press("F1")
    expect(tab.locator("#field-note")).to_be_visible()
    look(tab, "note of a field")
    tab.keyboard.press("Escape")
    tab.locator("#field-search").fill("noise")
    expect(tab.locator("#field-results li").first).to_be_visible()
    look(tab, "settings found", "#search-bar")
    tab.keyboard.press("Escape")
    problems = "[{what: 'It is wrong', where: 'model.base_model', fix: 'choose another', level: 'error'}, {what: 'Odd', level: 'advice'}]"
    tab.evaluate(f"() => atelier.say({{id: 'told', kind: 'error', title: 'Not done', problems: {problems}}})")
    expect(tab.locator("#said")).to_be_visible()
    look(tab, "a message", "#said-place")


@pytest.mark.slow
def test_the_open_run_is_in_the_address_and_back_leads_to_the_list(window):
    tab = window.open("Runs")
    tab.locator(f"#runs-main .open[data-arg='{DONE}']").click()
    expect(tab).to_have_url(re.compile(f"#Runs/{DONE}$"))
    tab.evaluate("history.back()")
    expect(tab.locator("#runs-main table.runs")).to_be_visible()
    expect(tab).to_have_url(re.compile("#Runs$"))
    tab.evaluate("history.forward()")
    expect(tab.locator(".run-details")).to_be_visible()
    tab.reload()
    expect(tab.locator(".run-details")).to_be_visible()
    expect(tab).to_have_url(re.compile(f"#Runs/{DONE}$"))
    tab.locator(".run-details").get_by_role("button", name="All runs").click()
    expect(tab).to_have_url(re.compile("#Runs$"))
