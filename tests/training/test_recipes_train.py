"""One shipped recipe of each kind trains: on the starter, with its own values but for the size of images and the length."""

import math

import pytest

from core.record.workspace import PROJECT
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.presets.files import apply, read, to_values
from tests.training.conftest import Training

# What the starter's size asks for
SMALL = {"dataset": {"resolution": 64}, "schedule": {"max_train_steps": 2, "seed": 7}}
DIFFERENT = (
    "sd15_lora_c3lier_8gb",
    "sd15_textual_inversion_6gb",
    "sd15_controlnet_12gb",
    "sd21_lora_8gb",
    "sdxl_fine_tune_12gb",
    "sdxl_lllite_12gb",
    "sdxl_lora_prodigy_12gb",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENT)
def test_a_recipe_trains_two_steps_on_the_starter(name, workspace, make_job, images):
    word, control = {"token_string": "zkwq", "init_word": "fox"}, {"conditioning_data_dir": str(images)}
    own = make_job(embedding=word, dataset=control)
    recipe = read(PROJECT / "presets" / f"{name}.json")
    job = build(TrainJob, merge(to_values(apply(recipe, own)), SMALL))
    training = Training(job, workspace)
    assert training.start() == "done"
    losses = training.losses()
    assert list(losses) == [1, 2] and all(math.isfinite(loss) for loss in losses.values())
    assert training.file().stat().st_size > 0
