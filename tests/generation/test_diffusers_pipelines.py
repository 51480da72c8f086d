"""Each sampler makes the image of diffusers' own pipeline: of SD 1, SD 2 and SDXL, from noise, from an image and within a
mask, with and without a LoRA on U-Net and text encoders, and asks the U-Net as often."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from core.diffusion.samplers import SAMPLERS
from core.families import family
from core.generation.plan.plan import plan_of
from core.generation.run import loaded_maker
from core.generation.sample.canvas import decode_pixels
from core.record.context import NO_REPORTS, Reports
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.generation.theirs import (
    SCHEDULERS,
    SPACED,
    SPACINGS,
    for_way,
    image_of,
    pipeline_of,
    scheduler_of,
    with_quantiles,
)
from tests.models import tiny_folder, tiny_inpainting_folder, tiny_lora
from tests.selection import slow_unless

SIZE, SEED, STEPS, STRENGTH, GUIDANCE = (96, 64), 7, 6, 0.6, 4.0
AS_MANY = 0.7  # the strength with which diffusers runs as many steps: A1111 runs one more than the share
PROMPT, NEGATIVE = "a fox, flat icon", "red"
LIMIT = 1e-3  # mean absolute, of images in 0..1
FAMILIES, WAYS, LORA = ("sd1", "sdxl"), ("text", "image", "inpaint"), ("plain", "lora")
# By default one of each kind of scheduler, and each of what it is combined with once.
KINDS = ["ddim", "euler_a", "dpmsolver", "heun", "deis", "dpmsolver++_3m", "dpmsingle", "lms", "pndm"]
KINDS += ["tcd", "unipc", "ddpm"]
BY_DEFAULT = {(sampler, *others) for sampler, others in zip(KINDS, product(FAMILIES, WAYS, LORA), strict=True)}
# Each sampler from noise and from an image, the families and LoRAs in turn; what a mask keeps is no sampler's.
EACH_WAY = {
    (sampler, FAMILIES[(n + m) % 2], way, LORA[n // 2 % 2])
    for n, sampler in enumerate(sorted(SCHEDULERS))
    for m, way in enumerate(("text", "image"))
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def files(place):
    """(an image of soft colors, a mask of one rectangle)"""
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]] / SIZE[0]
    values = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x)], axis=-1)
    Image.fromarray((values * 255).astype(np.uint8)).save(place / "picture.png")
    mask = Image.new("L", SIZE)
    mask.paste(255, (32, 16, 96, 48))
    mask.save(place / "mask.png")
    return place / "picture.png", place / "mask.png"


@pytest.fixture(scope="module")
def models(place):
    """(family, whether it reads masks) -> its folder"""
    return cache(
        lambda name, inpainting=False: (tiny_inpainting_folder if inpainting else tiny_folder)(
            name, place / f"{name} {inpainting}"
        )
    )


@pytest.fixture(scope="module")
def loras(models, place):
    """(family, whether it reads masks) -> a LoRA of that model"""
    return cache(
        lambda name, inpainting=False: tiny_lora(
            family(name).load(models(name, inpainting)), place / f"{name}_{inpainting}.safetensors"
        )
    )


@pytest.fixture(scope="module")
def pipelines(models, loras):
    made = {}

    def of(name, way, lora=False, inpainting=False):
        key = name, lora, inpainting
        if key not in made:
            file = loras(name, inpainting) if lora else None
            made[key] = pipeline_of(name, models(name, inpainting), file, "inpaint" if inpainting else "text")
        return for_way(made[key], name, way)

    return of


@contextmanager
def counted(unet):
    """The rows of each evaluation inside."""
    rows = []
    handle = unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        handle.remove()


@pytest.fixture
def compared(models, loras, pipelines, files, store, place, monkeypatch):
    """Makes an image here and there, asserts that the evaluations are as many, and returns both images."""

    def compare(name, way, sampler, lora=False, inpainting=False, spacing=(), asked=(), **groups):
        picture, mask = files
        file = loras(name, inpainting) if lora else None
        job = _job(models(name, inpainting), sampler, way, picture, mask, file, groups)
        pipeline = pipelines(name, way, lora, inpainting)
        pipeline.scheduler = scheduler_of(sampler, **dict(spacing))
        given = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE}
        given |= {"eta": 0.3} if sampler == "tcd" else {}  # its scheduler's own; that of pipelines is meant for DDIM
        if way != "text":
            given |= {"image": Image.open(picture), "strength": AS_MANY, "patch": monkeypatch}
        if way == "inpaint":
            given["mask_image"] = Image.open(mask)
        with counted(pipeline.unet) as theirs:
            draws = STEPS * SAMPLERS[sampler].draws
            other = image_of(pipeline, SIZE, SEED, STEPS, draws, **given | dict(asked))
        mine, ours = _made(job, Workspace(place / "out", PROJECT / "models"), store)
        assert ours == theirs and theirs, "an evaluation for each of the scheduler's, of all rows at once"
        return mine, other

    return compare


def _job(folder, sampler, way, picture, mask, lora, groups):
    generate = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "steps": STEPS, "sampler": sampler}
    generate |= {"guidance_scale": GUIDANCE, "width": SIZE[0], "height": SIZE[1]}
    generate |= {"loras": [{"file": str(lora)}]} if lora else {}
    begin = {"strength": STRENGTH, "mask_blur": 0, "image_path": None if way == "text" else str(picture)}
    begin |= {"mask_path": str(mask)} if way == "inpaint" else {}
    whole = {"model": {"base_model": str(folder)}, "generate": generate, "image_to_image": begin}
    whole |= {"memory": {"mixed_precision": "no"}}
    return build(GenerateJob, {key: whole.get(key, {}) | groups.get(key, {}) for key in {*whole, *groups}})


def _made(job, workspace, store, reports=NO_REPORTS):
    """(float32 [H, W, 3] in 0..1 before anything is pasted, rows of each evaluation)"""
    workspace.runs.mkdir(parents=True, exist_ok=True)
    plan = plan_of(job, workspace)
    with loaded_maker(plan, workspace, store=store, device="cpu", reports=reports) as (maker, _):
        with counted(maker.components.denoiser) as rows:
            latents = maker.make(plan.requests, decoded=False).latents[-1]
        with torch.no_grad():
            pixels = decode_pixels(maker.components.vae, latents, maker.kind.decode_latents)
    return pixels[0].permute(1, 2, 0).numpy(), rows


def distance(one, other):
    assert one.shape == other.shape == (SIZE[1], SIZE[0], 3)
    return float(np.abs(one - other).mean())


def test_each_sampler_has_a_counterpart():
    """diffusers' DPM++ 2M spreads its steps otherwise, its DPM2 has one level more, its SDEs ask for torchsde, and it has no CFG++:
    tests/diffusion/test_k_diffusion.py."""
    published = {"dpmsolver++", "dpmsolver++_2s_a", "dpm_2", "dpm_2_a"}
    published |= {name for name in SAMPLERS if "sde" in name or "cfg_pp" in name}
    assert set(SCHEDULERS) == set(SAMPLERS) - published


@pytest.mark.slow(
    only=(
        "ddpm-sdxl-inpaint-lora",
        "deis-sd1-inpaint-plain",
        "dpmsolver++_3m-sd1-inpaint-lora",
        "dpmsingle-sdxl-text-plain",
        "euler_a-sd1-text-lora",
        "heun-sd1-image-lora",
        "lms-sdxl-text-lora",
        "pndm-sdxl-image-plain",
        "tcd-sdxl-image-lora",
        "unipc-sdxl-inpaint-plain",
    )
)
@pytest.mark.parametrize(
    "case",
    slow_unless(BY_DEFAULT.__contains__, sorted(BY_DEFAULT | EACH_WAY)),
    ids="-".join,
)
def test_an_image_is_that_of_diffusers(compared, case):
    sampler, name, way, lora = case
    mine, other = compared(name, way, sampler, lora == "lora")
    assert distance(mine, other) < LIMIT and other.std() > 0.02


@pytest.mark.parametrize(
    "case",
    slow_unless({("euler", "karras")}.__contains__, zip(SPACED, itertools.cycle(SPACINGS))),
    ids="-".join,
)
def test_noise_levels_are_spaced_as_in_diffusers(compared, monkeypatch, case):
    sampler, spacing = case
    if spacing == "beta":
        with_quantiles(monkeypatch, sampler)
    mine, other = compared("sd1", "text", sampler, spacing=SPACINGS[spacing], generate={"schedule_type": spacing})
    assert distance(mine, other) < LIMIT


V, ZERO = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


CASES = {
    "sd1-text-dpmsolver-v": {},
    "sdxl-image-euler-v": {},
    "sd2-text-unipc-v": {},
    "sd2-inpaint-ddim-v": {},
    "sd2-image-euler_a-epsilon": {},
    "sd2-text-ddim-v": ZERO,
}


@pytest.mark.slow(only=("sd2-text-ddim-v",))
@pytest.mark.parametrize("case", slow_unless("sd2-text-ddim-v".__eq__, CASES))
def test_models_of_v_and_of_sd_2_too(compared, case):
    (name, way, sampler, prediction), spacing = case.split("-"), CASES[case]
    more = {"zero_terminal_snr": "on", "guidance_rescale": 0.7} if spacing else {}
    asked = {"guidance_rescale": 0.7} if spacing else {}
    spacing = spacing | (V if prediction == "v" else {})
    model = {"prediction": prediction}
    mine, other = compared(name, way, sampler, spacing=spacing, asked=asked, model=model, generate=more)
    assert distance(mine, other) < LIMIT


STRONG = ["sd1-ddim-image", "sd1-euler-inpaint", "sdxl-ddim-inpaint", "sdxl-heun-inpaint", "sd2-euler_a-inpaint-model"]
INPAINTING = ["sd1-ddim-lora", "sd2-heun-lora", "sd2-dpmsolver-plain", "sdxl-euler_a-plain"]


@pytest.mark.slow
@pytest.mark.parametrize("case", INPAINTING)
def test_inpainting_models_too(compared, case):
    name, sampler, lora = case.split("-")
    model = {"prediction": "epsilon"}
    mine, other = compared(name, "inpaint", sampler, lora == "lora", inpainting=True, model=model)
    assert distance(mine, other) < LIMIT


@pytest.mark.parametrize("case", slow_unless("sd1-euler-inpaint".__eq__, STRONG))
def test_a_strength_of_1_too(compared, case):
    name, sampler, way, *inpainting = case.split("-")
    more = {"inpainting": True, "model": {"prediction": "epsilon"}} if inpainting else {}
    full = {"strength": 1.0}
    mine, other = compared(name, way, sampler, asked=full, image_to_image=full, **more)
    assert distance(mine, other) < LIMIT


@pytest.mark.slow
def test_sdxls_sizes_too(compared):
    sizes = {"original_width": 200, "original_height": 300, "crop_left": 8, "crop_top": 16}
    sizes |= {"original_width_negative": 50, "original_height_negative": 60}
    asked = {"original_size": (300, 200), "crops_coords_top_left": (16, 8), "target_size": SIZE[::-1]}
    asked |= {"negative_original_size": (60, 50), "negative_crops_coords_top_left": (16, 8)}
    asked |= {"negative_target_size": SIZE[::-1]}
    mine, other = compared("sdxl", "text", "euler", asked=asked, sizes=sizes)
    plain, _ = compared("sdxl", "text", "euler")
    assert distance(mine, other) < LIMIT < distance(mine, plain)


EVALUATIONS = {"heun": lambda steps: 2 * steps - 1, "pndm": lambda steps: steps + 1}
EVALUATIONS |= {name: EVALUATIONS["heun"] for name, sampler in SAMPLERS.items() if sampler.order == 2}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["heun", "pndm", "euler", "dpm_2_a"])
def test_preview_progress_and_hires_fix_ask_for_no_evaluation_more(models, store, place, monkeypatch, sampler):
    """A step is one evaluation of both texts; those of second order take two but for the last, PLMS one more in all."""
    shown, reports = [], Reports()
    monkeypatch.setattr("core.generation.effects.preview.SECONDS", 0)
    monkeypatch.setattr(reports, "preview", shown.append)
    expected = EVALUATIONS.get(sampler, lambda steps: steps)
    hires = {"highres_fix_scale": 1.5, "highres_fix_steps": 4}
    output = {"preview_every_n_steps": 1}
    job = _job(models("sd1"), sampler, "text", None, None, None, {"hires": hires, "output": output})
    _, rows = _made(job, Workspace(place / "out", PROJECT / "models"), store, reports)
    second = expected(STEPS)
    assert rows == [2] * (expected(4) + second) and len(shown) == len(rows)
