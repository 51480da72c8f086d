"""The main job, whole: images in, a LoRA out, images made with it that have moved towards the style; diffusers draws the same."""

from pathlib import Path

import pytest
from PIL import Image

from core.cli.main import main
from core.record.run_folder import list_runs
from core.record.workspace import PROJECT
from tests.style_distance import colorfulness, style_distance

IMAGES = PROJECT / "models" / "starter" / "images"
PROMPT = "a lion, glyph style"  # no lion is among the images
SEEDS = 2


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The shipped preset, cut to 40 of its 270 steps."""
    outputs = tmp_path_factory.mktemp("outputs")
    words = ["train", str(PROJECT / "presets" / "starter_lora.json"), "--outputs", str(outputs), "--device", "cpu"]
    more = ["--schedule.max_train_steps", "40", "--samples.sample_prompts", "[]", "--saving.save_precision", "fp32"]
    assert main([*words, *more]) == 0
    return outputs


@pytest.fixture
def draw(outputs, capsys):
    def command(*more: str) -> list[Image.Image]:
        words = ["generate", "--prompt", PROMPT, "--outputs", str(outputs), "--device", "cpu", "--generate.steps", "6"]
        fixed = ["--generate.seed", "11", "--generate.count", str(SEEDS), "--generate.guidance_scale", "4"]
        capsys.readouterr()
        assert main([*words, *fixed, *more]) == 0
        shown = capsys.readouterr().out.split("\n")
        return [Image.open(path).convert("RGB") for path in shown if path.endswith(".png")]

    return command


@pytest.mark.slow
def test_the_same_seeds_with_the_lora_are_nearer_to_the_style_by_far(outputs, draw):
    """To 0.40 and 0.48 of the distance in 40 steps."""
    style = [Image.open(path) for path in sorted(IMAGES.glob("*.png"))]
    lora = list_runs(outputs / "runs")[0].checkpoints / "glyph_style.safetensors"
    base, ours = draw(), draw("--lora", str(lora))
    for seed in range(SEEDS):
        before, after = (style_distance([images[seed]], style) for images in (base, ours))
        print(f"seed {seed}: {before:.1f} -> {after:.1f}")
        assert before > 50 and after < 0.6 * before, f"seed {seed}: {before:.1f} -> {after:.1f}"
    assert colorfulness(ours) < 0.6 * colorfulness(base)


@pytest.mark.slow
def test_diffusers_draws_the_same_image_with_the_trained_file(outputs):
    """One alpha for all layers (the shipped preset's): diffusers reads kohya's file directly."""
    import numpy as np
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from core.diffusion.samplers import make_sampler
    from core.families.sd1 import FAMILY as sd1
    from core.generation.model.loras import loras_attached
    from core.generation.sample.canvas import decode_pixels
    from core.settings.generation.generate import LoraUse
    from tests.prompts import encode_prompts
    from tests.sampling import sampled

    path = list_runs(outputs / "runs")[0].checkpoints / "glyph_style.safetensors"
    components = sd1.load(PROJECT / "models" / "starter")
    with loras_attached(components, [LoraUse(file=str(path))], Path), torch.no_grad():
        states = encode_prompts(components, PROMPT)
        latents = sampled(
            components,
            states,
            seeds=[5],
            width=128,
            height=128,
            steps=8,
            guidance_scale=4.0,
        )
        ours = decode_pixels(components.vae, latents)[0].permute(1, 2, 0).numpy()
    pipe = StableDiffusionPipeline.from_pretrained(
        PROJECT / "models" / "starter", torch_dtype=torch.float32, local_files_only=True
    )
    pipe.scheduler = DDIMScheduler.from_config(make_sampler("ddim").config)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPT,
        num_inference_steps=8,
        guidance_scale=4.0,
        width=128,
        height=128,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="np",
    ).images[0]
    assert np.abs(ours - theirs).max() < 1e-4
