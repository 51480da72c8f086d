"""Bars of lists by block: the names and curves they are drawn from, and the bars in a real browser."""

from __future__ import annotations

import html
import json
import re

import pytest
from generate_parts import lora
from playwright.sync_api import expect
from test_page_train import box, field, server_value, unfold
from work_parts import wait_until

from core.networks.block_weights import LISTS, PRESETS, SLOTS, block_weights
from core.settings.base import Declared, declared, item_settings
from core.settings.blocks import COUNTS, SIDES, block_rates, rate_numbers, side_count
from core.settings.blocks import LISTS as LISTS_BY_BLOCK
from core.settings.network import NetworkSettings
from core.settings.tools.merge_models import MergeModelsSettings
from core.settings.values import value_from
from core.tasks import tasks
from tabs.form import bars, fields
from tabs.form.project import FIELDS
from tabs.form.view import FieldView, element_id


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


def test_every_setting_that_is_declared_as_numbers_by_block_has_bars_and_the_rates_share_one_row():
    drawn = {path: html.unescape(fields.block(entry)) for path, entry in FIELDS.items()}
    own = {path for path, entry in FIELDS.items() if entry.widget == "blocks"}
    rates = [path for path, entry in FIELDS.items() if entry.widget == "block rates"]
    assert own == {f"network.{name}" for name in LISTS_BY_BLOCK} and rates == [f"network.{name}" for name in SIDES]
    assert {path for path, each in drawn.items() if "<block-bars" in each} == own | {rates[-1]}
    (controls,) = re.findall(r'data-for="([^"]*)"', drawn[rates[-1]])
    assert controls.split() == [f"{element_id(path)}-control" for path in rates]
    facts = facts_in(fields.block(FIELDS[rates[-1]]))
    assert facts["curves"]["9"]["cosine"] == rate_numbers("cosine", 9)
    assert [[len(side) for side in names] for names in facts["names"].values()] == [[12, 1, 12], [12, 1, 12], [9, 3, 9]]


def test_presets_of_the_rates_are_texts_that_the_settings_take():
    for texts in bars.RATE_PRESETS.values():
        assert len(texts) == len(SIDES)
        given = {name: text or None for name, text in zip(SIDES, texts, strict=True)}
        for blocks in COUNTS.values():
            rates = block_rates(NetworkSettings(**given), blocks)
            assert rates is not None and len(rates) == blocks and set(rates) != {1.0}
    only = {name: text or None for name, text in zip(SIDES, bars.RATE_PRESETS["Only the middle"], strict=True)}
    assert block_rates(NetworkSettings(**only), 25) == [0.0] * 12 + [1.0] + [0.0] * 12


def test_bars_of_a_setting_have_its_bounds_and_what_holds_while_it_is_empty():
    found = {name: facts_in(fields.block(FIELDS[f"network.{name}"])) for name in LISTS_BY_BLOCK}
    assert {name: (each["most"], each["ranks"]) for name, each in found.items()} == {
        "block_dims": (1024, True),
        "block_alphas": (4096, False),
        "conv_block_dims": (1024, True),
        "conv_block_alphas": (4096, False),
    }
    assert found["conv_block_alphas"]["base"] == ["network.conv_alpha", "network.conv_rank"]


def test_bars_of_a_lora_know_the_lists_and_presets_of_its_family():
    for family, length in (("sd1", 26), ("sdxl", 20)):
        facts = facts_in(bars.weight_bars(family, "x"))
        assert facts["length"] == length == len(facts["lists"][str(length)])
        assert set(facts["weights"]) == set(PRESETS)
        assert facts["weights"]["OUTD"] == list(block_weights("OUTD", family == "sdxl"))
        for taken, names in facts["lists"].items():
            assert len(block_weights(",".join("1" * int(taken)), family == "sdxl")) == len(SLOTS) and len(names) == int(
                taken
            )
    assert set(facts_in(bars.weight_bars("", "x"))["lists"]) == {str(each) for each in LISTS}


def test_curves_of_block_weights_are_lists_that_tools_take_and_those_of_checkpoints_may_lack_base():
    for family, short in (("sd1", 25), ("sdxl", 19)):
        facts = facts_in(bars.weight_bars(family, "x", default=0.25, checkpoints=True))
        assert len(facts["lists"][str(short)]) == short and "BASE" not in facts["lists"][str(short)]
        for texts in (facts["presets"][title] for title in bars.WEIGHT_CURVES):
            found = block_weights(texts[0], family == "sdxl")
            assert found[0] == facts["even"] and {0.0, 1.0} <= set(found)


