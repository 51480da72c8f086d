"""A LoRA with a negative alpha: every tool gives what it gives for the LoRA with the sign in its matrices."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.formats.lora.names import group_by_module
from core.networks.adapter_file import load_lora
from tests.models import tiny_folder
from tests.tools.loras.test_resize_lora import DOWN, UP, VECTORS, change, changes
from tests.tools.models.test_convert_model import convert
from tests.tools.test_tools import use

SD1 = {"ss_base_model_version": "sd_v1"}
PLAIN, REVERSED = str(VECTORS / "mr_a.safetensors"), "reversed.safetensors"
MERGES = [
    {"method": "concat"},
    {"method": "svd", "new_rank": 64},
    {"method": "plain"},
    {"method": "plain", "compatibility": "sd-scripts"},
    {"method": "concat", "compatibility": "sd-scripts"},
    {"method": "svd", "new_rank": 64, "compatibility": "sd-scripts", "clamp_quantile": 1.0},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(a LoRA whose alphas are negative, the same change with the sign in `down`)"""
    folder, tensors = tmp_path_factory.mktemp("signs"), load_file(PLAIN)
    names = [name for name in group_by_module(tensors) if f"{name}.alpha" in tensors]
    alphas = {f"{name}.alpha": -tensors[f"{name}.alpha"] for name in names}
    save_file(tensors | alphas, folder / REVERSED, SD1)
    save_file(
        tensors | {f"{name}.{DOWN}": -tensors[f"{name}.{DOWN}"] for name in names}, folder / "turned.safetensors", SD1
    )
    return folder / REVERSED, folder / "turned.safetensors"


def assert_equal_changes(one, other):
    one, other = (changes(load_lora(path).tensors) for path in (one, other))
    assert one.keys() == other.keys() and any(each.abs().max() > 0.01 for each in other.values())
    for name, each in other.items():
        torch.testing.assert_close(one[name], each, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asked", [
    {"name": "resize_lora", "new_rank": 2},
    {"name": "resize_lora", "dynamic_method": "sv_fro", "dynamic_param": 0.9, "compatibility": "sd-scripts"},
    {"name": "convert_lora", "names": "diffusers"},
    {"name": "convert_lora", "names": "diffusers_folded"},
    {"name": "convert_lora", "names": "kohya", "save_precision": "fp32"},
])  # fmt: skip
def test_one_is_written_with_its_sign(asked, files, tmp_path):
    made = [use(file=str(file), output=str(tmp_path / file.name), **asked)[0] for file in files]
    assert_equal_changes(*made)


@pytest.mark.parametrize("asked", MERGES)
def test_merged_with_a_positive_one_it_is_subtracted(asked, files, tmp_path):
    given = {"name": "merge_loras", "ratios": "0.8, -0.3", **asked}
    for order in ((1, -1), (-1, 1)):
        made = []
        for file in files:
            output = tmp_path / f"{order[0]}_{file.name}"
            made.append(use(models=[PLAIN, str(file)][:: order[0]], output=str(output), **given)[0])
        assert_equal_changes(*made)


def test_an_alpha_of_zero_does_not_silence_the_others_of_a_plain_merge(files, tmp_path):
    tensors = load_file(PLAIN)
    zero = {key: torch.tensor(0.0) if key.endswith("alpha") else value for key, value in tensors.items()}
    save_file(zero, tmp_path / "zero.safetensors", SD1)
    models = [str(tmp_path / "zero.safetensors"), PLAIN]
    path, _ = use(name="merge_loras", method="plain", models=models, output=str(tmp_path / "m.safetensors"))
    made = group_by_module(load_lora(path).tensors)
    assert all(float(change(layer).abs().max()) > 0.01 for layer in made.values())


@pytest.mark.slow
def test_in_a_checkpoint_its_change_is_subtracted(files, tmp_path):
    name = "lora_unet_mid_block_attentions_0_proj_in"
    base = convert(tiny_folder("sd1", tmp_path / "sd1"), tmp_path / "base.safetensors")
    before = load_file(base)
    key = "model.diffusion_model.middle_block.1.proj_in.weight"
    width, made = before[key].shape[0], []
    for sign in (1.0, -1.0):
        layer = {f"{name}.lora_down.weight": torch.ones(2, width, 1, 1), f"{name}.alpha": torch.tensor(sign)}
        layer[f"{name}.{UP}"] = torch.full((width, 2, 1, 1), 0.1)
        save_file(layer, tmp_path / f"{sign}.safetensors", SD1)
        path, _ = use(name="merge_lora_to_model", file=str(base), models=[str(tmp_path / f"{sign}.safetensors")],
                      output=str(tmp_path / f"m{sign}.safetensors"))  # fmt: skip
        made.append(load_file(path)[key] - before[key])
    torch.testing.assert_close(made[0], -made[1], rtol=1e-4, atol=1e-5)
    assert float(made[0].mean()) == pytest.approx(0.1, rel=1e-3)
