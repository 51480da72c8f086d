"""The Monitor tab, the header and the frame in a real browser."""

from __future__ import annotations

import re

import pytest
from page_server import WATCH
from playwright.sync_api import expect

STILL = [
    "#run-actions [data-action=stop]",
    "#run-bar",
    "#run-stage",
    "#loss-chart",
    "#loss-gap",
    "#rate-chart",
    "#run-files",
    "#watch",
    "#samples",
    "#run-log-card",
    "#monitor .queue-pause",
    "#header-stop",
    "#theme-toggle",
]
ABOVE = [*STILL[:3], "#header-stop", "#theme-toggle"]  # the comparison, which comes when a run has ended


def test_a_started_run_is_watched_paused_and_resumed_survives_a_refresh_and_moves_nothing(window, served):
    served.engine.step_seconds = 0.5  # it must not end by itself, however slow the machine is
    served.engine.sample_every = 1000  # nor stand, when paused, at a step of which there are samples and files already
    tab = window.open()
    tab.locator("#start").click()
    expect(tab.locator("#run-state")).to_have_text("training")
    tab.evaluate(WATCH, STILL)
    expect(tab.locator("#run-step")).to_contain_text("of 100")
    expect(tab.locator("#header-job")).to_contain_text("s/step")
    expect(tab.locator("table.samples thead th").nth(1)).to_have_text("base model")
    expect(tab.locator("#loss-chart path.smooth")).to_have_attribute("d", re.compile("M.*L"))
    tab.get_by_role("button", name="Pause", exact=True).click()
    expect(tab.locator("#run-state")).to_have_text("paused")
    expect(tab.get_by_role("button", name="Resume", exact=True)).to_be_visible()
    expect(tab.get_by_role("button", name="Pause", exact=True)).to_have_count(0)
    step = tab.locator("#run-step").inner_text()
    samples = tab.locator("table.samples thead th").count()
    tab.get_by_role("button", name="Sample now").click()
    expect(tab.locator("table.samples thead th")).not_to_have_count(samples)
    files = tab.locator("#run-files a").count()
    tab.get_by_role("button", name="Save now").click()
    expect(tab.locator("#run-files a")).not_to_have_count(files)
    expect(tab.locator("#run-state")).to_have_text("paused")
    assert tab.evaluate("movedBy()") == {}
    tab.reload()
    tab.wait_for_selector("body[data-atelier=ready]")
    expect(tab.locator("#run-state")).to_have_text("paused")
    expect(tab.locator("#run-step")).to_have_text(step)
    tab.evaluate(WATCH, ABOVE)
    served.engine.step_seconds, served.engine.sample_every = 0.02, 20
    tab.get_by_role("button", name="Resume", exact=True).click()
    expect(tab.locator("#run-state")).to_have_text("done")
    expect(tab.locator("#loss-gap")).to_contain_text("Gap")
    assert tab.evaluate("movedBy()") == {}
    for each in tab.evaluate(AXES):
        assert len(each["ticks"]) >= 2 and len(set(each["ticks"])) == len(each["ticks"]), each
        assert each["names"] == ["step", "learning rate"]
    assert min(map(float, each["ticks"])) == 0, "an axis of nothing but 0 has no numbers below it"
    assert tab.evaluate(SAVED) == [[3, 3], [5, 0]], "triangles, and lines unless these are too near to see the values"


# What stands at the axes of charts whose values are nearly the same, far apart, large, or nothing but 0.
AXES = """() => [[0.00199, 0.00201], [2e-3, 2.0001e-3], [0.1, 0.9], [1000000, 1000001], [0.12345, 0.12346], [0, 0]].map((values) => {
  const holder = document.createElement("div");
  holder.style.cssText = "width: 400px; height: 200px";
  document.body.append(holder);
  const chart = new atelier.Chart(holder, {label: "Learning rate"});
  chart.set({steps: [1, 2], total: 2, lines: [{name: "rate", values, kind: "smooth"}]});
  const ticks = [...holder.querySelectorAll(".tick[text-anchor=end]")].map((one) => one.textContent);
  const names = [...holder.querySelectorAll(".axis-name")].map((one) => one.textContent);
  holder.remove();
  return {ticks, names};
})"""

