"""LoRAs that act in the region of their prompt, of every kind; recorded runs are in test_recorded.py."""

import pytest
import torch
from PIL import Image
from torch import nn

from core.families.targets import Target
from core.generation.effects.regions import _InRegion
from core.generation.model.loras import loras_attached
from core.generation.plan.plan import plan_of
from core.generation.run import run_generate
from core.networks.adapter import adapt, forward_with_adapters
from core.networks.adapter_file import save_lora
from core.networks.kinds import kind_named
from core.settings.blocks import BlockSize
from core.settings.generation.generate import LoraUse
from core.settings.generation.regions import RegionSettings
from tests.generation.model.test_lora_strengths import SD1, space
from tests.generation.model.test_loras import random_lora
from tests.generation.test_run import job_of

__all__ = ["space"]  # a fixture


def network_of(kind, **given):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    target = Target("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k", "", layer, "", layer)
    own = kind_named(kind).settings
    adapter = kind_named(kind).fresh(target, BlockSize(4, 4.0), own(**given) if own is not None else None, 0)
    for parameter, _ in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer, adapter


ON_OUTPUT = [("lora", {}), ("loha", {}), ("dora", {"wd_on_output": True}), ("oft", {}), ("ia3", {"all_layers": True})]
ON_INPUT = [("dora", {}), ("dora_lokr", {}), ("glora", {}), ("ia3", {"all_layers": True, "train_on_input": True})]


@pytest.mark.parametrize(("kind", "own"), ON_OUTPUT + ON_INPUT)
def test_a_layer_changes_as_much_as_its_region_says(kind, own):
    """Also where the kind changes what the layer is given, and next to another LoRA before it and one after it."""
    layer, adapter = network_of(kind, **own)
    below, above = (other(layer, seed) for seed in (1, 2))
    x, masks = torch.randn(2, 3, 8), torch.tensor([[0.0], [1.0], [0.25]])

    def made(*adapters):
        layer.__dict__["_adapters"] = list(adapters)
        return layer(x)

    adapt(layer, forward_with_adapters)
    limited = _InRegion(adapter, lambda y, start, x, adapter: y + (adapter.changed(start, x) - y) * masks)
    for before in ([], [below]):
        plain, whole = made(*before), made(*before, adapter)
        torch.testing.assert_close(made(*before, limited), plain + (whole - plain) * masks, rtol=1e-4, atol=1e-5)
        assert float((whole - plain).detach().abs().mean()) > 1e-2
    added = above.add_to(torch.zeros_like(x), x)
    torch.testing.assert_close(made(below, limited, above), made(below, limited) + added, rtol=1e-4, atol=1e-5)


def test_a_lora_belongs_to_the_sub_prompt_of_its_place_among_those_of_the_image(starter, space, tmp_path, store):
    """Whatever other images of the job use, and one without a sub-prompt acts on the whole image."""
    tensors = {name: random_lora(starter, conv=False, seed=seed, size=0.3) for seed, name in enumerate("abc")}
    files = {name: save_lora(tmp_path / f"{name}.safetensors", each, SD1) for name, each in tensors.items()}
    with loras_attached(starter, [LoraUse(file=name) for name in "abc"], files.__getitem__) as loras:
        loras.set_strengths([LoraUse(file="c"), LoraUse(file="a")])
        assert loras.by_use == {0: loras.networks[2], 1: loras.networks[0]}
    halves = Image.new("RGB", (64, 64), "red")
    halves.paste((0, 255, 0), (32, 0, 64, 64))
    halves.save(tmp_path / "map.png")

    def drawn(names, prompt="a fox AND a dog"):
        uses = [LoraUse(file=str(files[name])) for name in names]
        job = job_of(prompt=prompt, steps=2, seed=1, width=64, height=64, loras=uses)
        job = job.model_copy(update={"regions": RegionSettings(region_map=str(tmp_path / "map.png"))})
        (path,) = run_generate(job, space, store=store)
        return Image.open(path).convert("RGB").tobytes()

    assert len({drawn("ab"), drawn("ba"), drawn("abc")}) == 3
    assert drawn("ab", "a fox AND a dog :0.5") == drawn("ab")


def other(layer, seed):
    """A LoRA on the same layer."""
    target = Target(f"lora_unet_{seed}", "", layer, "", layer)
    adapter = kind_named("lora").fresh(target, BlockSize(2, 2.0), None, seed)
    for parameter, _ in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter


@pytest.mark.parametrize(
    ("colors", "prompt", "codes"),
    [
        (((255, 0, 0), (0, 255, 0)), "a AND b", []),
        (((255, 0, 0), (0, 255, 0)), "a AND b AND c", ["generate.region-colors"]),
        (((255, 0, 0), (0, 0, 255)), "a AND b", ["generate.region-colors"]),
        (((255, 255, 255), (0, 0, 0)), "a AND b", ["generate.region-colors"]),
        (((255, 0, 0), (0, 255, 255)), "a AND b AND c AND d", []),
    ],
)
def test_prompts_without_an_area_of_their_own_are_told_before_the_start(space, tmp_path, colors, prompt, codes):
    areas = Image.new("RGB", (64, 64), colors[0])
    areas.paste(colors[1], (32, 0, 64, 64))
    areas.save(tmp_path / "map.png")
    job = job_of(prompt=prompt).model_copy(update={"regions": RegionSettings(region_map=str(tmp_path / "map.png"))})
    assert [each.code for each in plan_of(job, space).notes] == codes