def weights_by_block() -> dict[str, tuple[Declared, set[str]]]:
    """{path: (setting that is declared as block weights, the settings next to it)} of every task, and of a LoRA in Generate."""
    asked = [each for task in tasks().values() for each in declared(task.job)]
    asked += [each for entry in asked if entry.widget == "loras" for each in item_settings(entry)]
    groups: dict[str, set[str]] = {}
    for entry in asked:
        groups.setdefault(entry.group, set()).add(entry.name)
    return {entry.path: (entry, groups[entry.group]) for entry in asked if entry.widget == "block weights"}


def test_block_weights_are_declared_with_the_files_that_they_are_for():
    found = weights_by_block()
    assert set(found) >= {"merge_loras.lbws", "merge_lora_to_model.lbws", "merge_models.block_weights"}
    assert any(path.startswith("generate.loras") for path in found)
    assert all(entry.blocks_of in beside for entry, beside in found.values())


def test_an_empty_line_of_block_weights_stays_the_first_loras():
    lbws = weights_by_block()["merge_loras.lbws"][0]
    assert value_from(lbws, "\nMIDD\n\n") == ["", "MIDD"] and value_from(lbws, " \n") == []
    shown = re.search(r">(.*)</textarea>", FieldView(lbws, ["", "MIDD"]).control(""), re.DOTALL)
    assert shown[1].removeprefix("\n") == "\nMIDD"  # a browser leaves out the first line break


@pytest.mark.parametrize(
    ("values", "even"),
    [
        ({}, 0.5),
        ({"ratios": "1, 3"}, 0.75),
        ({"ratios": "1, 3", "compatibility": "sd-scripts"}, 3.0),
        ({"ratios": "no"}, 0.5),
        ({"ratios": "1, 1, 2"}, 0.5),
        ({"method": "add_difference", "multiplier": 0.3, "ratios": "1, 3"}, 0.3),
    ],
)
def test_the_multiplier_without_block_weights_is_that_of_the_method(values, even):
    assert MergeModelsSettings(**values).even_multiplier == even


def bars_below(tab, title):
    return tab.locator(f'#group-network block-bars[data-title="{title}"]')


def opened(tab, title):
    drawn = bars_below(tab, title)
    drawn.get_by_role("button", name=re.compile("^Bars ")).click()
    return drawn


@pytest.mark.slow
def test_bars_are_folded_say_what_is_set_and_are_one_with_the_list(window, served):
    tab = window.open()
    unfold(tab, "network", more=True)
    drawn = bars_below(tab, "Block ranks (dims)")
    fold = drawn.get_by_role("button", name=re.compile("^Bars "))
    expect(fold).to_have_attribute("aria-expanded", "false")
    expect(drawn.get_by_role("slider")).to_have_count(0)
    box(tab, "network.block_dims").fill("4," * 24 + "7")
    expect(fold).to_contain_text("25 blocks, 4 to 7")
    box(tab, "network.block_dims").fill("4,7")
    expect(fold).to_contain_text("2 numbers for 25 blocks")
    fold.focus()
    tab.keyboard.press("Enter")
    expect(drawn.get_by_role("slider")).to_have_count(25)
    tab.keyboard.press("Tab")
    expect(drawn.get_by_role("slider", name="IN00")).to_be_focused()
    box(tab, "network.block_dims").fill("")
    box(tab, "network.block_dims").press("Tab")
    rank = int(server_value(served, "network.rank"))
    bar = drawn.get_by_role("slider", name="IN05")
    expect(bar).to_have_attribute("aria-valuenow", str(rank))
    bar.focus()
    tab.keyboard.press("ArrowUp")
    expect(field(tab, "network.block_dims").get_by_text("Changed")).to_be_visible()
    wanted = ",".join([str(rank)] * 5 + [str(rank + 1)] + [str(rank)] * 19)
    wait_until(lambda: server_value(served, "network.block_dims") == wanted)
    box(tab, "network.block_dims").fill("0," * 24 + "7")
    expect(drawn.get_by_role("slider", name="OUT11")).to_have_attribute("aria-valuenow", "7")
    tab.get_by_role("tab", name="Runs").click()
    tab.get_by_role("tab", name="Train").click()
    expect(drawn.get_by_role("slider")).to_have_count(25)
    weights = opened(tab, "LR weights")
    box(tab, "network.down_lr_weight").fill("0.0004,0.12345" + ",1" * 10)
    weights.get_by_role("slider", name="IN05").press("ArrowUp")
    expect(box(tab, "network.down_lr_weight")).to_have_value("0.0004,0.12345,1,1,1,1.05" + ",1" * 6)


