"""A ControlNet in generation that no file of the product knows: a hook and a file, nothing more."""

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file

from core.cli.main import subcommand_help
from core.generation.images.metadata import read_image_metadata
from core.generation.model.store import make_store
from core.generation.plan.plan import plan_of
from core.generation.run import run_generate
from core.generation.sample.noise import ImageNoise
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.models import tiny_folder
from tests.refusals import refused

STEPS, SCALE, STRENGTH = 3, 4.0, 0.8


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(model, ControlNet of diffusers, the same as one file, control image)."""
    place = tmp_path_factory.mktemp("controlled")
    model = tiny_folder("sd1", place / "tiny")
    net = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(model / "unet"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in net.named_parameters():  # those that begin at 0
            if name.startswith(("controlnet_", "controlnet_cond_embedding.conv_out")):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    save_file(net.state_dict(), place / "control.safetensors")
    y, x = np.mgrid[0:128, 0:128] / 127
    Image.fromarray((np.stack([x, y, x * y], -1) * 255).astype(np.uint8)).save(place / "shown.png")
    return model, net, place / "control.safetensors", place / "shown.png"


def job_of(files, prompt="a fox", image=None, **more):
    model, _, weights, _ = files
    generate = {"prompt": prompt, "negative_prompt": "red", "seed": 5, "steps": STEPS, "guidance_scale": SCALE}
    generate |= {"width": 128, "height": 128} | more.pop("generate", {})
    controlled = {"weights": str(weights), "image": image and str(image), "strength": STRENGTH}
    groups = {"model": {"base_model": str(model)}, "generate": generate, "controlled": controlled}
    return build(GenerateJob, groups | {"memory": {"mixed_precision": "no"}} | more)


def shown(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255


def test_its_settings_are_those_of_the_declaration(files):
    from tabs.generate import form

    own = {entry.path: entry for entry in form.ENTRIES.values() if entry.group == "controlled"}
    assert set(own) == {f"controlled.{name}" for name in ("weights", "image", "strength")}
    assert own["controlled.weights"].names
    assert "--controlled.image" in subcommand_help("generate")


@pytest.mark.parametrize("inline", [False, True], ids=["setting", "cn"])
def test_it_makes_the_image_of_diffusers_pipeline(inline, files, workspace):
    model, net, _, image = files
    job = job_of(files, f"a fox --c {image}") if inline else job_of(files, image=image)
    (ours,) = run_generate(job, workspace, store=make_store())
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        model, controlnet=net, safety_checker=None, local_files_only=True
    )
    pipeline.scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "a fox",
        image=Image.open(image),
        negative_prompt="red",
        latents=ImageNoise(5, (4, 16, 16), STEPS).start[None],
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        controlnet_conditioning_scale=STRENGTH,
        output_type="np",
    ).images[0]
    (plain,) = run_generate(job_of(files, controlled={}), workspace, store=make_store())
    assert np.abs(shown(ours) - theirs).mean() < 2e-3, "PNG rounds to 1/255"
    assert np.abs(shown(plain) - theirs).mean() > 1e-2
    assert read_image_metadata(ours).job.controlled.image == "shown.png"


def test_it_acts_in_both_stages_of_hires_fix_and_in_an_image_to_image(files, workspace):
    _, _, _, image = files
    for more in (
        {"hires": {"highres_fix_scale": 0.5, "highres_fix_steps": 2}},
        {"image_to_image": {"image_path": str(image), "strength": 0.7}},
    ):
        one, other = (
            run_generate(job, workspace, store=make_store())[0]
            for job in (job_of(files, image=image, **more), job_of(files, controlled={}, **more))
        )
        assert np.abs(shown(one) - shown(other)).mean() > 1e-2


def test_what_is_missing_is_named_before_anything_loads(files, workspace, tmp_path):
    model, _, _, image = files
    with refused("controlled.no-image"):
        plan_of(job_of(files), workspace)
    with refused("controlled.other-file"):
        own = {"weights": str(model / "vae" / "diffusion_pytorch_model.safetensors"), "image": str(image)}
        plan_of(job_of(files, controlled=own), workspace)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with refused("image.unreadable"):
        plan_of(job_of(files, image=tmp_path / "broken.png"), workspace)
