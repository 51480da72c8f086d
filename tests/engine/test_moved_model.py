"""The base model of a run is found again after it was moved: the file of its name with the hashes that the run's checkpoints state."""

import shutil
from pathlib import Path

import pytest
import torch

from core.assess.target import find_target
from core.engine import moved_model
from core.engine.engine import Engine
from core.engine.moved_model import HASHES
from core.formats.hashes import LEGACY_OF_SMALL, model_hashes
from core.networks.adapter_file import save_lora
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import dump
from core.settings.tools.assess import AssessSettings
from tests.models import tiny_file
from tests.refusals import refused

LORA = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(1, 4)}
LORA |= {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(4, 1)}


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")


@pytest.fixture
def model(workspace):
    path = workspace.models / "sd" / "base.safetensors"
    path.parent.mkdir(parents=True)
    return tiny_file("sd1", path)


@pytest.fixture
def run(workspace, model):
    """A run of this model with one checkpoint."""
    settings = dump(build(TrainJob, {"model": {"base_model": str(model)}}), task="train")
    folder = RunFolder.create(workspace.runs, "fox", settings)
    folder.checkpoints.mkdir()
    save_lora(folder.checkpoints / "fox.safetensors", LORA, dict(zip(HASHES, model_hashes(model), strict=True)))
    return folder


@pytest.fixture
def base_of(workspace):
    """(run) -> the base model of its settings."""
    engine = Engine(workspace, "cpu")
    yield lambda run: Path(engine.run_job(run.name).model.base_model)
    engine.close(wait_seconds=60)


def test_a_model_that_is_where_it_was_stays(workspace, model, run, base_of):
    shutil.copytree(model.parent, workspace.models / "copies")
    assert base_of(run) == model


@pytest.mark.parametrize("small", [False, True], ids=["old hash", "SHA-256 of a small file"])
def test_the_file_of_its_name_and_hash_is_used_wherever_it_is(workspace, model, run, base_of, monkeypatch, small):
    other = tiny_file("sd1", workspace.models / model.name, seed=1)
    if small:
        monkeypatch.setattr(moved_model, "legacy_hash", lambda path: LEGACY_OF_SMALL)
        hashes = LEGACY_OF_SMALL, model_hashes(model)[1]
        save_lora(run.checkpoints / "fox.safetensors", LORA, dict(zip(HASHES, hashes, strict=True)))
    moved = model.parent.rename(workspace.models / "new place") / model.name
    assert base_of(run) == moved
    moved.unlink()
    assert base_of(run) == model and other.is_file()


def test_without_a_stated_hash_no_other_file_is_used_and_the_missing_one_is_named(workspace, model, run, base_of):
    save_lora(run.checkpoints / "fox.safetensors", LORA)
    model.parent.rename(workspace.models / "new place")
    assert base_of(run) == model
    with refused("model.not-found"):
        find_target(AssessSettings(run=run.name), workspace)


def test_an_assessment_uses_the_moved_model(workspace, model, run):
    moved = model.parent.rename(workspace.models / "new place") / model.name
    with pytest.MonkeyPatch.context() as patch:
        used = []
        patch.setattr("core.assess.target.checkpoints_of", lambda facts, job, *rest: used.append(job.model.base_model))
        with refused("assess.unknown-measure"):
            find_target(AssessSettings(run=run.name, measures=["none"]), workspace)
    assert used == [str(moved)]
