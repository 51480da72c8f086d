"""Ranks, alphas and rates by block: against what sd-scripts computes and which keys it saves."""

import json
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.families import family
from core.networks.block_weights import block_count, block_of
from core.networks.kinds import kinds
from core.networks.network import Network
from core.settings.blocks import PRESETS, block_rates, block_sizes, rate_numbers
from core.settings.network import NetworkSettings
from tests.recorded_json import recorded_json

FAMILIES = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}


INDEX = recorded_json("lora_block_index")
KEYS = recorded_json("network_keys")["cases"]
# sd-scripts gives both text encoders the same names there, so those of the first one are lost
BOTH_ENCODERS = {"sdxl/dylora", "sdxl/dylora_conv"}


@cache
def targets(model):
    """Every layer that a LoRA can hook in a family's models, without weights."""
    kind = family(FAMILIES[model])
    parts = [kind.make_empty(name) for name in (*kind.layout.text_encoders, "unet")]
    return [target for part in parts for target in kind.lora_targets(part, conv=True)]


@pytest.mark.parametrize("model", FAMILIES)
def test_every_layer_is_in_the_block_that_sd_scripts_puts_it_in(model):
    expected = INDEX["block_index"][model]
    assert {name: block_of(name) for name in expected} == expected
    assert block_count(expected) == (23 if model == "sdxl" else 25)


@pytest.mark.parametrize("case", INDEX["block_lr_weight"])
def test_rates_by_block_are_those_of_sd_scripts(case):
    words, kind = case.split("|")
    settings = NetworkSettings(
        **{name: float(text) if name.endswith("threshold") else text for name, text in json.loads(words).items()}
    )
    assert block_rates(settings, 25 if kind == "sd" else 23) == INDEX["block_lr_weight"][case]


@pytest.mark.slow(only=("sdxl/dylora_conv",))
@pytest.mark.parametrize("case", KEYS)
def test_keys_and_shapes_of_a_network_are_those_of_sd_scripts(case):
    expected, named = KEYS[case], KEYS[case]["network_args"]
    kind = kinds().get(expected["module"].removeprefix("networks."))
    if kind is None:
        pytest.skip(f"{expected['module']} is not registered")
    own = kind.settings and kind.settings.model_validate(
        {name: text for name, text in named.items() if name in kind.settings.model_fields}, strict=False
    )
    settings = NetworkSettings(
        kind=kind.name,
        rank=expected["dim"] or 4,
        alpha=expected["alpha"] or 1,
        train_text_encoder=kind.name != "oft",
        conv_rank=int(named["conv_dim"]) if "conv_dim" in named else None,
        conv_alpha=float(named["conv_alpha"]) if "conv_alpha" in named else None,
        **{name: text for name, text in named.items() if name.startswith("block")},
    )
    network = Network.create(targets(case.split("/")[0]), settings, seed=1, kind_settings=own)
    found = {key: list(value.shape) for key, value in network.saved().items()}
    if case in BOTH_ENCODERS:
        first = {key for key in found if key.startswith("lora_te1_")}
        assert len(first) == 3 * 72
        found = {key.replace("lora_te2_", "lora_te_"): shape for key, shape in found.items() if key not in first}
    assert found == expected["keys"]


def plain_network(model="sd15", **settings):
    return Network.create(targets(model), NetworkSettings(**settings), seed=1)


def test_alphas_by_block_are_each_blocks_own():
    ranks, alphas = range(2, 27), [index % 4 + 1 for index in range(25)]
    network = plain_network(block_dims=list(ranks), block_alphas=alphas)
    for name, layer in network.adapters.items():
        assert (layer.rank, layer.alpha) == (ranks[block_of(name)], alphas[block_of(name)])


def test_a_rank_of_0_leaves_a_block_out():
    network = plain_network(block_dims=[4] * 12 + [0] + [4] * 12)
    assert {block_of(name) for name in network.adapters} == {1, 2, 4, 5, 7, 8, 16, 17, 18, 19, 20, 21, 22, 23, 24}


def test_a_rate_of_0_leaves_a_block_out_convolutions_too():
    network = plain_network(conv_rank=2, mid_lr_weight="0", down_lr_weight="zeros")
    assert {block_of(name) for name in network.adapters} == set(range(13, 25))


