"""Single files of models that do not have the published sizes, as the starter: they say their sizes and load again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from core.families import family
from core.formats.models.checkpoint import SIZES_KEY
from core.formats.models.whole_model import write_model
from tests.models import tiny_folder
from tests.refusals import refused

STARTER = Path(__file__).parents[2] / "models" / "starter"


def write(target, name, form, source):
    published = family(name).layout.published
    write_model(target, {}, family=name, form=form, published=published, source=source)
    return target


def assert_same(one, other):
    pairs = zip(
        (one.denoiser, one.vae, *one.text_encoders), (other.denoiser, other.vae, *other.text_encoders), strict=True
    )
    for mine, theirs in pairs:
        state, expected = mine.state_dict(), theirs.state_dict()
        assert set(state) == set(expected) and all(torch.equal(state[key], expected[key]) for key in expected)
    assert one.denoiser.config.attention_head_dim == other.denoiser.config.attention_head_dim
    assert one.vae_config["scaling_factor"] == other.vae_config["scaling_factor"]


@pytest.mark.slow
def test_the_starter_as_a_file_is_the_starter(tmp_path):
    file = write(tmp_path / "starter.safetensors", "sd1", "safetensors", STARTER)
    before = family("sd1").load(STARTER)
    assert_same(family("sd1").load(file), before)
    # And as the base of the next model that is saved.
    folder = write(tmp_path / "again", "sd1", "diffusers_safetensors", file)
    assert_same(family("sd1").load(folder), before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_so_it_is_for_the_other_families(tmp_path, name):
    folder = tiny_folder(name, tmp_path / "folder")
    file = write(tmp_path / "file.safetensors", name, "safetensors", folder)
    with safe_open(file, "pt") as opened:
        said = json.loads(opened.metadata()[SIZES_KEY])
    assert said["text_encoder"]["num_hidden_layers"] == 3 and "latent_channels" not in said.get("vae", {})
    before = family(name).load(folder)
    assert_same(family(name).load(file), before)
    assert_same(family(name).load(write(tmp_path / "file.ckpt", name, "ckpt", folder)), before)


@pytest.mark.parametrize(
    ("said", "code"), [("{", "file.not-json"), ("[1]", "model.bad-sizes"), ('{"unet": 3}', "model.bad-sizes")]
)
def test_sizes_that_cannot_be_read_are_named(tmp_path, said, code):
    file = tmp_path / "odd.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, file, metadata={SIZES_KEY: said})
    with refused(code, SIZES_KEY):
        family("sd1").load(file)