# Triangles and lines of few, and of many saved files, one of them saved twice and out of order.
SAVED = """() => [[100, 200, 300], [10, 300, 20, 30, 20, 40]].map((markers) => {
  const holder = document.createElement("div");
  holder.style.cssText = "width: 400px; height: 200px";
  document.body.append(holder);
  const lines = [{name: "loss", values: [1, 2], kind: "smooth"}];
  new atelier.Chart(holder, {label: "Loss"}).set({steps: [1, 400], total: 400, lines, markers});
  const counts = [".marker-head", ".marker"].map((kind) => holder.querySelectorAll(kind).length);
  holder.remove();
  return counts;
})"""


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
    tab.set_viewport_size({"width": 683, "height": 860})
    at = """(button) => [...Array(60).keys()].map((letters) => {
      button.closest("li").querySelector(".hint").textContent = "m".repeat(letters);
      return button.getBoundingClientRect().x;
    })"""
    places = tab.locator("#monitor .queue-now [aria-label='Stop three']").evaluate(at)
    assert len(set(places)) == 1, "the buttons stay at the right, also in a line of their own"
    tab.get_by_role("button", name="Resume queue").click()
    expect(tab.locator("#run-title")).to_have_text("three")


@pytest.mark.slow
def test_samples_stand_while_a_run_goes_on_and_are_compared_and_what_is_measured_is_drawn(window, served):
    tab = window.open()
    tab.locator("#start").click()
    first = tab.locator("table.samples td img").first
    expect(first).to_be_visible()
    first.evaluate("(image) => { image.dataset.mine = 'yes'; }")
    expect(tab.locator("#loss-gap")).to_contain_text("on 3 validation images")
    expect(tab.locator("#run-state")).to_have_text("done")
    assert first.get_attribute("data-mine") == "yes"  # later columns have not drawn it again
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
    tab.locator("#watch > summary").click()
    rows = tab.locator("#watch-images tbody tr")
    expect(rows).to_have_count(24)
    expect(rows.first).to_contain_text("glyph_0.png")
    expect(rows.first).to_contain_text("1.60")
    expect(tab.locator("#watch-words")).to_have_text("7 images with a high loss")
    expect(tab.locator("#watch-bands .band")).to_have_count(20)
    for name in ("corrected", "gradient", "weight"):
        expect(tab.locator(f"#{name}-chart path.line")).to_have_count(1)
    expect(tab.locator("#run-step")).to_have_text("step 100 of 100")
    chart = tab.locator("#loss-chart").bounding_box()
    for line in tab.locator("#loss-chart path.line").all():  # held-out losses begin before the first step
        assert line.bounding_box()["x"] > chart["x"] + 56, line.get_attribute("class")


NOTHING = {"raw": [], "smooth": [], "steps": [], "saves": [], "total": 10, "run": ""}
NAN = {"steps": [0], "loss": [None], "train": [None], "gap": [None], "effect": [None], "images": 4, "on": "held_out"}


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_is_called_that(window):
    tab = window.open("Monitor")
    tab.evaluate("(data) => atelier.parts.loss(data)", NOTHING | {"validation": NAN})
    assert tab.locator("#loss-gap").text_content() == "Step 0: the loss on 4 held-out images is NaN or infinite."


@pytest.mark.slow
@pytest.mark.parametrize("values", [[None, None], [0, 0], [1e-14, 1], [1e-300, 1e300]])
def test_a_log_scale_has_a_few_labels_whatever_it_can_show(window, values):
    tab = window.open("Monitor")
    drawn = """(values) => { const holder = document.body.appendChild(document.createElement("div"));
    new atelier.Chart(holder, {label: "Loss", log: true}, {steps: [1, 2], lines: [{name: "loss", values, kind: "raw"}]});
    return new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(holder.querySelectorAll(".tick").length)))); }"""
    assert 2 < tab.evaluate(drawn, values) < 20


WAITING = {
    "device": "CPU", "memory_used": 1, "memory_total": 2, "job": None, "trained": None,
    "tool": "Check weights: glyphy, step 120", "waits": [{"id": "a", "title": "Check weights", "message": "waits"}],
}  # fmt: skip


@pytest.mark.slow
def test_what_waits_and_a_tool_at_work_stand_next_to_each_other_in_the_header(window):
    tab = window.open("Tools")
    for width in (800, 1366):
        tab.set_viewport_size({"width": width, "height": 800})
        edges = []
        for waits in ([], WAITING["waits"]):
            tab.evaluate("(status) => atelier.parts.status(status)", WAITING | {"waits": waits})
            tool, waiting = (tab.locator(f"#header-{name}").bounding_box() for name in ("idle", "waiting"))
            edges.append(tool["x"])
        first, second = sorted((tool, waiting), key=lambda box: box["x"])
        assert first["x"] + first["width"] <= second["x"], width
        assert edges[0] == edges[1], "what stands there does not move"
