"""LoRA files with the names of every program hold the same tensors; ways there and back lose no bit."""

import cProfile
import json
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from core.families.targets import Target
from core.formats.detect import identify
from core.formats.lora.names import part_and_path, split_key, to_kohya_key
from core.networks.adapter_file import LoraFile, load_lora, save_lora, to_diffusers, to_kohya
from core.networks.files import read_file
from core.networks.network import Network
from tests.recorded_json import recorded_json
from tests.refusals import refused

MODELS = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
LETTER, SIDE = {"lora_down": "lora_A", "lora_up": "lora_B"}, {"lora_down": "down", "lora_up": "up"}
OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


@cache
def paths(model):
    """{kohya's name of a layer: (part, diffusers' path, the path in a checkpoint)}, from the recorded names of whole models."""
    found = {}
    recorded = recorded_json("checkpoint_keys")["models"][model]
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, entry in recorded.get(part, {}).items():
            for path in entry["from"]:
                path, ldm = path.removesuffix(".weight"), name.removesuffix(".weight")
                own = ldm.removeprefix("model.diffusion_model.") if model == "sdxl" and part == "unet" else path
                sdxl = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
                head = "lora_unet" if part == "unet" else sdxl[part] if model == "sdxl" else "lora_te"
                found[f"{head}_{own}".replace(".", "_")] = part, path, ldm
    return found


@cache
def kohya(model):
    """The layers of a whole LoRA of sd-scripts with convolutions, as small as they can be and tell their family."""
    draw, found = torch.Generator().manual_seed(1), {}
    for name, shape in recorded_json("network_keys")["cases"][f"{model}/lora_c3lier"]["keys"].items():
        small = [side if side > 767 and "attn2_to_k" in name and "down" in name else min(side, 2) for side in shape]
        if model == "sd21" and "_proj_" in name and "lora_unet" in name and len(shape) == 2:
            small += [1, 1]  # sd-scripts trains convolutions there
        found[name] = torch.randn(small, generator=draw) if shape else torch.tensor(0.7)
    return found


def renamed(model, name_of):
    """The same tensors, named by (part, path, checkpoint's path, key)."""
    found = {}
    for name, value in kohya(model).items():
        layer, _, key = name.partition(".")
        found[name_of(*paths(model)[layer], key)] = value
    return found


def peft(form):
    def name_of(part, path, ldm, key):
        side = key.removesuffix(".weight")
        return f"{part}.{path}.alpha" if key == "alpha" else f"{part}.{path}.{LETTER[side]}.{form}"

    return name_of


def old(part, path, ldm, key):
    inner, _, last = path.rpartition(".")
    side = "alpha" if key == "alpha" else f"{SIDE[key.removesuffix('.weight')]}.weight"
    if inner.endswith((".attn1", ".attn2", ".to_out")) and "to_" in path:
        return f"{part}.{inner.removesuffix('.to_out')}.processor.{'to_out' if last == '0' else last}_lora.{side}"
    if part != "unet" and inner.endswith("self_attn") and "layers.0." in path:
        return f"{part}.{inner}.{OLD_TEXT[last]}_lora.{side}"
    return f"{part}.{path}.{'lora' if part == 'unet' else 'lora_linear_layer'}.{side}"


def comfyui(letters):
    def name_of(part, path, ldm, key):
        side = key.removesuffix(".weight")
        key = f"{LETTER[side]}.weight" if letters and side in LETTER else key
        if part == "unet":
            return f"{ldm.removeprefix('model.')}.{key}"
        clip = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[part]
        return f"text_encoders.{clip}.transformer.{path}.{key}"

    return name_of


def lycoris(part, path, ldm, key):
    return f"lycoris_{part}_{path}".replace(".", "_") + f".{key}"


def original(part, path, ldm, key):
    layer = (
        ldm.replace("model.diffusion_model.", "lora_unet_").replace(".", "_") if part == "unet" else f"{part}.{path}"
    )
    return f"{layer}.{key}"


def modules(part, path, ldm, key):
    return f"{part}.{path}.{key}"


SCHEMES = {
    "PEFT": (peft("weight"), "peft"),
    "PEFT with the adapter's name": (peft("default.weight"), "peft"),
    "PEFT of several parts": (lambda *names: "base_model.model." + peft("weight")(*names), "peft"),
    "old diffusers": (old, "diffusers"),
    "ComfyUI": (comfyui(False), "comfyui"),
    "ComfyUI with A and B": (comfyui(True), "comfyui"),
    "ComfyUI, whole prefix": (lambda *names: comfyui(False)(*names).replace("diffusion_model.", "model.diffusion_model."), "comfyui"),
    "LyCORIS": (lycoris, "lycoris"),
    "modules": (modules, "lycoris"),
    "kohya's with the original block names": (original, "kohya"),
}  # fmt: skip


