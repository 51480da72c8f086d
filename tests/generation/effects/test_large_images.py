"""Deep Shrink and Gradual Latent, together and where nothing can be shrunk."""

import numpy as np
import pytest
from PIL import Image

from core.generation.run import run_generate
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob

SHRUNK, GROWING = {"ds_depth_1": 1, "ds_timesteps_1": 0}, {"gradual_latent_timesteps": 900}


@pytest.fixture
def made(tmp_path, store):
    def make(**groups):
        generate = {"prompt": "a fox", "seed": 5, "steps": 3, "width": 128, "height": 128, "sampler": "euler_a"}
        whole = {"model": {"base_model": "models/starter"}, "generate": generate, "memory": {"mixed_precision": "no"}}
        (file,) = run_generate(build(GenerateJob, whole | groups), Workspace(tmp_path, PROJECT / "models"), store=store)
        return np.asarray(Image.open(file)).astype(int)

    return make


def test_deep_shrink_acts_on_latents_that_grow(made):
    both = made(deep_shrink=SHRUNK, gradual_latent=GROWING)
    assert all((both != alone).any() for alone in (made(deep_shrink=SHRUNK), made(gradual_latent=GROWING)))


def test_hidden_states_too_small_for_the_ratio_stay(made):
    deepest = {"ds_depth_1": 3, "ds_ratio": 0.1, "ds_timesteps_1": 0}
    assert np.array_equal(made(deep_shrink=deepest), made())
