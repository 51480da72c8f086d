"""The Monitor tab, the header and the frame in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from test_page_train import until


def test_a_started_run_is_watched_paused_resumed_stopped_and_survives_a_refresh(visit, served):
    window = visit()
    served.engine.step_seconds = 0.5  # it must not end by itself, however slow the machine is
    served.engine.sample_every = 1000  # nor stand, when paused, at a step of which there are samples and files already
    tab = window.open()
    tab.locator("#start").click()
    expect(tab.locator("#run-state")).to_have_text("training")
    expect(tab.locator("#run-step")).to_contain_text("of 100")
    expect(tab.locator("#header-job")).to_contain_text("s/step")
    expect(tab.locator("table.samples thead th").nth(1)).to_have_text("base model")
    expect(tab.locator("#loss-chart path.smooth")).to_have_attribute("d", re.compile("M.*L"))
    tab.get_by_role("button", name="Pause", exact=True).click()
    expect(tab.locator("#run-state")).to_have_text("paused")
    expect(tab.get_by_role("button", name="Resume", exact=True)).to_be_visible()
    expect(tab.get_by_role("button", name="Pause", exact=True)).to_have_count(0)
    step = tab.locator("#run-step").inner_text()
    expect(tab.locator("#run-stage")).to_have_text("Resume continues from here.")
    samples = tab.locator("table.samples thead th").count()
    tab.get_by_role("button", name="Sample now").click()
    expect(tab.locator("table.samples thead th")).not_to_have_count(samples)
    files = tab.locator("#run-files a").count()
    tab.get_by_role("button", name="Save now").click()
    expect(tab.locator("#run-files a")).not_to_have_count(files)
    expect(tab.locator("#run-state")).to_have_text("paused")
    tab.reload()
    tab.wait_for_selector("body[data-atelier=ready]")
    expect(tab.locator("#run-state")).to_have_text("paused")
    expect(tab.locator("#run-step")).to_have_text(step)
    tab.get_by_role("button", name="Resume", exact=True).click()
    expect(tab.locator("#run-state")).to_have_text("training")
    tab.get_by_role("button", name="Stop and save").click()
    expect(tab.locator("#run-state")).to_have_text("stopped and saved")
    expect(tab.locator("#run-stage")).to_contain_text("Resume training continues from there.")
    expect(tab.get_by_role("button", name="Resume training", exact=True)).to_be_visible()
    assert window.errors == [] and window.outside == []


@pytest.mark.slow
def test_images_that_stand_are_never_drawn_anew(visit, served):
    tab = visit().open()
    served.engine.step_seconds = 0.2  # a busy machine must not miss the moment of the second column
    tab.locator("#start").click()
    first = tab.locator("table.samples td img").first
    expect(first).to_be_visible()
    first.evaluate("(image) => { image.dataset.mine = 'yes'; }")
    expect(tab.locator("table.samples thead th")).not_to_have_count(2)  # prompt, base model, and now the next step
    assert first.get_attribute("data-mine") == "yes"
    first.click()
    expect(tab.get_by_role("dialog")).to_contain_text("Seed 1")
    tab.keyboard.press("Escape")
    expect(tab.get_by_role("dialog")).to_have_count(0)


@pytest.mark.slow
def test_two_samples_are_compared_and_arrows_move_through_time_and_prompts(visit, served):
    served.engine.step_seconds = 0.01
    window = visit()
    tab = window.open()
    tab.locator("#start").click()
    expect(tab.locator("#run-state")).to_have_text("done")
    steps = [head.inner_text() for head in tab.locator("table.samples thead th").all()[1:]]
    tab.locator("table.samples tbody tr").first.locator("td button").last.click()
    box = tab.get_by_role("dialog", name="Compare samples")
    expect(box.locator("h2")).to_have_text("a fox, glyph style")
    chosen = "(select) => select.selectedOptions[0].textContent"
    left, right = box.get_by_label("Step of the left image"), box.get_by_label("Step of the right image")
    assert (left.evaluate(chosen), right.evaluate(chosen)) == (steps[0], steps[-1]) == ("base model", "step 100")
    tab.keyboard.press("ArrowLeft")
    assert right.evaluate(chosen) == steps[-2]
    tab.keyboard.press("ArrowDown")
    expect(box.locator("h2")).to_have_text("a tree, glyph style")
    left.select_option(label=steps[1])
    expect(box.locator("img").first).to_have_attribute("alt", f"a tree, glyph style, {steps[1]}")
    expect(box).to_contain_text("Seed 2.")
    box.get_by_role("button", name="Close").click()
    expect(box).to_have_count(0)
    assert window.errors == [] and window.outside == []


@pytest.mark.slow
def test_the_queue_is_reordered_and_cancelled_in_the_page(visit, served):
    served.engine.pause_queue()
    tab = visit().open()
    names = ["one", "two", "three"]
    for name in names:
        tab.locator("#field-saving-output-name textarea, #field-saving-output-name input").first.fill(name)
        tab.locator("#enqueue").click()
        expect(tab.locator("#said")).to_contain_text(f"Added to the queue: {name}")
    tab.get_by_role("tab", name="Monitor").click()
    tab.get_by_role("button", name="Move three up").click()
    expect(tab.get_by_role("button", name="Move two down")).to_be_disabled()
    tab.get_by_role("button", name="Cancel one").click()
    expect(tab.get_by_role("button", name="Cancel one")).to_have_count(0)
    waiting = [entry.title for entry in served.engine.queue() if entry.state == "waiting"]
    assert waiting == ["three", "two"]
    expect(tab.locator("#monitor .queue-words")).to_contain_text("Paused")
    tab.get_by_role("button", name="Resume queue").click()
    expect(tab.locator("#run-title")).to_have_text("three")


@pytest.mark.slow
def test_the_page_is_as_wide_on_every_tab_fits_800_pixels_keeps_light_and_dark_and_has_no_footer_and_no_web_font(visit):
    window = visit()
    tab = window.open()
    widths = set()
    for name in [button.inner_text() for button in tab.get_by_role("tab").all() if button.is_visible()]:
        tab.get_by_role("tab", name=name).first.click()
        expect(tab.get_by_role("tab", name=name).first).to_have_attribute("aria-selected", "true")
        tab.wait_for_timeout(150)
        widths.add(tab.evaluate("document.querySelector('#tabs').getBoundingClientRect().width"))
    assert len(widths) == 1
    tab.set_viewport_size({"width": 800, "height": 900})
    for name in ("Train", "Monitor"):
        tab.get_by_role("tab", name=name).first.click()
        expect(tab.get_by_role("tab", name=name).first).to_have_attribute("aria-selected", "true")
        assert until(lambda: tab.evaluate("document.documentElement.scrollWidth <= innerWidth")), f"{name} is too wide"
    before = tab.evaluate("document.body.classList.contains('dark')")
    tab.locator("#theme-toggle").click()
    assert tab.evaluate("document.body.classList.contains('dark')") is not before
    tab.reload()
    tab.wait_for_selector("body[data-atelier=ready]")
    assert tab.evaluate("document.body.classList.contains('dark')") is not before
    tab.locator("#theme-toggle").click()
    assert tab.locator("footer:visible").count() == 0
    assert tab.evaluate("getComputedStyle(document.body).fontFamily").startswith("system-ui")
    assert tab.evaluate("[...document.fonts].every(font => font.status !== 'loaded')")


def still(tab) -> None:
    """Until colors have stopped changing; what moves for ever changes no text."""
    ended = "each.playState !== 'running' || each.effect.getTiming().iterations > 99"
    tab.wait_for_function(f"document.getAnimations().every((each) => {ended})")


# Contrast by WCAG 2.1: 4.5 for texts (3 for large ones), measured on what stands on the screen.
CONTRAST = (Path(__file__).parent / "contrast.js").read_text("utf-8").split("*/", 1)[1]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_of_train_and_monitor_has_enough_contrast(visit, served, scheme):
    tab = visit(color_scheme=scheme).open()
    for group in ("network", "optimizer", "captions"):
        tab.locator(f"#group-{group} > button").click()
    tab.locator("#field-saving-output-name textarea, #field-saving-output-name input").first.fill("a/b")
    tab.keyboard.press("Tab")
    expect(tab.locator("#field-saving-output-name .field-error")).to_be_visible()
    tab.mouse.move(5, 5)
    still(tab)
    assert tab.evaluate(CONTRAST) == [], scheme
    served.page.project.load_preset("starter_lora")
    tab.get_by_role("tab", name="Monitor").first.click()
    expect(tab.locator("#monitor-run, #monitor-empty").and_(tab.locator(":visible")).first).to_be_visible()
    tab.wait_for_timeout(1300)  # two ticks on a quick machine; on a slow one less is seen, but nothing fails
    still(tab)
    assert tab.evaluate(CONTRAST) == [], scheme


@pytest.mark.slow
def test_validation_worst_images_and_norms_are_shown(visit, served):
    window = visit()
    tab = window.open()
    tab.locator("#start").click()
    expect(tab.locator("#loss-gap")).to_contain_text("on 3 validation images")
    expect(tab.locator("#loss-gap")).to_contain_text("Gap 0.0")
    tab.locator("#watch > summary").click()
    rows = tab.locator("#watch-images tbody tr")
    expect(rows).to_have_count(24)
    expect(rows.first).to_contain_text("glyph_0.png")
    expect(rows.first).to_contain_text("1.60")
    expect(tab.locator("#watch-words")).to_have_text("7 images with a high loss")
    expect(tab.locator("#watch-bands .band")).to_have_count(20)
    for name in ("corrected", "gradient", "weight"):
        expect(tab.locator(f"#{name}-chart path.line")).to_have_count(1)
    expect(tab.locator("#run-state")).to_have_text("done")  # the chart is no longer drawn anew while it is measured
    expect(tab.locator("#run-step")).to_have_text("step 100 of 100")
    box = tab.locator("#loss-chart").bounding_box()
    for line in tab.locator("#loss-chart path.line").all():  # held-out losses begin before the first step
        assert line.bounding_box()["x"] > box["x"] + 56, line.get_attribute("class")
    assert window.errors == []


@pytest.mark.slow
def test_an_axis_of_nothing_but_0_has_no_numbers_below_it(visit):
    window = visit()
    tab = window.open()
    levels = """() => {
      const holder = document.body.appendChild(document.createElement("div"));
      new atelier.Chart(holder, {label: "Effect"}).set({steps: [0], lines: [{name: "a", kind: "smooth", values: [0]}], total: 60});
      return [...holder.querySelectorAll("text.tick[text-anchor=end]")].map((tick) => Number(tick.textContent));
    }"""
    assert min(tab.evaluate(levels)) == 0
    assert window.errors == []
