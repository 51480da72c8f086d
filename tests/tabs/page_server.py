"""A page with a pretended engine, and a browser window on it, for the tests of this folder."""

from __future__ import annotations

import os
import shutil
from itertools import count
from pathlib import Path

from fake_engine import FakeEngine

from core.record.workspace import PROJECT, Workspace

# A port of its own for each page, in each of the two processes: a window that is still open on a closed page would ask the next one.
PORTS = count(18000 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    " --no-first-run --process-per-site"
).split()


def make_workspace(folder: Path) -> Workspace:
    """Outputs and presets of its own, the project's models."""
    presets = folder / "presets"
    presets.mkdir(parents=True)
    for shipped in (PROJECT / "presets").glob("*.json"):
        shutil.copy(shipped, presets)
    return Workspace(outputs=folder / "outputs", models=PROJECT / "models", presets=presets)


PLACES = """(selector) => Object.fromEntries([...document.querySelectorAll(selector)].map((node) => {
  const box = node.getBoundingClientRect();
  return [node.id || node.dataset.action || node.textContent, [box.x, box.y, box.width, box.height].map(Math.round)];
}))"""
# From now on each frame notes where these elements stand; `movedBy()` tells what has stood in more than one place.
WATCH = """(selectors) => {
  const seen = {};
  const look = () => {
    for (const selector of selectors) {
      const node = document.querySelector(selector), box = node && node.getBoundingClientRect();
      if (!box || !box.width) continue;
      const place = [box.x + scrollX, box.y + scrollY].map((at) => Math.round(at / 3)).join(" ");
      (seen[selector] = seen[selector] || new Set()).add(place);
    }
    requestAnimationFrame(look);
  };
  look();
  const moved = () => Object.entries(seen).filter(([, places]) => places.size > 1);
  window.movedBy = () => Object.fromEntries(moved().map(([name, places]) => [name, [...places]]));
}"""
# The clock of clicks stands still: what comes under the pointer by itself has always just come.
HOLD = "performance.now = ((at) => () => at)(performance.now())"
GO_ON = "delete performance.now"


def card_of(tab, name: str):
    """A card of Generate, which is added if it is not in sight."""
    card = tab.locator(f"#gen-form [data-card={name}]")
    card.wait_for(state="attached")
    if not card.is_visible():
        tab.locator(f"#gen-add [data-act=card_add][data-arg={name}]").click()
        card.wait_for()
    return card


def all_settings(tab) -> None:
    """Open all settings of Generate."""
    rows = tab.locator("#gen-more details[data-group=all]")
    rows.wait_for()
    if rows.get_attribute("open") is None:
        rows.locator("> summary").click()


def choose_embedding(tab, label: str) -> None:
    """Choose an embedding in Generate that was written after the page was opened."""
    tab.locator("#gen-add summary").first.click()
    tab.locator("#gen-add").get_by_role("button", name="Refresh").click()
    tab.keyboard.press("Escape")
    all_settings(tab)
    tab.locator("#gen-embeddings input").click()
    tab.get_by_role("option").filter(has_text=label).click()


class Served:
    """A page at an address, with what stands behind it."""

    def __init__(self, folder: Path, *, engine=None, shared: bool = False, auth=None, people=None):
        from tabs.context import make_page
        from tabs.server.app import launch

        self.workspace = make_workspace(folder)
        self.engine = engine(self.workspace) if engine else FakeEngine(self.workspace, step_seconds=0.05, steps=100)
        self.engine.start()
        self.page = make_page(self.engine, self.workspace, shared=shared)
        self.people = people(self.engine, self.workspace) if people else {}
        more = {"owner": auth, "people": self.people} if people else {}
        self.blocks = launch(self.page, host="127.0.0.1", port=next(PORTS), share=False, auth=auth, **more)
        self.limits = self.blocks.app.middleware_stack.limits
        # tests send hundreds of requests without a browser, and click faster than a person
        most = {"session": 64, "address": 24, "all addresses": 24}
        self.limits.table = self.limits.table | {row: (1e9, 1e9, active) for row, active in most.items()}
        self.limits.limit.cache_clear()
        self.url = self.blocks.local_url

    def close(self) -> None:
        self.page.tensorboard.close()
        self.blocks.close()
        self.engine.close()


# Windows of earlier visits, and how many they had, each with one tab on a small file of the page: what the browser has read
# stays with it, and the next visit there takes two thirds of the work. It also keeps some of what it has done: not for ever.
_SPARE: list = []
MOST_VISITS = 12


class Visit:
    """One browser window on the page. It notes errors and every request that leaves this machine.

    fresh: nothing of the page was ever loaded there, as in a window with wishes of its own (`context`). Other windows are
    used again, without cookies and all that was stored: what a test sets, it sets on the tab, which is closed with the visit.
    """

    def __init__(self, chromium, url: str, *, fresh: bool = False, **context):
        self._lent = not fresh and not context
        if self._lent and _SPARE and _SPARE[-1][0].browser is chromium:
            self.context, self._visits = _SPARE.pop()
        else:
            self._visits = 0
            self.context = chromium.new_context(viewport={"width": 1280, "height": 860}, **context)
            if self._lent:
                self.context.new_page().goto(f"{url}robots.txt")
        self._closed = False
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.url = url
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(60_000)
        self.tab.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", self._note)

    def _note(self, request) -> None:
        if not request.url.startswith(("http://127.0.0.1", "blob:", "data:")):
            self.outside.append(request.url)

    def open(self, place: str = "Train"):
        self.tab.goto(f"{self.url}#{place}")
        self.tab.wait_for_selector("body[data-atelier=ready]")
        self.tab.wait_for_function("atelier.stamp")
        return self.tab

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._lent or self._visits + 1 >= MOST_VISITS:
            self.context.close()
            return
        first, *others = self.context.pages
        for tab in others:
            tab.close()
        self.context.clear_cookies()
        self.context.clear_permissions()
        session = self.context.new_cdp_session(first)
        session.send("Storage.clearDataForOrigin", {"origin": self.url.rstrip("/"), "storageTypes": "all"})
        session.detach()
        _SPARE.append((self.context, self._visits + 1))