@pytest.mark.slow
def test_one_row_has_the_rates_of_all_sides_and_a_fast_drag_sets_each_bar_on_its_way(window, served):
    tab = window.open()
    unfold(tab, "network", more=True)
    rates = opened(tab, "LR weights")
    expect(rates.get_by_role("slider")).to_have_count(25)
    rates.get_by_label("Preset: LR weights").select_option("Up: linear")
    expect(box(tab, "network.up_lr_weight")).to_have_value("linear")
    expect(rates.get_by_role("slider", name="OUT11")).to_have_attribute("aria-valuenow", "1")
    rates.get_by_label("Preset: LR weights").select_option("Only the middle")
    expect(box(tab, "network.down_lr_weight")).to_have_value("zeros")
    expect(rates.get_by_role("slider", name="MID")).to_have_attribute("aria-valuenow", "1")
    rates.get_by_label("Preset: LR weights").select_option("All the same")
    first, end = (rates.get_by_role("slider", name=name) for name in ("IN00", "MID"))
    first.scroll_into_view_if_needed()
    begin, to = first.bounding_box(), end.bounding_box()
    tab.mouse.move(begin["x"] + 4, begin["y"] + begin["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(to["x"] + 4, to["y"] - 5)  # one event, twelve bars away
    tab.mouse.up()
    expect(box(tab, "network.down_lr_weight")).to_have_value(re.compile("^1,.*,1.9$"))
    rising = [float(value) for value in box(tab, "network.down_lr_weight").input_value().split(",")]
    assert rising == pytest.approx([1 + n / 12 for n in range(12)], abs=0.026)  # half a step of the bars
    expect(box(tab, "network.mid_lr_weight")).to_have_value("2")
    expect(box(tab, "network.up_lr_weight")).to_have_value("")
    tab.locator('[data-do="undo"]').click()  # all that the drag changed
    expect(box(tab, "network.down_lr_weight")).to_have_value("")
    expect(box(tab, "network.mid_lr_weight")).to_have_value("")
    tab.set_viewport_size({"width": 390, "height": 844})
    # All at one moment: the groups above may still be opening.
    places = rates.get_by_role("slider").evaluate_all("bars => bars.map((bar) => bar.getBoundingClientRect().toJSON())")
    assert len(places) == 25 and min(place["width"] for place in places) >= 20, "wide enough for a finger"
    assert max(place["x"] + place["width"] for place in places) <= 390


def tool_value(served, tool, name):
    return served.page.forms[tool].values().get(name)


def choose_files(tab, files) -> None:
    """As the list of files does it."""
    put = "(field, files) => { field.value = files.join('\\n'); field.dispatchEvent(new Event('change', {bubbles: true})); }"
    tab.locator("#tool-merge_loras-models").evaluate(put, [str(file) for file in files])


@pytest.mark.slow
def test_each_lora_of_a_merge_has_bars_of_its_own_that_write_its_line(window, served):
    folder = served.workspace.outputs / "loras"
    files = [lora(folder / "fox.safetensors"), lora(folder / "cat.safetensors")]
    tab = window.open("Tools")
    card = tab.locator("#tools-loras")
    card.get_by_label("Tool", exact=True).select_option("merge_loras")
    choose_files(tab, files)
    row = card.locator("lora-rows li").nth(1)
    expect(row).to_contain_text("cat")
    row.get_by_role("spinbutton").fill("0.5")
    row.get_by_role("spinbutton").press("Tab")
    wait_until(lambda: tool_value(served, "merge_loras", "ratios") == "1, 0.5")
    expect(tab.locator("#tool-merge_loras-models")).to_be_hidden()
    card.locator("lora-rows").get_by_role("button", name="Remove fox").click()
    wait_until(lambda: tool_value(served, "merge_loras", "ratios") == "0.5")
    assert tool_value(served, "merge_loras", "models") == [str(files[1])]
    choose_files(tab, files)
    expect(card.locator("lora-rows li")).to_have_count(2)
    wait_until(lambda: tool_value(served, "merge_loras", "ratios") == "0.5, 1")
    lines = tab.locator("#tool-merge_loras-lbws")
    expect(card.get_by_role("button", name=re.compile("^fox 26 blocks, 1 each"))).to_be_visible()
    second = card.locator('block-bars[data-title="Block weights of cat"]')
    second.get_by_role("button").click()
    second.get_by_role("slider", name="IN04").focus()
    tab.keyboard.press("Home")
    expect(lines).to_have_value(re.compile("^\n1,1,1,1,1,0(,1){20}$"))
    wait_until(lambda: tool_value(served, "merge_loras", "lbws") == ["", "1,1,1,1,1,0" + ",1" * 20])
    expect(second.get_by_role("slider", name="IN04")).to_be_focused()
    lines.fill("OUTD\nMIDD")
    expect(second.get_by_role("slider", name="OUT11")).to_have_attribute("aria-valuenow", "0")
    expect(card.get_by_role("button", name=re.compile("^fox 26 blocks, 0 to 1"))).to_be_visible()
    second.get_by_label("Preset: Block weights of cat").select_option("All the same")
    expect(lines).to_have_value("OUTD")
    wait_until(lambda: tool_value(served, "merge_loras", "lbws") == ["OUTD"])
    choose_files(tab, files[::-1])
    lines.focus()
    expect(card.get_by_role("button", name=re.compile("^cat 26 blocks, 0 to 1"))).to_be_visible()


@pytest.mark.slow
def test_a_lora_that_is_removed_while_its_strength_is_answered_leaves_the_others_theirs(window, served):
    folder = served.workspace.outputs / "loras"
    files = [lora(folder / "fox.safetensors"), lora(folder / "cat.safetensors")]
    tab = window.open("Tools")
    card = tab.locator("#tools-loras")
    card.get_by_label("Tool", exact=True).select_option("merge_loras")
    choose_files(tab, files)
    row = card.locator("lora-rows li").nth(1)
    expect(row).to_contain_text("cat")
    tab.evaluate("""() => {
      const quick = window.fetch;
      window.over = 0;
      window.fetch = async (where, how) => {
        const answer = await quick(where, how);
        const late = how && String(how.body).includes('"value":"1, 0.5"');
        if (late) { await new Promise((go) => setTimeout(go, 1000)); setTimeout(() => { window.over += 1; }, 500); }
        return answer;
      };
    }""")
    row.get_by_role("spinbutton").fill("0.5")
    row.get_by_role("spinbutton").press("Tab")
    wait_until(lambda: tool_value(served, "merge_loras", "ratios") == "1, 0.5")
    card.locator("lora-rows").get_by_role("button", name="Remove fox").click()
    tab.wait_for_function("over === 1")
    wait_until(lambda: tool_value(served, "merge_loras", "models") == [str(files[1])])
    assert tool_value(served, "merge_loras", "ratios") == "0.5"
    expect(card.locator("lora-rows li").get_by_role("spinbutton")).to_have_value("0.5")


@pytest.mark.slow
def test_bars_of_a_merge_of_checkpoints_begin_at_its_multiplier_and_take_lists_without_base(window, served):
    tab = window.open("Tools")
    tab.evaluate("atelier.openTools('tools-models')")
    card = tab.locator("#tools-models")
    card.get_by_label("Tool", exact=True).select_option("merge_models")
    ratios = tab.locator("#tool-merge_models-ratios")
    ratios.fill("1, 3")
    ratios.press("Tab")
    text, drawn = tab.locator("#tool-merge_models-block_weights"), card.locator("block-bars")
    expect(drawn.get_by_role("button")).to_have_text(re.compile("26 blocks, 0.75 each"))
    drawn.get_by_role("button").click()
    drawn.get_by_role("slider", name="MID").press("End")
    expect(text).to_have_value(re.compile("^0.75(,0.75){12},1(,0.75){12}$"))
    text.fill(",".join(["0.5"] * 25))
    expect(drawn.get_by_role("slider")).to_have_count(25)
    expect(drawn.get_by_role("slider", name="BASE")).to_have_count(0)
    drawn.get_by_role("slider", name="OUT11").press("Home")
    expect(text).to_have_value("0.5," * 24 + "0")
    wait_until(lambda: tool_value(served, "merge_models", "block_weights") == "0.5," * 24 + "0")
