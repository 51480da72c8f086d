"""The preview of an image that is being made, and its progress."""

from __future__ import annotations

from io import BytesIO

import pytest
import torch
from PIL import Image

from core.diffusion.samplers import SAMPLERS, add_noise, clean_estimate, make_sampler
from core.diffusion.schedule import sd_alpha_bar
from core.families import family
from core.generation.effects import preview
from core.generation.effects.preview import PUBLISHED, Preview, approximated, fitted_factors, rgb_factors, tiled
from core.generation.run import run_generate
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import Journal
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.job import GenerateJob
from tests.reports import Heard


def made(tmp_path, store, heard=None, every=1, **groups):
    asked = {"prompt": "a fox", "steps": 4, "width": 64, "height": 96, "seed": 1, "guidance_scale": 4.0, "count": 2}
    job = GenerateJob.model_validate(
        {"generate": asked | groups.pop("generate", {}), "output": {"preview_every_n_steps": every}, **groups}
    )
    heard = heard or Heard()
    files = run_generate(job, Workspace(tmp_path, PROJECT / "models"), store=store, reports=heard)
    return heard, files


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("lcm", "tcd")])
def test_the_estimate_of_clean_latents_is_exact_for_an_exact_model(name, prediction):
    """x0 = (x - sqrt(1 - a) noise) / sqrt(a), whatever the scale a sampler keeps its latents at."""
    sampler = make_sampler(name, prediction)
    sampler.set_timesteps(10)
    clean, noise = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0)).unbind()
    timestep = sampler.timesteps[4]
    noisy = add_noise(sampler, clean, noise, 4)
    a = sd_alpha_bar()[int(timestep)]
    output = noise if prediction == "epsilon" else a**0.5 * noise - (1 - a) ** 0.5 * clean
    torch.testing.assert_close(clean_estimate(sampler, output.float(), timestep, noisy), clean, atol=0.05, rtol=0.05)


def test_previews_have_the_final_ratio_at_an_eighth_and_come_every_so_many_steps(tmp_path, store, monkeypatch):
    monkeypatch.setattr(preview, "SECONDS", 0)
    heard, _ = made(tmp_path, store, every=2)
    assert len(heard.previews) == 2  # steps 2 and 4, of two images made together, which stand side by side
    assert {Image.open(BytesIO(each)).size for each in heard.previews} == {(16, 12)}
    heard, _ = made(tmp_path, store, hires={"highres_fix_scale": 2, "highres_fix_steps": 3}, generate={"count": 1})
    assert {Image.open(BytesIO(each)).size for each in heard.previews} == {(16, 24)}
    assert made(tmp_path, store, every=None)[0].previews == []


@pytest.mark.slow
def test_previews_are_some_time_apart_and_change_no_image(tmp_path, store):
    shown, with_preview = made(tmp_path, store, generate={"steps": 6, "sampler": "euler_a"})
    _, without = made(tmp_path, store, every=None, generate={"steps": 6, "sampler": "euler_a"})
    assert [Image.open(path).tobytes() for path in with_preview] == [Image.open(path).tobytes() for path in without]
    assert len(shown.previews) < 6


@pytest.mark.slow
def test_the_preview_resembles_the_image(tmp_path, store, monkeypatch):
    monkeypatch.setattr(preview, "SECONDS", 0)
    heard, files = made(tmp_path, store, generate={"steps": 8, "width": 128, "height": 128, "count": 1})
    last = Image.open(BytesIO(heard.previews[-1]))
    image = Image.open(files[0]).convert("RGB").resize(last.size, Image.Resampling.BOX)
    both = torch.tensor([list(each.convert("L").tobytes()) for each in (last, image)], dtype=torch.float64)
    assert torch.corrcoef(both)[0, 1] > 0.8


def test_factors_are_published_ones_for_stable_diffusions_vae_and_fitted_to_others(store):
    class Known:
        config = {"block_out_channels": [128, 256, 512, 512]}

    assert rgb_factors(family("sdxl"), Known()).tolist()[0] == pytest.approx([0.3651, 0.4232, 0.4341])
    assert [len(PUBLISHED[name]) for name in ("sd1", "sd2", "sdxl")] == [5, 5, 5]
    vae = family("sd1").load(PROJECT / "models" / "starter", parts=("vae",)).vae
    factors = rgb_factors(family("sd1"), vae)
    assert factors.shape == (5, 3) and torch.allclose(factors, fitted_factors(family("sd1"), vae), atol=1e-4)
    gray = approximated(torch.zeros(1, 4, 2, 2), torch.tensor([[0.0] * 3] * 5))
    assert gray.tolist() == [[[[128] * 3] * 2] * 2]
    latents, factors = torch.rand(2, 4, 3, 5), torch.rand(5, 3)
    rgb = latents.movedim(1, -1) @ factors[:-1] + factors[-1]
    assert torch.equal(approximated(latents, factors), ((rgb / 2 + 0.5).clamp(0, 1) * 255).round().byte())


def test_each_image_of_a_batch_has_its_place_in_the_preview_and_large_ones_are_made_smaller():
    batch = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 4, 6, 3)
    sheet = tiled(batch)
    assert sheet.shape == (8, 18, 3)  # two rows of three
    assert sheet[::4, ::6, 0].tolist() == [[0, 1, 2], [3, 4, preview.GRAY]]
    assert torch.equal(tiled(batch[:1]), batch[0])
    shown = Preview(torch.rand(5, 3), 1, (256, 128), print)._jpeg(tiled(torch.zeros(16, 128, 256, 3).byte()), 256)
    assert Image.open(BytesIO(shown)).size == (1024, 512)


@pytest.mark.slow
def test_progress_tells_the_image_and_its_step(tmp_path, store):
    heard, _ = made(tmp_path, store, generate={"batch_size": 1, "count": 2})
    told = [(text, *step) for (text, _, _), step in zip(heard.stages, heard.steps, strict=True) if step[1]]
    assert told[0] == ("generating image 1 of 2", 1, 4) and told[-1] == ("generating image 2 of 2", 4, 4)
    heard, _ = made(tmp_path, store, generate={"count": 3})
    assert ("generating images 1 to 3 of 3", 6, 12) in heard.stages


def test_a_jobs_preview_is_a_file_until_its_image_is_saved(tmp_path):
    folder = RunFolder.create(tmp_path / "jobs", "fox", {})
    with Journal(folder.path) as journal:
        context = JobContext(Workspace(tmp_path), folder, journal, NoCommands())
        context.preview(b"jpeg")
        assert folder.preview.read_bytes() == b"jpeg"
        context.generated(tmp_path / "x.png", 1)
        assert not folder.preview.exists()


def test_a_preview_that_cannot_be_written_ends_nothing(tmp_path):
    folder = RunFolder.create(tmp_path / "jobs", "fox", {})
    folder.preview.mkdir()
    with Journal(folder.path) as journal:
        JobContext(Workspace(tmp_path), folder, journal, NoCommands()).preview(b"jpeg")


def test_a_damaged_vae_is_left_to_the_check_of_the_image():
    vae = family("sd1").load(PROJECT / "models" / "starter", parts=("vae",)).vae
    next(vae.decoder.parameters()).data.fill_(float("nan"))
    assert not fitted_factors(family("sd1"), vae).any()
