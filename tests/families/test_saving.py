"""A loaded model is written with the parts that trained; the others are its source's."""

from pathlib import Path

import pytest
import torch

from core.diffusion.text_states import Conditioning
from core.families.saving import save_model
from core.families.sd1 import FAMILY as sd1
from core.formats.models.whole_model import form_of
from tests.models import tiny_sd1

STARTER = Path(__file__).parents[2] / "models" / "starter"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sd1(tmp_path_factory.mktemp("saving") / "tiny")


@torch.no_grad()
def test_what_trained_is_written_and_the_rest_is_the_sources_own(tmp_path, folder):
    components = sd1.load(folder, dtype=torch.bfloat16)
    components.denoiser.conv_in.bias.fill_(0.5)
    components.text_encoders[0].final_layer_norm.bias.fill_(0.25)
    save_model(components, tmp_path / "m", ["unet"])
    assert form_of(tmp_path / "m") == "diffusers_safetensors", "the form of the source"
    before, after = sd1.load(folder), sd1.load(tmp_path / "m")
    state, expected = after.denoiser.state_dict(), components.denoiser.state_dict()
    assert all(torch.equal(state[key], value.float()) for key, value in expected.items())
    for one, other in ((after.vae, before.vae), (after.text_encoders[0], before.text_encoders[0])):
        state, expected = one.state_dict(), other.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items()), "not the bf16 ones in memory"


@pytest.mark.slow
def test_the_starter_is_written_as_one_file_and_draws_the_same(tmp_path):
    components = sd1.load(STARTER)
    save_model(components, tmp_path / "m.safetensors", ["unet"], form="safetensors")
    again = sd1.load(tmp_path / "m.safetensors")
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = sd1.encode_captions(components, ["a fox"])
        assert torch.equal(text.context, sd1.encode_captions(again, ["a fox"]).context)
        times = torch.tensor([500])
        one, other = (
            sd1.predict(components, latents, times, Conditioning(text)),
            sd1.predict(again, latents, times, Conditioning(text)),
        )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
