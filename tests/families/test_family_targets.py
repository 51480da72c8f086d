"""The layers a LoRA hooks in SD 2.x and SDXL at their published sizes, against the keys of files that sd-scripts wrote."""

import pytest

from core.families import family
from core.formats.lora.names import kohya_name, module_path
from core.formats.models.text_keys import full_name
from core.networks.sizes import has_large_kernel
from tests.recorded_json import recorded_json

CASES = recorded_json("network_keys")["cases"]


@pytest.fixture(scope="module")
def empty():
    """Name of a family -> its text encoders and U-Net, without numbers."""
    return {
        name: [family(name).make_empty(part) for part in (*family(name).layout.text_encoders, "unet")]
        for name in ("sd2", "sdxl")
    }


def targets_of(empty, name, conv):
    return [target for part in empty[name] for target in family(name).lora_targets(part, conv=conv)]


@pytest.mark.parametrize(
    ("name", "texts", "unet", "with_conv"), [("sd2", [138], 192, 278), ("sdxl", [72, 192], 722, 788)]
)
def test_counts_are_those_of_sd_scripts(empty, name, texts, unet, with_conv):
    kind = family(name)
    assert [len(list(kind.lora_targets(part))) for part in empty[name]] == [*texts, unet]
    assert len(list(kind.lora_targets(empty[name][-1], conv=True))) == with_conv


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
@pytest.mark.parametrize(("case", "conv"), [("lora_lierla", False), ("lora_c3lier", True)])
def test_every_key_and_shape_is_that_of_sd_scripts(empty, name, case, conv):
    expected = CASES[f"{ {'sd2': 'sd21', 'sdxl': 'sdxl'}[name] }/{case}"]
    ours = {}
    for target in targets_of(empty, name, conv):
        weight = target.module.weight
        rank = int(expected["network_args"]["conv_dim"]) if has_large_kernel(target.module) else expected["dim"]
        ours |= {
            f"{target.name}.alpha": [],
            f"{target.name}.lora_down.weight": [rank, *weight.shape[1:]],
            f"{target.name}.lora_up.weight": [weight.shape[0], rank, *[1] * (weight.ndim - 2)],
        }
    assert ours == expected["keys"]


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_every_name_leads_back_to_its_module(empty, name):
    parts = (*family(name).layout.text_encoders, "unet")
    for part, module in zip(parts, empty[name], strict=True):
        for target in family(name).lora_targets(module, conv=True):
            path = target.path if part == "unet" else full_name(target.path)
            assert module_path(target.name) == (part, path)
            assert kohya_name(part, path, name) == target.name
            assert getattr(target.parent, target.attribute) is target.module


def test_the_published_sizes_are_the_published_counts_of_numbers(empty):
    counts = {name: [sum(p.numel() for p in part.parameters()) for part in empty[name]] for name in empty}
    assert counts["sdxl"] == [123_060_480, 694_659_840, 2_567_463_684]
    assert counts["sd2"] == [340_387_840, 865_910_724]
