"""The layers a LoRA hooks in SD 1.5, against the keys and shapes of files that sd-scripts wrote."""

import pytest

from core.families.sd1 import FAMILY as sd1
from core.networks.sizes import has_large_kernel
from tests.recorded_json import recorded_json

CASES = recorded_json("network_keys")["cases"]


@pytest.fixture(scope="module")
def sd15():
    """SD 1.5's U-Net and text encoder without weights."""
    return {name: sd1.make_empty(name) for name in ("unet", "text_encoder")}


def shapes(target, rank, conv_rank):
    """Down and up as sd-scripts shapes them."""
    weight = target.module.weight
    r = conv_rank if has_large_kernel(target.module) else rank
    if weight.ndim == 2:
        return [r, weight.shape[1]], [weight.shape[0], r]
    return [r, *weight.shape[1:]], [weight.shape[0], r, 1, 1]


def test_counts_are_those_of_sd_scripts(sd15):
    assert len(list(sd1.lora_targets(sd15["text_encoder"]))) == 72
    assert len(list(sd1.lora_targets(sd15["unet"]))) == 192
    assert len(list(sd1.lora_targets(sd15["unet"], conv=True))) == 278


@pytest.mark.parametrize(("case", "conv"), [("sd15/lora_lierla", False), ("sd15/lora_c3lier", True)])
def test_every_key_and_shape_is_that_of_sd_scripts(sd15, case, conv):
    expected = CASES[case]
    rank, conv_rank = expected["dim"], int(expected["network_args"].get("conv_dim", 0))
    ours = {}
    for target in [*sd1.lora_targets(sd15["text_encoder"]), *sd1.lora_targets(sd15["unet"], conv=conv)]:
        down, up = shapes(target, rank, conv_rank)
        ours |= {
            f"{target.name}.alpha": [],
            f"{target.name}.lora_down.weight": down,
            f"{target.name}.lora_up.weight": up,
        }
    assert ours == expected["keys"]


def test_a_target_can_be_replaced_in_its_parent(sd15):
    for part in sd15.values():
        for target in sd1.lora_targets(part, conv=True):
            assert getattr(target.parent, target.attribute) is target.module
            assert part.get_submodule(target.path) is target.module


def test_no_layer_is_named_twice(sd15):
    names = [target.name for target in sd1.lora_targets(sd15["unet"], conv=True)]
    assert len(set(names)) == len(names)