def test_ranks_of_convolutions_by_block_do_not_need_one_for_all():
    network = plain_network(rank=4, conv_block_dims=[0] * 13 + [3] * 12)
    wide = {name for name, layer in network.adapters.items() if layer.down.dim() == 4 and layer.down.shape[2] == 3}
    assert wide and {block_of(name) for name in wide} <= set(range(13, 25))
    assert {network.adapters[name].rank for name in wide} == {3}
    assert {network.adapters[name].scale for name in wide} == {1.0}, "an alpha that is not given is the rank"
    assert any("time_emb_proj" in name and layer.rank == 4 for name, layer in network.adapters.items())


def test_alphas_of_convolutions_by_block_are_each_blocks_own():
    alphas = [index % 4 + 1 for index in range(25)]
    _, wide = block_sizes(NetworkSettings(conv_rank=4, conv_block_alphas=alphas), 25)
    assert [(size.rank, size.alpha) for size in wide] == [(4, alpha) for alpha in alphas]


def test_text_encoders_know_no_blocks():
    network = plain_network(rank=5, block_dims=[2] * 25, train_text_encoder=True)
    assert {layer.rank for name, layer in network.adapters.items() if name.startswith("lora_te")} == {5}


def test_an_alpha_of_0_is_the_rank():  # as in sd-scripts
    sizes, _ = block_sizes(NetworkSettings(block_dims=[4] * 25, block_alphas=[0] * 25), 25)
    assert {size.alpha for size in sizes} == {4}


numbers = st.lists(st.floats(0, 4).map(lambda number: round(number, 3)), min_size=2, max_size=14)


@given(down=st.none() | numbers, mid=st.none() | numbers, up=st.none() | numbers, blocks=st.sampled_from([25, 23]))
def test_any_lists_give_one_factor_for_each_block(down, mid, up, blocks):
    settings = NetworkSettings(down_lr_weight=down, mid_lr_weight=mid, up_lr_weight=up)
    factors = block_rates(settings, blocks)
    if down is None and mid is None and up is None:
        assert factors is None
        return
    side, middle, first = (12, 1, 0) if blocks == 25 else (9, 3, 1)
    assert len(factors) == blocks
    for given_, start, count in ((down, first, side), (mid, first + side, middle), (up, first + side + middle, side)):
        whole = [*(given_ or []), *([1.0] * count)][:count]  # too short goes on with 1, too long is cut
        assert factors[start : start + count] == whole
    if blocks == 23:
        assert factors[0] == factors[22] == 1.0


@given(name=st.sampled_from(PRESETS), added=st.none() | st.floats(0, 3).map(lambda number: round(number, 3)))
def test_presets_stay_between_their_ends_and_mirror_each_other(name, added):
    curve = rate_numbers(name if added is None else f"{name}+{added}", 12)
    base = added or 0.0
    assert len(curve) == 12 and all(base - 1e-9 <= value <= base + 1 + 1e-9 for value in curve)
    mirror = {"sine": "cosine", "cosine": "sine", "linear": "reverse_linear", "reverse_linear": "linear"}.get(name)
    if mirror:
        assert {curve[0], curve[-1]} == {base, base + 1}
        assert rate_numbers(f"{mirror}+{base}", 12)[::-1] == curve


def test_one_number_is_for_all_blocks_of_a_side_of_several():  # sd-scripts takes it for the name of a preset
    assert block_rates(NetworkSettings(up_lr_weight=0.5), 25) == [1.0] * 13 + [0.5] * 12
    assert block_rates(NetworkSettings(mid_lr_weight="0.5"), 25)[12] == 0.5
    assert block_rates(NetworkSettings(mid_lr_weight="0.5"), 23)[9:14] == [1.0, 0.5, 1.0, 1.0, 1.0]


def test_a_threshold_counts_for_the_ones_that_fill_up_a_short_list_but_not_for_a_side_without_a_list():
    rates = block_rates(NetworkSettings(down_lr_weight="2,0.5", block_lr_zero_threshold=1), 25)
    assert rates == [2.0] + [0.0] * 11 + [1.0] * 13


def test_empty_places_are_0_and_factors_up_to_the_threshold_too():
    settings = NetworkSettings(down_lr_weight="0.1,,0.2" + ",1" * 9, block_lr_zero_threshold=0.1)
    assert block_rates(settings, 25)[:4] == [0.0, 0.0, 0.2, 1.0]
