"""The page's frame on windows of every width: where it stands, what reaches out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filled import DONE, MARKS, OTHER, make_lora
from page_server import Visit, all_settings
from playwright.sync_api import expect

NARROW = (Path(__file__).parent / "narrow.js").read_text("utf-8")
WIDTHS = (390, 683, 740, 800, 911, 1400, 2560)
PLACES = {"Monitor": f"Monitor/{DONE}"}
# The browser's own measure: [how much, when, what].
SHIFTS = """window.shifts = [];
new PerformanceObserver((list) => {
  for (const each of list.getEntries()) if (!each.hadRecentInput)
    shifts.push([each.value, each.startTime, each.sources.map(({node}) => node?.parentElement?.innerHTML.slice(0, 80))]);
}).observe({type: "layout-shift", buffered: true});"""
# How far the frame stands from the left and right edge of what the scroll bar leaves, and its width.
STANDS = """() => {
  const page = document.body.getBoundingClientRect(), frame = document.querySelector("main.contain").getBoundingClientRect();
  return [frame.left - page.left, page.right - frame.right, frame.width];
}"""

# What would take a moment to hide, and so be seen alone while the rest of its tab still waits.
SHOWN_SLOWLY = """() => [...document.querySelectorAll("#tabs *")].filter((node) => {
  const {transitionProperty, transitionDuration} = getComputedStyle(node);
  return /\\b(all|visibility)\\b/.test(transitionProperty) && /[1-9]/.test(transitionDuration);
}).map((node) => `${node.tagName}#${node.id}.${node.className}`)"""

# Words on Generate that their control cuts: labels, buttons, chosen and offered values. Names, paths and prompts may be cut.
CUT = """() => {
  const page = document.querySelector("#gen-prompts").closest(".tabitem"), drawn = document.createElement("canvas").getContext("2d");
  const wide = (words, node) => { drawn.font = getComputedStyle(node).font; return drawn.measureText(words).width; };
  const room = (node) => {
    const {paddingLeft, paddingRight} = getComputedStyle(node);
    return node.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
  };
  const named = "label > span, button:not(.tile *), summary, summary b, h3, th, .gen-says, .gen-memory .hint, .badge, .state";
  const seen = (selector) => [...page.querySelectorAll(selector)].filter(
    (node) => node.checkVisibility({visibilityProperty: true}) && node.clientWidth > 1);
  const own = seen(named).filter((node) => node.scrollWidth > node.clientWidth).map((node) => node.textContent);
  const fields = seen("input:not([type=range], [type=checkbox], [type=file]):not([value*='/'], [placeholder*='/'])")
    .map((node) => [node, node.value || node.placeholder]).filter(([node, words]) => wide(words, node) > room(node) + 1);
  const choices = seen("select:not(#shelf-model, #shelf-lora)").flatMap((node) => [...node.options].map(({text}) => [node, text]))
    .filter(([node, words]) => wide(words, node) > room(node) - 15);  // the arrow
  return [...own, ...[...fields, ...choices].map(([, words]) => words)];
}"""


@pytest.fixture
def window(full, chromium):
    full.page.project.keep("Dataset", {})
    made = Visit(chromium, full.url)
    yield made
    made.close()
    assert made.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Train", "Monitor", "Generate"])
def test_a_tab_that_is_opened_by_its_address_is_drawn_without_a_jump(window, name):
    window.tab.add_init_script(SHIFTS)
    tab = window.open(PLACES.get(name, name))
    tab.locator(MARKS[name]).first.wait_for()
    tab.wait_for_timeout(1500)  # two ticks
    assert tab.evaluate("shifts.reduce((sum, each) => sum + each[0], 0)") <= 0.1, tab.evaluate("shifts")


@pytest.mark.slow
def test_each_tab_is_centered_and_inside_the_window_at_every_width(window):
    tab, found = window.open("Dataset"), {}
    for name, mark in MARKS.items():
        tab.evaluate("(place) => { location.hash = place }", PLACES.get(name, name))
        tab.locator(mark).first.wait_for()
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            left, right, wide = tab.evaluate(STANDS)
            assert abs(left - right) <= 1, (name, width, left, right)
            assert wide == pytest.approx(min(width, 1840), abs=20), (name, width)  # a scroll bar takes up to 20
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, width)
            found[name, width] = tab.evaluate(NARROW)
        slow = tab.evaluate(SHOWN_SLOWLY)
        assert not slow, (name, slow)
    tab.set_viewport_size({"width": 390, "height": 900})
    tab.evaluate(f"location.hash = 'Runs/{DONE}/{OTHER}'")
    tab.locator("#compare .versus").first.wait_for()
    found["two runs"] = tab.evaluate(NARROW)
    tab.locator("#compare").get_by_role("link", name="All runs").click()
    tab.locator("table.runs").get_by_role("button", name="fox, done", exact=True).click()
    tab.locator("[data-act=copy-to]").first.click()
    tab.locator("#runs-copy [data-browse]").click()
    tab.locator("#model-browser .rows").wait_for()
    found["an open run"] = tab.evaluate(NARROW)
    assert not any(found.values()), found
    tab.emulate_media(forced_colors="active")
    style = "(node) => [getComputedStyle(node).forcedColorAdjust, getComputedStyle(node).outlineStyle]"
    assert tab.locator("#header-memory").evaluate(style) == ["none", "none"]
    assert tab.locator("#tabs > .tab-wrapper [aria-selected=true]").first.evaluate(style) == ["auto", "solid"]


@pytest.mark.slow
def test_names_of_80_letters_fit_a_narrow_window(window, full):
    name, project = "n" * 80, full.page.project
    kept, about = project.job.saving.output_name, full.workspace.runs / OTHER / "about.json"
    about.write_text(json.dumps({"title": name, "note": ""}))
    project.edit("saving.output_name", name)
    try:
        tab = window.open("Runs")
        for place, mark in (
            ("Runs", "table.runs tbody tr"),
            (f"Runs/{DONE}/{OTHER}", "#compare .versus"),
            (f"Monitor/{OTHER}", "#samples img"),
            ("Train", "#field-method-kind"),
        ):
            tab.evaluate("(place) => { location.hash = place }", place)
            tab.locator(mark).first.wait_for()
            if place != "Train":
                expect(tab.get_by_text(name).first).to_be_attached()
            for width in (390, 800):
                tab.set_viewport_size({"width": width, "height": 900})
                assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (place, width)
    finally:
        project.edit("saving.output_name", kept)
        about.unlink()


@pytest.fixture
def two_loras(full):
    """Generate with two LoRAs that have trigger words, the second with many, and a negative prompt."""
    project, kept = full.page.project, full.page.project.tab_state("Generate")
    words = {"modelspec.trigger_phrase": "inkwash, ink wash portrait, brush strokes, paper texture, dry brush"}
    files = [make_lora(full.workspace.runs / DONE / "checkpoints" / f"{name}.safetensors", words) for name in "ab"]
    loras = [{"file": str(file), "strength": 0.8} for file in files]
    values = {"prompt": "a fox, glyph style", "negative_prompt": "blurred", "loras": loras}
    project.keep("Generate", {"values": values | {"width": 128, "height": 128, "guidance_scale": 4.0}})
    yield
    project.keep("Generate", kept)


@pytest.mark.slow
def test_generate_fits_a_window_of_1400_by_900_and_cuts_no_words_at_any_width(window, two_loras):
    window.tab.set_viewport_size({"width": 1400, "height": 900})
    tab = window.open("Generate")
    tab.locator(MARKS["Generate"]).first.wait_for()
    expect(tab.locator(".loras:not(.model-offers) > li")).to_have_count(2)
    last = tab.locator(".gen-all > summary").bounding_box()
    assert last["y"] + last["height"] <= 900
    assert tab.locator(".gen-stage").bounding_box()["height"] > 400
    found = {"closed": tab.evaluate(CUT)}
    all_settings(tab)
    for name in ("image_to_image", "hires", "detailer", "controls", "regions", "grid"):
        tab.locator(f"#gen-form [data-card={name}]").evaluate("(card) => { card.hidden = false; }")
    for summary in tab.locator(
        ".gen-groups summary, .gen-card > details > summary, .loras:not(.model-offers) details > summary"
    ).all():
        summary.click()
    for width in (390, 683, 800, 1400, 1920):
        tab.set_viewport_size({"width": width, "height": 900})
        found[width] = tab.evaluate(CUT)
        assert tab.locator("#gen-prompt").bounding_box()["width"] > 220, width
    assert not any(found.values()), found


@pytest.mark.slow
def test_a_message_that_is_closed_by_keyboard_leads_to_the_tabs_heading_where_no_other_is_seen(window):
    tab = window.open("Generate")
    tab.evaluate("atelier.say({kind: 'error', text: 'It failed.'})")
    tab.locator("#said").get_by_role("button", name="Close this message").press("Enter")
    expect(tab.locator(".tab-heading h2[data-tab=Generate]")).to_be_focused()


NO_STORAGE = """for (const name of ['localStorage', 'sessionStorage'])
  Object.defineProperty(window, name, {get() { throw new DOMException('blocked', 'SecurityError'); }});"""


@pytest.mark.slow
def test_the_page_works_where_the_browser_keeps_nothing(window):
    window.tab.add_init_script(NO_STORAGE)
    tab = window.open()
    light = tab.locator("html").get_attribute("data-theme")
    tab.locator("#theme-toggle").click()
    expect(tab.locator("html")).not_to_have_attribute("data-theme", light)
    for place in ("Tools", "Monitor", "Captions", "Generate"):
        tab.get_by_role("tab", name=place, exact=True).click()
        expect(tab.locator(MARKS[place]).first).to_be_attached()
    assert tab.evaluate("atelier.openTools !== undefined && atelier.imageViewer !== undefined")
