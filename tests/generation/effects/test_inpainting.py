"""Inpainting: each setting by what it does, against diffusers' helpers and formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageFilter, ImageOps

from core.generation import making
from core.generation.effects.inpaint import box_around, canvas_of, filled
from core.generation.images.metadata import read_image_metadata
from core.generation.plan.plan import plan_of
from core.generation.run import run_generate
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from tests.generation.test_image_to_image import STARTER, job_of, shown

SIZE = 160, 128
AREA = 96, 40, 128, 72  # left, top, right, bottom


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    space = Workspace(tmp_path_factory.mktemp("out"), PROJECT / "models")
    space.runs.mkdir(parents=True)
    return space


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(an image of soft colors and fine noise, a mask of one rectangle)"""
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]] / 160
    values = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x)], axis=-1) * 200
    values += np.random.default_rng(0).integers(0, 50, values.shape)
    Image.fromarray(values.astype(np.uint8)).save(folder / "picture.png")
    mask = Image.new("L", SIZE)
    mask.paste(255, AREA)
    mask.save(folder / "mask.png")
    return folder / "picture.png", folder / "mask.png"


def inpainting(files, **given):
    return job_of(STARTER, files[0], mask=files[1], generate={"steps": 4}, image_to_image=given)


def test_what_the_blurred_mask_does_not_reach_keeps_every_pixel(files, workspace, store):
    (file,) = run_generate(inpainting(files, mask_blur=2), workspace, store=store)
    changed = (shown(file) != shown(files[0])).any(axis=-1)
    assert not (changed & ~reached(files[1], 8)).any() and changed[50:60, 106:118].all()
    assert "Mask blur: 2" in Image.open(file).text["parameters"]
    assert read_image_metadata(file).job.image_to_image.mask_blur == 2


def reached(mask, pixels):
    """What is at most so far from the rectangle."""
    left, top, right, bottom = AREA
    found = np.zeros(SIZE[::-1], bool)
    found[top - pixels : bottom + pixels, left - pixels : right + pixels] = True
    return found


def test_blur_softens_the_mask_and_invert_turns_it(files):
    sharp = np.asarray(canvas_of(inpainting(files, mask_blur=0), SIZE).mask, dtype=float)
    soft = np.asarray(canvas_of(inpainting(files, mask_blur=6), SIZE).mask, dtype=float)
    usual = np.asarray(canvas_of(inpainting(files), SIZE).mask, dtype=float)
    assert set(np.unique(sharp)) == {0, 255} and 64 < soft[40, 110] < 192
    assert 0 < usual[34, 110] < soft[34, 110]
    inverted = np.asarray(canvas_of(inpainting(files, mask_blur=0, mask_invert=True), SIZE).mask, dtype=float)
    np.testing.assert_array_equal(inverted, 255 - sharp)


def test_only_masked_changes_nothing_outside_its_box_and_makes_it_at_the_size_that_is_set(files, workspace, store):
    job = inpainting(files, inpaint_area="masked", mask_padding=8, mask_blur=0)
    (request,) = plan_of(job, workspace).requests
    assert (request.job.generate.width, request.job.generate.height) == (128, 128)
    canvas = canvas_of(request.job, (128, 128))
    assert canvas.box == (88, 32, 136, 80) and canvas.visible.size == (128, 128)
    (file,) = run_generate(job, workspace, store=store)
    changed = (shown(file) != shown(files[0])).any(axis=-1)
    area = reached(files[1], 0)
    assert shown(file).shape == shown(files[0]).shape and not changed[~area].any() and changed[area].mean() > 0.9
    wider = canvas_of(inpainting(files, inpaint_area="masked", mask_padding=20, mask_blur=0), (128, 128))
    assert wider.box == (76, 20, 148, 92)


@pytest.mark.parametrize("size", [(512, 512), (768, 512), (512, 1024)])
@pytest.mark.parametrize("area", [(10, 20, 60, 40), (200, 100, 300, 290), (0, 0, 400, 30), (380, 200, 400, 300)])
def test_the_box_around_a_mask_is_that_of_diffusers(size, area):
    mask = Image.new("L", (400, 300))
    mask.paste(255, area)
    theirs = VaeImageProcessor.get_crop_region(mask.convert("RGB"), *size, pad=16)
    assert np.abs(np.subtract(box_around(area, mask.size, 16, size), theirs)).max() <= 1, "they round once more"


def test_fill_puts_the_colors_around_a_mask_into_it():
    image = Image.new("RGB", (96, 96), (200, 40, 40))
    image.paste((0, 0, 255), (32, 32, 64, 64))
    mask = Image.new("L", (96, 96))
    mask.paste(255, (32, 32, 64, 64))
    np.testing.assert_allclose(np.asarray(filled(image, mask))[48, 48], (200, 40, 40), atol=3)
    np.testing.assert_array_equal(np.asarray(filled(image, mask))[8, 8], (200, 40, 40))


