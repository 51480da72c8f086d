"""A page with a pretended engine, and a browser window on it, for the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from fake_engine import FakeEngine

from core.record.workspace import PROJECT, Workspace

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

    def __init__(self, folder: Path, *, engine=None, shared: bool = False, auth=None, port: int = 17860):
        from tabs.app import launch, make_page

        self.workspace = make_workspace(folder)
        self.engine = engine(self.workspace) if engine else FakeEngine(self.workspace, step_seconds=0.05, steps=100)
        self.engine.start()
        self.page = make_page(self.engine, self.workspace, shared=shared)
        self.blocks = launch(self.page, host="127.0.0.1", port=port, share=False, auth=auth)
        self.url = self.blocks.local_url

    def close(self) -> None:
        self.page.tensorboard.close()
        self.blocks.close()
        self.engine.close()


class Visit:
    """One browser window on the page. It notes errors and every request that leaves this machine."""

    def __init__(self, chromium, url: str, **context):
        self.context = chromium.new_context(viewport={"width": 1280, "height": 860}, **context)
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
        self.tab.wait_for_function("atelier.stamp && atelier.filled")
        return self.tab

    def close(self) -> None:
        self.context.close()
