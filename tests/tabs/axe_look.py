"""axe-core in the page: what it finds, on the screens that are looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
RULES = {rule: {"enabled": True} for rule in ("target-size", "label-content-name-mismatch", "landmark-unique")}
LOOK = json.dumps({"resultTypes": ["violations"], "rules": RULES})
VIOLATIONS = f"""async (where) => (await axe.run(where || document, {LOOK}))
  .violations.map((each) => [each.id, ...each.nodes.slice(0, 5).map((node) => node.html.slice(0, 160))])"""
# Both themes, a wide window and a phone; every width alone is looked at in test_page_frame.
NARROW, WIDE = ("dark", 390), ("light", 1280)
on_every_screen = pytest.mark.parametrize("screen", [NARROW, WIDE], ids=str)


def open_page(window: Any, screen: tuple[str, int], place: str) -> Any:
    """The page at a tab, in a theme and a width, with axe in it."""
    theme, width = screen
    window.tab.add_init_script(f"localStorage.setItem('atelier-theme', '{theme}')")
    window.tab.emulate_media(reduced_motion="reduce")  # colors that are still changing have no contrast of their own
    window.tab.set_viewport_size({"width": width, "height": 900})
    tab = window.open(place)
    tab.evaluate(AXE)
    return tab


def go(tab: Any, name: str, mark: str) -> None:
    """Open a tab by its address, and wait for what is on it."""
    tab.evaluate("(name) => { location.hash = name }", name)
    tab.locator(mark).first.wait_for()