@pytest.mark.slow(but=("PEFT-sd21", "PEFT-sdxl", *(f"{scheme}-sd15" for scheme in SCHEMES)))
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_program_s_names_are_read_as_kohya_s(tmp_path, scheme, model):
    name_of, layout = SCHEMES[scheme]
    save_file(renamed(model, name_of), tmp_path / "x.safetensors")
    read = load_lora(tmp_path / "x.safetensors")
    given = kohya(model)
    assert (read.family, set(read.tensors)) == (MODELS[model], set(given))
    assert all(torch.equal(read.tensors[name], value) for name, value in given.items())
    assert identify(tmp_path / "x.safetensors").layout == layout


def test_sdxl_files_of_kohya_and_of_flat_text_encoders_have_the_usual_names():
    name = "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight"
    assert to_kohya_key(name, "sdxl") == ("lora_unet_input_blocks_4_1_proj_in", "lora_down.weight")
    assert to_kohya_key(name, "sd1") == (name.partition(".")[0], "lora_down.weight")
    flat, full = (f"lora_te1_{text}encoder_layers_0_mlp_fc1" for text in ("", "text_model_"))
    assert to_kohya_key(f"{flat}.alpha", "sdxl") == to_kohya_key(f"{full}.alpha", "sdxl") == (full, "alpha")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [("lora_unet_", "lora_te_"), ("lora_te_",)])
def test_the_text_layers_of_sd_scripts_dylora_for_sdxl_are_the_second_encoders(tmp_path, parts):
    """It names both encoders lora_te, so that the file holds those of the second alone."""
    recorded = recorded_json("network_keys")["cases"]["sdxl/dylora"]["keys"]
    given = {name: torch.ones(shape).half() for name, shape in recorded.items() if name.startswith(parts)}
    lora = load_lora(save_lora(tmp_path / "a.safetensors", given), shapes=True)
    assert lora.family == "sdxl"
    assert set(lora.tensors) == {name.replace("lora_te_", "lora_te2_") for name in given}
    first = {name: value for name, value in kohya("sdxl").items() if not name.startswith("lora_te2_")}
    plain = {name.replace("lora_te1_", "lora_te_"): value for name, value in first.items()}
    assert set(load_lora(save_lora(tmp_path / "b.safetensors", plain)).tensors) == set(first)


@pytest.mark.slow(only=("sdxl",))
@pytest.mark.parametrize("model", MODELS)
def test_there_and_back_gives_the_same_bits(tmp_path, model):
    given = {key: value if key.endswith("alpha") else value.half() for key, value in kohya(model).items()}
    told = {"ss_network_dim": "2", "modelspec.title": "fox", "ss_output_name": "füchse"}
    lora = load_lora(save_lora(tmp_path / "a.safetensors", given, told))
    tensors, metadata = to_diffusers(lora)
    assert not any(name.endswith("alpha") for name in tensors)
    save_file(tensors, tmp_path / "b.safetensors", metadata)
    back, metadata = to_kohya(load_lora(tmp_path / "b.safetensors"))
    assert set(back) == set(given)
    for name, value in given.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value), name
    assert told.items() <= metadata.items() and "lora_adapter_metadata" not in metadata
    again = to_diffusers(LoraFile(back, metadata, lora.family))[0]
    assert set(again) == set(tensors) and all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.slow(only=("ones0",))
@pytest.mark.parametrize("ones", [(1,), (1, 1, 1)])
def test_a_dora_of_sd_2_has_the_magnitudes_of_pefts_linear_layers_and_comes_back(tmp_path, ones):
    """Its projections are convolutions in kohya's files and Linear in diffusers."""
    given, draw = {}, torch.Generator().manual_seed(2)
    for name, value in kohya("sd21").items():
        layer, _, key = name.partition(".")
        given[name] = value
        if key == "lora_up.weight":
            own = ones if "_proj_" in name and "lora_unet" in name else (1,) * (value.ndim - 1)
            given[f"{layer}.dora_scale"] = torch.randn(len(value), *own, generator=draw)
    lora = load_lora(save_lora(tmp_path / "a.safetensors", given))
    tensors, metadata = to_diffusers(lora)
    start = "unet.down_blocks.0.attentions.0.proj_in"
    assert tensors[f"{start}.lora_magnitude_vector"].ndim == 1 and tensors[f"{start}.lora_B.weight"].ndim == 2
    save_file(tensors, tmp_path / "b.safetensors", metadata)
    back, _ = to_kohya(load_lora(tmp_path / "b.safetensors"))
    assert set(back) == set(given)
    for name, value in given.items():
        assert torch.equal(back[name].flatten(), value.flatten()), name
    assert back["lora_unet_down_blocks_0_attentions_0_proj_in.dora_scale"].ndim == 4


