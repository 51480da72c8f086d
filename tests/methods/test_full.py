"""Which block of the U-Net a weight is in."""

from pathlib import Path

import pytest
import torch

from core.families import family
from core.methods import MethodInputs
from core.methods.full import block_of_weight, block_trainables
from core.networks.files import NetworkFiles
from core.settings.blocks import COUNTS
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from tests.models import tiny_folder

# Numbers as sd-scripts counts them: embeddings, on the way down, the middle, on the way up, the last layer.
PLACES = {
    "sd1": {
        "time_embedding.linear_1.weight": 0,
        "conv_in.weight": 0,
        "down_blocks.0.resnets.0.conv1.weight": 1,
        "down_blocks.0.downsamplers.0.conv.bias": 3,
        "down_blocks.3.resnets.1.norm1.weight": 11,
        "mid_block.attentions.0.proj_in.weight": 12,
        "up_blocks.0.resnets.0.conv1.weight": 13,
        "up_blocks.3.attentions.2.norm.weight": 24,
        "conv_out.weight": 24,
    },
    "sdxl": {
        "time_embedding.linear_1.weight": 0,
        "add_embedding.linear_2.bias": 0,
        "conv_in.weight": 1,
        "down_blocks.1.attentions.0.proj_in.weight": 5,
        "down_blocks.2.resnets.1.conv2.weight": 9,
        "mid_block.resnets.0.conv1.weight": 10,
        "mid_block.attentions.0.norm.weight": 11,
        "mid_block.resnets.1.conv1.weight": 12,
        "up_blocks.0.resnets.0.conv1.weight": 13,
        "up_blocks.2.resnets.2.conv1.weight": 21,
        "conv_norm_out.weight": 22,
        "conv_out.bias": 22,
    },
}


@pytest.mark.parametrize("name", PLACES)
def test_weights_are_in_the_blocks_that_sd_scripts_counts(name):
    assert {weight: block_of_weight(weight, name) for weight in PLACES[name]} == PLACES[name]


@pytest.mark.parametrize("name", PLACES)
def test_every_weight_is_in_one_block_and_no_block_is_empty(name):
    unet = family(name).make_empty("unet")
    trainables = list(block_trainables(unet, [float(place) for place in range(COUNTS[name])], name))
    assert [trainable.rate for trainable in trainables] == list(range(COUNTS[name]))
    found = [id(weight) for trainable in trainables for weight in trainable.parameters]
    assert sorted(found) == sorted(id(weight) for weight in unet.parameters())


def test_block_rates_are_of_the_u_net_alone(tmp_path):
    blocks = ",".join(["1e-6"] * 9 + ["1e-3"] + ["1e-6"] * 15)
    method = {"kind": "dreambooth", "train_text_encoder": "yes", "block_lr": blocks}
    job = build(TrainJob, {"method": method, "optimizer": {"learning_rate": 2e-5}})
    full = spec_of(job).make(MethodInputs(job, None, 0, Path(), None, NetworkFiles()))
    model = family("sd1").load(tiny_folder("sd1", tmp_path / "tiny"))
    parts = {each.name or each.part: [id(weight) for weight in each.parameters] for each in full.build(model)}
    assert set(parts) == {"text_encoder", *(f"unet_block{number}" for number in range(25))}
    assert sorted(parts["text_encoder"]) == sorted(id(weight) for weight in model.text_encoders[0].parameters())


def test_a_trained_u_net_gives_way_to_the_held_one_while_the_untrained_model_is_asked_for(tmp_path):
    job = build(TrainJob, {"method": {"kind": "dreambooth"}})
    full = spec_of(job).make(MethodInputs(job, None, 0, Path(), None, NetworkFiles()))
    model = family("sd1").load(tiny_folder("sd1", tmp_path / "tiny"))
    full.build(model)
    trained, untrained = model.denoiser, torch.nn.Identity()
    full.hold_untrained(untrained)
    with full.untrained():
        assert model.denoiser is untrained
    assert model.denoiser is trained
