"""For the tests of the metadata tools: folders of images with captions, and a tool run on them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from core import tasks
from core.dataset.captions.history import History
from core.record.workspace import Workspace
from core.settings.check import build
from tests.tasks import surroundings

# A PNG of one pixel: these tools never decode images.
_FOLDER = tempfile.TemporaryDirectory()
WORKSPACE = Workspace(Path(_FOLDER.name) / "outputs")
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe0def46b8"
    "0000000049454e44ae426082"
)


def images(folder: Path, texts: dict[str, str | bytes | None], extension: str = ".caption") -> Path:
    """Images by name, each with a caption file in UTF-8 (bytes: as they are; None: without one)."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PIXEL)
        if text is not None:
            data = text if isinstance(text, bytes) else text.encode()
            path.with_suffix(extension).write_bytes(data)
    return folder


def use(tool: str, **asked: Any) -> tuple[dict[str, Any], list[str]]:
    """(facts, lines) of a tool, after its check before a start. Paths may be given as they are."""
    task = tasks.named(tool)
    plain = {name: [str(each) for each in value] if name == "folders" else value for name, value in asked.items()}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}
    job = build(task.job, {tool: plain})
    assert task.check_job(job, WORKSPACE)
    outcome = task.start(job, surroundings(WORKSPACE))
    json.dumps(outcome.facts, allow_nan=False)  # what the page and the journal take
    return dict(outcome.facts), list(outcome.lines)


def undo(id: str) -> None:
    """Take back what a tool wrote."""
    assert id and History(WORKSPACE.captions).undo(id).written


def files(folder: Path) -> dict[str, bytes]:
    """Every file below."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def codes(facts: dict[str, Any]) -> list[str]:
    return [problem["code"] for problem in facts["problems"]]