def test_a_folded_alpha_is_in_the_matrices(tmp_path):
    lora = load_lora(save_lora(tmp_path / "a.safetensors", kohya("sd15")))
    tensors, _ = to_diffusers(lora, fold_alpha=True)
    exact, _ = to_diffusers(lora)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"
    assert torch.equal(tensors[name], (exact[name].double() * (float(torch.tensor(0.7)) / 2)).float())


# -- PEFT's own files


def adapter(folder, config, **tensors):
    folder.mkdir(exist_ok=True)
    names = {f"base_model.model.{name.replace('__', '.')}": value for name, value in tensors.items()}
    save_file(names, folder / "adapter_model.safetensors")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return load_lora(folder / "adapter_model.safetensors").tensors


def test_an_adapter_of_peft_has_its_scale_by_the_config_beside_it(tmp_path):
    """Compared with PEFT itself: its scaling of each layer, with patterns and rsLoRA."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q, self.to_k, self.to_v = (torch.nn.Linear(4, 4) for _ in range(3))

    model = torch.nn.ModuleDict({"mid_block": torch.nn.ModuleDict({"attn1": Block()})})
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        rank_pattern={"to_k": 2},
        alpha_pattern={"mid_block.attn1.to_v": 1.5},
        target_modules=["to_q", "to_k", "to_v"],
        use_rslora=True,
    )
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "saved")
    read = load_lora(tmp_path / "saved" / "adapter_model.safetensors").tensors
    for layer in ("to_q", "to_k", "to_v"):
        module = model["mid_block"]["attn1"].get_submodule(layer)
        assert isinstance(module, BaseTunerLayer)
        name = f"lora_unet_mid_block_attn1_{layer}"
        scale = float(read[f"{name}.alpha"]) / read[f"{name}.lora_down.weight"].shape[0]
        assert scale == pytest.approx(module.scaling["default"], rel=1e-6)


def test_what_a_config_of_peft_cannot_tell_is_refused(tmp_path):
    tensors = {"mid_block__attentions__0__proj_in__lora_A__weight": torch.ones(2, 8)}
    tensors |= {"mid_block__attentions__0__proj_in__lora_B__weight": torch.ones(8, 2)}
    assert not any(name.endswith("alpha") for name in adapter(tmp_path / "none", None, **tensors))
    for config, code in (
        ({"r": 2, "lora_alpha": "two"}, "lora.bad-metadata"),
        ({"r": 2, "lora_alpha": 2, "alpha_pattern": {"mid.*|up": 1}}, "lora.alpha-by-regex"),
        ({"r": 2, "alpha": 2, "peft_type": "LOKR"}, "lora.unsupported-variant"),
        ({"r": 2, "lora_alpha": 2, "init_lora_weights": "pissa_niter_4"}, "lora.unsupported-variant"),
    ):
        with refused(code):
            adapter(tmp_path / "some", config, **tensors)


@pytest.mark.parametrize("start", ["olora", True])
def test_an_initialization_of_diffusers_that_changes_the_model_is_refused(tmp_path, start):
    names = [f"unet.mid_block.attentions.0.proj_in.lora_{side}.weight" for side in "AB"]
    metadata = json.dumps({"unet.r": 2, "unet.lora_alpha": 2, "unet.init_lora_weights": start})
    path = tmp_path / "a.safetensors"
    save_file(
        dict(zip(names, (torch.ones(2, 8), torch.ones(8, 2)), strict=True)), path, {"lora_adapter_metadata": metadata}
    )
    with refused("lora.unsupported-variant", "olora") if start == "olora" else nullcontext():
        assert load_lora(path).tensors


def test_a_dora_of_peft_gives_the_weights_that_peft_merges(tmp_path):
    """Its magnitudes are read in LyCORIS' shape, for Linear layers and convolutions; and written to PEFT's names and back."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    layers = {"to_q": torch.nn.Linear(6, 4), "conv1": torch.nn.Conv2d(3, 4, 3)}
    targets = [Target(f"lora_unet_mid_block_{n}", f"mid_block.{n}", torch.nn.Module(), n, m) for n, m in layers.items()]
    base = {name: module.weight.detach().clone() for name, module in layers.items()}
    model = torch.nn.ModuleDict({"mid_block": torch.nn.ModuleDict({name: layers[name] for name in layers})})
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=list(layers)))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data + 0.3 * torch.rand_like(parameter)
    adapted.save_pretrained(tmp_path)
    merged = adapted.merge_and_unload()["mid_block"]
    lora = load_lora(tmp_path / "adapter_model.safetensors")
    assert lora.tensors["lora_unet_mid_block_to_q.dora_scale"].shape == (4, 1)
    assert lora.tensors["lora_unet_mid_block_conv1.dora_scale"].shape == (4, 1, 1, 1)
    for target in targets:
        target.module.weight.data = base[target.attribute].clone()
    Network.from_tensors(lora.tensors, targets).merge_to()
    for target in targets:
        torch.testing.assert_close(target.module.weight, merged[target.attribute].weight, rtol=1e-5, atol=1e-6)
    save_file(*to_diffusers(lora)[:1], tmp_path / "again.safetensors", to_diffusers(lora)[1])
    again = load_lora(tmp_path / "again.safetensors").tensors
    assert again.keys() == lora.tensors.keys()
    assert all(torch.equal(again[name], value) for name, value in lora.tensors.items())


