"""The tree of a model's layers on Train: two-way with the settings that choose them, by pointer and by keyboard."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from axe_look import NARROW, VIOLATIONS, open_page
from playwright.sync_api import expect
from test_page_train import box, field, server_value, unfold
from work_parts import wait_until

from core.families.locate import model_path
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from tabs.form.project import with_value
from tabs.train.layers import Layers, _layer_tree, chosen_layers

STARTER = "models/starter"


def job_with(network):
    return build(TrainJob, {"model": {"base_model": STARTER}, "network": network})


def found(**network):
    return chosen_layers(job_with(network), _layer_tree(model_path(STARTER, Workspace()), "sd1", 0))


def leaves_of(found, block):
    return [leaf for leaf in found.leaves if leaf["names"][0] == block]


def test_leaves_say_what_is_chosen_what_gets_a_network_and_what_is_not_trained():
    now = found(exclude_layers=["attn2"], block_dims="4," * 12 + "0" + ",4" * 12)
    assert all(leaf["off"] and not leaf["trained"] for leaf in leaves_of(now, "Text encoder"))
    for leaf in leaves_of(now, "IN01"):
        assert not leaf["off"] and leaf["chosen"] == leaf["trained"]
        usual = leaf["names"][1] in ("Self-attention", "Feed-forward", "Projections")
        assert leaf["chosen"] == (leaf["of"] if usual else 0)
        assert bool(leaf["numbers"][0]) == usual and leaf["numbers"][1] > 0
    middle = leaves_of(now, "MID")
    assert any(leaf["chosen"] for leaf in middle) and not any(leaf["trained"] for leaf in middle)
    assert not any(leaf["off"] for leaf in leaves_of(found(train_text_encoder=True), "Text encoder"))


def test_a_kind_that_leaves_layers_alone_counts_its_own():
    lora, ia3 = found(train_text_encoder=True), found(kind="ia3", train_text_encoder=True)
    assert ia3.chosen == lora.chosen and 0 < ia3.trained.bit_count() < lora.trained.bit_count()
    assert not ia3.trained & ~lora.trained


@pytest.mark.slow
def test_counting_for_the_page_imports_no_torch():
    code = f"""
