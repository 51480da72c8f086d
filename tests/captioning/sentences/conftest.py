"""A folder of images, the models that are made once, and a run from settings to captions on disk."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from core import tasks
from core.record.workspace import Workspace
from core.settings.check import build
from tests.captioning.sentences import tiny
from tests.tasks import surroundings

COLORS = {"a": (200, 20, 20), "b": (10, 200, 30), "c": (20, 30, 210), "d": (250, 250, 240)}
TASKS = {"blip": "blip", "blip2": "blip", "git": "git_caption", "florence": "florence"}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """models("llava") -> a folder with that model, made when it is asked for first; it must not be changed."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def model(kind):
        if kind not in made:
            made[kind] = tiny.save(kind, root / kind)
        return made[kind]

    return model


@pytest.fixture
def own_model(models, tmp_path):
    """A copy that a test may damage."""

    def model(kind):
        return shutil.copytree(models(kind), tmp_path / f"own {kind}")

    return model


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    for number, (name, color) in enumerate(COLORS.items()):
        image = Image.new("RGB", (40 + 8 * number, 64), color)
        image.paste((0, 0, 0), (4 * number, 8, 20 + 4 * number, 30))
        image.save(place / f"{name}.png")
    return place


class Run:
    """What a captioner did: its outcome, the captions on disk, and what it said."""

    def __init__(self, outcome, folder, context):
        self.outcome, self.folder = outcome, folder
        self.texts = {path.stem: path.read_text("utf-8").strip() for path in sorted(folder.glob("*.txt"))}
        self.said = [event for event in context.journal.events if hasattr(event, "level")]


@pytest.fixture
def caption(folder, models):
    """caption("llava", max_new_tokens=5) -> Run, of all images anew."""

    def run(kind, model=None, captions=None, check=False, **settings):
        name = TASKS.get(kind, "vlm")
        task = tasks.named(name)
        values = {
            "dataset": {"folder": str(folder)},
            "captioning": {"existing": "replace"},
            "captions": captions or {},
            name: {"model": str(model or models(kind)), "precision": "fp32"} | settings,
        }
        workspace = Workspace(folder.parent / "outputs", models=folder.parent / "models")
        job = build(task.job, values)
        if check:
            return task.check_job(job, workspace)
        context = surroundings(workspace)
        return Run(task.start(job, context), folder, context)

    return run
