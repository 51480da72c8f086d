"""The comparison of checkpoints in a real browser, by keyboard alone."""

from __future__ import annotations

import json
import re

import pytest
from fake_engine import Run
from page_server import Served
from playwright.sync_api import expect
from work_parts import image

from core.engine.verdict import read_verdict
from core.formats.tensors.header import read_header
from core.generation.grids.folder import GridFolder
from core.record.kept import read_kept
from core.record.preference import read_choices
from tabs.monitor import verdict
from tests.generation.test_run import small_lora

STEPS = (20, 40, 60)


def trained(served: Served, title: str) -> Run:
    """A run that has ended with three checkpoints, and samples of each and of the base model."""
    engine = served.engine
    name = f"20250101-13{len(engine._runs):02d}00_{title}"
    run = Run(name, title, served.page.project.job, served.workspace.runs / name, state="done", step=60)
    for folder in ("samples", "checkpoints"):
        (run.folder / folder).mkdir(parents=True)
    for run.step in (0, *STEPS):
        engine._sample(run)
        if run.step:
            engine._save(run)
    engine._runs[name] = run
    return run


def assessed(run: Run) -> None:
    """Results of step 40: a near-copy, and a measure that was not taken."""
    files = ["assess/one.png", "assess/one-training.png"]
    for name in files:
        image(run.folder / name)
    copy = {"distance": 0.1, "limit": 0.3, "typical": 0.7, "near": 2, "images": 8, "name": "fox.png", "files": files}
    cells = {f"{run.title}-step00000040.safetensors": {"copies": copy, "loss": {"why": "no images were held out"}}}
    (run.folder / "assess.json").write_text(json.dumps({"cells": cells}))


