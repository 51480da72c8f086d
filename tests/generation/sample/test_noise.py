"""Where noise is drawn: on the CPU, or on the model's device and with sd-scripts' numbers in its type."""

import torch

from core.families import family
from core.generation.images.metadata import read_image_metadata
from core.generation.plan.stages import sampling_of
from core.generation.run import run_generate
from core.generation.sample.loop import Denoiser, Sampling, Stage, noises_of
from core.generation.sample.noise import ImageNoise, Variation, slerp
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob

STARTER = PROJECT / "models" / "starter"


def start(device="cpu", dtype=torch.float32):
    return torch.randn((4, 8, 8), generator=torch.Generator(device).manual_seed(5), dtype=dtype, device=device)


def test_numbers_are_drawn_on_the_device_and_in_the_type_that_are_asked_for():
    assert torch.equal(ImageNoise(5, (4, 8, 8), 2).start, start())
    half = ImageNoise(5, (4, 8, 8), 2, dtype=torch.bfloat16)
    assert torch.equal(half.start, start(dtype=torch.bfloat16).float()) and not torch.equal(half.start, start())
    again = ImageNoise(5, (4, 8, 8), 0, dtype=torch.bfloat16)
    assert torch.equal(again.image_noise()[0], half._draw(half.sampler)), "the same generator goes on"


def test_only_the_models_device_with_sd_scripts_numbers_takes_its_type():
    model = Denoiser(family("sd1"), lambda *given: None, torch.nn.Linear(1, 1).to(torch.bfloat16))
    stage, wide, half = Stage((64, 64)), start(), start(dtype=torch.bfloat16).float()
    for sampling, wanted in (
        (Sampling(), wide),
        (Sampling(program="generator"), wide),
        (Sampling(device_noise=True), wide),
        (Sampling(device_noise=True, program="generator"), half),
    ):
        assert torch.equal(noises_of(model, stage, [5], sampling)[0].start, wanted)
    device = torch.device("cpu", 0) if not torch.cuda.is_available() else torch.device("cuda")
    drawn = noises_of(model, stage, [5], Sampling(device_noise=True), device)[0]
    assert drawn.sampler.device.type == device.type


def test_the_choice_is_kept_with_the_image(tmp_path, store):
    space = Workspace(tmp_path / "outputs", PROJECT / "models")
    generate = {"prompt": "a fox", "seed": 5, "steps": 1, "width": 64, "height": 64}
    groups = {"model": {"base_model": str(STARTER)}, "generate": generate, "start_noise": {"noise_source": "device"}}
    job = build(GenerateJob, groups)
    assert sampling_of(job, "epsilon").device_noise
    (file,) = run_generate(job, space, store=store)
    assert read_image_metadata(file).job.start_noise.noise_source == "device"


def interpolated(share, low, high):
    """A1111's slerp of noise, [C, h, w], column by column."""
    made = torch.empty_like(low)
    for c in range(low.shape[0]):
        for x in range(low.shape[2]):
            a, b = low[c, :, x], high[c, :, x]
            angle = torch.acos(a @ b / (a.norm() * b.norm()))
            made[c, :, x] = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    return made


def test_a_variation_mixes_another_seeds_noise_into_the_start_and_into_that_of_an_image():
    shape, draws = (4, 8, 6), 3
    own, other = (ImageNoise(seed, shape, draws) for seed in (1, 2))
    mixed = ImageNoise(1, shape, draws, variation=Variation(2, 0.3))
    torch.testing.assert_close(mixed.start, interpolated(0.3, own.start, other.start))
    torch.testing.assert_close(mixed.image_noise()[0], interpolated(0.3, own.image_noise()[0], other.image_noise()[0]))
    assert torch.equal(mixed.image_noise()[1], own.image_noise()[1])
    drawn = [torch.randn(shape, generator=each.sampler) for each in (own, mixed)]
    assert torch.equal(*drawn), "the steps have the noise of the seed"
    torch.testing.assert_close(slerp(0.3, own.start, own.start), own.start)  # no angle is between equal ones
