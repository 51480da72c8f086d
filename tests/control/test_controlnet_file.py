"""Files of every form give the net they were written from; diffusers loads ours; other kinds and families are refused by name."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from core.control.controlnet import controlnet_config, empty, from_unet
from core.control.controlnet_file import (
    file_problems,
    load_control_net,
    open_control_net,
    to_diffusers,
    to_ldm,
    write_control_net,
)
from core.control.kinds import check_control
from core.control.shapes import check_shapes, control_net_shapes, depths_of
from core.families import family
from core.formats.detect import ModelKind, identify
from core.formats.model_spec import implementation
from core.settings.model import FAMILIES, FamilyTraits
from tests.control.conftest import SDXL, net_of
from tests.models import single_file
from tests.recorded_json import recorded_json
from tests.refusals import refused

TITLES = {"sd1": "stable-diffusion-v1/controlnet", "sdxl": "stable-diffusion-xl-v1-base/controlnet"}


@pytest.fixture(scope="module")
def keys():
    return recorded_json("controlnet/control_keys")


@pytest.fixture(scope="module")
def nets(unets):
    return {name: net_of(unet) for name, unet in unets.items()}


def shapes_of(unet):
    return {name: tuple(weight.shape) for name, weight in unet.named_parameters()}


def write(path, net, name):
    advice = write_control_net(path, net.state_dict(), name, {"modelspec.architecture": TITLES[name]}, torch.float32)
    assert advice == []
    return path


def equal(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_names_and_shapes_are_the_published_ones(name, keys):
    unet = family(name).make_empty("unet")
    net = empty(controlnet_config(unet.config))
    ours = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert {key: list(shape) for key, shape in control_net_shapes(shapes_of(unet), ours).items()} == ours
    if name == "sdxl":
        assert ours == keys["sdxl"]
        return
    theirs = {to_ldm(key, name): shape for key, shape in ours.items()}
    assert theirs.keys() == keys[name].keys() and len(theirs) == 340
    assert theirs == keys[name]
    assert {key: to_diffusers(key, name) for key in theirs} == keys[f"{name}_diffusers_name"]


@pytest.mark.slow(only=("sd1-.pt",))
@pytest.mark.parametrize(("name", "ending"), [("sd1", ".safetensors"), ("sdxl", ".safetensors"), ("sd1", ".pt")])
def test_a_file_gives_the_same_net_again(name, ending, unets, nets, tmp_path):
    path = write(tmp_path / f"net{ending}", nets[name], name)
    assert equal(load_control_net(path, unets[name], name), nets[name])
    if ending == ".safetensors":
        assert identify(path).family == name
        assert all(key.startswith("control_model.") for key in load_file(path)) == (name == "sd1")


def test_every_other_form_gives_the_same_net(unets, nets, tmp_path):
    net, unet = nets["sd1"], unets["sd1"]
    named = load_file(write(tmp_path / "prefixed.safetensors", net, "sd1"))
    bare = {key.removeprefix("control_model."): value for key, value in named.items()}
    save_file(bare, tmp_path / "bare.safetensors")
    save_file({**named, "first_stage_model.x": torch.zeros(2)}, tmp_path / "with_more.safetensors")
    save_file(net.state_dict(), tmp_path / "diffusers.safetensors")
    net.save_pretrained(tmp_path / "folder")
    net.save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for form in ("bare.safetensors", "with_more.safetensors", "diffusers.safetensors", "folder", "sharded"):
        assert equal(load_control_net(tmp_path / form, unet, "sd1"), net), form


def test_a_difference_is_added_to_the_base_model_as_its_file_is(unets, nets, tmp_path):
    """Whatever is merged into the U-Net in memory."""
    net, unet = nets["sd1"], unets["sd1"]
    base, named = dict(unet.named_parameters()), {}
    for key, value in net.state_dict().items():
        named["control_model." + to_ldm(key, "sd1")] = value - base[key] if key in base else value.clone()
    save_file({**named, "difference": torch.zeros(1)}, tmp_path / "delta.safetensors")
    unet.save_pretrained(tmp_path / "folder/unet")
    save_file(single_file({"unet": unet.state_dict()}, "sd1"), tmp_path / "model.safetensors")
    (tmp_path / "folder/model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    other = SimpleNamespace(config=unet.config)  # no weights of its own
    for model in ("folder", "model.safetensors"):
        found = load_control_net(tmp_path / "delta.safetensors", other, "sd1", tmp_path / model).state_dict()
        for key, value in net.state_dict().items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_diffusers_loads_it(name, nets, tmp_path):
    path, net = write(tmp_path / "net.safetensors", nets[name], name), nets[name]
    net.save_config(tmp_path / "config")
    found = ControlNetModel.from_single_file(path, config=str(tmp_path / "config"), local_files_only=True)
    assert equal(found, net)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_folder_is_loaded_by_diffusers_and_here(name, pickled, unets, nets, tmp_path):
    net, path = nets[name], tmp_path / "net"
    config = json.loads(net.to_json_string())
    assert write_control_net(path, net.state_dict(), name, {}, torch.float32, config, pickled) == []
    assert [file.suffix for file in sorted(path.iterdir())] == [".json", ".bin" if pickled else ".safetensors"]
    assert equal(ControlNetModel.from_pretrained(path, local_files_only=True), net)
    assert file_problems(path, shapes_of(unets[name]), name) == []
    assert equal(load_control_net(path, unets[name], name), net)


@pytest.mark.slow
def test_shallower_nets_for_sdxl_are_used(unets, tmp_path):
    """Those that are published as small and mid: no attention, or fewer transformer layers."""
    for levels, mid in (((0, 0, 0), 0), ((0, 1, 1), 1)):
        shape = {
            "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in levels],
            "transformer_layers_per_block": [depth or 1 for depth in levels],
            "mid_block_type": "UNetMidBlock2DCrossAttn" if mid else "UNetMidBlock2D",
        }
        net = ControlNetModel(**controlnet_config({**from_unet(unets["sdxl"], 0).config, **SDXL}, **shape))
        path = write(tmp_path / "small.safetensors", net, "sdxl")
        assert file_problems(path, shapes_of(unets["sdxl"]), "sdxl") == []
        assert equal(load_control_net(path, unets["sdxl"], "sdxl"), net)


def test_what_does_not_fit_is_named(unets, nets, tmp_path):
    def codes(path, name="sd1"):
        return [each.code for each in file_problems(path, shapes_of(unets[name]), name)]

    sd1, sdxl = (
        write(tmp_path / "1.safetensors", nets["sd1"], "sd1"),
        write(tmp_path / "2.safetensors", nets["sdxl"], "sdxl"),
    )
    assert codes(sd1) == codes(sdxl, "sdxl") == []
    assert codes(sd1, "sdxl") == codes(sdxl) == ["control.other-family"]
    named = load_file(sd1)
    last = list(named)[-1]
    save_file({key: value for key, value in named.items() if key != last}, tmp_path / "short.safetensors")
    assert codes(tmp_path / "short.safetensors") == ["control.other-tensors"]
    with refused("control.other-tensors"):
        load_control_net(tmp_path / "short.safetensors", unets["sd1"], "sd1")
    save_file({**load_file(sdxl), "task_embedding": torch.zeros(6, 4)}, tmp_path / "union.safetensors")
    save_file({**named, "lora_controlnet": torch.zeros(1)}, tmp_path / "lora.safetensors")
    nets["sd1"].save_pretrained(tmp_path / "union_folder")
    config = tmp_path / "union_folder" / "config.json"
    config.write_text(config.read_text("utf-8").replace("ControlNetModel", "ControlNetUnionModel"), "utf-8")
    for path in (tmp_path / "union.safetensors", tmp_path / "lora.safetensors", config.parent):
        assert codes(path) == ["control.unsupported-variant"]
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    assert codes(tmp_path / "other.safetensors") == ["control.not-a-controlnet"]
    save_file({**named, last: torch.full_like(named[last], float("nan"))}, tmp_path / "nan.safetensors")
    with refused("weights.not-finite"):
        load_control_net(tmp_path / "nan.safetensors", unets["sd1"], "sd1")


def test_the_net_that_averages_over_the_image_is_known_by_its_config_or_name(unets, nets, tmp_path):
    assert open_control_net(write(tmp_path / "control_v11e_shuffle.safetensors", nets["sd1"], "sd1")).pooled
    assert not open_control_net(write(tmp_path / "control_canny.safetensors", nets["sd1"], "sd1")).pooled


def test_weights_too_large_for_the_type_are_kept_wide(nets, tmp_path):
    tensors = {key: value * 1e6 for key, value in nets["sd1"].state_dict().items()}
    advice = write_control_net(tmp_path / "a.safetensors", tensors, "sd1", {}, torch.float16)
    assert [each.code for each in advice] == ["weights.overflow"]


def test_the_names_of_a_file_and_its_metadata_are_what_the_family_declares(nets, tmp_path, monkeypatch):
    """Not what it is called: a family whose ControlNets programs read by diffusers' names gets them."""
    for traits, names in (
        (FamilyTraits(), "generative-models"),
        (FamilyTraits(diffusers_controlnets=True), "diffusers"),
    ):
        monkeypatch.setitem(FAMILIES, "sd1", traits)
        path = tmp_path / f"{traits.diffusers_controlnets}.safetensors"
        write_control_net(path, nets["sd1"].state_dict(), "sd1", {}, torch.float32)
        diffusers = all(not name.startswith("control_model.") for name in load_file(path))
        assert diffusers == traits.diffusers_controlnets and names in implementation("sd1", "controlnet")