# -- what is told


def test_layers_of_no_part_and_layers_named_twice_are_refused(tmp_path):
    name = "mid_block.attentions.0.proj_in"
    both = {
        f"transformer.{name}.lora_A.weight": torch.ones(2, 8),
        f"transformer.{name}.lora_B.weight": torch.ones(8, 2),
    }
    save_file(both, tmp_path / "x.safetensors")
    with refused("lora.unknown-layer", "transformer."):
        load_lora(tmp_path / "x.safetensors")
    twice = {f"unet.{name}.lora_A.weight": torch.ones(2, 8), f"unet.{name}.lora_down.weight": torch.ones(2, 8)}
    save_file(twice, tmp_path / "x.safetensors")
    with refused("lora.layer-twice", "lora_down"):
        load_lora(tmp_path / "x.safetensors")


def test_biases_and_norms_beside_a_lora_are_left_out_by_name(tmp_path):
    given = dict(kohya("sd15"))
    beside = {
        "lora_unet_mid_block_attentions_0_proj_in.bias": torch.ones(2),
        "lora_unet_mid_block_resnets_0_norm1.w_norm": torch.ones(2),
        "lora_unet_mid_block_resnets_0_norm1.b_norm": torch.ones(2),
    }
    save_file(given | beside, tmp_path / "x.safetensors")
    read = load_lora(tmp_path / "x.safetensors")
    assert set(read.left_out) == set(beside) and set(read.tensors) == set(given)


