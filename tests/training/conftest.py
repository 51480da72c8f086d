"""Small real trainings on the shipped starter."""

import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from core.record.cancel import CancelToken
from core.record.commands import CommandReader
from core.record.context import JobContext
from core.record.journal import Journal, read_lines
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.presets.files import dump

STARTER = PROJECT / "models" / "starter"
SMALL = {"lllite": {"cond_emb_dim": 8, "hidden_dim": 16}}
METHODS = {"controlnet": {"method": {"kind": "controlnet"}}, "lllite": {"method": {"kind": "lllite"}, **SMALL}}


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Five starter images of three shapes with captions."""
    folder = tmp_path_factory.mktemp("dataset") / "glyphs"
    folder.mkdir()
    for path in sorted((STARTER / "images").glob("*.png"))[:5]:
        shutil.copy(path, folder)
        shutil.copy(path.with_suffix(".txt"), folder)
    return folder


@pytest.fixture(scope="session")
def controls(images, tmp_path_factory):
    """A control image for each image: its negative."""
    folder = tmp_path_factory.mktemp("control")
    for path in images.glob("*.png"):
        ImageOps.invert(Image.open(path).convert("RGB")).save(folder / path.name)
    return folder


@pytest.fixture
def groups(controls):
    """groups(method, ...): those of a training that follows control images."""

    def make(method, **more):
        return merge(METHODS[method] | {"dataset": {"conditioning_data_dir": str(controls)}}, more)

    return make


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """Latents and text states are encoded once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def workspace(tmp_path, shared_cache):
    workspace = Workspace(tmp_path / "outputs", PROJECT / "models", PROJECT / "presets")
    workspace.private.mkdir(parents=True)
    workspace.cache.symlink_to(shared_cache)
    return workspace


@pytest.fixture(scope="session")
def make_job(images):
    def make(**groups) -> TrainJob:
        values = {
            "model": {"base_model": str(STARTER)},
            "dataset": {"folder": str(images), "resolution": 64, "bucket_reso_steps": 16, "train_batch_size": 2},
            "network": {"rank": 4, "alpha": 4.0},
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"max_train_steps": 4, "seed": 7},
            "saving": {"output_name": "t", "save_every_minutes": None, "save_precision": "fp32"},
            "logging": {"log_with": "none"},
        }
        return build(TrainJob, merge(values, groups))

    return make


class Training:
    """One run driven by hand: `start` runs it to its end in this thread."""

    def __init__(self, job: TrainJob, workspace: Workspace, folder: Path | None = None):
        self.job, self.workspace = job, workspace
        self.folder = RunFolder(folder) if folder else RunFolder.create(workspace.runs, "t", dump(job))
        self.token = CancelToken()
        self.on_line = lambda line: None

    def start(self, stop_at: int | None = None) -> str:
        from core.training.start import run_training

        with Journal(self.folder.path) as journal:
            journal.listen(lambda line: self.on_line(line))
            context = JobContext(
                self.workspace, self.folder, journal, CommandReader(self.folder.path), "cpu", self.token
            )
            return run_training(self.job, context, stop_at)

    def again(self) -> "Training":
        """The same folder in a new life."""
        return Training(self.job, self.workspace, self.folder.path)

    def lines(self, kind: str) -> list[dict]:
        return [line for line in read_lines(self.folder.journal_file) if line["kind"] == kind]

    def losses(self) -> dict[int, float]:
        return {
            step: loss for line in self.lines("steps") for step, loss in zip(line["steps"], line["losses"], strict=True)
        }

    def file(self, name: str = "t.safetensors") -> Path:
        return self.folder.checkpoints / name


@pytest.fixture
def train(workspace, make_job):
    def make(**groups) -> Training:
        return Training(make_job(**groups), workspace)

    return make


@pytest.fixture
def at_first_step(train, monkeypatch):
    """at_first_step(look, memory={...}): what `look` says of the training that is ready for its first step, which it never takes."""
    from core.training.building import setup

    build = setup.build_training

    def see(look, **groups):
        built, found = [], []
        monkeypatch.setattr(setup, "build_training", lambda *args: built.append(build(*args)) or built[-1])
        monkeypatch.setattr(
            "core.training.loop.train.train", lambda run, tasks: found.append(look(built[-1])) or "done"
        )
        train(**groups).start()
        return found[0]

    return see