@pytest.mark.parametrize(
    ("kind", "family", "variant", "holds", "wanted", "code"),
    [
        ("controlnet", "sd1", None, ("controlnet",), "sd1", None),
        ("controlnet", None, None, ("controlnet",), "sd1", None),
        ("controlnet", "sdxl", None, ("controlnet",), "", None),
        ("controlnet", "sdxl", "difference", ("controlnet",), "sdxl", None),
        ("controlnet", "sdxl", None, ("controlnet",), "sd1", "control.other-family"),
        ("controlnet", "sdxl", "union", ("controlnet",), "sdxl", "control.unsupported-variant"),
        ("controlnet", "sdxl", "Control-LoRA", ("controlnet",), "sdxl", "control.unsupported-variant"),
        ("lora", "sd1", None, ("controlnet", "controlnet_lllite"), "sd1", "control.not-a-controlnet"),
        ("controlnet", "sd1", None, ("controlnet_lllite",), "sd1", "lllite.not-an-lllite"),
        ("controlnet_lllite", "sdxl", None, ("controlnet", "controlnet_lllite"), "sdxl", None),
        ("controlnet_lllite", "sdxl", None, ("controlnet", "controlnet_lllite"), "sd1", "lllite.other-family"),
    ],
)
def test_a_net_is_of_a_kind_that_is_asked_for_and_of_the_models_family(kind, family, variant, holds, wanted, code):
    with refused(code) if code else nullcontext():
        check_control(ModelKind(kind, family, "single_file", None, "", variant), Path("a.safetensors"), holds, wanted)