def test_a_checkpoint_is_found_compared_chosen_blindly_and_kept_by_keyboard_alone(window, served):
    run = trained(served, "verdict")
    tab = window.open(f"Monitor/{run.name}")
    card, stage = tab.locator("#verdict"), tab.locator("#verdict .verdict-stage")
    label, image = card.locator(".verdict-one figcaption"), card.locator(".verdict-one img")
    expect(label).to_contain_text("step 60")
    expect(card.locator(".verdict-step")).to_have_count(3)
    expect(card.get_by_role("button", name=re.compile("Make .* images"))).to_be_visible()
    first = image.get_attribute("src")
    for step, shown in (("2", "step 40"), ("3", "step 60")):
        card.get_by_label("Checkpoint", exact=True).fill(step)
        expect(label).to_contain_text(shown)
    tab.get_by_role("tab", name="Monitor").click()
    tab.keyboard.press("ArrowLeft")  # right after a click on the tab, which does not move to another tab then
    expect(label).to_contain_text("step 40")
    expect(stage).to_be_focused()
    second = image.get_attribute("src")
    tab.keyboard.press("ArrowDown")
    expect(card.get_by_label("Prompt", exact=True)).to_have_value("1")
    assert image.get_attribute("src") not in (first, second)
    tab.keyboard.press("ArrowUp")
    tab.keyboard.down(" ")
    expect(label).to_contain_text("base model")
    tab.keyboard.up(" ")
    expect(label).to_contain_text("step 40")
    card.locator(".verdict-step", has_text="step 60").click()
    # The focus moves with the checkpoint, or Space would press the one that was clicked
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.down(" ")
    expect(label).to_contain_text("base model")
    tab.keyboard.up(" ")
    expect(label).to_contain_text("step 40")
    card.locator(".verdict-step", has_text="step 20").focus()
    tab.keyboard.press("ArrowRight")
    expect(label).to_contain_text("step 40")  # next to the one that has the focus
    tab.keyboard.press("k")
    expect(card.get_by_label("Kept as")).to_have_value("verdict-step00000040")
    assert [*read_kept(run.folder)] == ["checkpoints/verdict-step00000040.safetensors"]

    tab.keyboard.press("b")
    expect(card.locator(".verdict-film")).to_be_hidden()
    assert "step" not in card.locator(".verdict-body").inner_text().lower(), "no image has a name"
    expect(card.locator(".verdict-answers")).to_have_attribute("data-number", "1")  # both images are seen
    spoken = card.locator(".verdict-answers").get_by_role("status")
    expect(spoken).to_contain_text("Which is better for")
    expect(spoken).to_contain_text("to a result")
    for number, key in enumerate(["ArrowLeft", "ArrowRight", "ArrowDown", "s", "Backspace", *["ArrowLeft"] * 8]):
        tab.keyboard.press(key)
        expect(card.locator(".verdict-answers")).to_have_attribute(
            "data-number", str(number + 2 if number < 4 else number)
        )
    assert len(read_choices(run.folder)) == 11
    card.locator(".verdict-stage img").last.click()  # the image itself is a choice too
    expect(card.locator(".verdict-answers")).to_have_attribute("data-number", "13")
    assert read_choices(run.folder)[-1].outcome == "right"
    tab.keyboard.press("Escape")
    expect(card.locator(".verdict-choices tbody tr")).to_have_count(3)
    prompts = len({each.prompt for each in read_choices(run.folder) if each.outcome != "skip"})
    expect(card.locator(".verdict-choices")).to_contain_text(f"on {prompts} prompts")
    leads = card.locator(".verdict-choices tbody th").first.inner_text()
    expect(label).to_contain_text(leads)
    assessed(run)
    tab.reload()
    expect(card.locator(".verdict-choices tbody tr")).to_have_count(3)
    expect(card.locator(".verdict-assess dt.bad")).to_have_text("Near-copies")
    expect(card.locator(".verdict-assess .verdict-pair img")).to_have_count(2)
    expect(card.locator(".verdict-measures td.bad")).to_have_text(["0.10 COPY"])
    card.locator(".verdict-measures thead").get_by_role("button", name="step 60").press("Enter")
    expect(label).to_contain_text("step 60")
    expect(card.locator(".verdict-measures thead [aria-current]")).to_be_focused()
    tab.keyboard.press("ArrowLeft")
    expect(label).to_contain_text("step 40")
    expect(card.locator(".verdict-measures thead [aria-current]")).to_have_text("step 40")
    expect(card.locator(".verdict-sentence")).to_contain_text("step 40 nearly copies a training image (fox.png)")
    card.get_by_role("button", name="Assess 3 checkpoints").press("Enter")
    expect(stage).to_be_focused()
    expect(label).to_contain_text("step 40")  # the kept one


def test_an_average_is_of_the_chosen_checkpoints_which_stay_chosen_when_it_is_saved(window, served):
    run = trained(served, "averaging")
    for file in (run.folder / "checkpoints").iterdir():
        small_lora(file)
    tab = window.open(f"Monitor/{run.name}")
    card = tab.locator("#verdict .verdict-average")
    card.locator("summary").click()
    boxes, weights = card.get_by_role("checkbox"), card.get_by_label("Weights of the average")
    card.get_by_label("step 40").uncheck()
    weights.select_option("power")
    card.get_by_role("button", name="Save the average").click()
    expect(card).to_contain_text("Saved: average 20 to 60 (power)")
    assert [box.is_checked() for box in boxes.all()] == [True, False, True]
    expect(weights).to_have_value("power")
    (made,) = (run.folder / "checkpoints").glob("*-average-20-to-60-power.safetensors")
    loras = json.loads(read_header(made)[1]["sd_merge_recipe"])["loras"]
    first, last = (each["ratio"] for each in loras)
    assert first + last == pytest.approx(1) and first < 0.2 < last, "later steps count more"


