"""Inpainting models, whose U-Net reads the mask and what it keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from core.families import family
from core.families.locate import GENERATED, family_of
from core.generation.effects import inpaint as inpainting
from core.generation.plan.plan import check_task, plan_of
from core.generation.run import run_generate
from core.machine_check.random_model import random_state
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from tests.generation.test_image_to_image import job_of
from tests.models import inpainting_configs, single_file, tiny_inpainting_folder, tiny_layout


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def model(request, tmp_path_factory):
    return request.param, tiny_inpainting_folder(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    space = Workspace(tmp_path_factory.mktemp("out"), PROJECT / "models")
    space.runs.mkdir(parents=True)
    return space


@pytest.mark.slow(but=("sd1",))
@torch.no_grad()
def test_without_a_mask_everything_is_masked_and_gray(model, workspace, store, monkeypatch):
    name, folder = model
    seen = []
    reading = inpainting.with_mask_input

    def watched(own, *given):
        def predict(noisy, timesteps, told):
            seen.append(noisy)
            return own.predict(noisy, timesteps, told)

        return reading(replace(own, predict=predict), *given)

    monkeypatch.setattr("core.generation.making.with_mask_input", watched)
    job = job_of(folder, None, generate={"steps": 2, "width": 64, "height": 64, "count": 2, "batch_size": 2})
    assert len(run_generate(job, workspace, store=store)) == 2
    assert seen[0].shape == (4, 9, 8, 8) and bool((seen[0][:, 4] == 1).all())
    kind, components = family(name), family(name).load(folder)
    gray = kind.model_latents(
        components.vae.config, kind.encode_image_latents(components.vae, torch.zeros(1, 3, 64, 64))[0]
    )
    assert float((seen[0][:1, 5:] - gray).abs().mean()) < 0.5 * float(seen[0][:1, :4].abs().mean())
    torch.testing.assert_close(seen[0][:2, 5:], seen[0][2:, 5:])


@pytest.mark.slow(only=("sd2",))
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_single_file_says_its_channels_by_its_shapes(tmp_path, name):
    states = {part: random_state(part, config, torch.float32, 0) for part, config in inpainting_configs(name).items()}
    save_file(single_file(states, name), tmp_path / "inpainting.safetensors", metadata={"format": "pt"})
    kind = replace(family(name), layout=tiny_layout(name, tmp_path / "configs"))
    loaded = kind.load(tmp_path / "inpainting.safetensors")
    assert loaded.denoiser.conv_in.weight.shape[1] == 9 and inpainting.is_inpainting_model(loaded)
    assert loaded.prediction == "epsilon", "there are none of v"


@pytest.mark.slow(but=("sd1",))
def test_they_are_generated_with_and_not_trained(model, workspace):
    name, folder = model
    assert family_of(folder, "auto", GENERATED) == name
    assert plan_of(job_of(folder, None), workspace).sources.family == name
    assert "1 image" in check_task(job_of(folder, None), workspace)
    with pytest.raises(ProblemsError) as raised:
        family_of(folder)
    assert raised.value.problems[0].code == "model.unsupported-variant"
