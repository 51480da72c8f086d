"""What the tests of Dataset, Captions, Generate and Runs share: a page without a server, and sets of images."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from gradio.context import LocalContext
from PIL import Image

from core.engine.engine import Engine
from core.engine.light import LightLane
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.presets.files import PresetStore
from tabs.context import Page
from tabs.form.project import Project
from tabs.roots import Roots
from tabs.server.links import Links

T = TypeVar("T")
HOSTILE = "<img src=x onerror=alert(1)> \"two\" 'one' & more"


def finished(work: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns. In a thread of its own: a browser that is open keeps this one's loop running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def make_page(folder: Path, engine: Any = None, *, shared: bool = False, real: bool = False) -> Page:
    """A page over an empty outputs folder; its engine has the light lane and no jobs unless one is given, or the real one is
    wanted."""
    workspace = Workspace(outputs=folder / "outputs", models=PROJECT / "models", presets=folder / "presets")
    lane = LightLane()
    idle = {"device": "CPU", "memory_used": 0, "memory_total": 0, "job": None}
    if real:
        workspace.outputs.mkdir()
        engine = Engine(workspace, device="cpu", holder="a test")
    engine = engine or SimpleNamespace(
        light=lane.submit,
        queue=list,
        waits=dict,
        status=lambda: idle,
        notice="",
        known_device="cpu",
        end_listeners=[],
        people=frozenset(),
        owner="",
        paused_by=None,
        why_paused="",
        interrupted=(),
    )
    presets, roots = PresetStore(workspace.presets), Roots(workspace, local=not shared)
    project = Project(workspace.private / "project.json", presets)
    return Page(engine, workspace, project, presets, roots, Links(roots, workspace.thumbs), shared)


def image(path: Path, size: tuple[int, int] = (64, 64), color: str = "teal", caption: str | None = None) -> Path:
    """An image, with a caption next to it where one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def wait_until(test: Any, seconds: float = 60.0) -> None:
    """Until `test()` is true; the assertion names what did not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if test():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about in time")


def said(desk: Any) -> str:
    """What the message panel tells those who asked `desk`, as one text."""
    return str(desk.page.browsers.of(None).message or "")


def heard(listener: Callable[..., Any], *args: Any, session: str = "one", request: Any = None) -> Any:
    """What a listener returns for a request of this session, or for `request`."""
    token = LocalContext.request.set(request or SimpleNamespace(session_hash=session))
    try:
        return listener(*args)
    finally:
        LocalContext.request.reset(token)


def answered(answer: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    """What the route of a handler answers (`Links.answer`): the problems of a request that it refuses."""
    try:
        return answer(request)
    except ProblemsError as error:
        return {"problems": [problem.to_dict() for problem in error.problems]}


def event(act: str, arg: str = "", value: str = "") -> Any:
    """What a board reports."""
    return SimpleNamespace(_data={"act": act, "arg": arg, "value": value})
