"""A loss that does not fit the model is heard from the model's file, before anything is loaded."""

import shutil

import pytest

from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.training.checks.before_start import objective_problems

FOR_V = {"scale_v_pred_loss_like_noise_pred": True}


@pytest.fixture
def wheres(tmp_path):
    """wheres(model, ...): what is said against, in a workspace of the shipped models."""

    def ask(model="models/starter", prediction="auto", **noise):
        workspace = Workspace(tmp_path / "outputs", PROJECT / "models", PROJECT / "presets")
        job = build(TrainJob, {"model": {"base_model": str(model), "prediction": prediction}, "noise": noise})
        return [problem.where for problem in objective_problems(job, workspace)]

    return ask


def test_the_starter_predicts_noise_and_is_not_weighed_as_a_v_model(wheres):
    assert wheres(**FOR_V) == ["noise.scale_v_pred_loss_like_noise_pred"]
    assert wheres(v_pred_like_loss=1) == []


def test_a_folder_that_says_v_is_asked_as_a_v_model(wheres, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(PROJECT / "models" / "starter", folder, ignore=shutil.ignore_patterns("*.safetensors", "images"))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text("utf-8").replace('"epsilon"', '"v_prediction"'), "utf-8")
    assert wheres(folder, **FOR_V) == []
    assert wheres(folder, v_pred_like_loss=1) == ["noise.v_pred_like_loss"]


def test_what_is_set_was_asked_by_the_rules_and_a_missing_model_by_others(wheres):
    assert wheres(prediction="v", v_pred_like_loss=1) == []
    assert wheres("models/nothing_here", **FOR_V) == []