def test_a_kept_checkpoint_is_named_and_copied_the_others_go_to_the_trash_and_all_comes_back(window, served, tmp_path):
    run = trained(served, "keeping")
    checkpoints, other = run.folder / "checkpoints", tmp_path / "other program"
    other.mkdir()
    tab = window.open(f"Monitor/{run.name}")
    keep, left = (
        tab.locator("#verdict .verdict-keep"),
        tab.get_by_role("button", name="Move the 2 checkpoints not kept to the trash"),
    )
    keep.get_by_role("button", name="Keep this one").click()
    name = keep.get_by_label("Kept as")
    name.fill("fox for icons")
    name.press("Enter")
    expect(tab.locator(".verdict-one figcaption")).to_contain_text("kept as fox for icons")
    file = "checkpoints/keeping-step00000060.safetensors"
    assert read_kept(run.folder) == {file: "fox for icons"}
    keep.get_by_label("Copy to").fill(str(tmp_path / "gone"))
    keep.get_by_role("button", name="Copy", exact=True).click()
    expect(tab.locator("#said")).to_contain_text("folder")
    tab.locator("#said").get_by_role("button", name="Create the folder and copy").click()
    expect(keep).to_contain_text("Copied: ")
    expect(tab.locator("#said")).to_contain_text("The folder was created")
    assert [path.name for path in (tmp_path / "gone").iterdir()] == ["fox for icons.safetensors"]
    keep.get_by_label("Copy to").fill(str(other))
    keep.get_by_role("button", name="Copy", exact=True).click()
    expect(keep).to_contain_text(f"Copied: {other}")
    assert [path.name for path in other.iterdir()] == ["fox for icons.safetensors"]
    left.click()
    back = keep.get_by_role("button", name="Put 2 checkpoints back")
    expect(back).to_be_visible()
    assert [path.name for path in checkpoints.glob("*.safetensors")] == ["keeping-step00000060.safetensors"]
    back.click()
    expect(left).to_be_visible()
    assert len([*checkpoints.glob("*.safetensors")]) == 3
    keep.get_by_role("button", name="Undo keeping step 60").click()
    expect(keep.get_by_role("button", name="Keep this one")).to_be_visible()
    expect(tab.locator("#said")).to_contain_text("fox for icons.safetensors")
    assert read_kept(run.folder) == {} and len([*other.iterdir()]) == 1, "the copy stays"


def test_the_images_to_make_are_told_from_all_that_the_progress_counts(window, served, monkeypatch):
    monkeypatch.setattr(verdict.Images, "from_samples", property(lambda images: 6))
    make = window.open(f"Monitor/{trained(served, 'counted').name}").locator("#verdict > .verdict-make")
    expect(make.get_by_role("button", name="Make 14 images")).to_be_visible()
    table = make.locator("..").get_by_role("button", name="Table of all")
    expect(table).to_be_disabled()
    expect(table).to_have_attribute("title", "The images are not made yet")
    expect(make).to_contain_text("prompts: 20 images, 6 of them samples of the training")


def test_strengths_are_asked_for_by_the_slider_and_come_within_the_minutes(window, served):
    run = trained(served, "strengths")
    for file in (run.folder / "checkpoints").iterdir():
        small_lora(file)
    tab = window.open(f"Monitor/{run.name}")
    card, label = tab.locator("#verdict"), tab.locator("#verdict .verdict-one figcaption")
    card.get_by_label("Minutes at most").fill("7")
    card.get_by_role("button", name=re.compile("Make .* images")).click()
    expect(card.locator("> .verdict-make")).not_to_contain_text("Make 20 images")
    slider = card.get_by_label("Strength", exact=True)
    slider.press("ArrowLeft")
    expect(label).to_have_text("step 60 \u00b7 strength 0.8")
    expect(card.locator(".verdict-one .verdict-none")).to_be_visible()
    expect(card.locator(".verdict-base img")).to_be_visible()
    card.get_by_role("button", name=re.compile("Make strength 0.8: .* images")).click()
    expect(card.get_by_role("button", name=re.compile("Make strength"))).to_have_count(0)
    verdict = read_verdict(run.folder)
    grid = GridFolder.named(verdict.grid, served.workspace)
    assert verdict.strengths == (0.8, 1.0) and grid.content().minutes == 7
    tab.set_viewport_size({"width": 390, "height": 800})
    card.get_by_role("button", name="Table of all").click()
    expect(tab.locator("#gen-table .grid-shown")).to_be_visible()
    expect(tab.locator("#gen-table .grid-head")).to_be_in_viewport()
    tab.locator("#gen-table").get_by_role("link", name="Its run").click()
    expect(tab.locator("#run-title")).to_have_text("strengths")
    assert tab.evaluate("location.hash") == f"#Monitor/{run.name}"