def test_a_file_of_an_unknown_kind_is_told_with_the_nearest_one(tmp_path):
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    content = {f"{layer}.{key}": torch.ones(2, 2) for key in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w9_x")}
    save_file(content, tmp_path / "x.safetensors")
    assert "looks like LoHa with unknown keys (hada_w9_x)" in identify(tmp_path / "x.safetensors").evidence
    with refused("lora.incomplete", "looks like LoHa", "hada_w9_x"):
        load_lora(tmp_path / "x.safetensors")


def test_weights_that_are_no_numbers_and_files_of_another_family_are_refused_before_use(tmp_path):
    given = dict(kohya("sd15"))
    name = "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"
    save_file(given | {name: torch.full_like(given[name], float("nan"))}, tmp_path / "x.safetensors")
    with refused("weights.not-finite", name):
        read_file(tmp_path / "x.safetensors", "sd1")
    with refused("lora.other-family", "SD 1.x"):
        read_file(tmp_path / "x.safetensors", "sdxl")


def test_the_header_of_an_sdxl_lora_is_read_with_a_few_calls_per_key(tmp_path):
    """Each check of a form reads it: 0.1 s on an idle core."""
    tensors = kohya("sdxl")
    save_file(tensors, tmp_path / "x.safetensors")
    load_lora(tmp_path / "x.safetensors", shapes=True)
    profile = cProfile.Profile()
    profile.runcall(load_lora, tmp_path / "x.safetensors", shapes=True)
    calls = sum(entry.callcount for entry in profile.getstats())
    assert calls < 120 * len(tensors)  # 70 when this was written


DOWN, UP = "lora_down.weight", "lora_up.weight"


@pytest.mark.parametrize(
    ("name", "layer", "key"),
    [
        ("unet.x.lora_A", "unet.x", DOWN),
        ("unet.x.lora_A.weight", "unet.x", DOWN),
        ("unet.x.lora_B.default.weight", "unet.x", UP),
        ("unet.x.lora_alpha", "unet.x", "alpha"),
        ("unet.x.lora_magnitude_vector", "unet.x", "dora_scale"),
        ("unet.x.lora_B.bias", "unet.x", "lora_B.bias"),
        ("unet.x.attn1.processor.to_q_lora.down.weight", "unet.x.attn1.to_q", DOWN),
        ("unet.x.attn1.processor.to_out_lora.up.weight", "unet.x.attn1.to_out.0", UP),
        ("t.self_attn.to_q_lora.down.weight", "t.self_attn.q_proj", DOWN),
        ("t.self_attn.to_k_lora.down.weight", "t.self_attn.k_proj", DOWN),
        ("t.self_attn.to_v_lora.up.weight", "t.self_attn.v_proj", UP),
        ("t.self_attn.to_out_lora.alpha", "t.self_attn.out_proj", "alpha"),
        ("unet.x.lora.down.weight", "unet.x", DOWN),
        ("unet.x.lora.up.weight", "unet.x", UP),
        ("unet.x.lora_linear_layer.up.weight", "unet.x", UP),
        ("lora_unet_x.hada_w1_a", "lora_unet_x", "hada_w1_a"),
        ("lora_unet_x.of.no.kind", "lora_unet_x", "of.no.kind"),
        ("unet.x.of_no_kind", "unet.x", "of_no_kind"),
    ],
)
def test_a_name_is_a_layer_and_a_key_in_each_notation(name, layer, key):
    assert split_key(name) == (layer, key)


def test_a_key_of_peft_has_three_parts_at_most():
    assert split_key("unet.x.lora_A.two.names.weight")[1] != DOWN


@pytest.mark.parametrize(
    ("name", "family", "layer"),
    [
        ("lycoris_mid_block_x", None, "lora_unet_mid_block_x"),
        ("lycoris_unet_mid_block_x", None, "lora_unet_mid_block_x"),
        ("lycoris_lora_unet_mid_block_x", None, "lora_unet_mid_block_x"),
        ("lycoris_text_encoder_text_model_x", "sd1", "lora_te_text_model_x"),
        ("lycoris_text_encoder_text_model_x", "sdxl", "lora_te1_text_model_x"),
        ("lycoris_text_encoder_2_text_model_x", "sdxl", "lora_te2_text_model_x"),
        ("lycoris_text_encoder_2_encoder_layers_0_x", "sdxl", "lora_te2_text_model_encoder_layers_0_x"),
        ("lycoris_text_model_x", "sd1", "lora_te_text_model_x"),
        ("lycoris_text_model_x", "sdxl", "lora_te1_text_model_x"),
    ],
)
def test_each_beginning_of_lycoris_is_a_part(name, family, layer):
    assert to_kohya_key(f"{name}.alpha", family) == (layer, "alpha")


@pytest.mark.parametrize(
    ("path", "family", "expected"),
    [
        ("unet.mid_block.x", None, ("unet", "mid_block.x")),
        ("base_model.model.unet.conv_in", None, ("unet", "conv_in")),
        ("unet.base_model.model.conv_in", None, ("unet", "conv_in")),
        ("model.diffusion_model.middle_block.1.proj_in", "sd1", ("unet", "mid_block.attentions.0.proj_in")),
        ("diffusion_model.out.2", "sdxl", ("unet", "conv_out")),
        ("text_encoder.text_model.x", None, ("text_encoder", "text_model.x")),
        ("text_encoder_2.text_model.x", None, ("text_encoder_2", "text_model.x")),
        ("text_encoders.clip_l.transformer.text_model.x", None, ("text_encoder", "text_model.x")),
        ("text_encoders.clip_h.transformer.text_model.x", None, ("text_encoder", "text_model.x")),
        ("text_encoders.clip_g.transformer.text_model.x", None, ("text_encoder_2", "text_model.x")),
        ("base_model.model.encoder.layers.0.x", None, ("text_encoder", "encoder.layers.0.x")),
        *((f"{root}.x", None, ("unet", f"{root}.x")) for root in ("down_blocks", "up_blocks", "conv_out", "conv_in")),
        *((f"{root}.x", None, ("unet", f"{root}.x")) for root in ("time_embedding", "add_embedding", "mid_block")),
        ("transformer.x", None, (None, "transformer.x")),
    ],
)
def test_the_part_of_a_path_is_told_by_its_beginning(path, family, expected):
    assert part_and_path(path, family) == expected
