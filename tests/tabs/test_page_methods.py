"""How the Train tab reshapes itself, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect
from test_page_train import box, field, server_value, unfold, until
from test_page_train import choose as choose_in
from work_parts import image

from tabs.form.project import FIELDS

COMPILE, DEEPSPEED = (FIELDS[path].title for path in ("memory.torch_compile", "sharding.deepspeed"))


def choose(tab, path: str, words: str) -> None:
    choose_in(field(tab, path).locator("select"), words)


def test_the_method_decides_what_the_form_shows(window, served):
    tab = window.open()
    expect(tab.locator("#group-embedding")).to_have_class(re.compile("is-idle"))
    expect(field(tab, "embedding.token_string")).to_be_hidden()
    choose(tab, "method.kind", "Textual inversion")
    expect(box(tab, "embedding.token_string")).to_be_visible()
    expect(tab.locator("#method-needs")).to_be_visible()
    expect(tab.locator("#group-network")).to_have_class(re.compile("is-idle"))
    expect(tab.locator("#preflight-verdict")).to_have_attribute("data-state", "bad")
    box(tab, "embedding.token_string").fill("zkw")
    tab.keyboard.press("Tab")
    expect(tab.locator("#preflight-verdict")).to_have_text("24 of 24 images will train")
    names = ["Images", "Captions", "Sizes", "Steps", "Longest caption"]
    expect(tab.locator("#preflight-facts dt")).to_have_text(names)
    assert "[object" not in tab.locator("#preflight-facts").inner_text()
    folder = field(tab, "dataset.conditioning_data_dir")
    expect(tab.locator("#method-fields .field")).to_have_count(0)
    choose(tab, "method.kind", "ControlNet:")
    expect(tab.locator("#method-fields .field")).to_have_count(1)
    expect(folder).to_be_visible()
    choose(tab, "method.kind", "Fine-tuning")
    expect(field(tab, "network.rank")).to_be_hidden()
    expect(tab.locator("#method-fields .field")).to_have_count(0)
    assert folder.evaluate("(node) => node.closest('.group').id") == "group-dataset"


@pytest.mark.slow
def test_what_a_method_needs_is_one_press_away_and_a_group_that_is_off_shows_its_switch_alone(window, served, tmp_path):
    tab = window.open()
    unfold(tab, "method")
    expect(field(tab, "method.ema_decay")).to_be_hidden()
    tab.locator("#group-method .folded-line").click()
    expect(field(tab, "method.ema_decay")).to_be_visible()
    expect(tab.locator("#group-sharding .group-summary")).to_have_text("off")
    unfold(tab, "sharding")
    expect(field(tab, "sharding.deepspeed")).to_be_visible()
    expect(field(tab, "sharding.zero_stage")).to_be_hidden()
    choose(tab, "method.kind", "DreamBooth")
    tab.locator("#method-needs").get_by_role("button", name="Prior preservation").click()
    expect(field(tab, "method.prior")).to_be_in_viewport()
    choose(tab, "method.kind", "ControlNet:")
    assert until(lambda: server_value(served, "method.kind") == "controlnet")
    for name in ("a", "b"):
        image(tmp_path / "set" / f"{name}.png", caption=f"caption {name}")
        image(tmp_path / "control" / f"{name}.png", color="white")
    served.page.project.edit("dataset.folder", str(tmp_path / "set"))
    expect(tab.locator("#preflight-first").get_by_role("button", name="Make control images")).to_be_visible()
    tab.locator("#method-needs").get_by_role("button", name="Make control images").click()
    expect(tab.locator("#tools-hints")).to_be_in_viewport()
    tab.get_by_role("tab", name="Train", exact=True).click()
    box(tab, "dataset.conditioning_data_dir").fill(str(tmp_path / "control"))
    tab.keyboard.press("Tab")
    tab.locator("#method-needs [data-does=sample_pairs]").click()
    assert until(lambda: all(" --cn " in line for line in server_value(served, "samples.sample_prompts")))
    expect(tab.locator("#method-needs [data-does]")).to_have_count(0)
    tab.locator("#said").get_by_role("button", name="Undo").click()
    expect(tab.locator("#method-needs [data-does=sample_pairs]")).to_be_visible()


@pytest.mark.slow
def test_the_file_of_a_new_word_is_called_as_it_until_it_is_named(visit, served):
    window = visit()
    tab = window.open()
    expect(box(tab, "saving.output_name")).to_have_value("glyph_style")
    choose(tab, "method.kind", "Textual inversion")
    box(tab, "embedding.token_string").fill("zkw")
    box(tab, "embedding.init_word").click()
    tab.keyboard.type("cat")  # goes on at once in the next field
    expect(box(tab, "saving.output_name")).to_have_value("zkw")
    expect(tab.locator("#header-project")).to_have_text("zkw")
    expect(box(tab, "embedding.init_word")).to_have_value("cat")
    box(tab, "saving.output_name").fill("mine")
    box(tab, "embedding.token_string").fill("qvx")
    tab.keyboard.press("Tab")
    assert until(lambda: server_value(served, "embedding.token_string") == "qvx")
    expect(box(tab, "saving.output_name")).to_have_value("mine")
    assert until(lambda: server_value(served, "saving.output_name") == "mine")  # the changes may arrive in any order
    assert window.errors == []


@pytest.mark.slow
def test_a_problem_of_two_fields_leads_to_both(visit, served):
    for path in ("sharding.deepspeed", "memory.torch_compile"):
        served.page.project.edit(path, True)
    tab = visit().open()
    links = tab.locator("#preflight").locator(".problem").get_by_role("button")
    links.filter(has_text=COMPILE).first.click()
    expect(field(tab, "memory.torch_compile")).to_be_in_viewport()
    links.filter(has_text=DEEPSPEED).first.click()
    expect(field(tab, "sharding.deepspeed")).to_be_in_viewport()
    built = "addEventListener('click', () => setTimeout(() => scrollTo(0, 0), 300), {once: true, capture: true})"
    tab.evaluate(built)  # as parts do that are still being built
    links.filter(has_text=COMPILE).first.click()
    tab.wait_for_timeout(400)
    expect(field(tab, "memory.torch_compile")).to_be_in_viewport()
    tab.mouse.wheel(0, -20000)
    tab.wait_for_timeout(1500)
    expect(field(tab, "memory.torch_compile")).not_to_be_in_viewport()  # who scrolls goes where they want


@pytest.mark.slow
def test_an_optimizer_brings_its_recipe_the_sketch_follows_the_form_and_the_slider_takes_keys(window, served):
    tab = window.open()
    slider = tab.locator("#forecast-slider")
    expect(tab.locator("#forecast-level")).to_have_text("default")
    slider.focus()
    tab.keyboard.press("ArrowRight")
    assert until(lambda: server_value(served, "memory.gradient_checkpointing") is True)
    expect(tab.locator("#forecast-level")).to_have_text("less memory")
    expect(tab.locator("#group-memory .group-count")).to_have_text("1 changed")
    there = slider.bounding_box()
    middle = there["y"] + there["height"] / 2
    tab.mouse.move(there["x"] + there["width"] * 0.5, middle)
    tab.mouse.down()
    tab.mouse.move(there["x"] + there["width"] * 0.9, middle, steps=5)
    expect(tab.locator("#forecast-level")).not_to_have_text("less memory")
    tab.mouse.move(there["x"] + there["width"] * 0.5, middle, steps=5)
    tab.mouse.up()
    for on, level in ((False, "default"), (True, "less memory")):  # in another window
        served.page.project.edit("memory.gradient_checkpointing", on)
        expect(tab.locator("#forecast-level")).to_have_text(level)
    unfold(tab, "schedule")
    line = tab.locator("#sketch-chart path.line")
    expect(line).to_have_count(1)
    before = line.get_attribute("d")
    box(tab, "schedule.lr_warmup_steps").fill("50%")
    tab.keyboard.press("Tab")
    expect(line).not_to_have_attribute("d", before)
    unfold(tab, "optimizer", more=True)
    box(tab, "optimizer.learning_rate").fill("0,0003")
    tab.keyboard.press("Tab")
    expect(box(tab, "optimizer.learning_rate")).to_have_value("3e-4")
    assert server_value(served, "optimizer.learning_rate") == 3e-4
    box(tab, "optimizer.betas").fill("0.9,0.99")
    tab.keyboard.press("Tab")
    assert until(lambda: server_value(served, "optimizer.betas") == (0.9, 0.99))
    expect(box(tab, "optimizer.betas")).to_have_value("0.9, 0.99")
    kind = field(tab, "optimizer.optimizer_type")
    offered = kind.locator("datalist option", has_text="Prodigy (prodigyopt")
    expect(offered).to_have_attribute("value", "Prodigy")
    choose_in(kind.locator("select.offered"), "Prodigy (prodigyopt")
    expect(box(tab, "optimizer.optimizer_type")).to_have_value("Prodigy")
    assert until(lambda: server_value(served, "optimizer.optimizer_type") == "Prodigy")
    kind.locator(".recipe button").click()
    assert until(lambda: server_value(served, "optimizer.learning_rate") == 1)
    expect(tab.locator(".recipe")).to_have_count(0)
    tab.locator("#preset-bar").get_by_role("button", name="Undo").click()
    assert until(lambda: server_value(served, "optimizer.learning_rate") != 1)
    unfold(tab, "noise")
    expect(tab.locator("#timesteps-chart")).to_be_hidden()
    choose_in(field(tab, "noise.timestep_sampling").locator("select"), "cosine map")
    expect(tab.locator("#timesteps-chart path.line")).to_have_count(1)
