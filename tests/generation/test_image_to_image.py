"""Image to image and hires fix: sizes, folders of images, and files that make their image again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from core.generation.images.metadata import read_image_metadata
from core.generation.plan.plan import plan_of
from core.generation.run import run_generate
from core.generation.sample.loop import Sampling, Stage, _first_evaluations
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob

SD_SCRIPTS = [
    "ddim",
    "pndm",
    "lms",
    "euler",
    "euler_a",
    "heun",
    "dpm_2",
    "dpm_2_a",
    "dpmsolver",
    "dpmsolver++",
    "dpmsingle",
]
STARTER = PROJECT / "models" / "starter"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    space = Workspace(tmp_path_factory.mktemp("out"), PROJECT / "models")
    space.runs.mkdir(parents=True)
    return space


def job_of(model, picture, *, sampler="ddim", mask=None, **groups):
    generate = {"prompt": "a fox, flat icon", "negative_prompt": "red", "seed": 7, "steps": 8}
    generate |= {"sampler": sampler, "guidance_scale": 4.0} | groups.pop("generate", {})
    given = {"image_path": picture and str(picture), "mask_path": mask and str(mask), "strength": 0.6}
    given |= groups.pop("image_to_image", {})
    memory = {"mixed_precision": "no"}
    groups = {
        "model": {"base_model": str(model)},
        "generate": generate,
        "image_to_image": given,
        "memory": memory,
    } | groups
    return build(GenerateJob, groups)


def shown(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255


@pytest.mark.slow
def test_hires_fix_makes_the_size_that_is_asked_for_and_its_file_makes_it_again(workspace, store):
    job = job_of(
        STARTER,
        None,
        generate={"width": 192, "height": 192},
        hires={"highres_fix_scale": 0.5, "highres_fix_steps": 4, "highres_fix_save_1st": True},
    )
    before = set(workspace.images.rglob("*.png"))
    (file,) = run_generate(job, workspace, store=store)
    new = set(workspace.images.rglob("*.png")) - before
    assert sorted(shown(path).shape for path in new) == [(96, 96, 3), (192, 192, 3)]
    record = read_image_metadata(file)
    (again,) = run_generate(record.job, workspace, store=store)
    np.testing.assert_array_equal(shown(again), shown(file))
    before = set(workspace.images.rglob("*.png"))
    both = {"highres_fix_scale": 2, "highres_fix_upscaler": "latent", "highres_fix_save_1st": True}
    run_generate(job_of(STARTER, None, generate={"width": 64, "height": 64}, hires=both), workspace, store=store)
    new = set(workspace.images.rglob("*.png")) - before
    assert sorted(shown(path).shape for path in new) == [(64, 64, 3), (128, 128, 3)]
    larger = job_of(STARTER, None, generate={"width": 96, "height": 96}, hires={"highres_fix_scale": 2})
    assert shown(run_generate(larger, workspace, store=store)[0]).shape == (192, 192, 3)


def test_several_initial_images_are_used_in_turn_and_each_seed_is_its_own(workspace, store, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number, color in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (70, 96), color).save(folder / f"{number}.png")
    job = job_of(STARTER, folder, generate={"count": 4, "steps": 4}, image_to_image={"strength": 0.25})
    plan = plan_of(job, workspace)
    assert [each.job.image_to_image.image_path[-5:] for each in plan.requests] == ["0.png", "1.png", "2.png", "0.png"]
    assert {(each.job.generate.width, each.job.generate.height) for each in plan.requests} == {(64, 96)}
    files = run_generate(job, workspace, store=store)
    assert [int(shown(file).mean(axis=(0, 1)).argmax()) for file in files] == [0, 1, 2, 0]


@pytest.mark.parametrize("sampler", SD_SCRIPTS)
def test_as_in_sd_scripts_an_image_is_noised_for_the_step_before_the_first_that_is_run(sampler):
    """With `steps_offset` 1, which its generator gives all samplers but DPM-Solver++ (2S)."""
    sampling = Sampling(sampler=sampler, program="generator", one_level_up=True)
    way, stage = sampling.scheduler(), Stage((64, 64), 10, 5, "image")
    way.set_timesteps(stage.steps)
    offset = 0 if sampler == "dpmsingle" else 1
    assert _first_evaluations(way, stage, sampling) == (5, -5 - offset)
    assert _first_evaluations(way, stage, replace(sampling, one_level_up=False)) == (5, -5)
