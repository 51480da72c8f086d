"""The page's frame on windows of every width: where it stands, what reaches out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from filled import DONE, MARKS
from page_server import Visit

NARROW = (Path(__file__).parent / "narrow.js").read_text("utf-8")
WIDTHS = (390, 800, 1400, 1920, 2560)
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


@pytest.mark.parametrize("name", MARKS)
def test_each_tab_is_centered_and_inside_the_window_at_every_width(window, name):
    tab = window.open(f"{name}/{DONE}" if name == "Monitor" else name)
    tab.locator(MARKS[name]).first.wait_for()
    found = {}
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": 900})
        left, right, wide = tab.evaluate(STANDS)
        assert abs(left - right) <= 1, (width, left, right)
        assert wide == pytest.approx(min(width, 1840), abs=20), width  # a scroll bar takes up to 20
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        found[width] = tab.evaluate(NARROW)
    assert not any(found.values()), found
