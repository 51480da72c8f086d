"""The page's frame on windows of every width: where it stands, what reaches out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from filled import DONE, MARKS
from page_server import Visit

from tests.selection import slow_unless

NARROW = (Path(__file__).parent / "narrow.js").read_text("utf-8")
WIDTHS = (390, 800, 1400, 1920, 2560)
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


@pytest.fixture
def window(full, chromium):
    full.page.project.keep("Dataset", {})
    made = Visit(chromium, full.url)
    yield made
    made.close()
    assert made.errors == []


@pytest.mark.parametrize("width", slow_unless((1280).__eq__, (1280, 390)))
@pytest.mark.parametrize("name", MARKS)
def test_a_tab_that_is_opened_by_its_address_is_drawn_without_a_jump(window, name, width):
    window.tab.set_viewport_size({"width": width, "height": 900})
    window.tab.add_init_script(SHIFTS)
    tab = window.open(PLACES.get(name, name))
    tab.locator(MARKS[name]).first.wait_for()
    tab.wait_for_timeout(1500)  # two ticks
    assert tab.evaluate("shifts.reduce((sum, each) => sum + each[0], 0)") <= 0.1, tab.evaluate("shifts")


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
    assert not any(found.values()), found