import sys
from pathlib import Path
from core.settings.job import TrainJob
from tabs.train.layers import _layer_tree, chosen_layers
assert chosen_layers(TrainJob(), _layer_tree(Path({STARTER!r}), "sd1", 0)).leaves
sys.exit("torch" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_expressions_that_are_invalid_are_said_and_a_choice_then_changes_nothing(served):
    page = served.page
    page.project.choose("starter_lora")
    wrong = with_value(page.project.job, "network.layers", ["attn("])
    page.project.replace(wrong)
    layers = Layers(page.engine, page.workspace, page.project, page.roots)
    with pytest.raises(ProblemsError) as error:
        layers.choose({"leaves": [0], "on": True, "tree": layers.facts(wrong)["tree"]})
    assert error.value.problems[0].code == "network.bad-pattern" and page.project.job == wrong
    layers.choose({"usual": True})
    assert page.project.job.network.layers == []
    page.project.choose("starter_lora")


def test_a_job_that_a_shared_page_refuses_is_said_once_and_not_asked_for_again(served):
    page = served.page
    roots = SimpleNamespace(refused=lambda job: [Problem("closed", "model.base_model", "open it")])
    facts = Layers(page.engine, page.workspace, page.project, roots).facts(page.project.job)
    assert facts["fresh"] and facts["problem"] == "closed" and not facts["leaves"]


def test_a_tree_of_before_is_neither_shown_nor_chosen_in(served):
    page = served.page
    page.project.choose("starter_lora")
    layers = Layers(page.engine, page.workspace, page.project, page.roots)
    wait_until(lambda: layers.facts(page.project.job)["fresh"])
    other = with_value(page.project.job, "network.layers", ["attn("])
    wait_until(lambda: layers.facts(other)["fresh"])
    assert layers.facts(other)["problem"] and layers.facts(other)["leaves"]
    at_once = layers.facts(page.project.job)
    assert not at_once["fresh"] and not at_once["problem"] and not at_once["leaves"]
    with pytest.raises(ProblemsError) as error:
        layers.choose({"leaves": [0], "on": False, "tree": "another"})
    assert error.value.problems[0].code == "layers.other-tree" and page.project.job.network.exclude_layers == []


def node(tab, key):
    return tab.locator(f'#layer-nodes [data-key="{key}"]')


def opened(tab):
    unfold(tab, "network", more=True)
    tab.get_by_role("button", name="Tree of layers").click()
    expect(node(tab, "MID")).to_be_visible()


@pytest.mark.slow
def test_what_is_checked_is_written_and_what_is_typed_is_checked(window, served):
    tab = window.open()
    opened(tab)
    expect(node(tab, "MID")).to_have_attribute("aria-checked", "true")
    node(tab, "MID").locator(".layer-box").first.click()
    expect(node(tab, "MID")).to_have_attribute("aria-checked", "false")
    expect(box(tab, "network.exclude_layers")).to_have_value("mid_block")
    assert server_value(served, "network.exclude_layers") == ["mid_block"]
    box(tab, "network.exclude_layers").fill("attn2")
    box(tab, "network.exclude_layers").press("Tab")
    expect(node(tab, "MID")).to_have_attribute("aria-checked", "mixed")
    tab.get_by_label("By part").check(force=True)
    expect(node(tab, "Cross-attention")).to_have_attribute("aria-checked", "false")
    expect(node(tab, "Self-attention")).to_have_attribute("aria-checked", "true")
    box(tab, "network.exclude_layers").fill("down_blocks.0.*ff.net.0")
    box(tab, "network.exclude_layers").press("Tab")
    expect(node(tab, "Feed-forward/IN01")).to_have_attribute("aria-checked", "mixed")  # one of its two layers
    expect(tab.locator("#layer-notes")).to_be_visible()
    tab.get_by_role("button", name="Usual layers").click()
    expect(box(tab, "network.exclude_layers")).to_have_value("")
    expect(node(tab, "Feed-forward")).to_have_attribute("aria-checked", "true")
    box(tab, "network.layers").fill("attn(")
    box(tab, "network.layers").press("Tab")
    expect(tab.locator("#layer-problem")).to_be_visible()


@pytest.mark.slow
def test_the_keyboard_reaches_and_changes_everything_on_a_phone_too(window, served):
    tab = window.open()
    tab.set_viewport_size({"width": 390, "height": 844})
    opened(tab)
    expect(field(tab, "network.layers")).to_be_visible()
    node(tab, "Text encoder").focus()
    for _ in range(5):
        tab.keyboard.press("ArrowDown")
    expect(node(tab, "IN05")).to_be_focused()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    expect(node(tab, "IN05/Self-attention")).to_be_focused()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    expect(node(tab, "IN05/Self-attention/q")).to_be_focused()
    tab.keyboard.press("Space")
    expect(box(tab, "network.exclude_layers")).to_have_value("down_blocks.1.attentions.1.*attn1.to_q")
    expect(node(tab, "IN05/Self-attention")).to_have_attribute("aria-checked", "mixed")
    expect(node(tab, "IN05/Self-attention/q")).to_be_focused()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Space")
    expect(box(tab, "network.exclude_layers")).to_have_value("")
    tab.keyboard.press("End")
    expect(node(tab, "Outside of the blocks")).to_be_focused()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_axe_finds_nothing_in_the_tree_and_the_bars(window, served):
    tab = open_page(window, NARROW, "Train")
    opened(tab)
    node(tab, "IN05").locator(".twist").first.click()
    node(tab, "IN05/Cross-attention").locator(".layer-box").first.click()
    expect(node(tab, "IN05")).to_have_attribute("aria-checked", "mixed")
    for fold in tab.locator("#group-network block-bars .fold").all():
        fold.click()
    assert tab.evaluate(VIOLATIONS, "#group-network") == []


@pytest.mark.slow
def test_an_answer_from_before_a_choice_undoes_nothing(visit, served):
    window = visit()
    tab = window.open()
    opened(tab)
    held = []
    tab.route("**/atelier/pulse", lambda route: held.append((route, route.fetch())) if not held else route.continue_())
    tab.evaluate("() => { delete atelier.have.layers; atelier.tick(); }")
    wait_for(tab, lambda: held)
    node(tab, "MID").focus()
    tab.keyboard.press("Space")
    wait_for(tab, lambda: served.page.project.job.network.exclude_layers == ["mid_block"])
    route, answer = held[0]
    route.fulfill(response=answer)
    tab.keyboard.press("Space")
    wait_for(tab, lambda: served.page.project.job.network.exclude_layers == [])
    expect(node(tab, "MID")).to_have_attribute("aria-checked", "true")
    assert "layers" in answer.json() and window.errors == []


def wait_for(tab, true):
    """Wait until it is true, while what is routed is answered."""
    for _ in range(600):
        if true():
            return
        tab.wait_for_timeout(50)
    raise TimeoutError
