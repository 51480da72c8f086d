"""The list of a model's layers by its header, the tree of them, and the settings that choose what is chosen in it."""

import random
from functools import cache

import pytest
from pytest import mark

from core.families.published_shapes import recorded
from core.formats.models.text_keys import full_name
from core.networks.block_weights import SLOTS
from core.networks.layer_list import OUTSIDE, TEXT_ENCODERS, listed_layers
from core.networks.layer_sizes import trains_by_default
from core.networks.layer_tree import LayerTree
from core.networks.layers import meta_targets
from core.networks.sizes import layer_of
from core.settings.layers import Entry, LayerChoice
from core.settings.network import NetworkSettings
from tests.selection import slow_unless

FAMILIES = slow_unless(("sd1", "sdxl").__contains__, ("sd1", "sd2", "sdxl"))


@cache
def tree_of(family):
    return LayerTree(listed_layers(family, recorded()[family]))


def every(tree):
    return (1 << len(tree.layers)) - 1


def usually(tree, **given):
    return tree.mask(trains_by_default(NetworkSettings(**given), layer) for layer in tree.layers)


def chosen_by(tree, texts):
    settings = NetworkSettings(layers=texts[0], exclude_layers=texts[1])
    choice = LayerChoice(settings)
    return tree.mask(choice.trains(layer, trains_by_default(settings, layer)) for layer in tree.layers)


def named(tree, *names):
    """The layers of leaves by the beginning of block, part and matrix; "" for any."""
    fits = [leaf for leaf in tree.leaves if all(each.startswith(name) for each, name in zip(leaf, names, strict=False))]
    assert fits
    return sum(leaf.mask for leaf in fits)


@mark.parametrize("family", FAMILIES)
def test_the_list_by_the_header_is_the_list_of_the_built_modules(family):
    built = [layer_of(target) for target in meta_targets(family)]
    listed = [each.layer for each in tree_of(family).listed]
    full = [layer if layer.unet else layer._replace(path=full_name(layer.path)) for layer in built]
    assert len(listed) == len(full) and set(listed) == set(full)


@mark.parametrize(("family", "text", "unet", "wide"), [("sd1", 72, 192, 278), ("sdxl", 264, 722, 788)])
def test_the_list_has_as_many_layers_as_sd_scripts_trains_in_blocks_from_the_input_on(family, text, unet, wide):
    """The counts are sd-scripts' (training.md, 3.3)."""
    listed = tree_of(family).listed
    assert sum(not each.layer.unet for each in listed) == text
    assert sum(each.layer.unet for each in listed) == wide + 4 == wide + sum(each.layer.outer for each in listed)
    assert sum("attentions." in each.layer.path for each in listed) == unet
    blocks = list(dict.fromkeys(each.block for each in listed))
    assert blocks == [b for b in (*TEXT_ENCODERS.values(), *SLOTS, OUTSIDE) if b in blocks]
    assert {"IN01", "MID", "OUT00", OUTSIDE} <= set(blocks)


@pytest.mark.slow(only=("sdxl",))
@mark.parametrize("family", ("sd1", "sdxl"))
def test_each_layer_is_in_one_leaf_and_each_expression_finds_the_layers_that_the_tree_says(family):
    tree = tree_of(family)
    assert sum(leaf.mask for leaf in tree.leaves) == every(tree)
    names = {layer.name for layer in tree.layers}
    assert names <= set(tree.expressions)
    for text, found in tree.expressions.items():
        if text not in names:  # compared as it is: only its own layer has it
            entry = Entry(text, "network.layers", seconds=1e9)
            assert tree.mask(entry.matches(layer) for layer in tree.layers) == found, text
    assert sum(any(name in other for other in names) for name in names) == len(names)


@pytest.mark.slow(only=("sdxl",))
@mark.parametrize("family", ("sd1", "sdxl"))
def test_what_is_chosen_in_the_tree_is_what_the_written_settings_choose(family):
    tree, chance = tree_of(family), random.Random(4)
    for n in range(8):
        picked = sum(leaf.mask for leaf in chance.sample(tree.leaves, chance.choice((1, 3, 12))))
        # A part of a leaf, as expressions choose
        picked ^= 1 << chance.randrange(len(tree.layers)) if n % 4 == 3 else 0
        for base in (0, every(tree), usually(tree)):
            chosen = base & ~picked if base else picked
            texts = tree.settings_for(chosen, usually(tree), every(tree))
            assert chosen_by(tree, texts) == chosen
            assert len(texts[0]) + len(texts[1]) <= 14


def test_common_choices_are_written_shortly():
    tree = tree_of("sdxl")
    rest, text = usually(tree), named(tree, "Text")

    def texts(chosen, untrained=0):
        return tree.settings_for(chosen, rest, every(tree) & ~untrained)

    assert texts(rest) == ([], [])
    assert texts(every(tree)) == (["full"], [])
    assert texts(rest & ~named(tree, "", "Cross")) == ([], ["attn2"])
    assert texts(rest & ~text) == ([], ["lora_te"])
    assert texts(named(tree, "MID")) == (["mid_block"], [])
    assert texts(named(tree, "IN07", "Cross", "v")) == (["down_blocks.2.attentions.0.*attn2.to_v"], [])
    assert texts(named(tree, "", "Self") & ~named(tree, "OUT00") & ~text) == (
        ["attn1"],
        ["up_blocks.0.(attentions.0|resnets.0)"],
    )
    assert texts(0) == ([], ["lora_"])
    assert texts(text | named(tree, "MID"), untrained=text) == (["mid_block"], [])


def test_where_convolutions_are_trained_the_usual_layers_are_all():
    tree = tree_of("sd1")
    inner = every(tree) & ~named(tree, OUTSIDE)
    assert usually(tree) != inner == usually(tree, conv_rank=4)
    convolutions = named(tree, "", "3x3")
    assert tree.settings_for(inner & ~convolutions, inner, every(tree)) == ([], ["conv[12]?$"])
