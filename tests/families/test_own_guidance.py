"""A model's own guidance: from its folder, else the usual one."""

import json

import pytest

from core.families.trained_size import STATED, USUAL_GUIDANCE, default_guidance
from core.generation.plan.files import with_model_guidance
from core.record.workspace import PROJECT
from core.settings.check import build
from core.settings.job import GenerateJob, TrainJob
from core.training.loop.samples import prompts_of

STARTER = PROJECT / "models" / "starter"


def test_the_starter_states_4_and_other_models_have_the_usual_one(tmp_path):
    assert default_guidance(STARTER) == 4.0
    assert default_guidance(tmp_path) == default_guidance(tmp_path / "model.safetensors") == USUAL_GUIDANCE == 7.5


@pytest.mark.parametrize("value", [True, "4", -1, 99, None, [4]])
def test_what_is_no_guidance_counts_for_nothing(tmp_path, value):
    (tmp_path / STATED).write_text(json.dumps({"guidance_scale": value}))
    assert default_guidance(tmp_path) == USUAL_GUIDANCE


@pytest.mark.parametrize(("asked", "used"), [(None, 4.0), (6.5, 6.5), (0.0, 0.0)])
def test_a_guidance_that_is_set_holds_and_an_empty_one_is_the_models(asked, used):
    job = build(GenerateJob, {"generate": {"guidance_scale": asked}})
    assert with_model_guidance(job, STARTER).generate.guidance_scale == used
    train = build(TrainJob, {"samples": {"guidance_scale": asked, "sample_prompts": ["a fox", "a fox --l 3"]}})
    assert [each.guidance for each in prompts_of(train, STARTER)] == [used, 3.0]
