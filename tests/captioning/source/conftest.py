"""A folder of images, and a captioner run on it as the command line would."""

import pytest
from PIL import Image

from core import tasks
from core.captioning.report import rows_of
from core.record.workspace import Workspace
from core.settings.check import build
from tests.tasks import surroundings


class Place:
    """A dataset in a temporary folder, and what a captioner made of it."""

    def __init__(self, path):
        self.top, self.folder = path, path / "set"
        self.folder.mkdir()

    def image(self, name, **options):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (90, 40, 20)).save(path, **options)
        return path

    def run(self, task, captioning=None, sources=None, **asked):
        """{image's name without extension: caption}."""
        found, context = tasks.named(task), surroundings(Workspace(self.top / "out"))
        dataset = {"sources": sources} if sources else {"folder": str(self.folder)}
        job = build(found.job, {"dataset": dataset, "captioning": captioning or {}, task: asked})
        found.check_job(job, context.workspace)
        self.outcome = found.start(job, context)
        return {path.stem: path.read_text("utf-8").strip() for path in self.folder.rglob("*.txt")}

    def codes(self, describe, task, **asked):
        """{name of each skipped image: the code of its problem}."""
        images = sorted(path for path in self.folder.rglob("*") if path.suffix not in (".txt", ".json"))
        job = build(tasks.named(task).job, {"dataset": {"folder": str(self.folder)}, task: asked})
        rows = rows_of(job) if task == "caption_names" else images
        said = describe(job, rows, getattr(job, task), surroundings(Workspace(self.top / "out")))
        return {path.name: each.problem.code for path, each in zip(images, said, strict=True) if each.problem}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)
