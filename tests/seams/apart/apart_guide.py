"""The examples of docs/extending_images.md work as they stand."""

import sys

import pytest
import torch

from core.families import family
from core.generation.making import ImageMaker
from core.generation.plan.checks import problems_of
from core.generation.plan.plan import plan_of
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.docs.guide import DOCS, blocks_of
from tests.prompts import encode_prompts
from tests.sampling import sampled
from tests.training.conftest import STARTER

BLOCKS = {block.file: block for block in blocks_of(DOCS / "extending_images.md") if block.kind == "python"}
HOW = {"seeds": [3], "width": 64, "height": 64, "steps": 4, "guidance_scale": 5.0}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    place = tmp_path_factory.mktemp("guide")
    sys.path.insert(0, str(place))
    for file, block in BLOCKS.items():
        (place / file).write_text("\n".join(block.lines) + "\n", "utf-8")
        __import__(file.removesuffix(".py"))
    assert sorted(BLOCKS) == ["brighter.py", "fading.py", "half_way.py"]


@pytest.fixture(scope="module")
def model():
    return family("sd1").load(STARTER)


def job_of(**groups):
    generate = {"prompt": "a fox", "seed": 3, "steps": 4, "width": 64, "height": 64} | groups.pop("generate", {})
    return build(GenerateJob, {"model": {"base_model": str(STARTER)}, "generate": generate} | groups)


def latents_of(job, workspace, model):
    from core.generation.model.embeddings import embeddings_attached
    from core.generation.model.loras import loras_attached

    (request,) = plan_of(job, workspace).requests
    with loras_attached(model, [], lambda name: name, 0) as loras, embeddings_attached(model, []) as words:
        return ImageMaker(model, words, loras).make([request], decoded=False).latents[-1]


def test_the_sampler_begins_with_noise_or_an_image(model, workspace, tmp_path):
    from PIL import Image

    states = encode_prompts(model, "a fox", "red")
    plain, half = (sampled(model, states, sampler=name, **HOW) for name in ("ddim", "half_way"))
    assert not torch.allclose(plain, half, atol=1e-3) and half.isfinite().all()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    first = {"image_path": str(tmp_path / "red.png"), "strength": 0.6}
    made = latents_of(job_of(generate={"sampler": "half_way"}, image_to_image=first), workspace, model)
    assert made.shape == (1, 4, 8, 8) and made.isfinite().all()


def test_the_guidance_is_its_formula(model):
    from fading import FadingSettings

    states = encode_prompts(model, "a fox", "red")
    same = sampled(model, states, guidance_kind="fading", guidance_settings=FadingSettings(fading_end=5.0), **HOW)
    torch.testing.assert_close(same, sampled(model, states, **HOW), rtol=1e-4, atol=1e-4)
    less = sampled(model, states, guidance_kind="fading", guidance_settings=FadingSettings(fading_end=1.0), **HOW)
    assert not torch.allclose(less, same, atol=1e-2)
    assert not list(problems_of(job_of(generate={"guidance": "fading"}, fading={"fading_end": 2.0})))


def test_the_hook_acts_where_it_is_asked_for(model, workspace):
    plain, none, bright = (
        latents_of(job_of(**groups), workspace, model)
        for groups in ({}, {"brighter": {"brightness": 0.0}}, {"brighter": {"brightness": 1.0}})
    )
    assert torch.equal(plain, none) and bright[:, 0].mean() > plain[:, 0].mean() + 0.1
