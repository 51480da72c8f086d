"""One page with a pretended engine and one browser for all tests of this folder: starting either takes seconds."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import pytest

from core.record.workspace import PROJECT, Workspace

sys.path.insert(0, str(PROJECT))
sys.path.insert(0, str(Path(__file__).parent))

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    " --no-first-run"
).split()


def make_workspace(folder: Path) -> Workspace:
    """Outputs and presets of its own, the project's models."""
    presets = folder / "presets"
    presets.mkdir(parents=True)
    for shipped in (PROJECT / "presets").glob("*.json"):
        shutil.copy(shipped, presets)
    return Workspace(outputs=folder / "outputs", models=PROJECT / "models", presets=presets)


class Served:
    """A page at an address, with what stands behind it."""

    def __init__(self, folder: Path, **more):
        from fake_engine import FakeEngine

        from tabs.app import free_port, launch, make_page

        self.workspace = make_workspace(folder)
        self.engine = FakeEngine(self.workspace, step_seconds=0.05, steps=100)
        self.engine.start()
        shared = bool(more.pop("shared", False))
        self.page = make_page(self.engine, self.workspace, shared=shared)
        self.blocks = launch(
            self.page, host="127.0.0.1", port=free_port("127.0.0.1", 17860), share=False, auth=more.pop("auth", None)
        )
        self.url = self.blocks.local_url

    def close(self) -> None:
        self.page.tensorboard.close()
        self.blocks.close()
        self.engine.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    page = Served(tmp_path_factory.mktemp("served"))
    yield page
    page.close()


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    from tests.browser_path import browser_path

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """One browser window on the page. It notes errors and every request that leaves this machine."""

    def __init__(self, chromium, url: str, **context):
        self.context = chromium.new_context(viewport={"width": 1280, "height": 860}, **context)
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.url = url
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(10_000)
        self.tab.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("request", self._note)

    def _note(self, request) -> None:
        if not request.url.startswith(("http://127.0.0.1", "blob:", "data:")):
            self.outside.append(request.url)

    def open(self, place: str = "Train"):
        self.tab.goto(f"{self.url}#{place}")
        self.tab.wait_for_selector("body[data-atelier=ready]")
        self.tab.wait_for_function("atelier.stamp && atelier.filled")
        return self.tab

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(served, chromium):
    made = []

    def make(**context) -> Visit:
        made.append(Visit(chromium, served.url, **context))
        return made[-1]

    _begin_anew(served)
    yield make
    for one in made:
        one.close()


def _begin_anew(served) -> None:
    """The starter preset in the form, nothing running, nothing waiting."""
    engine, project = served.engine, served.page.project
    for entry in engine.queue():
        if entry.state in ("waiting", "running"):
            engine.cancel(entry.id)
    end = time.monotonic() + 10
    while any(entry.state == "running" for entry in engine.queue()) and time.monotonic() < end:
        time.sleep(0.05)
    engine.step_seconds = 0.05
    engine.resume_queue()
    project.load_preset("starter_lora")
