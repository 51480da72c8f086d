"""Changes of biases and norm layers next to the layers of a LoRA; whole files of lycoris-lora are in test_lycoris_files.py."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core.families.components import Components
from core.generation.model.loras import loras_attached
from core.networks.files import MergedFile, merge_files, read_network
from core.networks.network import attached
from core.settings.generation.generate import LoraUse
from tests.networks.test_lycoris_files import components, outputs  # noqa: F401

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "down_blocks.0.attentions.0.proj_in"
NORM = "down_blocks.0.attentions.0.norm"
TEXT = "encoder.layers.0.layer_norm1"


def kohya(path):
    return "lora_unet_" + path.replace(".", "_")


@pytest.fixture
def file(components, tmp_path):  # noqa: F811
    """A plain LoRA with changes of two biases and two norms, one without its shift, and a bias that fits nothing."""
    draw, tensors = torch.Generator().manual_seed(3), {}
    for path in (LINEAR, CONV):
        weight = components.denoiser.get_submodule(path).weight
        ones = (1,) * (weight.dim() - 2)
        tensors[f"{kohya(path)}.lora_down.weight"] = torch.randn(2, *weight.shape[1:], generator=draw)
        tensors[f"{kohya(path)}.lora_up.weight"] = torch.randn(len(weight), 2, *ones, generator=draw)
        tensors[f"{kohya(path)}.alpha"] = torch.tensor(1.0)
        tensors[f"{kohya(path)}.diff_b"] = torch.randn(len(weight), generator=draw)
    width = components.denoiser.get_submodule(NORM).weight.numel()
    tensors |= {f"{kohya(NORM)}.{key}": torch.randn(width, generator=draw) for key in ("w_norm", "b_norm")}
    width = components.text_encoders[0].get_submodule(TEXT).weight.numel()
    tensors["lora_te_text_model_encoder_layers_0_layer_norm1.w_norm"] = torch.randn(width, generator=draw)
    tensors[f"{kohya('conv_norm_out')}.w_norm"] = torch.ones(3)
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors", tensors


def changed(components, tensors, strength):  # noqa: F811
    """Copies of the models with the changes added by hand."""
    encoder, unet = copy.deepcopy(components.text_encoders[0]), copy.deepcopy(components.denoiser)
    for path in (LINEAR, CONV):
        module, given = unet.get_submodule(path), {k: v for k, v in tensors.items() if k.startswith(kohya(path) + ".")}
        up, down = (given[f"{kohya(path)}.lora_{side}.weight"].flatten(1) for side in ("up", "down"))
        module.weight.data += strength * 0.5 * (up @ down).view(module.weight.shape)  # alpha / rank
        module.bias.data += strength * given[f"{kohya(path)}.diff_b"]
    unet.get_submodule(NORM).weight.data += strength * tensors[f"{kohya(NORM)}.w_norm"]
    unet.get_submodule(NORM).bias.data += strength * tensors[f"{kohya(NORM)}.b_norm"]
    encoder.get_submodule(TEXT).weight.data += (
        strength * tensors["lora_te_text_model_encoder_layers_0_layer_norm1.w_norm"]
    )
    return encoder, unet


@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_they_act_at_the_strength_and_what_fits_nothing_is_named(components, file, strength):  # noqa: F811
    path, tensors = file
    network = read_network(components, path, strength)
    assert network.unmatched == (f"{kohya('conv_norm_out')}.w_norm",)
    with attached(network):
        found = outputs(components.text_encoders[0], components.denoiser)
    for one, other in zip(found, outputs(*changed(components, tensors, strength)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_merged_they_are_the_same_and_every_weight_comes_back(components, file):  # noqa: F811
    path, tensors = file
    expected, before = (
        outputs(*changed(components, tensors, 0.7)),
        outputs(components.text_encoders[0], components.denoiser),
    )
    with loras_attached(components, [LoraUse(file=str(path), strength=0.7)], lambda name: path, merged=1):
        merged = outputs(components.text_encoders[0], components.denoiser)
    for one, other in zip(merged, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert all(map(torch.equal, outputs(components.text_encoders[0], components.denoiser), before))
    own = Components(denoiser=copy.deepcopy(components.denoiser), text_encoders=copy.deepcopy(components.text_encoders))
    merge_files(own, [MergedFile(path, 0.7)])
    assert all(map(torch.equal, outputs(own.text_encoders[0], own.denoiser), merged))
    assert isinstance(own.denoiser.get_submodule(NORM), nn.GroupNorm)


def test_a_bias_alone_acts_as_it_is_merged(components, tmp_path):  # noqa: F811
    draw = torch.Generator().manual_seed(4)
    paths = ("down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.proj_out", "conv_in")
    biases = {
        path: torch.randn(len(components.denoiser.get_submodule(path).bias), generator=draw) * 0.1 for path in paths
    }
    lora = {
        f"{kohya(LINEAR)}.lora_down.weight": torch.ones(1, components.denoiser.get_submodule(LINEAR).in_features),
        f"{kohya(LINEAR)}.lora_up.weight": torch.zeros(len(components.denoiser.get_submodule(LINEAR).weight), 1),
    }
    save_file(lora | {f"{kohya(path)}.diff_b": value for path, value in biases.items()}, tmp_path / "b.safetensors")
    wanted = copy.deepcopy(components.denoiser)
    for path, value in biases.items():
        wanted.get_submodule(path).bias.data += 0.7 * value
    network = read_network(components, tmp_path / "b.safetensors", 0.7)
    assert network.unmatched == ()
    with attached(network):
        live = outputs(components.text_encoders[0], components.denoiser)
    for one, other in zip(live, outputs(components.text_encoders[0], wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    merged = copy.deepcopy(components)
    merge_files(merged, [MergedFile(tmp_path / "b.safetensors", 0.7)])
    for path in paths:
        torch.testing.assert_close(
            merged.denoiser.get_submodule(path).bias, wanted.get_submodule(path).bias, rtol=1e-5, atol=1e-5
        )
