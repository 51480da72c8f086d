"""What sd-scripts' generator computes, for every recorded run: states of prompts and latents."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from core.generation import making
from core.generation.sample.canvas import encoded
from core.generation.sample.noise import ImageNoise
from tests.generation import recorded

CASES, TENSORS = recorded.recorded()
LIMITS = {"lora_": 2e-4, "heun": 2e-4, "hires_i": 2e-3}
LEFT_OUT = {  # why
    "wild_enum": "each combination once, not images_per_prompt times",
    "batch2_padding": "a picture does not depend on its batch: as in unbatched",
}
ONE_OF_EACH = (  # effect of generation; by default
    "weights_original",
    "xl_long",
    "negative_scale",
    "heun",
    "zsnr_v_ddim",
    "two_pictures_batch",
    "inpaint_merged_lora",
    "hires_latents",
    "ds_two",
    "gl_plain",
    "lora_merge_n",
    "regional_three",
    "seed_two_lines",
    "xl_size_inline",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    recorded.loras(folder)
    return folder


@pytest.fixture(scope="module")
def models(work):
    return cache(lambda name: recorded.model(name, work / name))


def limit(name):
    return next((value for start, value in LIMITS.items() if start in name), 1e-4)


@pytest.mark.slow(but=ONE_OF_EACH)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case["error"] and name not in LEFT_OUT])
def test_a_recorded_run(name, models, work, monkeypatch):
    case = CASES[name]
    components = models("sdxl" if case["group"] == "sdxl" else "sd1")
    if name == "two_pictures_batch":  # sd-scripts draws one noise of the VAE for a batch, after the last seed
        last = ImageNoise(58, (4, 16, 16), 5).image_noise()[1]
        monkeypatch.setattr(making, "encoded", lambda vae, kind, pixels, noise: encoded(vae, kind, pixels, last))
    found = recorded.run(case, components, work, monkeypatch)
    stages = [(batch, states, latents, at) for batch, states, made in found for at, latents in enumerate(made.latents)]
    assert len(stages) == len(case["calls"])
    for number, ((batch, states, latents, at), call) in enumerate(zip(stages, case["calls"], strict=True)):
        assert [(each.seed + at) % 2**32 for each in batch] == call["seeds"]
        assert [each.job.generate.prompt for each in batch] == [prompt.strip() for prompt in call["prompts"]]
        if name == "ds_inline" and number:  # in sd-scripts it stays on for the second line
            continue
        if at == 0 and call["token_norms"] is not None:
            sides = [states.negative, states.positive, *([states.empty] if states.empty else [])]
            rows = torch.cat([side.context for side in sides])
            if len(rows) != len(call["token_norms"]):  # without guidance
                rows = states.positive.context
            torch.testing.assert_close(rows.norm(dim=-1), torch.tensor(call["token_norms"]), rtol=1e-5, atol=1e-4)
        wanted = TENSORS.get(f"{name}/{number}.final")
        if wanted is None:
            assert float(latents.norm()) == pytest.approx(call["final_norm"], rel=1e-4)
            continue
        assert apart(latents, wanted) < limit(name)


def apart(latents, wanted):
    return float((latents - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@pytest.mark.slow
def test_in_16_bits_a_recorded_run_is_nearly_the_same(work, monkeypatch):
    """Regions, LoRAs of 1x1 and 3x3 convolutions, and a negative prompt, in bf16."""
    case = CASES["regional_rgb"]
    [(_, _, made)] = recorded.run(case, recorded.model("sd1", work / "narrow", torch.bfloat16), work, monkeypatch)
    assert apart(made.latents[0], TENSORS["regional_rgb/0.final"]) < 0.05
