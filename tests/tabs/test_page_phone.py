"""The page on a phone, 390 px wide and used by fingers: what is small, cut or out of reach there."""

from __future__ import annotations

import pytest
from axe_look import go
from filled import DONE, MARKS
from playwright.sync_api import expect

PHONE = {"width": 390, "height": 844}
# A finger that goes sideways over the image, by so many pixels.
SWIPE = """(views, right) => {
  const box = views.getBoundingClientRect(), more = {bubbles: true, isPrimary: true, pointerType: "touch", pointerId: 7};
  const at = (x) => ({...more, clientX: box.x + box.width / 2 + x, clientY: box.y + box.height / 2});
  views.dispatchEvent(new PointerEvent("pointerdown", at(0)));
  views.dispatchEvent(new PointerEvent("pointerup", at(right)));
}"""
LOW = """(selectors) => selectors.flatMap((selector) => [...document.querySelectorAll(selector)])
  .filter((node) => node.checkVisibility() && node.getBoundingClientRect().height < 31.9)
  .map((node) => node.outerHTML.slice(0, 120))"""

CUT = """(selector) => [...document.querySelectorAll(selector)]
  .filter((node) => node.checkVisibility() && (node.scrollWidth > node.clientWidth + 1
    || node.getBoundingClientRect().right > document.documentElement.clientWidth || node.getBoundingClientRect().left < 0))
  .map((node) => node.outerHTML.slice(0, 120))"""

BEYOND = """(selector) => [...document.querySelectorAll(selector)]
  .filter((node) => node.checkVisibility()
    && node.getBoundingClientRect().right > node.closest("section, .column").getBoundingClientRect().right)
  .map((node) => node.outerHTML.slice(0, 120))"""


@pytest.fixture
def tab(full, chromium):
    from page_server import Visit

    made = Visit(chromium, full.url, has_touch=True)
    made.tab.set_viewport_size(PHONE)
    yield made.open("Train")
    made.close()
    assert made.errors == []


@pytest.mark.slow
def test_a_phone_shows_results_in_its_whole_width_adds_to_the_queue_from_anywhere_and_two_images_a_row(tab):
    width = tab.evaluate("document.documentElement.clientWidth")
    start, queue = tab.locator("#start"), tab.locator("#enqueue")
    expect(queue).to_be_in_viewport(ratio=1)
    assert start.bounding_box()["x"] + start.bounding_box()["width"] <= queue.bounding_box()["x"]
    tab.locator("#field-search").fill("save every")
    results = tab.locator("#field-results")
    assert results.bounding_box()["width"] > 0.85 * width
    for part in results.locator("li *").all():
        box = part.bounding_box()
        assert box["x"] + box["width"] <= width and box["height"] < 30, "a name is in one line"
    go(tab, "Dataset", ".tiles .tile .says")
    one, two = (tab.locator(".tiles .tile").nth(n).bounding_box() for n in range(2))
    assert one["y"] == two["y"] and two["x"] > one["x"]


@pytest.mark.slow
def test_a_message_that_passes_covers_little_of_a_phone(tab):
    tab.evaluate(
        "atelier.say({id: 'x', kind: 'done', undo_by: 'requeue', text: "
        "'Loaded in Generate. The seed of its samples, 42, is set. Still set: Grid. Press Generate.'})"
    )
    assert tab.locator("#said").bounding_box()["height"] < 75


@pytest.mark.slow
def test_a_finger_goes_through_the_images_of_the_viewer_which_fits_a_phone_on_its_side(tab):
    go(tab, "Generate", MARKS["Generate"])
    tab.locator("#gen-gallery .tile .shot").first.click()
    box, views = tab.locator("dialog.viewer"), tab.locator("dialog.viewer .views")
    where = box.get_by_role("status")
    expect(where).to_contain_text("1 of")
    views.evaluate(SWIPE, -120)
    expect(where).to_contain_text("2 of")
    views.evaluate(SWIPE, 120)
    expect(where).to_contain_text("1 of")
    views.evaluate(SWIPE, 10)
    expect(where).to_contain_text("1 of")
    away, close = (box.get_by_role("button", name=name).bounding_box() for name in ("Move to trash", "Close"))
    assert away["y"] > close["y"] + close["height"]
    tab.set_viewport_size({"width": 844, "height": 390})
    expect(box).to_have_class("viewer narrow low")
    assert box.locator(".lens.main").bounding_box()["height"] > 300


@pytest.mark.slow
def test_names_are_whole_on_a_phone_and_what_fingers_press_is_high_enough(tab):
    job = tab.locator("#header-job")
    assert job.evaluate("(node) => node.scrollWidth <= node.clientWidth"), "how far the job is, with others that wait"
    go(tab, f"Monitor/{DONE}", "#run-actions button:not(.off)")
    assert tab.evaluate(LOW, ["#monitor .btn"]) == []
    tab.locator("#run-actions").get_by_role("button", name="Generate with it").click()
    name = tab.locator("#gen-loras li b").first
    expect(name).to_be_visible()
    steps = tab.locator("#gen-loras .lora-steps > summary").first.bounding_box()
    assert steps["y"] >= name.bounding_box()["y"] + name.bounding_box()["height"], "the name has its own row"
    assert tab.evaluate(LOW, ["#gen-loras :is(.btn, .word, summary, [type=number])"]) == []
    tab.locator("#gen-add [data-act=card_add][data-arg=grid]").click()
    expect(tab.locator("#grid-x-axis")).to_be_visible()
    assert tab.locator("#grid-x-axis").bounding_box()["width"] > 180
    for place in ("Train", "Dataset"):
        go(tab, place, MARKS[place])
        assert tab.evaluate(LOW, ["#preset-bar .btn", ".hold"]) == [], place


