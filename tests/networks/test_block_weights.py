"""Block weights: lists and names as the LBW extension and sd-scripts have them, and the slots of layers."""

from __future__ import annotations

import pytest

from core.families import family
from core.families.part_shapes import make_empty
from core.networks.block_weights import LISTS, NAMES, SLOTS, block_weights, slot_of, slot_of_key, weight_of

A1111 = {  # the extension's lbwpresets, 17 numbers each
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
    "ALL0.5": "0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5",
}


@pytest.mark.parametrize("name", A1111)
def test_a_name_is_the_extensions_list(name):
    named = dict(zip(SLOTS, block_weights(name.lower(), sdxl=False), strict=True))
    assert [named[slot] for slot in LISTS[17]] == [float(each) for each in A1111[name].split(",")]


@pytest.mark.parametrize("length", LISTS)
def test_a_list_sets_its_slots_and_leaves_the_others_at_1(length):
    text = ",".join(f" {number / 10}" for number in range(length))
    given = dict(zip(LISTS[length], (number / 10 for number in range(length)), strict=True))
    assert len(LISTS[length]) == length
    assert block_weights(text) == tuple(given.get(slot, 1.0) for slot in SLOTS)


@pytest.mark.parametrize(
    ("text", "named"), [("1,2", "2"), ("MID", "'MID'"), ("1," * 16 + "nan", "'nan'"), ("1," * 16 + "x", "'x'")]
)
def test_a_list_of_another_length_and_what_is_no_number_are_refused(text, named):
    with pytest.raises(ValueError, match=named):
        block_weights(text, None)


def test_a_strength_is_from_minus_10_to_10():
    assert block_weights(",".join(["10"] * 25 + ["-10"])) == (10.0,) * 25 + (-10.0,)
    for beyond in ("10.1", "-10.1"):
        with pytest.raises(ValueError, match=beyond):
            block_weights(",".join(["1"] * 25 + [beyond]))


@pytest.mark.parametrize(("length", "sdxl"), [(12, False), (20, False), (17, True)])
def test_lists_of_the_other_families_blocks_are_refused_once_the_family_is_known(length, sdxl):
    text = ",".join(["1"] * length)
    assert block_weights(text)
    with pytest.raises(ValueError, match="are for"):
        block_weights(text, sdxl)


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "BASE"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "BASE"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in", "IN01"),
        ("lora_unet_down_blocks_2_attentions_1_proj_in", "IN08"),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", "IN03"),
        ("lora_unet_mid_block_attentions_0_proj_in", "MID"),
        ("lora_unet_up_blocks_1_attentions_0_proj_in", "OUT03"),
        ("lora_unet_up_blocks_3_attentions_2_proj_in", "OUT11"),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", "OUT02"),
        ("lora_unet_input_blocks_4_1_proj_in", "IN04"),
        ("lora_unet_middle_block_1_proj_in", "MID"),
        ("lora_unet_output_blocks_5_1_proj_in", "OUT05"),
        ("lora_unet_time_embed_0", "IN00"),
        ("lora_unet_out_2", "OUT09"),
    ],
)
def test_the_slot_of_a_layer_is_that_of_sd_scripts(name, slot):
    assert SLOTS[slot_of(name)] == slot


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_every_attention_of_the_unet_is_in_a_block_that_a_list_names(name):
    kind = family(name)
    unet = make_empty("unet", kind.layout.config("unet"))
    slots = {SLOTS[slot_of(target.name)] for target in kind.lora_targets(unet)}
    assert slots == set(LISTS[17 if name == "sd1" else 12]) - {"BASE"}


def test_names_divide_the_blocks_of_sdxl_by_their_depth():
    def kept(name):
        weights = dict(zip(SLOTS, block_weights(name, sdxl=True), strict=True))
        return {slot for slot in LISTS[20] if weights[slot]}

    assert kept("INS") | kept("IND") == kept("INALL") and kept("OUTD") | kept("OUTS") == kept("OUTALL")
    assert kept("INS") & kept("IND") == {"BASE"} == kept("OUTD") & kept("OUTS")
    assert kept("MIDD") == kept("IND") | {"MID"} | kept("OUTD")
    assert set.union(*map(kept, NAMES)) == set(LISTS[20])


U = "model.diffusion_model."


@pytest.mark.parametrize(
    ("key", "family", "slot"),
    [
        ("cond_stage_model.transformer.x", None, "BASE"),
        ("first_stage_model.encoder.conv_in.weight", "sdxl", "BASE"),
        (f"{U}input_blocks.0.0.weight", None, "IN00"),
        (f"{U}input_blocks.11.0.x", None, "IN11"),
        (f"{U}input_blocks.12.0.x", None, "IN11"),
        (f"{U}middle_block.1.x", "sdxl", "MID"),
        (f"{U}output_blocks.0.0.x", "sdxl", "OUT00"),
        (f"{U}output_blocks.11.0.x", None, "OUT11"),
        (f"{U}output_blocks.12.0.x", None, "OUT11"),
        (f"{U}time_embed.0.weight", None, "IN00"),
        (f"{U}label_emb.0.0.weight", "sdxl", "IN00"),
        (f"{U}out.2.weight", None, "OUT11"),
        (f"{U}out.2.weight", "sd1", "OUT11"),
        (f"{U}out.2.weight", "sdxl", "OUT08"),
    ],
)
def test_the_slot_of_a_key_of_a_checkpoint(key, family, slot):
    assert SLOTS[slot_of_key(key, family)] == slot


@pytest.mark.parametrize(
    ("name", "slot"),
    [("lora_te_text_model_x", "BASE"), ("lora_te2_text_model_x", "BASE"), ("lora_unet_time_embed_0", "IN00")]
    + [("lora_unet_label_emb_0_0", "IN00"), ("lora_unet_input_blocks_8_1_x", "IN08"), ("lora_unet_out_2", "OUT09")]
    + [(f"lora_unet_middle_block_{n}_x", "MID") for n in range(3)]
    + [("lora_unet_output_blocks_0_0_x", "OUT00"), ("lora_unet_output_blocks_8_0_x", "OUT08")]
    + [("lora_unet_down_blocks_0_attentions_0_x", "IN01"), ("lora_unet_mid_block_attentions_0_x", "MID")]
    + [("lora_unet_up_blocks_3_attentions_2_x", "OUT11"), ("lora_unet_conv_in", None)],
)
def test_a_layer_has_the_strength_of_its_slot_and_one_outside_is_left_at_1(name, slot):
    assert slot_of(name) == (None if slot is None else SLOTS.index(slot))
    weights = [float(number) for number in range(2, 28)]
    assert weight_of(weights, name) == (1.0 if slot is None else weights[SLOTS.index(slot)])
