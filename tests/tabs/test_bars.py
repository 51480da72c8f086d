"""Bars of lists by block: the names and curves they are drawn from, and the bars in a real browser."""

from __future__ import annotations

import html
import json
import re

import pytest
from playwright.sync_api import expect
from test_page_train import box, field, server_value, unfold

from core.networks.block_weights import LISTS, PRESETS, block_weights
from core.settings.blocks import COUNTS, SIDES, rate_numbers, side_count
from tabs.form import bars, fields
from tabs.form.project import FIELDS


def facts_in(drawn: str) -> dict:
    return json.loads(html.unescape(re.search(r'data-facts="([^"]*)"', drawn)[1]))


@pytest.mark.parametrize("blocks", sorted(set(COUNTS.values())))
def test_each_block_has_a_name_and_the_sides_take_their_own(blocks):
    names = bars.block_names(blocks)
    assert len(names) == len(set(names)) == blocks
    for name in SIDES:
        assert len(bars.side_names(name, blocks)) == side_count(name, blocks)
    inner = [each for name in SIDES for each in bars.side_names(name, blocks)]
    assert inner == (names if blocks == 25 else names[1:-1])


def test_every_list_by_block_of_the_network_has_bars_and_no_other_field():
    drawn = {path for path, entry in FIELDS.items() if "<block-bars" in fields.block(entry)}
    lists = {"block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"}
    assert drawn == {f"network.{name}" for name in lists | set(SIDES)}
    facts = facts_in(fields.block(FIELDS["network.down_lr_weight"]))
    assert facts["curves"]["9"]["cosine"] == rate_numbers("cosine", 9)
    assert [len(names) for names in facts["names"].values()] == [12, 12, 9]


def test_bars_of_a_lora_know_the_lists_and_presets_of_its_family():
    for family, length in (("sd1", 26), ("sdxl", 20)):
        facts = facts_in(bars.weight_bars(family, "x"))
        assert facts["length"] == length == len(facts["lists"][str(length)])
        assert set(facts["presets"]) == set(PRESETS) and set(facts["lists"]) == {str(each) for each in LISTS}
        assert facts["presets"]["OUTD"] == list(block_weights("OUTD", family == "sdxl"))


def test_bars_and_the_list_are_one_and_keys_and_presets_change_both(visit, served):
    window = visit()
    tab = window.open()
    unfold(tab, "network", more=True)
    rank = int(server_value(served, "network.rank"))
    ranks = field(tab, "network.block_dims")
    expect(ranks.get_by_role("slider")).to_have_count(25)
    bar = ranks.get_by_role("slider", name="IN05")
    expect(bar).to_have_attribute("aria-valuenow", str(rank))
    bar.focus()
    tab.keyboard.press("ArrowUp")
    expect(field(tab, "network.block_dims").get_by_text("Changed")).to_be_visible()
    assert server_value(served, "network.block_dims") == ",".join([str(rank)] * 5 + [str(rank + 1)] + [str(rank)] * 19)
    box(tab, "network.block_dims").fill("0," * 24 + "7")
    expect(ranks.get_by_role("slider", name="OUT11")).to_have_attribute("aria-valuenow", "7")
    rates = field(tab, "network.up_lr_weight")
    rates.get_by_label("Preset: Up block LR weights").select_option("Linear")
    expect(box(tab, "network.up_lr_weight")).to_have_value("linear")
    expect(rates.get_by_role("slider", name="OUT11")).to_have_attribute("aria-valuenow", "1")
    rates.locator(".row").scroll_into_view_if_needed()
    place = rates.locator(".row").bounding_box()
    tab.mouse.move(place["x"] + 6, place["y"] + place["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(place["x"] + place["width"] - 6, place["y"] + place["height"] / 2, steps=30)
    tab.mouse.up()
    expect(box(tab, "network.up_lr_weight")).to_have_value(",".join(["1"] * 12))
    assert window.errors == []