@pytest.mark.slow
def test_buttons_of_a_run_are_equally_high_and_the_arrow_of_a_fold_is_whole(tab):
    go(tab, "Monitor", "#run-actions .btn:not(.off)")
    assert len({button.bounding_box()["height"] for button in tab.locator("#run-actions .btn:not(.off)").all()}) == 1
    arrow = "(node) => ['width', 'height'].map((side) => getComputedStyle(node, '::before')[side])"
    for fold in tab.locator("#monitor details.fold > summary:visible").all():
        assert fold.evaluate(arrow) == ["6px", "6px"]


QUEUE = """() => {
  const same = {kind: "X/Y/Z grid", message: "", own: true, task: "generate", tab: "", by: ""};
  const titles = ["a fox", "a cat face in the snow, glyph style", "Grid: watercolors checkpoints"];
  const image = {small: "/favicon.ico", whole: "/favicon.ico"};
  const ended = titles.map((title, n) => ({...same, id: `e${n}`, state: "done", title, images: Array(2 * n).fill(image)}));
  const running = {id: "r", state: "running", title: "watercolors", doing: "step 28 of 120, 1:41 left", images: [], up: null, down: null};
  const entries = [{...same, ...running}];
  atelier.parts.queue({paused: false, why: "", interrupted: [], resumable: true, entries, ended});
  const card = [...document.querySelectorAll(".queue-card")].find((each) => each.checkVisibility());
  card.querySelector(".ended").open = true;
  const boxes = (selector, side) => [...card.querySelectorAll(selector)].map((node) => Math.round(node.getBoundingClientRect()[side]));
  const rows = boxes(".ended .queue li", "top");
  return {
    stop: boxes(".queue-now .slots", "right"), ends: boxes(".queue li", "right"), clear: boxes(".ended .queue li > .btn", "right"),
    below: boxes(".ended .queue li > .btn", "top").map((top, n) => top - rows[n]),
    images: boxes(".ended li:last-child .small-image", "top"),
  };
}"""


@pytest.mark.slow
def test_the_buttons_of_the_queue_are_at_the_right_and_the_images_of_a_job_in_one_line(tab):
    go(tab, "Runs", "#runs-queue .queue-card")
    found = tab.evaluate(QUEUE)
    assert {*found["stop"], *found["clear"]} == {*found["ends"]} and len({*found["ends"]}) == 1
    assert max(found["below"]) - min(found["below"]) <= 1, "Clear is in the first line of each job"
    assert len(found["images"]) == 4 and len({*found["images"]}) == 1


@pytest.mark.slow
def test_a_button_that_goes_with_its_answer_opens_no_keyboard(tab):
    go(tab, "Generate", MARKS["Generate"])
    gone = """() => {
      const button = document.createElement("button"), board = document.querySelector("#shelf-words").closest(".board");
      board.append(button);
      button.dispatchEvent(new MouseEvent("click", {bubbles: true, detail: 1}));  // a tap, not a key
      button.remove();
      atelier.goOn(board);
      return document.activeElement.id;
    }"""
    assert tab.evaluate(gone) == "shelf-model"


@pytest.mark.slow
@pytest.mark.parametrize("width", [260, 340])
def test_a_narrow_phone_and_one_at_150_percent_zoom_cut_no_button_off(tab, width):
    tab.set_viewport_size({"width": width, "height": 560})
    assert tab.evaluate(BEYOND, "#preset-bar > *") == []
    tab.evaluate("document.querySelectorAll('.group-count').forEach((node) => { node.textContent = '12 changed'; })")
    assert tab.evaluate(CUT, ".group-line") == []
    tab.locator("#preset-bar summary").click()
    assert tab.evaluate(CUT, "#preset-bar :is(.btn, .menu-items)") == []
    go(tab, "Monitor", "#run-actions .btn")
    assert tab.evaluate(CUT, "#run-actions .btn, .run-figures") == []
    assert tab.evaluate(
        "[...document.querySelectorAll('.legend i')].every((i) => i.parentElement.getClientRects().length < 2)"
    )
    assert tab.evaluate(BEYOND, "#monitor .queue-now .btn:not(.off)") == []
    go(tab, "Generate", "#gen-go, .gen-start .switch")
    assert tab.evaluate(CUT, ".gen-start .switch, .gen-row .own > span, .gen-adds .btn") == []
    go(tab, "Captions", "#cap-picks .pick")
    tab.get_by_role("button", name="Keys", exact=True).click()
    assert tab.locator("dl.keys dd").first.bounding_box()["width"] > 80
    tab.keyboard.press("Escape")
    go(tab, "Runs", "#runs-main .runs tbody .btn")
    assert tab.evaluate(CUT, "#runs-main .btn") == tab.evaluate(BEYOND, ".runs :is(.lowest, .badge)") == []
    go(tab, "Tools", "#tool-convert_lora-preset")
    assert tab.evaluate(CUT, ".tool-head .form-presets :is(select, .btn)") == []
