"""Names of single files and of diffusers, against those that sd-scripts reads and writes."""

import pytest

from core.formats.lora.names import kohya_name, module_path
from core.formats.models import sd_keys, text_keys
from tests.recorded_json import recorded_json

MODELS = recorded_json("checkpoint_keys")["models"]
NETWORKS = recorded_json("network_keys")["cases"]


@pytest.mark.parametrize(
    ("model", "family", "count"), [("sd15", "sd1", 686), ("sd21", "sd2", 686), ("sdxl", "sdxl", 1680)]
)
def test_every_unet_key_maps_both_ways(model, family, count):
    pairs = {name.removeprefix(sd_keys.UNET_PREFIX): entry["from"] for name, entry in MODELS[model]["unet"].items()}
    assert len(pairs) == count
    for ldm, (diffusers,) in pairs.items():
        assert sd_keys.unet_to_diffusers(ldm, family) == diffusers
        assert sd_keys.unet_to_ldm(diffusers, family) == ldm


def test_every_vae_key_maps_both_ways():
    pairs = {name.removeprefix(sd_keys.VAE_PREFIX): entry["from"] for name, entry in MODELS["sd15"]["vae"].items()}
    assert len(pairs) == 248
    for ldm, (diffusers,) in pairs.items():
        assert sd_keys.vae_to_diffusers(ldm) == diffusers
        assert sd_keys.vae_to_ldm(diffusers) == ldm
        assert sd_keys.vae_to_diffusers(diffusers) == diffusers, "a name of diffusers stays"


@pytest.mark.parametrize(("model", "family"), [("sd15", "sd1"), ("sdxl", "sdxl")])
def test_every_clip_key_maps_both_ways(model, family):
    pairs = {
        name.removeprefix(sd_keys.CLIP_PREFIXES[family]): entry["from"]
        for name, entry in MODELS[model]["text_encoder"].items()
    }
    assert len(pairs) == 196
    for ldm, (full,) in pairs.items():
        assert text_keys.bare_name(ldm) == full.removeprefix("text_model.")
        assert text_keys.full_name(full) == ldm == text_keys.full_name(text_keys.bare_name(full))


@pytest.mark.parametrize(
    ("family", "ldm", "diffusers"),
    [
        ("sd1", "output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
        ("sd1", "output_blocks.5.2.conv.weight", "up_blocks.1.upsamplers.0.conv.weight"),
        ("sdxl", "output_blocks.2.2.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
        ("sd1", "input_blocks.10.0.in_layers.2.weight", "down_blocks.3.resnets.0.conv1.weight"),
        ("sd1", "out.2.weight", "conv_out.weight"),
        ("sd1", "input_blocks.1.0.out_layers.0.weight", "down_blocks.0.resnets.0.norm2.weight"),
    ],
)
def test_published_examples_of_the_unet(family, ldm, diffusers):
    assert sd_keys.unet_to_diffusers(ldm, family) == diffusers


def test_published_examples_of_the_vae():
    assert sd_keys.vae_to_diffusers("decoder.up.0.block.2.conv1.weight") == "decoder.up_blocks.3.resnets.2.conv1.weight"
    assert (
        sd_keys.vae_to_diffusers("decoder.up.3.upsample.conv.weight") == "decoder.up_blocks.0.upsamplers.0.conv.weight"
    )


def test_old_names_of_the_vae_attention_become_todays():
    root = "encoder.mid_block.attentions.0"
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        assert sd_keys.vae_to_diffusers(f"{root}.{old}.weight") == f"{root}.{new}.weight"


@pytest.mark.parametrize("case", [name for name in NETWORKS if "oft" not in name])
def test_every_lora_name_of_sd_scripts_is_a_module_of_the_model(case):
    model = case.split("/")[0]
    modules = {entry["from"][0].rpartition(".")[0] for entry in MODELS[model]["unet"].values()}
    for part in ("text_encoder", "text_encoder_2"):
        modules |= {name.rpartition(".")[0] for name in MODELS[model]["diffusers_shapes"].get(part, {})}
        modules |= {entry["from"][0].rpartition(".")[0] for entry in MODELS[model].get(part, {}).values()}
    for name in {key.partition(".")[0] for key in NETWORKS[case]["keys"]}:
        part, path = module_path(name)
        assert path in modules, name
        if model != "sdxl":
            assert kohya_name(part, path) == name


def test_a_name_of_no_part_has_no_path():
    assert module_path("lora_prior_x") is None and module_path("lora_unet_") is None
    assert kohya_name("transformer", "x") is None


def test_the_text_model_level_is_added_only_where_a_model_has_it():
    class Flat:
        pass

    class Nested:
        text_model = None

    assert text_keys.name_for(Flat(), "text_model.final_layer_norm.bias") == "final_layer_norm.bias"
    assert text_keys.name_for(Nested(), "final_layer_norm.bias") == "text_model.final_layer_norm.bias"
    assert text_keys.full_name("text_projection") == "text_projection"
    layer = "lora_te2_text_projection"
    assert kohya_name(*module_path(layer), "sdxl") == layer, "there and back"
    assert text_keys.full_name("text_projection.weight") == "text_projection.weight", "the projection stands beside it"


@pytest.mark.parametrize(
    ("model", "family", "part", "layers"), [("sd21", "sd2", "text_encoder", 23), ("sdxl", "sdxl", "text_encoder_2", 32)]
)
def test_every_open_clip_key_maps_both_ways(model, family, part, layers):
    prefix = sd_keys.OPEN_CLIP_PREFIXES[family]
    found = set()
    for name, entry in MODELS[model][part].items():
        assert name.startswith(prefix)
        ours = sd_keys.open_clip_to_diffusers(name.removeprefix(prefix))
        assert [text_keys.full_name(each) for each in ours] == entry["from"]
        for third, each in enumerate(ours):
            expected = (name.removeprefix(prefix), third if len(ours) == 3 else None)
            assert sd_keys.open_clip_to_ldm(each) == sd_keys.open_clip_to_ldm(text_keys.full_name(each)) == expected
        found |= set(ours)
    assert len(found) == layers * 16 + 4 + (family == "sdxl")


@pytest.mark.parametrize("name", ["logit_scale", "attn_mask", "transformer.resblocks.0.attn.unknown.weight"])
def test_what_transformers_has_no_place_for_is_left_out(name):
    assert sd_keys.open_clip_to_diffusers(name) == ()


def test_q_k_and_v_are_thirds_in_this_order():
    assert sd_keys.open_clip_to_diffusers("transformer.resblocks.7.attn.in_proj_bias") == tuple(
        f"encoder.layers.7.self_attn.{letter}_proj.bias" for letter in "qkv"
    )
