"""GLoRA: LyCORIS' formula and files, and that it is exact over other networks."""

import torch
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from pytest import mark

from core.networks.adapter_file import load_lora, save_lora
from tests.networks.oracle import LAYERS, NAME, check_equal, input_of, layer_of, live, network_of, random_tensors
from tests.refusals import refused


def glora(layer):
    return GLoRAModule("x", layer, lora_dim=4, alpha=2)


@mark.parametrize("layer", LAYERS)
@mark.parametrize("multiplier", [1.0, 0.4])
def test_is_lycoris_glora(layer, multiplier):
    check_equal(glora, layer, multiplier)


@mark.parametrize("layer", LAYERS)
def test_networks_merged_in_order_are_the_stack_attached_in_order(layer):
    module = layer_of(layer)
    x, lora = input_of(module), LoConModule("x", module, lora_dim=2, alpha=1)
    scaled, turned = (IA3Module("x", module, train_on_input=side) for side in (True, False))
    networks = [
        network_of(module, random_tensors(each), 0.8) for each in (scaled, lora, glora(module), turned, scaled, lora)
    ]
    stacked = live(module, x, *networks)
    backwards = live(module, x, *reversed(networks))
    for network in networks:
        network.merge_to()
    torch.testing.assert_close(module(x), stacked, rtol=1e-4, atol=1e-4)
    assert (backwards - stacked).abs().max() > 1e-2, "the order matters"


@mark.parametrize("out", [8, 12])
def test_a_file_in_lycoris_older_format_is_read_as_comfyui_does(tmp_path, out):
    shapes = {"a1": (2, 8), "a2": (8, 2), "b1": (2, 8), "b2": (out, 2)}
    tensors = {f"{NAME}.{key}.weight": torch.randn(shape) for key, shape in shapes.items()}
    older = {key: tensors[f"{NAME}.{key}.weight"] for key in shapes}
    path = save_lora(tmp_path / "x.safetensors", tensors | {f"{NAME}.alpha": torch.tensor(1.0)})
    weight = torch.randn(out, 8)
    module = torch.nn.Linear(8, out, bias=False)
    module.weight.data.copy_(weight)
    of_layer = {key.removeprefix(f"{NAME}."): value for key, value in load_lora(path).tensors.items()}
    network_of(module, of_layer).merge_to()
    change = 0.5 * (weight @ older["a2"] @ older["a1"] + older["b2"] @ older["b1"])
    torch.testing.assert_close(module.weight, weight + change, rtol=1e-4, atol=1e-4)


def test_a_core_that_no_lycoris_reads_is_refused_by_its_key(tmp_path):
    """lycoris-lora 4.1.3 lists bm.weight, but neither makes nor loads one."""
    shapes = {"a1": (8, 2, 1, 1), "a2": (2, 8, 1, 1), "b1": (8, 2, 1, 1), "b2": (2, 8, 1, 1), "bm": (2, 2, 3, 3)}
    tensors = {f"{NAME}.{key}.weight": torch.ones(shape) for key, shape in shapes.items()}
    made = GLoRAModule("x", torch.nn.Conv2d(8, 8, 3), lora_dim=2, use_tucker=True)
    assert not made.tucker and "bm.weight" not in made.custom_state_dict()
    with refused("lora.incomplete", "bm.weight"):
        load_lora(save_lora(tmp_path / "x.safetensors", tensors))
