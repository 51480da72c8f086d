"""One page with a pretended engine and one browser for all tests of this folder: starting either takes seconds."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE.parents[1], HERE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture(scope="session", autouse=True)
def starter_images_measured_once():
    """Each page has a cache of its own and reads the starter's images first: most of what these tests would compute."""
    from core.dataset.doctor import images as doctor
    from core.dataset.images import look
    from core.record.workspace import PROJECT

    def once(measure):
        known = {}

        def measured(image):
            if not image.path.is_relative_to(PROJECT / "models"):
                return measure(image)
            if image.path not in known:
                known[image.path] = measure(image)
            return known[image.path]

        return measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, "_look_at", once(look._look_at))
        patch.setattr(doctor, "_look_closer", once(doctor._look_closer))
        yield


@pytest.fixture(scope="session", autouse=True)
def work_ends_before_python():
    """Work in C++ that is still going on when Python ends takes the process down: a busy machine has more time to end it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.engine.engine.CLOSE_SECONDS", 60.0)
        yield


WAITS = (
    "captions.rewriting.WAIT_SECONDS form.model_lists.CHOICES_WAIT form.picker.WAIT_SECONDS"
    " generate.controls.PREVIEW_SECONDS runs.view.PATIENCE tools.pairs.QUICK_SECONDS tools.works.WAIT_SECONDS train.starts.QUICK_SECONDS"
).split()


@pytest.fixture(autouse=True)
def answers_wait_for_what_they_ask(request):
    """A busy machine is slow: without a browser, which would ask again, an answer waits until its work is done."""
    with pytest.MonkeyPatch.context() as patch:
        if "chromium" not in request.fixturenames:
            for name in WAITS:
                patch.setattr(f"tabs.{name}", 60.0)
            patch.setattr("tabs.form.model_lists.ModelLists.refresh.__defaults__", (60.0, 0.0))
        yield


@pytest.fixture
def page(tmp_path, monkeypatch):  # what a test patches holds until its page is closed
    """A page over the real engine, which is never started: it reads the runs that lie there, and nothing trains."""
    from work_parts import make_page

    page = make_page(tmp_path, real=True)
    yield page
    page.engine.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    from page_server import Served

    page = Served(tmp_path_factory.mktemp("served"))
    yield page
    page.close()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A page over the real engine on which something has happened (`filled`)."""
    from filled import fill
    from page_server import Served

    from core.engine.engine import Engine

    page = Served(tmp_path_factory.mktemp("full"), engine=lambda workspace: Engine(workspace, "cpu"))
    page.page.project.choose("starter_lora")
    fill(page)
    yield page
    page.engine._device_job = None
    page.close()


@pytest.fixture(scope="session")
def chromium():
    from page_server import FLAGS
    from playwright.sync_api import expect, sync_playwright

    from tests.browser_path import browser_path

    expect.set_options(timeout=60_000)  # a busy machine is slow, and a right page never waits that long
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(served, chromium):
    from page_server import Visit

    made = []

    def make(**context):
        made.append(Visit(chromium, served.url, **context))
        return made[-1]

    _begin_anew(served)
    yield make
    for one in made:
        one.close()
    _end(served.engine)


@pytest.fixture
def window(visit):
    """A window on the page: nothing of the test may reach its console or another machine."""
    made = visit()
    yield made
    assert made.errors == [] and made.outside == []


def _end(engine) -> None:
    for entry in engine.queue():
        if entry.state in ("waiting", "running"):
            engine.cancel(entry.id)


def _begin_anew(served) -> None:
    """The starter preset in Train, no other than the shipped ones, nothing kept of the other tabs, nothing running or in the queue."""
    from work_parts import wait_until

    engine, project = served.engine, served.page.project
    _end(engine)
    engine.step_seconds, engine.sample_every = 0.05, 20
    wait_until(lambda: all(entry.state not in ("waiting", "running") for entry in engine.queue()))
    engine.forget([entry.id for entry in engine.queue()])
    engine.resume_queue()
    for tab in list(project._tabs):
        project.keep(tab, {})
    for name in served.page.presets.names():
        if name.startswith("user/"):
            served.page.presets.delete(name)
    while True:  # a change of the window before may still be on its way
        project.choose("starter_lora")
        begun = project.revision
        time.sleep(0.05)
        if project.revision == begun:
            break