@pytest.mark.parametrize(
    ("shapes", "fits"),
    [
        ({"a": (4, 2)}, True),
        ({"a": (4, 2, 1, 1)}, True),
        ({"a": (4,)}, False),
        ({"a": (2, 4)}, False),
        ({"a": (4, 2, 3, 3)}, False),
        ({"a": (4, 2, 1, 3)}, False),
        ({"a": (4, 2), "b": (1,)}, False),
        ({}, False),
    ],
)
def test_a_1x1_convolution_and_a_linear_layer_are_the_same_and_nothing_else_is(shapes, fits):
    with nullcontext() if fits else refused("control.other", "a.safetensors"):
        check_shapes(Path("a.safetensors"), shapes, {"a": (4, 2)}, ("another", "control.other"), "sd1")


def test_the_depth_of_a_nets_attention_is_that_of_its_last_layer_and_10_at_most():
    inside = ".attentions.0.transformer_blocks.{}.norm1.weight"
    names = [f"down_blocks.1{inside.format(n)}" for n in (1, 0)] + [f"down_blocks.2{inside.format(n)}" for n in (8,)]
    names += [f"mid_block{inside.format(n)}" for n in (10, 9)] + [
        "down_blocks.3.attentions.0.norm.weight",
        "conv_in.weight",
    ]
    assert depths_of(names) == {"down_blocks.1": 2, "down_blocks.2": 9, "mid_block": 10}