def test_where_no_comparison_can_be_made_nothing_of_the_run_before_stays(window, served):
    run, moved = trained(served, "whole"), trained(served, "moved")
    samples = moved.job.samples.model_copy(update={"sample_prompts_file": "gone.txt"})
    moved.job = moved.job.model_copy(update={"samples": samples})
    tab = window.open(f"Monitor/{run.name}")
    card, answer = tab.locator("#verdict"), tab.locator("#verdict .verdict-answer")
    expect(answer).to_contain_text("Use step 60 for now")
    tab.locator("#run-choice").select_option(moved.name)
    expect(card).to_contain_text("gone.txt")
    for part in (answer, card.locator(".verdict-stage"), card.get_by_role("button", name=re.compile("Make .* images"))):
        expect(part).to_be_hidden()
    tab.locator("#run-choice").select_option(run.name)
    expect(answer).to_be_visible()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 800, 1440, 1920])
def test_the_comparison_fits_its_window_and_takes_no_key_outside_of_it(window, served, width):
    run = trained(served, "wide")
    assessed(run)
    tab = window.tab
    tab.set_viewport_size({"width": width, "height": 900})
    window.open(f"Monitor/{run.name}")
    label = tab.locator("#verdict .verdict-one figcaption")
    expect(label).to_contain_text("step 60")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    beyond = """(width) => [...document.querySelectorAll('#verdict *')]
      .filter((node) => !node.parentElement.closest('.verdict-strip, .verdict-measures'))
      .filter((node) => node.getBoundingClientRect().right > width).map((node) => node.className)"""
    assert tab.evaluate(beyond, width) == []
    tab.locator("#run-choice").focus()
    tab.keyboard.press("k")
    tab.locator("#verdict .verdict-stage").focus()
    tab.keyboard.press("ArrowRight")
    expect(label).to_contain_text("step 60")  # the last one stays
    assert read_kept(run.folder) == {}


@pytest.mark.slow
def test_two_windows_make_one_comparison_and_what_is_done_in_one_shows_in_the_other_when_it_is_closed(visit, served):
    run = trained(served, "twice")
    for file in (run.folder / "checkpoints").iterdir():
        small_lora(file)
    windows = [visit(), visit()]
    cards = [window.open(f"Monitor/{run.name}").locator("#verdict") for window in windows]
    makes = [card.get_by_role("button", name=re.compile("Make .* images")) for card in cards]
    for make in makes:
        expect(make).to_be_visible()
    for make in makes:  # the second before it hears of the first
        make.evaluate("(button) => button.click()")
    for card in cards:
        expect(card.locator("> .verdict-make")).not_to_contain_text("Make 20 images")
    grids = [entry for entry in served.engine.queue() if entry.task == "grid"]
    assert len(grids) == 1 and len([*(served.workspace.outputs / "grids").glob("*twice*")]) == 1
    cards[0].locator(".verdict-stage").focus()
    windows[0].tab.keyboard.press("ArrowLeft")
    windows[0].tab.keyboard.press("k")
    windows[0].close()
    expect(cards[1].locator(".verdict-step", has_text="step 40")).to_contain_text("kept")
    assert [entry.state for entry in served.engine.queue() if entry.task == "grid"] == [grids[0].state]
    assert windows[1].errors == []