def test_fill_is_that_of_a1111():
    """masking.fill: ever sharper blurs of what is not masked, over one another."""
    draws = np.random.default_rng(0)
    image = Image.fromarray(draws.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((96, 96))
    mask = Image.new("L", (96, 96))
    mask.paste(255, (24, 24, 80, 72))
    around = Image.new("RGBa", image.size)
    around.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    wanted = Image.new("RGBA", image.size)
    for radius in (256, 64, 16, 16, 4, 4, 4, 4, 2, 2, 0):
        wanted.alpha_composite(around.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    np.testing.assert_array_equal(np.asarray(filled(image, mask)), np.asarray(wanted.convert("RGB")))


def test_the_masked_content_is_what_denoising_begins_with(files, workspace, store, monkeypatch):
    began = {}

    def seen(model, states, stage, noises, sampling, *, latents=None, **more):
        began[content] = latents.clone(), noises[0].image_noise()[0]
        return latents

    monkeypatch.setattr(making, "denoise", seen)
    for content in ("original", "fill", "latent_noise", "latent_nothing"):
        run_generate(inpainting(files, masked_content=content, mask_blur=0), workspace, store=store)
    inside = np.s_[..., 6:8, 13:15]
    original, noise = began["original"]
    assert float(began["latent_nothing"][0][inside].abs().max()) == 0
    torch.testing.assert_close(began["latent_noise"][0][inside], noise[None][inside])
    assert float((began["fill"][0] - original)[inside].abs().mean()) > 0.01
    for content in ("latent_noise", "latent_nothing"):
        torch.testing.assert_close(began[content][0][..., :4, :], original[..., :4, :])


@pytest.mark.slow
def test_hires_fix_keeps_what_is_not_masked(files, workspace, store):
    job = inpainting(files, mask_blur=0)
    hires = job.hires.model_copy(update={"highres_fix_scale": 1.5, "highres_fix_steps": 2})
    (file,) = run_generate(job.model_copy(update={"hires": hires}), workspace, store=store)
    there = np.asarray(Image.open(files[0]).resize((240, 192), Image.Resampling.LANCZOS), np.float32) / 255
    np.testing.assert_array_equal(shown(file)[:40], there[:40])
    assert (shown(file)[75:90, 160:180] != there[75:90, 160:180]).any()


def problems(job, workspace):
    try:
        return [problem.code for problem in plan_of(job, workspace).notes]
    except ProblemsError as error:
        return [problem.code for problem in error.problems]


def test_masks_that_cannot_be_meant_are_refused_before_a_model_is_loaded(files, workspace, tmp_path):
    picture, mask = files
    Image.new("L", SIZE).save(tmp_path / "black.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n no")
    for folder, number in (("images", 3), ("masks", 2)):
        (tmp_path / folder).mkdir()
        for each in range(number):
            Image.new("RGB", SIZE, "white").save(tmp_path / folder / f"{each}.png")
    assert problems(inpainting((picture, tmp_path / "black.png")), workspace) == ["generate.mask-empty"]
    dot = Image.new("L", SIZE)
    dot.paste(255, (9, 9, 11, 11))
    dot.save(tmp_path / "dot.png")
    assert not problems(inpainting((picture, tmp_path / "dot.png")), workspace)
    assert problems(inpainting((picture, tmp_path / "dot.png"), mask_blur=64), workspace) == ["generate.mask-blurred"]
    assert problems(inpainting((picture, tmp_path / "black.png"), mask_invert=True), workspace) == []
    assert problems(inpainting((picture, tmp_path / "small.png")), workspace) == ["generate.mask-size"]
    assert problems(inpainting((picture, tmp_path / "broken.png")), workspace) == ["image.unreadable"]
    assert problems(inpainting((tmp_path / "broken.png", mask)), workspace) == ["image.unreadable"]
    assert problems(inpainting((tmp_path / "images", tmp_path / "masks")), workspace) == ["generate.mask-count"]
    (tmp_path / "images" / "._0.png").write_bytes(b"of a Mac")
    several = inpainting((tmp_path / "images", mask))
    assert problems(several, workspace) == ["generate.unused-images"]
    assert problems(several.with_settings(generate={"count": 3}), workspace) == []


def test_with_the_compatibility_of_sd_scripts_the_result_is_not_pasted_and_the_mask_not_blurred(files):
    job = inpainting(files)
    kohya = job.with_settings(model={"compatibility": "sd-scripts-0.10"})
    canvas = canvas_of(kohya, SIZE)
    assert canvas.overlay is None and set(np.unique(np.asarray(canvas.mask))) == {0, 255}
    made = Image.new("RGB", SIZE, "red")
    assert canvas.pasted(made) is made and canvas_of(job, SIZE).pasted(made) is not made
